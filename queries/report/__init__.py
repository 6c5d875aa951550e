"""`deepsweep report`: RESULTS as one HTML file that needs nothing else."""

from __future__ import annotations

import click

from queries.options import results_option
from scanner.errors import UserError

MAX_TOP = 500  # their evidence is held in memory while the page is made


@click.command("report")
@results_option
@click.option("--out", default="report.html", show_default=True, metavar="FILE", help="The file to write.")
@click.option(
    "--top",
    type=click.IntRange(0, MAX_TOP),
    default=50,
    show_default=True,
    help="How many videos carry pictures and plots.",
)
@click.option("--title", default="Deepfake scan", show_default=True, help="Heading of the page.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def report(results: str, out: str, top: int, title: str, quiet: bool) -> None:
    """Write one HTML page about the results: ranking, evidence, failures.

    The file holds everything it shows. It opens from disk, offline, in any current browser; nothing in it
    loads anything. At most 30 MB: the highest ranked videos carry pictures and plots, the others are rows.

    \b
    The morning's page:
      deepsweep report --results results --out monday.html
    From a bucket, with evidence on the 200 most suspicious videos:
      deepsweep report --results s3://archive/results --out report.html --top 200 --title "Archive, 2024"

    \b
    Exit codes: 0 written, 2 usage, or results that can't be read, 4 storage or libraries.
    """
    from scanner.uris import foreign_scheme, is_s3

    if is_s3(out) or foreign_scheme(out):
        raise UserError(
            f"The report is written to this machine, not to {out.split('://')[0]}://: give --out a file name."
        )

    from datetime import datetime, timezone
    from pathlib import Path

    from queries.report.data import read_findings
    from queries.report.page import report_page
    from scanner.storage import put_bytes

    try:
        if Path(out).is_dir():
            raise UserError(f"{out} is a folder: give --out a file name, such as {Path(out) / 'report.html'}.")
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise UserError(f"{out} could not be written: {error.strerror}.") from None
    findings = read_findings(results, top)
    page, shown = report_page(findings, title, datetime.now(timezone.utc))
    data = page.encode("utf-8")
    try:
        put_bytes(out, data)
    except OSError as error:
        raise UserError(f"{out} could not be written: {error.strerror}.") from None
    if not quiet:
        videos = findings.totals["videos"]
        click.echo(
            f"{out}: {videos:,} video{'' if videos == 1 else 's'}, {shown:,} with pictures and plots,"
            f" {len(data) / 1e6:.1f} MB. Open it in a browser.",
            err=True,
        )
        if shown < len(findings.evidence):
            click.echo(f"--top {top} was cut to {shown:,}, so that the page stays under 30 MB.", err=True)
