"""`deepsweep evaluate`: scan labelled videos as users do, and report how well the verdicts fit the labels."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

import click

from scanner.config import ScanConfig
from scanner.errors import (
    EXIT_INTERRUPTED,
    EXIT_NOTHING_TO_SCAN,
    EXIT_OK,
    EXIT_PREFLIGHT,
    EXIT_SOME_FAILED,
    UserError,
)
from scanner.labels import LAYOUTS, Labelled, find_labelled

if TYPE_CHECKING:
    from models.evaluation import Judged, Report
    from models.spec import ModelSpec

_VIDEOS = """
    SELECT v.*, coalesce(c.scores, []) AS clips
    FROM videos AS v
    LEFT JOIN (
        SELECT uri, list(score ORDER BY t_start, face_id) AS scores FROM clips WHERE score IS NOT NULL GROUP BY uri
    ) AS c USING (uri)
"""


@click.command("evaluate")
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("--out", required=True, metavar="FOLDER", help="Folder for the report, its figures and the scan.")
@click.option(
    "--model",
    default=ScanConfig.model,
    show_default=True,
    metavar="NAME|DIR",
    help="Built-in model, or a folder with a model.json.",
)
@click.option("--layout", type=click.Choice(list(LAYOUTS)), help="How DATA is arranged [default: found out].")
@click.option("--limit", type=click.IntRange(min=2), help="Only so many videos, real and fake in equal parts.")
@click.option(
    "--reencode", "crf", type=click.IntRange(0, 51), metavar="CRF", help="Judge copies, too: H.264 at this CRF."
)
@click.option(
    "--bootstrap",
    "resamples",
    type=click.IntRange(0, 100_000),
    default=1000,
    show_default=True,
    help="Resamples behind the intervals; 0: no intervals.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of --limit and --bootstrap.")
@click.option("--address", metavar="ADDRESS", help="Ray cluster, as for scan [default: start Ray here].")
@click.option("--retry-failed", is_flag=True, help="Scan videos again that failed before.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def evaluate(
    data: tuple[str, ...],
    out: str,
    model: str,
    layout: str | None,
    limit: int | None,
    crf: int | None,
    resamples: int,
    seed: int,
    address: str | None,
    retry_failed: bool,
    quiet: bool,
) -> None:
    """Measure a model on labelled videos.

    DATA is the root of FaceForensics++, Celeb-DF, DFDC or DeeperForensics, a folder that holds real/ and fake/,
    or one with a manifest.csv (columns file, label, and if known method, source, group). Its videos are scanned as
    `scan` does, into FOLDER/results; the same command again goes on where it was interrupted.

    FOLDER gets report.md and report.json: AUC, EER, AP, log-loss, Brier score, ECE and true-positive rates with
    95 % intervals, per video and per clip, overall, per method and per source, beside what file metadata alone
    would give; and roc.png, reliability.png, scores.png.

    \b
    The literature's table of FaceForensics++:
      deepsweep evaluate FaceForensics++ --model my-model --out report
    A first look at 100 videos of two data sets:
      deepsweep evaluate Celeb-DF-v2 dfdc_train_part_0 --model my-model --out look --limit 100
    Does it hold after another platform's encoder?
      deepsweep evaluate my-videos --model my-model --out report --reencode 35

    Exit codes are those of scan: 3 if some videos failed, and they are named in the report.
    """
    spec = _trained(model)
    items = _videos_of(data, layout, limit, seed)
    folder = _folder(out)
    scans = _Scans(folder, spec, ScanConfig(model=model, address=address, retry_failed=retry_failed, quiet=quiet))
    from models.evaluation import evaluate as report_on

    rows = scans.rows([item.uri for item in items], "results")
    judged = [_judged(item, rows.get(item.uri)) for item in items]
    scored = [(item, row) for item, row in zip(items, judged, strict=True) if row.score is not None]
    again = [] if crf is None else _judge_copies(scored, rows, crf, scans)
    report = report_on(
        judged,
        model=spec.label,
        model_digest=spec.digest,
        thresholds=spec.thresholds,
        resamples=resamples,
        seed=seed,
        copies=again,
        crf=crf,
    )
    _write(report, folder)
    if not quiet:
        _print(report, folder)
    from scanner.results import FAILED, Status

    sys.exit(EXIT_SOME_FAILED if any(Status(row.status) in FAILED for row in judged) else EXIT_OK)


@dataclass(frozen=True)
class _Item:
    """A labelled video, and its URI as results name it."""

    uri: str
    truth: Labelled


@dataclass(frozen=True)
class _Scans:
    """The scans of one evaluation: where they lie, and their settings."""

    folder: Path
    spec: ModelSpec
    config: ScanConfig

    def rows(self, uris: Sequence[str], name: str) -> dict[str, dict[str, Any]]:
        """Scan videos into the folder `name`; the rows of all videos there, by URI."""
        if uris:
            from scanner.scan import scan

            manifest = _write_manifest(self.folder / f"{name}.csv", uris)
            # The scan's own table is about flagged clips; its progress goes to stderr and stays.
            with contextlib.redirect_stdout(io.StringIO()):
                code = scan(replace(self.config, sources=(str(manifest),), out=str(self.folder / name)))
            if code in (EXIT_INTERRUPTED, EXIT_PREFLIGHT):  # not all of them were scanned, and it has said why
                sys.exit(code)
        return _read(self.folder / name) if (self.folder / name).is_dir() else {}


# --- what is evaluated --------------------------------------------------------------------------------------------


def _trained(model: str) -> ModelSpec:
    """The spec of a model that gives scores. Raises UserError."""
    from models.registry import ModelError, load_spec

    try:
        spec = load_spec(model)
    except ModelError as error:
        raise UserError(str(error)) from None
    if not spec.trained:
        raise UserError(
            f"model {model!r} is untrained: it gives no scores, so there is nothing to measure. Name a trained one"
            " with --model."
        )
    return spec


def _videos_of(folders: Sequence[str], layout: str | None, limit: int | None, seed: int) -> list[_Item]:
    """The labelled videos of all folders, each once; of --limit ones, real and fake in equal parts."""
    found: dict[str, _Item] = {}
    names: dict[str, str] = {}
    for folder in folders:
        for item in find_labelled(folder, layout):
            if item.kind != "video":
                continue
            uri = _uri(item.path)
            if uri not in found and item.uri in names:
                raise UserError(
                    f"{names[item.uri]} and {uri} would have the same name in the report ({item.uri}): rename one of"
                    " the folders, or evaluate them one at a time."
                )
            if found.setdefault(uri, _Item(uri, item)).truth.label != item.label:
                raise UserError(f"{uri} is called real in one place and fake in another. Mend its labels.")
            names[item.uri] = uri
    if not found:
        raise UserError(f"there is no labelled video in {' '.join(folders)}.", EXIT_NOTHING_TO_SCAN)
    items = list(found.values())
    for label in ("real", "fake"):
        if not any(item.truth.label == label for item in items):
            raise UserError(f"all videos of {' '.join(folders)} have one label: none is {label}. Add some that are.")
    return items if limit is None else _sample(items, limit, seed)


def _sample(items: Sequence[_Item], limit: int, seed: int) -> list[_Item]:
    """At most `limit` items, half of each label where there are enough, in their order; drawn by seed and name."""

    def lot(item: _Item) -> str:
        return hashlib.sha256(f"{seed}\0{item.truth.uri}".encode()).hexdigest()

    reals, fakes = (sorted((i for i in items if i.truth.label == label), key=lot) for label in ("real", "fake"))
    fakes = fakes[: max(limit // 2, limit - len(reals))]
    kept = {item.uri for item in (*fakes, *reals[: limit - len(fakes)])}
    return [item for item in items if item.uri in kept]


def _uri(path: str) -> str:
    from scanner.manifests import resolve

    return resolve(_quoted(path), "").uri


def _quoted(path: str) -> str:
    """A path as a manifest holds it whatever bytes it is made of."""
    return path if path.startswith("file://") else "file://" + quote_from_bytes(os.fsencode(path))


def _folder(out: str) -> Path:
    from scanner.storage import ensure_writable
    from scanner.uris import is_s3

    if is_s3(out):
        raise UserError("--out must be a folder on this machine.")
    ensure_writable(out)
    return Path(out).absolute()


def _write_manifest(path: Path, uris: Iterable[str]) -> Path:
    from scanner.storage import put_bytes

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["uri"], *([_quoted(uri)] for uri in uris)])
    put_bytes(str(path), text.getvalue().encode())
    return path


# --- what the scan said -------------------------------------------------------------------------------------------


def _read(results: Path) -> dict[str, dict[str, Any]]:
    """URI → the video's row, with the scores of its clips."""
    from queries.catalog import open_catalog

    with contextlib.closing(open_catalog(str(results))) as catalog:
        answer = catalog.execute(_VIDEOS)
        names = [column[0] for column in answer.description or ()]
        return {row["uri"]: row for row in (dict(zip(names, values, strict=True)) for values in answer.fetchall())}


