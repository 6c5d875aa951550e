"""`deepsweep catalog`: a DuckDB file that other tools open."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner, Result

from queries.catalog import open_catalog
from queries.export_catalog import catalog
from queries.run import VIEWS
from scanner.errors import EXIT_OK, EXIT_USAGE, UserError
from tests.queries.conftest import ask
from tests.queries.rows import clip, span, write_part, write_run
from tests.queries.test_catalog import upload


@pytest.fixture
def archive(results: Path) -> Path:
    write_run(results)
    write_part(
        results,
        [
            span("a.mp4", 0, 2, clips=[clip(1, 0.9), clip(3, 0.2)], score=0.9, verdict="fake",
                 thumbnails=[{"face_id": "0-1", "t": 1.0, "score": 0.9, "image": b"\xff\xd8", "heatmap": None}]),
            span("a.mp4", 1, 2),
            span("b.mp4", status="timeout", error="it's slow"),
        ],
    )  # fmt: skip
    write_part(results, [span("a.mp4", 1, 2, run=2, score=0.95, verdict="fake")], "part-1")
    return results


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "night's.duckdb"


def export(results: Path | str, out: Path | str, *options: str) -> Result:
    return CliRunner().invoke(catalog, [str(results), str(out), *options])


def written(results: Path | str, out: Path, *options: str) -> str:
    done = export(results, out, *options)
    assert done.exit_code == EXIT_OK, done.exception
    return done.stdout


def error(results: Path | str, out: Path | str, *options: str) -> str:
    found = export(results, out, *options).exception
    assert isinstance(found, UserError), found
    assert found.exit_code == EXIT_USAGE
    return str(found)


def same_rows(results: Path | str, out: Path) -> None:
    """Whatever the time zone of who opens it."""
    with duckdb.connect(str(out), read_only=True) as there, open_catalog(str(results)) as here:
        there.execute("SET TimeZone = 'America/New_York'")
        for view in VIEWS:
            sql = f"FROM {view} ORDER BY ALL"
            assert ask(there, sql) == ask(here, sql), view


@pytest.mark.parametrize("options", [[], ["--copy"]])
def test_the_file_has_the_views_and_their_rows(archive, out, options):
    assert f"{len(VIEWS)} views" in written(archive, out, *options)
    same_rows(archive, out)


@pytest.mark.parametrize("options", [[], ["--copy"]])
def test_it_opens_under_any_name_and_beside_others(archive, out, tmp_path, options):
    written(archive, out, *options)
    moved = out.rename(tmp_path / "moved.duckdb")
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{moved}' AS night (READ_ONLY)")
        assert ask(connection, "SELECT uri FROM night.videos ORDER BY uri") == [{"uri": "a.mp4"}, {"uri": "b.mp4"}]
        assert ask(connection, "SELECT count(*) AS n FROM night.runs") == [{"n": 1}]


def test_those_who_browse_it_are_told_what_a_row_is(archive, out):
    written(archive, out)
    with duckdb.connect(str(out), read_only=True) as connection:
        found = dict(
            connection.execute(
                "SELECT view_name, comment FROM duckdb_views() WHERE schema_name = 'main' AND NOT internal"
            ).fetchall()
        )
    assert set(found) == set(VIEWS)
    assert found["clips"].startswith("One row per clip")


def test_views_show_what_later_scans_add_and_a_copy_does_not(archive, out, tmp_path):
    copy = tmp_path / "copy.duckdb"
    assert "What later scans add shows in it" in written(archive, out)
    assert "as of now" in written(archive, copy, "--copy")
    write_run(archive, 3)
    write_part(archive, [span("b.mp4", run=3), span("c.mp4", run=3)], "part-7")
    same_rows(archive, out)
    with duckdb.connect(str(copy), read_only=True) as connection:
        assert ask(connection, "SELECT status FROM videos ORDER BY uri") == [{"status": "ok"}, {"status": "timeout"}]


def test_views_do_not_see_unfinished_files(archive, out):
    written(archive, out)
    folder = next(archive.rglob("part-0.parquet")).parent
    (folder / ".part-9.parquet.77.tmp").write_bytes(b"half")
    (folder / ".part-9.parquet").write_bytes(b"half")
    (archive / "runs" / ".run-9.json").write_text("{")
    same_rows(archive, out)


def test_views_hold_wherever_they_are_opened_from(archive, out, monkeypatch):
    monkeypatch.chdir(archive.parent)
    written(archive.name, out)
    monkeypatch.chdir("/")
    same_rows(archive, out)


def test_a_copy_holds_when_the_results_are_gone(archive, out):
    written(archive, out, "--copy")
    archive.rename(archive.with_name("elsewhere"))
    same_rows(archive.with_name("elsewhere"), out)


def test_results_on_s3_are_copied(s3, archive, out):
    remote = upload(s3, archive, "night")
    assert "DuckDB can't read S3 by itself, so the rows were copied." in written(remote, out)
    same_rows(archive, out)


def test_an_existing_file_is_kept_unless_forced(archive, out):
    out.write_text("precious")
    assert "is there already. Replace it with --force" in error(archive, out)
    assert out.read_text() == "precious"
    written(archive, out, "--force")
    same_rows(archive, out)


def test_what_fails_leaves_what_was_there(archive, out):
    out.write_text("precious")
    next(archive.rglob("part-1.parquet")).write_bytes(b"cut short")
    assert "is damaged or cut short" in error(archive, out, "--force")
    assert out.read_text() == "precious"
    assert [file.name for file in out.parent.iterdir() if file.is_file()] == [out.name]


def test_a_file_that_is_in_use_is_not_replaced(archive, out):
    with duckdb.connect(str(out)) as connection:
        connection.execute("CREATE TABLE notes (text VARCHAR); INSERT INTO notes VALUES ('precious')")
        assert "is in use" in error(archive, out, "--force")
    with duckdb.connect(str(out)) as connection:
        assert ask(connection, "FROM notes") == [{"text": "precious"}]


def test_results_without_a_span(results, out):
    write_run(results)
    assert "holds no finished spans yet" in error(results, out)
    assert not out.exists()
    written(results, out, "--copy")
    same_rows(results, out)


def test_a_folder_whose_name_no_glob_can_say(tmp_path, out):
    odd = tmp_path / "back\\slash"
    write_part(odd, [span("a.mp4")])
    assert "take --copy" in error(odd, out)
    written(odd, out, "--copy")
    same_rows(odd, out)


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such/folder/o.duckdb", "could not be written"), ("s3://archive/o.duckdb", "must be a file on this machine")],
)
def test_where_it_can_not_be_written(archive, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    assert message in error(archive, name)


def test_no_results(tmp_path, out):
    assert "There are no results at" in error(tmp_path / "nowhere", out)
    assert not out.exists()
