"""Opens RESULTS: a DuckDB connection with the views of sql/views.sql, which can read them and nothing else."""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import duckdb
import pyarrow as pa

from queries.reviews import REVIEW
from queries.text import one_sentence
from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.results import SPAN, generation
from scanner.storage import (
    LIST,
    READ,
    S3_ERRORS,
    arrow_filesystem,
    get_bytes,
    is_s3,
    list_results,
    local_path,
    s3_problem,
    unreadable,
)

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

T = TypeVar("T")

#: Only these names count: what a crash or a foreign tool left beside them is ignored.
PART = re.compile(r"/spans/run_id=[^/]+/part-[^/]*\.parquet$")
REVIEW_PART = re.compile(r"/reviews/part-[^/]*\.parquet$")
RUN = re.compile(r"/runs/[^/]+\.json$")

#: Where a row is, as read_parquet names it. views.sql tells repeated rows apart by it.
_WHERE = [pa.field("filename", pa.string()), pa.field("file_row_number", pa.int64())]

#: Columns that opening reads of every part: internal.keys in views.sql.
_KEYS = [
    *("schema_version", "run_id", "scanned_at", "uri", "content_tag", "model_digest", "settings_digest"),
    *("span_index", "span_count", "status", "error"),
]

#: (filename, document) of each run record, document being its JSON text. Without Arrow, which would import pandas.
_RUN_FILES = """
    CREATE TABLE run_files AS SELECT unnest($files::VARCHAR[]) AS filename, unnest($documents::VARCHAR[]) AS document
"""

#: Parts whose footers stay in memory, 150 kB each, so that a question does not parse those of the question before.
KEPT_FOOTERS = 2000
ATTEMPTS = 5  # at reading RESULTS from which `compact` removes files: one would do


class Files(NamedTuple):
    """Paths or URIs of the parts with spans, of the run records, and of the parts with reviews, each sorted."""

    parts: list[str]
    runs: list[str]
    reviews: list[str]


def open_catalog(results: str, *, unsafe: bool = False) -> duckdb.DuckDBPyConnection:
    """A connection with the views videos, clips, frames, faces, signals, thumbnails, failures, runs, spans, reviews.

    results: a folder or `s3://bucket/prefix`. The views are of this moment: what a running scan adds later
    shows when the catalog is opened again. The connection is locked: SQL on it reads these files only, writes
    none, loads no extension and cannot undo that. Close it when done; threads take `.cursor()` each.
    unsafe: leave it open, for SQL that may do whatever the user may.

    Raises UserError when there are no results, or a file of theirs is damaged.
    """
    for _ in range(ATTEMPTS):
        files = list_files(results)
        try:
            return _open(results, files, unsafe)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if not _compacted_since(results, files):
                raise UserError(_damage(results, files, error)) from None
    raise UserError(_busy(results), EXIT_PREFLIGHT)


def ask_catalog(results: str, question: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
    """What question(connection) returns; it is asked again where `compact` removed files from under it.

    Raises UserError as open_catalog does, also where question can't read the files; and whatever else it raises.
    """
    for _ in range(ATTEMPTS):
        before = _generation(results)
        with open_catalog(results) as connection:
            try:
                return question(connection)
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                if _generation(results) == before:
                    raise UserError(f"{results} could not be read: {one_sentence(error)}", EXIT_PREFLIGHT) from None
    raise UserError(_busy(results), EXIT_PREFLIGHT)


def _open(results: str, files: Files, unsafe: bool, *, by_name: bool = False) -> duckdb.DuckDBPyConnection:
    """by_name: parts may lack columns, which are NULL then; slow, since each view that is made reads every footer."""
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            # Made when an answer outgrows memory, and removed on close. By default it is in the current folder.
            "temp_directory": str(Path(tempfile.gettempdir()) / f"deepsweep-{uuid.uuid4().hex}"),
        }
    )
    try:
        connection.execute("SET enable_progress_bar = false")  # it would go to stdout, among the rows
        connection.execute("SET python_enable_replacements = false")  # a table is not a variable of this process
        connection.execute(f"SET parquet_metadata_cache = {len(files.parts) <= KEPT_FOOTERS}")
        connection.execute("CREATE SCHEMA internal; SET schema = 'internal'")
        _open_parts(connection, results, files.parts, by_name).create_view("parts")
        _open_reviews(connection, results, files.reviews).create_view("review_parts")
        runs = {"files": files.runs, "documents": read_documents(files.runs)}
        connection.execute(_RUN_FILES, runs)
        connection.execute("SET schema = 'main'; SET TimeZone = 'UTC'")
        connection.execute(views_sql())
        if not by_name and _several_versions(connection):
            connection.close()
            return _open(results, files, unsafe, by_name=True)
        if not unsafe:
            _lock(connection, [] if is_s3(results) else [*files.parts, *files.reviews])
    except BaseException as error:
        connection.close()
        if isinstance(error, duckdb.BinderException) and not by_name:  # the latest run was an earlier version's
            return _open(results, files, unsafe, by_name=True)
        raise
    return connection


