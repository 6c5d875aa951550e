"""`deepsweep inspect`: one video, its verdict card, and a folder of evidence."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from queries.text import escape_controls
from scanner import errors
from scanner.cli import setting_options
from scanner.config import ScanConfig, load_config_file

if TYPE_CHECKING:
    from scanner.inspect_progress import Progress

#: Settings of a scan that mean something for one video on this machine.
SETTINGS = frozenset(
    {"model", "threshold", "fps", "clip_frames", "span_seconds", "thumbnails", "fail_on_flag", "quiet"}
    | {"max_video_size", "max_video_seconds", "span_timeout", "memory_limit", "scratch", "scratch_size"}
)


@click.command()
@click.argument("video", metavar="VIDEO")
@click.option("--out", metavar="FOLDER", help="Where the files go  [default: VIDEO's name with .inspect, here]")
@click.option("--overlay", is_flag=True, help="Also a copy of the video with boxes, scores and heatmaps drawn in.")
@click.option("--json", "as_json", is_flag=True, help="Print verdict.json instead of the card.")
@click.option("--force", is_flag=True, help="Write into a folder that holds something else.")
@setting_options(SETTINGS)
def inspect(
    video: str,
    out: str | None,
    overlay: bool,
    as_json: bool,
    force: bool,
    config_file: str | None,
    **options: Any,
) -> None:
    """Look closely at one video: verdict, evidence, plots.

    VIDEO is a file or s3://bucket/key. It goes through the stages of a scan, with the same settings, in this
    process and without Ray, so the numbers are those that a scan gives. The folder gets verdict.json, plots of
    scores, eye aspect ratio with blinks, and facial motion, and what the network looked at (gradcam/).

    \b
    One file; the evidence lands in talk.inspect/:
      deepsweep inspect talk.mp4
    From a bucket, with the video to show to others:
      deepsweep inspect s3://archive/2024/talk.mp4 --overlay --out evidence/talk
    In a script:
      deepsweep inspect talk.mp4 --json | jq '.verdict, .score'

    \b
    Exit codes: 0 done, 1 flagged (with --fail-on-flag), 2 usage, 3 the video (or its overlay) failed,
    4 storage or libraries, 130 interrupted.
    """
    given = {name: value for name, value in options.items() if value is not None}
    settings = {name: value for name, value in load_config_file(config_file).items() if name in SETTINGS}
    config = ScanConfig(**(settings | given))
    code = run(video, config, out=out, overlay=overlay, as_json=as_json, force=force)
    sys.exit(code)


def run(
    source: str, config: ScanConfig, *, out: str | None, overlay: bool, as_json: bool = False, force: bool = False
) -> int:
    """Inspect a video, write the folder, print the card; the exit code. Raises UserError."""
    from scanner.inspect import find_video, inspect_video
    from scanner.inspect_card import print_card, terminal
    from scanner.inspect_files import OVERLAY, default_folder, writable_folder, write_files
    from scanner.scan import sigterm_interrupts

    uri = find_video(source).uri
    with writable_folder(out or default_folder(source), uri, force) as folder, sigterm_interrupts():
        with _progress_bar(shown=not (config.quiet or as_json)) as on_progress:
            found = inspect_video(source, config, on_progress, folder / OVERLAY if overlay else None)
        names = write_files(folder, found, overlay=overlay and found.overlay_error is None)
    if found.overlay_error:
        click.echo(escape_controls(f"deepsweep: no overlay video: {found.overlay_error}"), err=True)
    elif overlay:
        names.append(OVERLAY)
    if as_json:
        click.echo(json.dumps(found.verdict(), indent=1, allow_nan=False))
    elif not config.quiet:
        print_card(found, terminal())
        click.echo(escape_controls(f"{folder}/: {_listed(names)}"))
    if config.fail_on_flag and found.video["flagged_clips"]:
        return errors.EXIT_FLAGGED
    return errors.EXIT_SOME_FAILED if found.failed or found.overlay_error else errors.EXIT_OK


def _listed(names: list[str]) -> str:
    """The files, with a folder's as one."""
    plain = [name for name in names if "/" not in name]
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    inside = [f"{folder}/ ({sum(name.startswith(f'{folder}/') for name in names)} pictures)" for folder in folders]
    return ", ".join([*plain, *inside])


@contextlib.contextmanager
def _progress_bar(shown: bool) -> Iterator[Progress | None]:
    """A bar on stderr, where that is a terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)