def _judged(item: _Item, row: dict[str, Any] | None) -> Judged:
    from models.baseline import Container
    from models.evaluation import Judged
    from scanner.results import Status

    truth = item.truth
    # An identity is the person or recording that is shown. Layouts join into one `group` all whom any fake ties
    # together, which is right for splits; but all of Celeb-DF is one such group, and no interval comes from one.
    known = Judged(
        uri=truth.uri,
        label=truth.label,
        method=truth.method,
        source=truth.source,
        group=truth.identities[0] if truth.identities else truth.group,
        status=Status.MISSING.value,
        error="the scan has no row of it",
    )
    if row is None:
        return known
    return replace(
        known,
        status=row["status"],
        error=row["error"],
        score=row["score"],
        cnn_score=row["cnn_score"],
        verdict=row["verdict"],
        clips=tuple(row["clips"]) if row["score"] is not None else (),
        container=Container(**{k: row[k] for k in ("size_bytes", "duration_s", "width", "height", "fps", "codec")}),
    )


# --- copies -------------------------------------------------------------------------------------------------------


def _judge_copies(
    scored: Sequence[tuple[_Item, Judged]], rows: dict[str, dict[str, Any]], crf: int, scans: _Scans
) -> list[Judged]:
    """Re-encode, scan and judge the videos that were judged. Copies are deleted once they are scanned."""
    from scanner.reencode import make_copies
    from scanner.results import FAILED, Status
    from scanner.uris import local_path

    name, copies = f"results-crf{crf}", scans.folder / f"copies-crf{crf}"
    copies.mkdir(exist_ok=True)
    copy_of = {item.uri: copies / _copy_name(rows[item.uri]) for item, _ in scored}
    uri_of = {uri: _uri(str(copy)) for uri, copy in copy_of.items()}
    known = scans.rows([], name)
    again = FAILED if scans.config.retry_failed else frozenset()
    done = {
        uri
        for uri, row in known.items()
        if row["model_digest"] == scans.spec.digest and not row["pending_spans"] and Status(row["status"]) not in again
    }
    todo = [item.uri for item, _ in scored if uri_of[item.uri] not in done]
    path_of = {uri: str(local_path(uri)) for uri in todo}
    seconds = {uri: rows[uri]["duration_s"] or 0.0 for uri in todo}
    if todo and not scans.config.quiet:
        click.echo(f"re-encoding {len(todo):,} videos at CRF {crf}", err=True)
    lost = make_copies({path_of[uri]: (copy_of[uri], seconds[uri]) for uri in todo}, crf)
    known = scans.rows([uri_of[uri] for uri in todo if path_of[uri] not in lost], name)
    shutil.rmtree(copies)
    judged = []
    for item, row in scored:
        status, error = lost.get(path_of.get(item.uri, ""), (None, None))
        if status is None:
            judged.append(_judged(item, known.get(uri_of[item.uri])))
        else:
            judged.append(replace(row, status=status.value, error=error, score=None, verdict=None, clips=()))
    return judged


