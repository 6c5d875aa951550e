"""`deepsweep query`: parse, ask, print."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from queries.formats import FORMATS, write_answer
from queries.options import queries_option, results_option, split_param
from queries.run import Answer, NamedQuery, find_query, first_rows, load_queries, run_query, untrained_videos
from queries.stopping import stoppable
from queries.text import escape_controls
from scanner.errors import UserError

if TYPE_CHECKING:
    import duckdb

_FORMAT_OF_SUFFIX = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".parquet": "parquet", ".md": "markdown"}


@click.command("query")
@click.argument("question", metavar="[NAME | SQL]", required=False)
@results_option
@click.option("--format", "format_", type=click.Choice(FORMATS), help="Default: table, or by the name of --output.")
@click.option(
    "--output", type=click.Path(dir_okay=False), help="Write here instead of to the terminal, all or nothing."
)
@click.option("-p", "--param", "params", metavar="KEY=VALUE", multiple=True, help="A parameter of the query.")
@click.option("--list", "list_", is_flag=True, help="Show the named queries and their parameters.")
@queries_option
@click.option("--shell", is_flag=True, help="Open a prompt for many questions; it also reads them from a pipe.")
@click.option("--unsafe", is_flag=True, help="Let the SQL write, read any file, load extensions and change settings.")
def query(
    question: str | None,
    results: str,
    format_: str | None,
    output: str | None,
    params: tuple[str, ...],
    list_: bool,
    folders: tuple[Path, ...],
    shell: bool,
    unsafe: bool,
) -> None:
    """Ask the results of a scan: by the NAME of a prepared query, or in SQL.

    SQL is DuckDB's, over the views videos, clips, frames, faces, signals, thumbnails, failures, runs, spans
    and reviews. It can only read.

    \b
    The most suspicious videos:
      deepsweep query flagged --results s3://archive/results
    Where in one folder, as CSV for a spreadsheet:
      deepsweep query clips -p uri='*/2024/*' -p limit=1000 --output clips.csv
    What failed, counted by reason:
      deepsweep query "SELECT status, count(*) FROM failures GROUP BY ALL"
    The columns of a view:
      deepsweep query "DESCRIBE videos"
    A question of your own, kept in ~/sweep/nightly.sql:
      deepsweep query nightly --queries ~/sweep
    """
    queries = load_queries(folders)
    if list_:
        click.echo(listing(queries))
        return
    if shell and (question or output or params):
        raise UserError("--shell asks its questions itself: leave out the question, -p and --output.")
    if not question and not shell:
        click.echo(listing(queries), err=True)
        raise UserError("Say what to ask: a named query, as listed above, or SQL.")
    if question:
        find_query(question, queries)  # a wrong name needs no results to be told
    values = dict(map(split_param, params))
    format_ = format_ or _FORMAT_OF_SUFFIX.get(Path(output).suffix.lower() if output else "", "table")
    if format_ == "parquet" and not output:
        raise UserError("Parquet is not for a terminal or a pipe: name a file with --output.")

    from queries.catalog import open_catalog

    if unsafe:
        click.echo("deepsweep: --unsafe: this SQL can read, write and delete whatever you can.", err=True)
    with closing(open_catalog(results, unsafe=unsafe)) as connection:
        asker = _Asker(connection, queries, format_, unsafe)
        if question:
            asker.ask(question, values, output)
            return
        from queries.shell import run_shell

        run_shell(connection, queries, asker.ask)


@dataclass(frozen=True)
class _Asker:
    """Answers questions to one catalog, in one format."""

    connection: duckdb.DuckDBPyConnection
    queries: Sequence[NamedQuery]
    format: str
    unsafe: bool

    def ask(self, question: str, values: Mapping[str, str], output: str | None = None, most: int | None = None) -> None:
        """Write the answer to output or stdout, and what must be known of it to stderr.

        most: show no more rows than this in a table, which is held in memory.
        """
        named = find_query(question, self.queries)
        cut = most if most and self.format == "table" else None
        with stoppable(self.connection):
            answer = run_query(self.connection, question, values, queries=self.queries, unsafe=self.unsafe)
            if not answer.schema.names:
                return
            with closing(answer.batches):
                rows = self._write(first_rows(answer, cut) if cut else answer, output)
        notes = [f"{rows:,} row{'' if rows == 1 else 's'}."] if output or self.format == "table" else []
        notes += [f"There may be more: the prompt shows {cut:,}."] if rows == cut else []
        if named:
            notes += _limit_note(named, values, rows)
            notes += _untrained_note(*untrained_videos(self.connection)) if named.needs_verdicts else []
        if notes:
            click.echo(" ".join(notes), err=True)

    def _write(self, answer: Answer, output: str | None) -> int:
        if output:
            with _whole_file(Path(output)) as out:
                return write_answer(answer, self.format, out)
        sys.stdout.flush()
        return write_answer(answer, self.format, sys.stdout.buffer, terminal_width=_terminal_width())


def listing(queries: Sequence[NamedQuery]) -> str:
    """The named queries with their parameters, for people; those of a folder of the user's under its name."""
    width = max(15, *(len(named.name) for named in queries))
    lines, folder = [], None
    for named in queries:
        if named.folder != folder:
            folder = named.folder
            lines += ["", f"{folder}:"]
        lines.append(f"{named.name:<{width}} {named.title}".rstrip())
        lines += [f"{'':<{width}}   -p {p.name}={p.default}  {p.help}".rstrip() for p in named.params]
    return "\n".join(map(escape_controls, lines))


def _limit_note(named: NamedQuery, values: Mapping[str, str], rows: int) -> list[str]:
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
