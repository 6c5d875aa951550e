"""`deepsweep clips`: the stretches that a query returns, cut out of their videos into files."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from queries.options import queries_option, results_option, split_param
from queries.text import escape_controls
from scanner import errors
from scanner.errors import UserError
from scanner.progress import Progress
from scanner.uris import join, redacted

if TYPE_CHECKING:  # loaded when work begins: `--help` must wait for neither DuckDB nor FFmpeg
    import duckdb

    from queries.run import NamedQuery
    from scanner.cut_files import Outcome
    from scanner.stretches import Stretch

DEFAULT_QUERY = "flagged"


@click.command("clips")
@click.argument("question", metavar="[NAME | SQL]", required=False)
@results_option
@click.option("--out", required=True, metavar="FOLDER", help="Where the files go: a folder or s3://bucket/prefix.")
@click.option("-p", "--param", "params", metavar="KEY=VALUE", multiple=True, help="A parameter of the query.")
@queries_option
@click.option(
    "--pad",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Cut so much before and after each stretch, too.",
)
@click.option(
    "--merge-gap",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="Make one of the stretches of a video that overlap or lie closer than this.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Cut the first so many stretches.")
@click.option("--reencode", is_flag=True, help="Encode anew (H.264, AAC) also what could be copied: exact times.")
@click.option("--subtitles", is_flag=True, help="Also an .srt for each video, marking the stretches in it.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def clips(
    question: str | None, results: str, out: str, params: tuple[str, ...], folders: tuple[Path, ...], **options: Any
) -> None:
    """Cut what a query returns out of the videos, into files to look at and to pass on.

    The query is the NAME of a prepared one, or SQL; it gives uri, t_start and t_end of each stretch. A prepared
    query that lists videos, as the default `flagged` does, stands for their flagged clips, or, where a video has
    none, for its highest scored one. Beside each file a .json says where it is from, which times it really holds,
    and what the query said of it.

    Packets are copied as they are where that can be played: such a file begins at the keyframe before the stretch.
    Otherwise the stretch is encoded anew. The same command again leaves finished files alone.

    \b
    The flagged clips of the ten most suspicious videos:
      deepsweep clips --results results --out evidence -p limit=10
    Of one folder, from a bucket into a bucket, with subtitles for the whole videos:
      deepsweep clips clips -p uri='*/2024/*' --results s3://archive/results --out s3://cases/17 --subtitles
    Any stretch that SQL can name, to the frame:
      deepsweep clips "SELECT uri, t_start, t_end, score FROM faces WHERE score > 0.9" --out faces --reencode

    \b
    Exit codes: 0 done, 2 usage, 3 some could not be cut, 4 storage or libraries, 5 nothing to cut,
    130 interrupted (finished files are kept).
    """
    code = run(question or DEFAULT_QUERY, results, out, dict(map(split_param, params)), folders, **options)
    sys.exit(code)


def run(
    question: str,
    results: str,
    out: str,
    params: Mapping[str, str],
    folders: Sequence[Path] = (),
    *,
    pad: float = 1.0,
    merge_gap: float = 0.5,
    limit: int | None = None,
    reencode: bool = False,
    subtitles: bool = False,
    quiet: bool = False,
) -> int:
    """Cut what the query returns and return the exit code. Raises UserError before anything is cut.

    folders: of the user's own named queries.
    """
    from queries.catalog import open_catalog
    from queries.run import load_queries
    from scanner.cut_files import Cutter, Order
    from scanner.storage import ensure_writable
    from scanner.stretches import merge

    if not math.isfinite(pad + merge_gap):  # click's ranges let nan through
        raise UserError("--pad and --merge-gap are seconds: give a number.")
    if not out:  # an unset variable: the current folder is not what was meant
        raise UserError("--out is empty: give it a folder or s3://bucket/prefix.")
    queries = load_queries(folders)
    with closing(open_catalog(results)) as connection:
        found, problems, rows = _ask(connection, question, params, queries)
        stretches = merge(found, merge_gap)[:limit]
        tags = _content_tags(connection, stretches)
        if not found and not problems:
            raise UserError(f"nothing to cut: {_why_empty(connection)}", errors.EXIT_NOTHING_TO_SCAN)
    ensure_writable(out)
    progress = _Progress(len(stretches), problems, quiet)
    with progress, Cutter(Order(out, pad, reencode, tags)) as cutter:
        for uri in dict.fromkeys(stretch.uri for stretch in stretches):
            of_video = [stretch for stretch in stretches if stretch.uri == uri]
            if subtitles:
                progress.subtitles(_write_subtitles(out, of_video, merge_gap))
            for outcome in cutter.cut_video(of_video):
                progress.take(outcome)
    for line in progress.complaints:
        click.echo(escape_controls(f"deepsweep: {line}"), err=True)
    if not quiet:
        click.echo(escape_controls(progress.summary(out)))
        click.echo(_more(question, params, rows, queries), nl=False)
    return errors.EXIT_SOME_FAILED if progress.failed else errors.EXIT_OK


def _write_subtitles(out: str, stretches: Sequence[Stretch], gap: float) -> str | None:
    """Mark the stretches of one video in a file of its own; a sentence where that fails."""
    from scanner.cut_files import WriteError, write_text
    from scanner.stretches import subtitle_name, subtitles

    try:
        write_text(join(out, subtitle_name(stretches[0].uri)), subtitles(stretches, gap))
    except WriteError as error:
        return str(error)
    return None


# --- asking -----------------------------------------------------------------------------------------------


def _ask(
    connection: duckdb.DuckDBPyConnection, question: str, params: Mapping[str, str], queries: Sequence[NamedQuery]
) -> tuple[list[Stretch], list[str], int]:
    """(stretches in the query's order, a sentence on each row that names none, rows that the query gave)."""
    from queries.formats import python_dates
    from queries.run import find_query, run_query
    from scanner.stretches import stretch_of

    answer = run_query(connection, question, params, queries=queries)
    columns = set(answer.schema.names)
    with closing(answer.batches), python_dates():
        rows = [row for batch in answer.batches for row in batch.to_pylist()]
    given = len(rows)
    if find_query(question, queries) and "uri" in columns and not columns & {"t_start", "t_end"}:
        rows = _flagged_clips(connection, rows)
    else:
        _check_columns(answer.schema)
    stretches, problems = [], []
    for number, row in enumerate(rows, 1):
        try:
            stretches.append(stretch_of(row))
        except ValueError as error:
            where = f" ({redacted(row['uri'])})" if row["uri"] else ""
            problems.append(f"row {number} of the query{where} names no stretch: {error}")
    return stretches, problems, given


def _check_columns(schema: Any) -> None:
    import pyarrow.types as t

    missing = [name for name in ("uri", "t_start", "t_end") if name not in schema.names]
    if missing:
        raise UserError(
            f"The query gives no {' and no '.join(missing)}, but {', '.join(schema.names)}. Let it give uri,"
            ' t_start and t_end, as in "SELECT uri, t_start, t_end, score FROM clips WHERE flagged".'
        )
    for name in ("t_start", "t_end"):
        kinds = [schema.types[i] for i in schema.get_all_field_indices(name)]
        if not all(t.is_integer(k) or t.is_floating(k) or t.is_decimal(k) or t.is_null(k) for k in kinds):
            raise UserError(f"{name} must be seconds of the video, a number; the query gives {kinds[0]}.")
    if not all(t.is_string(schema.types[i]) or t.is_null(schema.types[i]) for i in schema.get_all_field_indices("uri")):
        raise UserError(f"uri must be text; the query gives {schema.field(schema.get_field_index('uri')).type}.")


def _flagged_clips(connection: duckdb.DuckDBPyConnection, videos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The flagged clips of videos, or the highest scored one of each that has none; in the order of the videos."""
    about = {video["uri"]: {f"video_{key}": value for key, value in video.items() if key != "uri"} for video in videos}
    relation = connection.sql(
        """SELECT uri, face_id, t_start, t_end, score, cnn_score, flagged, x, y, w, h FROM clips
        WHERE uri IN (SELECT unnest($uris))
        QUALIFY flagged OR (
            NOT bool_or(flagged) OVER (PARTITION BY uri)
            AND row_number() OVER (PARTITION BY uri ORDER BY score DESC NULLS LAST, t_start, face_id) = 1
        )
        ORDER BY t_start, face_id""",
        params={"uris": list(about)},
    )
    clips_of: dict[str, list[dict[str, Any]]] = {uri: [] for uri in about}
    for row in relation.to_arrow_table().to_pylist():
        clips_of[row["uri"]].append(row | about[row["uri"]])
    return [row for rows in clips_of.values() for row in rows]


def _content_tags(connection: duckdb.DuckDBPyConnection, stretches: Sequence[Stretch]) -> dict[str, str]:
    uris = sorted({stretch.uri for stretch in stretches})
    sql = "SELECT uri, content_tag FROM videos WHERE content_tag <> '' AND uri IN (SELECT unnest($uris))"
    return dict(connection.execute(sql, {"uris": uris}).fetchall())


def _why_empty(connection: duckdb.DuckDBPyConnection) -> str:
    from queries.run import untrained_videos

    untrained, scored = untrained_videos(connection)
    if untrained:
        return f"the query returns no stretch, and an untrained model scored {untrained:,} of {scored:,} videos."
    return "the query returns no stretch."


def _more(question: str, params: Mapping[str, str], rows: int, queries: Sequence[NamedQuery]) -> str:
    """A line that tells of a prepared query's own limit, where it was reached."""
    from queries.run import find_query

    named = find_query(question, queries)
    default = next((str(p.default) for p in named.params if p.name == "limit"), None) if named else None
    limit = params.get("limit", default)
    return f"There may be more: raise -p limit={limit}.\n" if default and str(rows) == limit else ""


# --- what is told -----------------------------------------------------------------------------------------


class _Progress(Progress):
    """Counts stretches where a scan counts spans; keeps what went wrong for the end, where it can be read."""

    def __init__(self, stretches: int, problems: Sequence[str], quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self.complaints = list(problems)
        self.failed = len(problems)
        self.stretches, self.done, self.copied, self.encoded, self.kept, self.srt = stretches, 0, 0, 0, 0, 0
        self.size_bytes = 0
        self._changed: set[str] = set()
        self._start = time.monotonic()

    def take(self, outcome: Outcome) -> None:
        """Count a stretch that is through."""
        self.done += 1
        uri, sidecar = redacted(outcome.stretch.uri), outcome.sidecar
        if sidecar is None:
            self.failed += 1
            times = f"{outcome.stretch.t_start:.2f} to {outcome.stretch.t_end:.2f} s"
            reason = (outcome.error or "").removeprefix(f"{uri} ")
            self.complaints.append(f"{uri}, {times}: {reason}")
            return
        self.size_bytes += sidecar["size_bytes"]
        self.kept += outcome.kept
        self.copied += not outcome.kept and sidecar["method"] == "copy"
        self.encoded += not outcome.kept and sidecar["method"] != "copy"
        if sidecar["changed_since_scan"] and uri not in self._changed:
            self._changed.add(uri)
            self.complaints.append(f"{uri} has changed since it was scanned: the times may not fit it any more")

    def subtitles(self, problem: str | None) -> None:
        """Count a video's subtitles, or say why there are none."""
        if problem is None:
            self.srt += 1
        else:
            self.failed += 1
            self.complaints.append(problem)

    def line(self) -> str:
        """The status line."""
        elapsed = time.monotonic() - self._start
        left = _clock(elapsed / self.done * (self.stretches - self.done)) if self.done else "?"
        counts = f"{self.done:,}/{self.stretches:,} stretches · {self.failed:,} failed"
        return f"cutting: {counts} · {_clock(elapsed)}, {left} left"

    def summary(self, out: str) -> str:
        """What the run did, in a line."""
        files = self.copied + self.encoded + self.kept
        ways = ((self.copied, "copied"), (self.encoded, "encoded anew"), (self.kept, "there already"))
        how = ", ".join(f"{count:,} {way}" for count, way in ways if count)
        srt = f", {self.srt:,} subtitle file{'' if self.srt == 1 else 's'}" if self.srt else ""
        failed = f"; {self.failed:,} could not be cut" if self.failed else ""
        size = f" ({how}; {self.size_bytes / 1e6:,.1f} MB)" if how else ""
        took = _clock(time.monotonic() - self._start)
        return f"{files:,} clip{'' if files == 1 else 's'} in {out}{size}{srt}{failed}, {took}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
