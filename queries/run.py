"""Questions to a catalog: the named queries of sql/, free SQL, and their parameters."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, TypeAlias

from scanner.errors import UserError

if TYPE_CHECKING:  # `query --list` and `query --help` need neither
    import duckdb
    import pyarrow as pa

Value: TypeAlias = "int | float | str | None"

#: Rows handed on at a time. Small, because rows of `thumbnails` carry two pictures.
BATCH_ROWS = 4096

VIEWS = ("videos", "clips", "frames", "faces", "signals", "thumbnails", "failures", "runs", "spans")

_PARAM = re.compile(r"-- param (\w+) = (\S+)  (.+)")


@dataclass(frozen=True)
class Param:
    """A parameter of a named query. The type of its default is the type it takes."""

    name: str
    default: Value
    help: str


@dataclass(frozen=True)
class NamedQuery:
    """One file of sql/. needs_verdicts: says nothing of videos that an untrained model scored."""

    name: str
    title: str
    params: tuple[Param, ...]
    needs_verdicts: bool
    sql: str


@dataclass(frozen=True)
class Answer:
    """Rows as they come. `batches` can be read once, and raises UserError when reading fails half-way."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@cache
def query_names() -> list[NamedQuery]:
    """The named queries, by name."""
    files = (resources.files("queries") / "sql").iterdir()
    found = [_parse(f.name.removesuffix(".sql"), f.read_text("utf-8")) for f in files if f.name.endswith(".sql")]
    return sorted((q for q in found if q.name != "views"), key=lambda q: q.name)


def _parse(name: str, text: str) -> NamedQuery:
    """A named query from its file: `-- title`, `-- param name = default  help`, `-- needs verdicts`, SQL."""
    lines = text.splitlines()
    params = tuple(Param(match[1], json.loads(match[2]), match[3]) for match in map(_PARAM.fullmatch, lines) if match)
    return NamedQuery(name, lines[0].removeprefix("-- "), params, "-- needs verdicts" in lines, text)


def find_query(text: str) -> NamedQuery | None:
    """The named query that text names; None when text is SQL. UserError for a name that there is not."""
    names = {query.name: query for query in query_names()}
    if text in names:
        return names[text]
    if not re.fullmatch(r"[\w.-]+", text.strip()):
        return None
    if text in VIEWS:
        raise UserError(f'{text} is a view, not a named query. Ask for rows of it: "FROM {text} LIMIT 20".')
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UserError(f"There is no query named {text}. {hint}There are: {', '.join(names)}.")


def run_query(connection: duckdb.DuckDBPyConnection, text: str, params: Mapping[str, str] | None = None) -> Answer:
    """Ask a named query, or one SELECT, EXPLAIN, DESCRIBE or SHOW.

    params: values as typed by the user, for `$name` in the SQL. Those of a named query have defaults.
    Raises UserError for an unknown name or parameter, for any other statement, and with DuckDB's reason.
    """
    import duckdb

    query = find_query(text)
    sql = query.sql if query else text
    names, explains = _check_statement(sql)
    given = params or {}
    values = _named_values(query, given) if query else _free_values(names, given)
    try:
        relation = connection.sql(sql, params={name: values[name] for name in names})
        if explains:
            return _plan("\n".join(row[1] for row in relation.fetchall()))
        reader = relation.to_arrow_reader(BATCH_ROWS)
        return Answer(reader.schema, _batches(reader))
    except duckdb.Error as error:
        raise _user_error(error) from None


def untrained_videos(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """(videos that an untrained model scored, all videos that were scored)."""
    row = connection.execute(
        "SELECT count(*) FILTER (model = 'untrained'), count(*) FROM videos WHERE status = 'ok'"
    ).fetchone()
    assert row is not None  # an aggregate without groups is one row
    return row


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    import duckdb
    import pyarrow as pa

    try:
        yield from reader
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _user_error(error) from None


def _plan(text: str) -> Answer:
    """What EXPLAIN says, a row per line: in one cell it could not be read."""
    import pyarrow as pa

    table = pa.table({"plan": text.splitlines()})
    return Answer(table.schema, iter(table.to_batches()))


def _check_statement(sql: str) -> tuple[set[str], bool]:
    """Names of the parameters of the one reading statement in sql, and whether it is an EXPLAIN.

    UserError for anything else.
    """
    import duckdb

    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise _user_error(error) from None
    if len(statements) != 1:
        problem = "There is no SQL statement in this." if not statements else "This holds several SQL statements."
        raise UserError(f"{problem} Give one.")
    explains = statements[0].type == duckdb.StatementType.EXPLAIN
    if explains:
        _check_explained(sql)
    elif statements[0].type != duckdb.StatementType.SELECT:  # DESCRIBE, SHOW, SUMMARIZE, VALUES are of this type
        raise UserError("Results are only read: give a SELECT, EXPLAIN, DESCRIBE or SHOW.")
    return set(statements[0].named_parameters), explains


def _check_explained(sql: str) -> None:
    """EXPLAIN ANALYZE carries out what it explains, so that must be a reading statement, too."""
    import duckdb

    tokens = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    for start in tokens[1:]:
        rest = sql.encode()[start:].decode()
        try:
            explained = duckdb.extract_statements(rest)
        except duckdb.Error:
            continue  # still in the options of EXPLAIN
        if explained[0].type == duckdb.StatementType.SELECT:
            return
        break
    raise UserError("Results are only read: EXPLAIN explains a SELECT.")


def _named_values(query: NamedQuery, given: Mapping[str, str]) -> dict[str, Value]:
    declared = {param.name: param for param in query.params}
    _refuse_unknown(given, list(declared), query.name)
    return {name: _typed(param, given[name]) if name in given else param.default for name, param in declared.items()}


def _typed(param: Param, text: str) -> Value:
    kind = type(param.default)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise UserError(f"-p {param.name} takes {wanted}, not {text!r}: {param.help}.") from None


def _free_values(names: set[str], given: Mapping[str, str]) -> dict[str, Value]:
    _refuse_unknown(given, sorted(names), "this SQL")
    missing = sorted(names - given.keys())
    if missing:
        raise UserError(f"The SQL uses ${missing[0]}: give it a value with -p {missing[0]}=...")
    return {name: _literal(text) for name, text in given.items()}


def _refuse_unknown(given: Mapping[str, str], known: list[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            takes = f"Did you mean {near[0]}?" if near else f"It takes: {', '.join(known) or 'none'}."
            raise UserError(f"{where} has no parameter {name}. {takes}")


def _literal(text: str) -> Value:
    """A number where text is one, else the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _user_error(error: Exception) -> UserError:
    from queries.text import one_sentence

    return UserError(one_sentence(error))