def views_sql() -> str:
    """The statements that make the views out of internal.parts, internal.run_files and internal.review_parts."""
    return (resources.files("queries") / "sql" / "views.sql").read_text("utf-8")


def list_files(results: str) -> Files:
    """All files of RESULTS that count, so that every row is in one of them, whatever `compact` does meanwhile.

    Raises UserError when there are none, or they can't be listed.
    """
    is_there = is_s3(results)
    with suppress(OSError):  # what lies below a folder that may not be entered is as good as not there
        is_there = is_there or local_path(results).is_dir()
    if not is_there:
        raise UserError(f"There are no results at {results}. Name the folder that `deepsweep scan --out` wrote.")
    for _ in range(ATTEMPTS):
        before = _generation(results)
        files = _list(results)
        if _generation(results) == before:
            return files
    raise UserError(_busy(results), EXIT_PREFLIGHT)


def list_runs(results: str) -> list[str]:
    """The run records only, without listing everything else. Raises UserError as list_files does."""
    try:
        runs = [run for run in list_results(results, "runs/", ".json") if RUN.search(run)]
    except S3_ERRORS as error:
        raise UserError(s3_problem(error, results, LIST), EXIT_PREFLIGHT) from None
    return runs or list_files(results).runs  # says what is wrong where these are no results


def _list(results: str) -> Files:
    try:
        spans = list_results(results, "spans/", ".parquet")
        runs = list_results(results, "runs/", ".json")
        reviews = list_results(results, "reviews/", ".parquet")
    except S3_ERRORS as error:
        raise UserError(s3_problem(error, results, LIST), EXIT_PREFLIGHT) from None
    if not spans and not runs:
        raise UserError(f"{results} holds no results of deepsweep. Name what `deepsweep scan --out` wrote to.")
    return Files(
        [part for part in spans if PART.search(part)],
        [run for run in runs if RUN.search(run)],
        [part for part in reviews if REVIEW_PART.search(part)],
    )


def _generation(results: str) -> bytes:
    try:
        return generation(results)
    except S3_ERRORS as error:
        raise UserError(s3_problem(error, results, READ), EXIT_PREFLIGHT) from None
    except OSError as error:
        raise UserError(f"{results} could not be read: {error.strerror}.") from None


def _compacted_since(results: str, files: Files) -> bool:
    """Whether a file that was listed is gone."""
    now = list_files(results)
    return not (set(files.parts) <= set(now.parts) and set(files.reviews) <= set(now.reviews))


def _busy(results: str) -> str:
    return f"{results} is being compacted again and again: ask once more in a minute."


def _several_versions(connection: duckdb.DuckDBPyConnection) -> bool:
    answer = connection.execute("SELECT count(DISTINCT schema_version) > 1 FROM internal.keys").fetchone()
    return answer is not None and answer[0]


def _open_parts(
    connection: duckdb.DuckDBPyConnection, results: str, parts: list[str], by_name: bool
) -> duckdb.DuckDBPyRelation:
    """Every row of the parts: columns of SPAN, then filename and file_row_number."""
    if not parts:
        return connection.from_arrow(_no_rows(pa.schema([*SPAN, *_WHERE])))
    if is_s3(results):
        return connection.from_arrow(_s3_dataset(results, parts))
    return connection.read_parquet(
        _absolute(parts[::-1]),  # unless by name, the first gives the columns: one of the latest run
        union_by_name=by_name,
        hive_partitioning=False,  # run_id is a column of the files, too
        filename=True,
        file_row_number=True,
    )


