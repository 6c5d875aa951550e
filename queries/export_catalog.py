"""`deepsweep catalog`: the views in a DuckDB file, for DBeaver, Harlequin, Superset, pandas."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from queries.run import view_titles
from queries.text import one_sentence
from scanner.errors import UserError
from scanner.uris import foreign_scheme, is_s3, local_path

if TYPE_CHECKING:
    import duckdb

#: The oldest DuckDB that understands what is stored: 1.3 brought the `lambda x: ...` in which views are kept.
STORAGE_VERSION = "v1.3.0"

#: The columns of a part, the moment of scanning as UTC without a zone: sessions elsewhere have other time zones.
_COLUMNS = "* REPLACE (make_timestamp(epoch_us(scanned_at)) AS scanned_at)"
_REVIEW_COLUMNS = "* REPLACE (make_timestamp(epoch_us(reviewed_at)) AS reviewed_at)"


@dataclass(frozen=True)
class Exported:
    """What was written. copied: rows of this moment, not views of the files."""

    copied: bool
    videos: int
    views: int


@click.command("catalog")
@click.argument("results")
@click.argument("out", metavar="OUT.duckdb", type=click.Path(dir_okay=False))
@click.option("--copy", is_flag=True, help="Copy the rows into OUT, so that it can be taken elsewhere.")
@click.option("--force", is_flag=True, help="Replace OUT.")
def catalog(results: str, out: str, copy: bool, force: bool) -> None:
    """Write a DuckDB file with the views of RESULTS, for DBeaver, Harlequin, Superset or pandas.

    For RESULTS in a folder, OUT holds views of the Parquet files under their absolute path: it stays small, and
    shows what later scans add, and later reviews, if there were reviews already. For RESULTS on S3, which DuckDB
    reads only with an extension that it downloads, the rows of this moment are copied into OUT, pictures included;
    so does --copy. OUT needs DuckDB 1.3 or later.

    \b
    Views that stay up to date:
      deepsweep catalog results results.duckdb
    A copy for a colleague:
      deepsweep catalog s3://archive/results night.duckdb
    In Python:
      duckdb.connect("results.duckdb", read_only=True).sql("FROM videos").df()
    """
    if is_s3(out) or foreign_scheme(out):
        raise UserError(f"{out} must be a file on this machine: DuckDB writes nowhere else.")
    done = export_catalog(results, Path(out), copy=copy, force=force)
    videos = f"{done.videos:,} video{'' if done.videos == 1 else 's'}"
    if not done.copied:
        click.echo(f"{out}: {done.views} views of {results}, {videos} so far. What later scans add shows in it.")
        return
    reason = "" if copy else " DuckDB can't read S3 by itself, so the rows were copied."
    click.echo(f"{out}: {done.views} views, {videos} as of now.{reason} Renew it with --force.")


def export_catalog(results: str, out: Path, *, copy: bool = False, force: bool = False) -> Exported:
    """Write the views of RESULTS to the DuckDB file out, whole or not at all.

    Raises UserError when RESULTS can't be read or out not be written, and when out is there and not `force`.
    """
    import duckdb

    from queries.catalog import open_catalog

    copied = copy or is_s3(results)
    with _new_file(out, force) as temporary, closing(open_catalog(results, unsafe=True)) as connection:
        try:
            connection.execute(f"ATTACH {_quoted(str(temporary))} AS exported (STORAGE_VERSION '{STORAGE_VERSION}')")
            connection.execute("CREATE SCHEMA exported.internal")
            if copied:
                _copy(connection)
            else:
                _link(connection, local_path(results).absolute())
            videos, views = _describe(connection)
            connection.execute("USE memory; DETACH exported")  # writes all of it, and closes the file
        except duckdb.Error as error:
            raise UserError(f"{out} could not be written: {one_sentence(error)}") from None
    return Exported(copied, videos, views)


def _copy(connection: duckdb.DuckDBPyConnection) -> None:
    # Rows carry their own numbers, and keeping their order would hold many of them in memory.
    connection.execute("SET preserve_insertion_order = false")
    connection.execute(f"CREATE TABLE exported.internal.parts AS SELECT {_COLUMNS} FROM memory.internal.parts")
    connection.execute("CREATE TABLE exported.internal.run_files AS FROM memory.internal.run_files")
    _copy_reviews(connection)
    connection.execute(f"USE exported; {_views_sql()}")


def _copy_reviews(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        f"CREATE TABLE exported.internal.review_parts AS SELECT {_REVIEW_COLUMNS} FROM memory.internal.review_parts"
    )


def _link(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Views all the way down: what internal.keys and internal.kept remember elsewhere would miss later parts."""
    if not _first(connection, "SELECT count(*) FROM memory.internal.keys"):
        raise UserError(
            f"{folder} holds no finished spans yet, and views need a file to look at. "
            "Repeat this when a scan has finished some."
        )
    if "\\" in str(folder):
        raise UserError(f"{folder} can't be matched by DuckDB because of its backslash: take --copy.")
    parts = _quoted(f"{glob_of(folder)}/spans/run_id=*/part-*.parquet")
    runs = _quoted(f"{glob_of(folder)}/runs/[!.]*.json")
    connection.execute(
        f"CREATE VIEW exported.internal.parts AS SELECT {_COLUMNS} FROM read_parquet({parts}, union_by_name = true, "
        "hive_partitioning = false, filename = true, file_row_number = true)"
    )
    connection.execute(
        f"CREATE VIEW exported.internal.run_files AS SELECT filename, content AS document FROM read_text({runs})"
    )
    if _first(connection, "SELECT count(*) FROM memory.internal.review_parts"):
        reviews = _quoted(f"{glob_of(folder)}/reviews/part-*.parquet")
        connection.execute(
            f"CREATE VIEW exported.internal.review_parts AS SELECT {_REVIEW_COLUMNS} "
            f"FROM read_parquet({reviews}, union_by_name = true, hive_partitioning = false)"
        )
    else:  # an empty table: DuckDB reads no pattern that matches nothing
        _copy_reviews(connection)
    connection.execute(f"USE exported; {_views_sql().replace('CREATE TABLE internal.', 'CREATE VIEW internal.')}")


