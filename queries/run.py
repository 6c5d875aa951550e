"""Questions to a catalog: the named queries of sql/ and of the user's folders, free SQL, and their parameters."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from queries.text import one_sentence
from scanner.errors import UserError

if TYPE_CHECKING:  # `query --list` and `query --help` need neither
    import duckdb
    import pyarrow as pa

Value: TypeAlias = "int | float | str | None"

#: Rows handed on at a time. Small, because rows of `thumbnails` carry two pictures.
BATCH_ROWS = 4096

VIEWS = ("videos", "clips", "frames", "faces", "signals", "thumbnails", "failures", "runs", "spans", "reviews")

_PARAM = re.compile(r'--\s*param\s+(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|\S+)\s*(.*)')
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Param:
    """A parameter of a named query. The type of its default is the type it takes."""

    name: str
    default: Value
    help: str


@dataclass(frozen=True)
class NamedQuery:
    """One .sql file. needs_verdicts: says nothing of videos that an untrained model scored.

    folder: the user's folder it is from, None for those of deepsweep.
    """

    name: str
    title: str
    params: tuple[Param, ...]
    needs_verdicts: bool
    sql: str
    folder: Path | None = None


@dataclass(frozen=True)
class Answer:
    """Rows as they come. `batches` can be read once, and raises UserError when reading fails half-way.

    Close batches if you don't read them to the end: until then their connection answers nothing else.
    """

    schema: pa.Schema
    batches: Generator[pa.RecordBatch, None, None]


@cache
def query_names() -> list[NamedQuery]:
    """The named queries of deepsweep, by name."""
    files = (resources.files("queries") / "sql").iterdir()
    found = [_parse(f.name.removesuffix(".sql"), f.read_text("utf-8")) for f in files if f.name.endswith(".sql")]
    return sorted((q for q in found if q.name != "views"), key=lambda q: q.name)


def load_queries(folders: Iterable[Path]) -> list[NamedQuery]:
    """The named queries of deepsweep, then those of the user's folders: a .sql file each, by name.

    Raises UserError for a folder or file that can't be read, a header that can't be understood, and a name that
    is taken: which of two queries answers must not depend on the order of options.
    """
    found = {query.name: query for query in query_names()}
    for folder in (given.expanduser() for given in folders):
        for query in _read_folder(folder):
            if query.name in found:
                other = found[query.name].folder
                where = f"in {other}" if other else "of deepsweep"
                raise UserError(f"{folder / query.name}.sql: there is a query {query.name} {where}. Rename the file.")
            found[query.name] = query
    return list(found.values())


def _read_folder(folder: Path) -> list[NamedQuery]:
    try:
        files = sorted(f for f in folder.iterdir() if f.suffix == ".sql" and not f.name.startswith("."))
        texts = [file.read_text("utf-8-sig") for file in files]
    except (OSError, UnicodeDecodeError) as error:
        reason = "a file in it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"The queries in {folder} could not be read: {reason}.") from None
    return [_parse(file.stem, text, folder) for file, text in zip(files, texts, strict=True)]


def _parse(name: str, text: str, folder: Path | None = None) -> NamedQuery:
    """A named query from its file: `-- title`, `-- param name = default  help`, `-- needs verdicts`, SQL."""
    where = folder / f"{name}.sql" if folder else f"{name}.sql"
    if not _NAME.fullmatch(name):
        raise UserError(f"{where} can't be asked by name: name it with letters, digits, dots and dashes.")
    lines = text.splitlines() or [""]
    first = lines[0] if re.match(r"--(?!\s*param\s)", lines[0]) else ""
    params = tuple(_parse_param(line, where) for line in lines if re.match(r"--\s*param\s", line))
    return NamedQuery(name, first.removeprefix("--").strip(), params, "-- needs verdicts" in lines, text, folder)


def _parse_param(line: str, where: Path | str) -> Param:
    match = _PARAM.fullmatch(line.rstrip())
    try:
        default = json.loads(match[2]) if match else ()
    except ValueError:
        default = ()
    if match is None or not (default is None or isinstance(default, int | float | str)) or isinstance(default, bool):
        raise UserError(
            f"{where}: {line.strip()!r} should read `-- param name = default  what it is`, with a number, "
            'a "text" or null for default.'
        )
    return Param(match[1], default, match[3])


@cache
def view_titles() -> dict[str, str]:
    """What a row of each view is, in a sentence: the first of the comment above it in sql/views.sql."""
    text = (resources.files("queries") / "sql" / "views.sql").read_text("utf-8")
    found = {}
    for comment, view in re.findall(r"((?:^--.*\n)+)CREATE VIEW (\w+) AS", text, re.MULTILINE):
        words = " ".join(line.removeprefix("--").strip() for line in comment.splitlines())
        found[view] = words.partition(". ")[0].rstrip(".") + "."
    return {view: found[view] for view in VIEWS}


def find_query(text: str, queries: Sequence[NamedQuery] | None = None) -> NamedQuery | None:
    """The named query that text names; None when text is SQL. UserError for a name that there is not.

    queries: those there are, as load_queries gives them; deepsweep's own by default.
    """
    names = {query.name: query for query in queries or query_names()}
    if text in names:
        return names[text]
    if not _NAME.fullmatch(text.strip()):
        return None
    if text in VIEWS:
        raise UserError(f'{text} is a view, not a named query. Ask for rows of it: "FROM {text} LIMIT 20".')
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UserError(f"There is no query named {text}. {hint}There are: {', '.join(names)}.")


def run_query(
    connection: duckdb.DuckDBPyConnection,
    text: str,
    params: Mapping[str, str] | None = None,
    *,
    queries: Sequence[NamedQuery] | None = None,
    unsafe: bool = False,
) -> Answer:
    """Ask a named query, or one SELECT, EXPLAIN, DESCRIBE or SHOW.

    params: values as typed by the user, for `$name` in the SQL. Those of a named query have defaults.
    queries: the named ones there are; deepsweep's own by default.
    unsafe: take any statements, and several; the answer is the last one's.
    Raises UserError for an unknown name or parameter, for any other statement, and with DuckDB's reason.
    """
    query = find_query(text, queries)
    sql = query.sql if query else text
    with _reasons():
        statements = _statements(sql, unsafe)
        names = set[str]().union(*(statement.named_parameters for statement in statements))
        values = _named_values(query, names, params or {}) if query else _free_values(names, params or {})
        for statement in statements[:-1]:
            connection.execute(statement, {name: values[name] for name in statement.named_parameters}).fetchall()
        return _answer(connection, statements[-1], {name: values[name] for name in statements[-1].named_parameters})


def first_rows(answer: Answer, most: int) -> Answer:
    """answer without the rows behind the first `most`."""

    def batches() -> Generator[pa.RecordBatch, None, None]:
        left = most
        for batch in answer.batches:
            yield batch.slice(0, left)
            left -= min(left, batch.num_rows)
            if not left:
                return

    return Answer(answer.schema, batches())


def untrained_videos(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """(videos that an untrained model scored, all videos that were scored)."""
    (row,) = connection.execute(
        "SELECT count(*) FILTER (model = 'untrained'), count(*) FROM videos WHERE status = 'ok'"
    ).fetchall()
    return row


@contextmanager
def _reasons() -> Iterator[None]:
    """What DuckDB raises as a UserError, or as the Ctrl-C that it was."""
    import duckdb
    import pyarrow as pa

    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if str(error).startswith("INTERRUPT Error"):  # DuckDB's or Arrow's word for what stoppable did
            raise KeyboardInterrupt from None
        raise UserError(one_sentence(error)) from None
    except RuntimeError as error:
        if "Query interrupted" not in str(error):  # how DuckDB reports a signal that came while it worked
            raise
        raise KeyboardInterrupt from None


def _answer(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement, values: dict[str, Value]) -> Answer:
    import duckdb
    import pyarrow as pa

    if duckdb.ExpectedResultType.NOTHING in statement.expected_result_type:  # SET, ATTACH, CREATE
        connection.execute(statement, values).fetchall()
        return Answer(pa.schema([]), (batch for batch in ()))
    relation = connection.sql(statement, params=values)
    if statement.type == duckdb.StatementType.EXPLAIN:
        return _plan("\n".join(row[1] for row in relation.fetchall()))
    reader = relation.to_arrow_reader(BATCH_ROWS)
    return Answer(reader.schema, _batches(reader))


def _batches(reader: pa.RecordBatchReader) -> Generator[pa.RecordBatch, None, None]:
    try:
        with _reasons():
            yield from reader
    finally:  # a connection takes no other question while an answer is open
        reader.close()


def _plan(text: str) -> Answer:
    """What EXPLAIN says, a row per line: in one cell it could not be read."""
    import pyarrow as pa

    table = pa.table({"plan": text.splitlines()})
    return Answer(table.schema, (batch for batch in table.to_batches()))


def _statements(sql: str, unsafe: bool) -> list[duckdb.Statement]:
    """The statements of sql: one that reads, unless unsafe. UserError for anything else."""
    import duckdb

    statements = duckdb.extract_statements(sql)
    if not statements:
        raise UserError("There is no SQL statement in this. Give one.")
    if unsafe:
        return statements
    if len(statements) > 1:
        raise UserError("This holds several SQL statements. Give one.")
    if statements[0].type == duckdb.StatementType.EXPLAIN:
        _check_explained(sql)
    elif statements[0].type != duckdb.StatementType.SELECT:  # DESCRIBE, SHOW, SUMMARIZE, VALUES are of this type
        raise UserError("Results are only read: give a SELECT, EXPLAIN, DESCRIBE or SHOW.")
    return statements


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


def _named_values(query: NamedQuery, names: set[str], given: Mapping[str, str]) -> dict[str, Value]:
    declared = {param.name: param for param in query.params}
    if undeclared := sorted(names - declared.keys()):
        raise UserError(
            f"{query.name} uses ${undeclared[0]}, but its file says nothing of it. "
            f"Add a line `-- param {undeclared[0]} = default  what it is`."
        )
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
