"""Opening RESULTS: what counts, what is refused, and what SQL on them may not do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from queries.catalog import ask_catalog, open_catalog
from scanner.errors import EXIT_PREFLIGHT, UserError
from tests.queries.conftest import ask
from tests.queries.rows import clip, span, write_part, write_run
from tests.s3 import BUCKET


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="There are no results at"):
        open_catalog(str(tmp_path / "nowhere"))


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="holds no results of deepsweep"):
        open_catalog(str(tmp_path))


def test_only_finished_parts_count(results):
    part = write_part(results, [span("a")])
    for name in (".tmp-part-1.parquet", ".part-1.parquet.1234.tmp", "part-1.parquet.tmp", "notes.parquet"):
        (part.parent / name).write_bytes(b"half a file")
    (results / "runs").mkdir()
    (results / "runs" / ".run-1.json.77.tmp").write_text("{")
    assert ask(open_catalog(str(results)), "SELECT uri FROM videos") == [{"uri": "a"}]


def test_a_relative_path_is_that_of_the_moment_of_opening(results, tmp_path, monkeypatch):
    write_part(results, [span("a")])
    monkeypatch.chdir(results.parent)
    connection = open_catalog(results.name)
    monkeypatch.chdir("/")
    assert ask(connection, "SELECT uri FROM videos") == [{"uri": "a"}]


def test_a_catalog_is_of_the_moment_it_was_opened(results):
    write_part(results, [span("a", 0, 2)])
    connection = open_catalog(str(results))
    write_part(results, [span("a", 1, 2)], "part-1")
    assert ask(connection, "SELECT pending_spans FROM videos") == [{"pending_spans": 1}]
    assert ask(open_catalog(str(results)), "SELECT pending_spans FROM videos") == [{"pending_spans": 0}]


def test_parts_of_a_later_version_with_more_columns(results):
    write_part(results, [span("a")])
    newer = write_part(results, [span("b")], "part-1")
    pq.write_table(pq.ParquetFile(newer).read().append_column("novelty", pa.array([1])), newer)
    assert len(ask(open_catalog(str(results)), "FROM videos")) == 2


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:4] + bytes(len(b) - 4)])
def test_a_damaged_part_is_named(results, spoil):
    write_part(results, [span("a")])
    part = write_part(results, [span("b")], "part-1")
    part.write_bytes(spoil(part.read_bytes()))
    with pytest.raises(UserError, match=r"part-1\.parquet is damaged or cut short\. Move it out of .* repeat the scan"):
        open_catalog(str(results))


def test_a_foreign_part_is_named(results):
    part = write_part(results, [span("a")])
    pq.write_table(pa.table({"uri": ["x"]}), part)
    with pytest.raises(UserError, match=r"part-0\.parquet was not written by deepsweep: it has no content_tag"):
        open_catalog(str(results))


@pytest.mark.parametrize("text", ["{", "[]", "null", "\udcff"])
def test_a_damaged_run_record_is_named(results, text):
    write_run(results).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"run-001\.json is not a run record"):
        open_catalog(str(results))


def test_a_question_whose_file_is_gone_is_one_sentence(results):
    part = write_part(results, [span("a", clips=[clip(1, 0.9)])])

    def ask_without(connection) -> list:
        part.unlink()
        return connection.execute("FROM clips").fetchall()

    with pytest.raises(UserError, match=r"could not be read: .* is gone since they were opened") as caught:
        ask_catalog(str(results), ask_without)
    assert caught.value.exit_code == EXIT_PREFLIGHT


# --- what SQL may not do --------------------------------------------------------------------------------


@pytest.fixture
def locked(results: Path):
    write_run(results)
    write_part(results, [span("a")])
    connection = open_catalog(str(results))
    yield connection
    connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "FROM read_csv('{outside}')",
        "FROM read_text('{outside}')",
        "FROM read_blob('{runs}')",
        "FROM glob('/*')",
        "FROM sniff_csv('{outside}')",
        "COPY (SELECT 1) TO '{outside}'",
        "COPY (SELECT 1) TO '{new}'",
        "EXPORT DATABASE '{new}'",
        "ATTACH '{new}' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SET lock_configuration = false",
        "RESET python_enable_replacements",
        "SELECT * FROM secret",
    ],
)
def test_sql_reaches_nothing_but_the_parts(locked, results, tmp_path, sql):
    secret = pa.table({"password": ["hunter2"]})  # a variable of this process
    outside = tmp_path / "outside.csv"
    outside.write_text("a,b\n1,2\n")
    sql = sql.format(outside=outside, new=results / "new", runs=results / "runs" / "run-001.json")
    with pytest.raises(Exception, match=r"Permission|locked|Cannot|does not exist|disabled"):
        locked.execute(sql).fetchall()
    assert outside.read_text() == "a,b\n1,2\n"
    assert not (results / "new").exists()
    assert secret.num_rows == 1


# --- S3 -------------------------------------------------------------------------------------------------


def upload(s3, folder: Path, prefix: str) -> str:
    for file in folder.rglob("*"):
        if file.is_file():
            s3.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder).as_posix()}")
    return f"s3://{BUCKET}/{prefix}"


def test_results_on_s3_answer_like_those_in_a_folder(s3, results):
    write_run(results)
    rows = [span("s3://a/<b>\n.mp4", i, 3, score=i / 10, clips=[clip(i, i / 3)]) for i in range(3)]
    write_part(results, rows[:2])
    write_part(results, [rows[0], span("c", status="timeout", error="slow")], "part-1")
    write_part(results, [rows[2] | {"run_id": "run-002"}], "part-0")
    remote, local = open_catalog(upload(s3, results, "some/results")), open_catalog(str(results))
    for view in ("videos", "clips", "failures", "runs", "spans"):
        sql = f"FROM {view} ORDER BY ALL"
        assert ask(remote, sql) == ask(local, sql), view
    assert len(ask(remote, "FROM spans")) == 4


def test_a_part_on_s3_that_lacks_a_later_column(s3, results):
    part = write_part(results, [span("a")])
    pq.write_table(pq.ParquetFile(part).read().drop_columns(["worker_s"]), part)
    connection = open_catalog(upload(s3, results, "old"))
    assert ask(connection, "SELECT uri, worker_seconds FROM videos") == [{"uri": "a", "worker_seconds": None}]


def test_runs_alone_on_s3(s3, results):
    write_run(results)
    connection = open_catalog(upload(s3, results, "runs-only"))
    assert ask(connection, "FROM videos") == []
    assert len(ask(connection, "FROM runs")) == 1


def test_an_empty_prefix_on_s3(s3):
    with pytest.raises(UserError, match="holds no results of deepsweep"):
        open_catalog(f"s3://{BUCKET}/nothing")


def test_a_bucket_that_is_not_there(s3):
    with pytest.raises(UserError, match="there is no bucket elsewhere"):
        open_catalog("s3://elsewhere/results")


def test_a_damaged_part_on_s3_is_named(s3, results):
    part = write_part(results, [span("a")])
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"s3://archive/bad/spans/run_id=run-001/part-0\.parquet is damaged"):
        open_catalog(upload(s3, results, "bad"))


def test_sql_on_s3_results_reads_no_local_file(s3, results):
    write_part(results, [span("a")])
    connection = open_catalog(upload(s3, results, "locked"))
    with pytest.raises(Exception, match="disabled by configuration"):
        connection.execute("FROM read_blob($path)", {"path": str(results / "spans/run_id=run-001/part-0.parquet")})


def test_a_question_that_storage_refuses_is_one_sentence_whenever_it_begins_to(proxy, s3, results):
    write_part(results, [span("a", clips=[clip(1, 0.9)])])
    uri = upload(s3, results, "refused")

    def refuse(connection=None) -> list:
        proxy.refusal = "403 AccessDenied"
        return connection.execute("FROM clips").fetchall() if connection else []

    refuse()
    for question in (len, refuse):
        with pytest.raises(UserError, match=rf"AccessDenied\. deepsweep needs s3:GetObject on {BUCKET}") as caught:
            ask_catalog(uri, question)
        assert caught.value.exit_code == EXIT_PREFLIGHT
        proxy.refusal = ""


@pytest.mark.parametrize("rows", [[], [span("a", clips=[clip(0, 0.9)])]], ids=["empty", "one"])
def test_a_question_does_not_wait_for_pandas(results, rows):
    write_run(results)
    if rows:
        write_part(results, rows)
    code = "import sys; from scanner.cli import main; main(standalone_mode=False); print(*sys.modules, file=sys.stderr)"
    asked = [sys.executable, "-c", code, "query", "flagged", "--results", str(results)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    assert "duckdb" in done.stderr.split()
    assert "pandas" not in done.stderr.split()