def _copy_name(row: dict[str, Any]) -> str:
    """The same for the same version of a video, so that its copy's row is found again when the copy is gone."""
    key = f"{row['uri']}\0{row['content_tag']}"
    return hashlib.sha256(key.encode()).hexdigest()[:24] + ".mp4"


# --- what comes out -----------------------------------------------------------------------------------------------


def _write(report: Report, folder: Path) -> None:
    from models.evaluation import report_json
    from models.evaluation_text import report_markdown
    from models.figures import draw_figures
    from scanner.storage import put_bytes

    files = {"report.json": report_json(report).encode(), "report.md": report_markdown(report).encode()}
    for name, data in (files | draw_figures(report)).items():
        put_bytes(str(folder / name), data)


def _print(report: Report, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from models.evaluation_text import auc_by_method, baseline_table, overall_table
    from queries.text import escape_controls
    from scanner.summary import PIPED_WIDTH

    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    for rows in (overall_table(report), auc_by_method(report), baseline_table(report)):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(rows[0]):
            table.add_column(Text(escape_controls(name)), justify="right" if index else "left")
        for row in rows[1:]:
            table.add_row(*(Text(escape_controls(cell)) for cell in row))
        console.print(table)
        console.print()
    if report.not_judged:
        count = len(report.not_judged)
        console.print(f"{count:,} video{'' if count == 1 else 's'} could not be judged: the report names them.")
    console.print(
        Text(f"Report: {folder / 'report.md'}   Look at videos: deepsweep query --results {folder / 'results'}")
    )
