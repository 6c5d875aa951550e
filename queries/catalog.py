"""Opens RESULTS: a DuckDB connection with the views of sql/views.sql, which can read them and nothing else."""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from queries.text import one_sentence
from scanner.errors import UserError
from scanner.results import SPAN
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
)

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

#: Only these names count: what a crash or a foreign tool left beside them is ignored.
PART = re.compile(r"/spans/run_id=[^/]+/part-[^/]*\.parquet$")
RUN = re.compile(r"/runs/[^/]+\.json$")

#: Where a row is, as read_parquet names it. views.sql tells repeated rows apart by it.
_WHERE = [pa.field("filename", pa.string()), pa.field("file_row_number", pa.int64())]

#: Columns that opening reads of every part: internal.keys in views.sql.
_KEYS = [
    *("run_id", "scanned_at", "uri", "content_tag", "model_digest", "settings_digest"),
    *("span_index", "span_count", "status", "error"),
]


def open_catalog(results: str, *, unsafe: bool = False) -> duckdb.DuckDBPyConnection:
    """A connection with the views videos, clips, frames, faces, signals, thumbnails, failures, runs and spans.

    results: a folder or `s3://bucket/prefix`. The views are of this moment: what a running scan adds later
    shows when the catalog is opened again. The connection is locked: SQL on it reads these files only, writes
    none, loads no extension and cannot undo that. Close it when done; threads take `.cursor()` each.
    unsafe: leave it open, for SQL that may do whatever the user may.

    Raises UserError when there are no results, or a file of theirs is damaged.
    """
    parts, runs = _list(results)
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            # Made when an answer outgrows memory, and removed on close. By default it is in the current folder.
            "temp_directory": str(Path(tempfile.gettempdir()) / f"deepsweep-{uuid.uuid4().hex}"),
        }
    )
    try:
        connection.execute("SET python_enable_replacements = false")  # a table is not a variable of this process
        connection.execute("CREATE SCHEMA internal; SET schema = 'internal'")
        _open_parts(connection, results, parts).create_view("parts")
        connection.from_arrow(_read_runs(runs)).create("run_files")
        connection.execute("SET schema = 'main'; SET TimeZone = 'UTC'")
        connection.execute(views_sql())
        if not unsafe:
            _lock(connection, [] if is_s3(results) else parts)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        connection.close()
        raise UserError(_damage(results, parts, error)) from None
    except BaseException:
        connection.close()
        raise
    return connection


def views_sql() -> str:
    """The statements that make the views out of internal.parts and internal.run_files."""
    return (resources.files("queries") / "sql" / "views.sql").read_text("utf-8")


def _list(results: str) -> tuple[list[str], list[str]]:
    """Paths or URIs of the Parquet parts and of the run records, sorted."""
    if not is_s3(results) and not local_path(results).is_dir():
        raise UserError(f"There are no results at {results}. Name the folder that `deepsweep scan --out` wrote.")
    try:
        spans = list_results(results, "spans/", ".parquet")
        runs = list_results(results, "runs/", ".json")
    except S3_ERRORS as error:
        raise UserError(s3_problem(error, results, LIST)) from None
    if not spans and not runs:
        raise UserError(f"{results} holds no results of deepsweep. Name what `deepsweep scan --out` wrote to.")
    return [p for p in spans if PART.search(p)], [r for r in runs if RUN.search(r)]


def _open_parts(connection: duckdb.DuckDBPyConnection, results: str, parts: list[str]) -> duckdb.DuckDBPyRelation:
    """Every row of the parts: columns of SPAN, then filename and file_row_number."""
    if not parts:
        return connection.from_arrow(pa.schema([*SPAN, *_WHERE]).empty_table())
    if is_s3(results):
        return connection.from_arrow(_s3_dataset(results, parts))
    return connection.read_parquet(
        _absolute(parts),
        union_by_name=True,
        hive_partitioning=False,  # run_id is a column of the files, too
        filename=True,
        file_row_number=True,
    )


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


def _read_runs(runs: list[str]) -> pa.Table:
    """(filename, document) of each run record, document being its JSON text."""
    with ThreadPoolExecutor(max_workers=16) as pool:  # on S3 each is a round trip
        documents = list(pool.map(_read_run, runs))
    return pa.table({"filename": pa.array(runs, pa.string()), "document": pa.array(documents, pa.string())})


def _read_run(run: str) -> str:
    try:
        text = get_bytes(run).decode("utf-8")
        if not isinstance(json.loads(text), dict):
            raise ValueError
    except S3_ERRORS as error:  # ValueError too: json's and unicode's are of that kind
        if is_s3(run) and not isinstance(error, ValueError):
            raise UserError(s3_problem(error, run, READ)) from None
        raise UserError(f"{run} is not a run record of deepsweep. Move it away: no span is lost by that.") from None
    return text


def _lock(connection: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    """From here on SQL reaches these files, by their views or by name, and nothing else of this machine."""
    connection.execute("SET allowed_paths = $files", {"files": _absolute(files)})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _absolute(files: list[str]) -> list[str]:
    return [str(Path(file).absolute()) for file in files]


def _damage(results: str, parts: list[str], error: Exception) -> str:
    """What is wrong with RESULTS, naming the file if one is cut short or overwritten."""
    import pyarrow.parquet as pq

    filesystem, _ = arrow_filesystem(results)
    for part in parts:
        path = part.removeprefix("s3://")
        try:
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                missing = set(_KEYS) - set(file.schema_arrow.names)
                if missing:
                    return f"{part} was not written by deepsweep: it has no {min(missing)}. Move it out of {results}."
                file.read(_KEYS)
        except (pa.ArrowException, OSError):
            return (
                f"{part} is damaged or cut short. Move it out of {results} and repeat the scan: "
                "it does again the videos that are missing, and only those."
            )
    return f"{results} could not be read: {one_sentence(error)}"