def _views_sql() -> str:
    from queries.catalog import views_sql

    # By way of TIMESTAMPTZ a text becomes the moment in the session's time zone, which is UTC only in deepsweep.
    # At once it becomes UTC.
    return views_sql().replace("::TIMESTAMPTZ::TIMESTAMP", "::TIMESTAMP")


def _describe(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """Tell each view's sentence to those who browse the file. (videos, views) in it."""
    titles = view_titles()
    for view, title in titles.items():
        connection.execute(f"COMMENT ON VIEW exported.main.{view} IS {_quoted(title)}")
    return _first(connection, "SELECT count(*) FROM exported.main.videos"), len(titles)


def _first(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    ((count,),) = connection.execute(sql).fetchall()
    return count


def glob_of(folder: Path) -> str:
    """A glob that matches this folder only, whatever its name."""
    return re.sub(r"[*?[]", r"[\g<0>]", str(folder))


def _quoted(text: str) -> str:
    """text in SQL, for the statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def _new_file(out: Path, force: bool) -> Iterator[Path]:
    """A path beside out to write to: it becomes out at the end, or is removed."""
    if out.exists() and not force:
        raise UserError(f"{out} is there already. Replace it with --force, or choose another name.")
    log = out.with_name(f"{out.name}.wal")
    if log.exists():  # DuckDB would apply it to the new file
        raise UserError(f"{out} is in use, or was not closed well: {log.name} is beside it. Close what has it open.")
    temporary = out.with_name(f".{out.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out} could not be written: {error.strerror}.") from None
    finally:
        for file in (temporary, temporary.with_name(f"{temporary.name}.wal")):
            file.unlink(missing_ok=True)