def _open_reviews(connection: duckdb.DuckDBPyConnection, results: str, parts: list[str]) -> duckdb.DuckDBPyRelation:
    """Every row of the parts with reviews: columns of REVIEW."""
    if not parts:
        return connection.from_arrow(_no_rows(REVIEW))
    if is_s3(results):
        import pyarrow.dataset as ds

        filesystem, _ = arrow_filesystem(results)
        paths = [part.removeprefix("s3://") for part in parts]
        return connection.from_arrow(ds.dataset(paths, REVIEW, format="parquet", filesystem=filesystem))
    return connection.read_parquet(_absolute(parts), union_by_name=True, hive_partitioning=False)


def _no_rows(schema: pa.Schema) -> pa.Table:
    # Schema.empty_table() would import pandas, which takes a third of the time that opening RESULTS does.
    return pa.Table.from_batches([], schema)


def _s3_dataset(results: str, parts: list[str]) -> Dataset:
    """The parts through Arrow, since DuckDB reads S3 only with an extension that must be downloaded.

    Arrow does not number the rows of a file, so file_row_number is 0 throughout: rows are told apart by file,
    span and time, which is enough as no writer puts a span into one file twice.
    """
    import pyarrow.dataset as ds

    filesystem, _ = arrow_filesystem(results)
    format_ = ds.ParquetFileFormat()
    fragments = [
        format_.make_fragment(
            part.removeprefix("s3://"),
            filesystem,
            partition_expression=(ds.field("filename") == part)
            & (ds.field("file_row_number") == pa.scalar(0, pa.int64())),
        )
        for part in parts
    ]
    return ds.FileSystemDataset(fragments, pa.schema([*SPAN, *_WHERE]), format_, filesystem)


def read_documents(runs: list[str]) -> list[str]:
    """The JSON text, an object's, of each run record. Raises UserError for one that is damaged."""
    with ThreadPoolExecutor(max_workers=16) as pool:  # on S3 each is a round trip
        return list(pool.map(_read_run, runs))


def _read_run(run: str) -> str:
    try:
        text = get_bytes(run).decode("utf-8")
        if not isinstance(json.loads(text), dict):
            raise ValueError
    except OSError as error:
        raise unreadable(run, error) from None
    except S3_ERRORS as error:  # ValueError too: json's and unicode's are of that kind
        if is_s3(run) and not isinstance(error, ValueError):
            raise UserError(s3_problem(error, run, READ)) from None
        raise foreign_record(run) from None
    return text


def foreign_record(run: str) -> UserError:
    return UserError(f"{run} is not a run record of deepsweep. Move it away: no span is lost by that.")


def _lock(connection: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    """From here on SQL reaches these files, by their views or by name, and nothing else of this machine."""
    connection.execute("SET allowed_paths = $files", {"files": _absolute(files)})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _absolute(files: list[str]) -> list[str]:
    return [str(Path(file).absolute()) for file in files]


def _damage(results: str, files: Files, error: Exception) -> str:
    """What is wrong with RESULTS, naming the file if one is cut short or overwritten."""
    import pyarrow.parquet as pq

    filesystem, _ = arrow_filesystem(results)
    repeat = " and repeat the scan: it does again the videos that are missing, and only those"
    for part in [*files.parts, *files.reviews]:
        columns, fix = (REVIEW.names, "") if part in files.reviews else (_KEYS, repeat)
        path = part.removeprefix("s3://")
        try:
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                missing = set(columns) - set(file.schema_arrow.names)
                if missing:
                    return f"{part} was not written by deepsweep: it has no {min(missing)}. Move it out of {results}."
                file.read(columns)
        except (pa.ArrowException, OSError):
            return f"{part} is damaged or cut short. Move it out of {results}{fix}."
    return f"{results} could not be read: {one_sentence(error)}"
