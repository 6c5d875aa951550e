"""`deepsweep query`: parse, ask, print."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from queries.formats import FORMATS, write_answer
from queries.run import NamedQuery, find_query, query_names, run_query, untrained_videos
from queries.text import escape_controls
from scanner.errors import UserError

_FORMAT_OF_SUFFIX = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".parquet": "parquet", ".md": "markdown"}


@click.command("query")
@click.argument("question", metavar="[NAME | SQL]", required=False)
@click.option(
    "--results",
    envvar="DEEPSWEEP_RESULTS",
    default="results",
    show_default=True,
    show_envvar=True,
    help="What `scan --out` wrote to: a folder or s3://bucket/prefix.",
)
@click.option("--format", "format_", type=click.Choice(FORMATS), help="Default: table, or by the name of --output.")
@click.option(
    "--output", type=click.Path(dir_okay=False), help="Write here instead of to the terminal, all or nothing."
)
@click.option("-p", "--param", "params", metavar="KEY=VALUE", multiple=True, help="A parameter of the query.")
@click.option("--list", "list_", is_flag=True, help="Show the named queries and their parameters.")
def query(
    question: str | None, results: str, format_: str | None, output: str | None, params: tuple[str, ...], list_: bool
) -> None:
    """Ask the results of a scan: by the NAME of a prepared query, or in SQL.

    SQL is DuckDB's, over the views videos, clips, frames, faces, signals, thumbnails, failures, runs and
    spans. It can only read.

    \b
    The most suspicious videos:
      deepsweep query flagged --results s3://archive/results
    Where in one folder, as CSV for a spreadsheet:
      deepsweep query clips -p uri='*/2024/*' -p limit=1000 --output clips.csv
    What failed, counted by reason:
      deepsweep query "SELECT status, count(*) FROM failures GROUP BY ALL"
    The columns of a view:
      deepsweep query "DESCRIBE videos"
    """
    if list_:
        click.echo(_listing())
        return
    if not question:
        raise UserError(f"Say what to ask: a named query or SQL.\n\n{_listing()}")
    named = find_query(question)
    values = dict(map(_split_param, params))
    format_ = format_ or _FORMAT_OF_SUFFIX.get(Path(output).suffix.lower() if output else "", "table")
    if format_ == "parquet" and not output:
        raise UserError("Parquet is not for a terminal or a pipe: name a file with --output.")

    from queries.catalog import open_catalog

    with closing(open_catalog(results)) as connection:
        answer = run_query(connection, question, values)
        if output:
            with _whole_file(Path(output)) as out:
                rows = write_answer(answer, format_, out)
        else:
            rows = write_answer(answer, format_, sys.stdout.buffer, terminal_width=_terminal_width())
        notes = [f"{rows:,} row{'' if rows == 1 else 's'}."] if output or format_ == "table" else []
        if named:
            notes += _limit_note(named, values, rows)
            notes += _untrained_note(*untrained_videos(connection)) if named.needs_verdicts else []
    if notes:
        click.echo(" ".join(notes), err=True)


def _listing() -> str:
    """The named queries with their parameters, for people."""
    lines = []
    for named in query_names():
        lines.append(f"{named.name:<15} {named.title}")
        lines += [f"{'':<15}   -p {p.name}={p.default}  {p.help}" for p in named.params]
    return "\n".join(lines)


def _split_param(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"-p takes key=value, not {escape_controls(text)!r}.")
    return key, value


def _limit_note(named: NamedQuery, values: dict[str, str], rows: int) -> list[str]:
    """Nobody may take the first rows for all of them."""
    default = next((str(p.default) for p in named.params if p.name == "limit"), None)
    limit = values.get("limit", default)
    return [f"There may be more: raise -p limit={limit}."] if default and rows and str(rows) == limit else []


def _untrained_note(untrained: int, scored: int) -> list[str]:
    if not untrained:
        return []
    share = "" if untrained == scored else f"{untrained:,} of {scored:,} videos were "
    return [f"{share}scored by an untrained model: no verdicts{' for them' if share else ''}."]


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """path, opened for writing: it appears, or replaces what was there, only once all is written."""
    temporary = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror}.") from None
    finally:
        temporary.unlink(missing_ok=True)
