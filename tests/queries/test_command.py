"""`deepsweep query` as typed: named queries, SQL, formats, files, and what it says when something is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from queries.command import query
from queries.run import query_names
from scanner.cli import main
from scanner.errors import EXIT_OK, EXIT_USAGE, UserError
from tests.queries.rows import clip, span, write_part, write_run

NAMES = [named.name for named in query_names()]


@pytest.fixture
def archive(results: Path) -> Path:
    write_run(results)
    write_part(
        results,
        [
            span("s3://a/2024/fake.mp4", score=0.9, verdict="fake", clips=[clip(3, 0.95), clip(5, 0.2)]),
            span("s3://a/2024/half.mp4", 0, 2, clips=[clip(8, 0.99)]),
            span("s3://a/2024/half.mp4", 1, 2, status="timeout", error="stopped after 600 s"),
            span("s3://a/2025/maybe.mp4", score=0.5, verdict="uncertain"),
            span("s3://a/2025/empty.mp4", status="no_face"),
            span("s3://a/2025/real.mp4"),
            span("top.mp4", status="missing", error="gone"),
        ],
    )
    return results


def run(*arguments: str, results: Path | None = None) -> Result:
    result = CliRunner().invoke(query, [*arguments, *(["--results", str(results)] if results else [])])
    if result.exception and not isinstance(result.exception, SystemExit | UserError):
        raise result.exception
    return result


def rows(*arguments: str, results: Path) -> list[dict]:
    result = run(*arguments, "--format", "json", results=results)
    assert result.exit_code == EXIT_OK, result.exception
    return json.loads(result.stdout)


def error(*arguments: str, results: Path | None = None) -> str:
    found = run(*arguments, results=results).exception
    assert isinstance(found, UserError)
    assert found.exit_code == EXIT_USAGE
    return str(found)


# --- named queries --------------------------------------------------------------------------------------


def test_the_named_queries_of_the_contract():
    assert set(NAMES) == {
        *("flagged", "clips", "failures", "summary", "blink-outliers", "uncertain", "by-folder"),
        *("reviewed", "labels"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_named_query_runs_on_nothing(results, name):
    write_run(results)
    found = rows(name, results=results)
    assert found == [] or (name == "summary" and found[0]["videos"] == 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_query_runs_on_an_archive(archive, name):
    assert isinstance(rows(name, results=archive), list)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_query_runs_where_all_failed(results, name):
    write_part(results, [span("a", status="crashed"), span("b", status="missing")])
    assert isinstance(rows(name, results=results), list)


def test_flagged_ranks_and_keeps_videos_that_failed_in_part(archive):
    found = [(row["uri"], row["score"], row["flagged_clips"]) for row in rows("flagged", results=archive)]
    assert found == [("s3://a/2024/half.mp4", None, 1), ("s3://a/2024/fake.mp4", 0.9, 1)]


def test_clips_says_where(archive):
    found = rows("clips", results=archive)
    assert [(row["uri"], row["t_start"]) for row in found] == [
        ("s3://a/2024/half.mp4", 8.0),
        ("s3://a/2024/fake.mp4", 3.0),
    ]
    assert found[0]["x"] == 0.1


def test_failures(archive):
    found = [(row["uri"], row["status"], row["error"]) for row in rows("failures", results=archive)]
    assert found == [
        ("top.mp4", "missing", "gone"),
        ("s3://a/2024/half.mp4", "timeout", "stopped after 600 s (1 of 2 spans)"),
    ]


def test_summary_adds_up(archive):
    found = {row["status"]: row for row in rows("summary", results=archive)}
    assert {status: row["videos"] for status, row in found.items()} == {
        "ok": 3, "timeout": 1, "no_face": 1, "missing": 1, "all": 6
    }  # fmt: skip
    assert (found["all"]["fake"], found["all"]["uncertain"], found["all"]["flagged"]) == (1, 1, 2)


def test_uncertain(archive):
    assert [row["uri"] for row in rows("uncertain", results=archive)] == ["s3://a/2025/maybe.mp4"]


def test_by_folder(archive):
    found = [(r["folder"], r["videos"], r["flagged"], r["failed"]) for r in rows("by-folder", results=archive)]
    assert found == [("s3://a/2024/", 2, 2, 1), ("", 1, 0, 1), ("s3://a/2025/", 3, 0, 0)]


def test_blink_outliers_finds_the_one_who_does_not_blink(results):
    usual = [span(f"{i:02}", blink_count=12 + i % 4) for i in range(20)]
    write_part(results, [*usual, span("stare", blink_count=0), span("brief", blink_count=0, face_s=3.0)])
    assert [row["uri"] for row in rows("blink-outliers", results=results)] == ["stare"]


def test_blink_outliers_where_all_others_blink_alike(results):
    write_part(results, [*(span(f"{i}", blink_count=15) for i in range(20)), span("stare", blink_count=0)])
    assert [row["uri"] for row in rows("blink-outliers", results=results)] == ["stare"]


def test_an_untrained_model_flags_nothing_and_says_so(results):
    write_part(results, [span("a", model="untrained", score=0.9, verdict=None, clips=[clip(1, 0.9)])])
    for name in ("flagged", "clips", "uncertain"):
        result = run(name, "--format", "csv", results=results)
        assert len(result.stdout.splitlines()) == 1
        assert "scored by an untrained model: no verdicts" in result.stderr


def test_a_limit_that_cuts_is_mentioned(archive):
    assert "raise -p limit=1" in run("clips", "-p", "limit=1", results=archive).stderr
    assert "limit" not in run("clips", "-p", "limit=5", results=archive).stderr


def test_parameters(archive):
    assert len(rows("clips", "-p", "uri=*/half.*", results=archive)) == 1
    assert len(rows("flagged", "-p", "min_score=0.95", "-p", "limit=9", results=archive)) == 1
    assert rows("SELECT $n + 1 AS n, $t AS t", "-p", "n=4", "-p", "t=x=y", results=archive) == [{"n": 5, "t": "x=y"}]


def test_list_names_every_query_and_parameter():
    text = run("--list").stdout
    for named in query_names():
        assert named.name in text
        assert all(f"-p {param.name}=" in text for param in named.params)


# --- output ---------------------------------------------------------------------------------------------


def test_a_table_by_default(archive):
    result = run("SELECT uri, status FROM videos ORDER BY uri", results=archive)
    assert result.stdout.splitlines()[0].split() == ["uri", "status"]
    assert "6 rows." in result.stderr


def test_other_formats_print_nothing_but_rows(archive):
    result = run("FROM videos SELECT uri", "--format", "csv", results=archive)
    assert result.stderr == ""
    assert len(list(csv.DictReader(io.StringIO(result.stdout)))) == 6


def test_results_from_the_environment(archive, monkeypatch):
    monkeypatch.setenv("DEEPSWEEP_RESULTS", str(archive))
    assert run("summary").exit_code == EXIT_OK


@pytest.mark.parametrize(("name", "first"), [("o.csv", "uri"), ("o.json", "["), ("o.jsonl", "{"), ("o.md", "| uri")])
def test_the_name_of_the_output_says_the_format(archive, tmp_path, name, first):
    assert run("FROM videos SELECT uri", "--output", str(tmp_path / name), results=archive).stdout == ""
    assert (tmp_path / name).read_text().startswith(first)


def test_parquet_output(archive, tmp_path):
    assert run("FROM clips", "--output", str(tmp_path / "c.parquet"), results=archive).exit_code == EXIT_OK
    assert pq.read_table(tmp_path / "c.parquet").num_rows == 3
    assert "name a file with --output" in error("FROM clips", "--format", "parquet", results=archive)


def test_output_that_fails_leaves_what_was_there(archive, tmp_path):
    target = tmp_path / "out.csv"
    target.write_text("precious")
    message = error(
        "SELECT CASE WHEN i < 100000 THEN i ELSE error('broken') END AS n FROM range(200000) AS t (i)",
        "--output", str(target), results=archive,
    )  # fmt: skip
    assert "broken" in message
    assert target.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.csv"]


def test_output_into_a_folder_that_is_not_there(archive, tmp_path):
    assert "could not be written" in error("summary", "--output", str(tmp_path / "no" / "o.csv"), results=archive)


def test_explain_is_readable(archive):
    result = run("EXPLAIN ANALYZE SELECT uri FROM videos", results=archive)
    assert result.exit_code == EXIT_OK
    assert len(result.stdout.splitlines()) > 5


@pytest.mark.parametrize(
    "sql",
    [
        "DESCRIBE videos",
        "SHOW TABLES",
        "SUMMARIZE clips",
        "VALUES (1)",
        "FROM runs;",
        "/* c */ EXPLAIN (FORMAT json) SELECT 1",
    ],
)
def test_statements_that_read(archive, sql):
    assert run(sql, results=archive).exit_code == EXIT_OK


def test_without_a_question_the_queries_are_listed_line_by_line():
    result = CliRunner().invoke(main, ["query"])
    assert (result.exit_code, result.stdout) == (EXIT_USAGE, "")
    *listed, last = result.stderr.splitlines()
    assert {line.split()[0] for line in listed if line[:1].isalpha()} == set(NAMES)
    assert last == "deepsweep: Say what to ask: a named query, as listed above, or SQL."


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say what to ask"),
        (["flaged"], "There is no query named flaged. Did you mean flagged?"),
        (["zzz"], "There are: blink-outliers, by-folder"),
        (["videos"], 'videos is a view, not a named query. Ask for rows of it: "FROM videos LIMIT 20".'),
        (["clips", "-p", "limt=5"], "clips has no parameter limt. Did you mean limit?"),
        (["clips", "-p", "limit=x"], "-p limit takes a whole number, not 'x': how many clips."),
        (["flagged", "-p", "min_score=x"], "-p min_score takes a number"),
        (["clips", "-p", "limit"], "-p takes key=value"),
        (["summary", "-p", "limit=5"], "summary has no parameter limit. It takes: none."),
        (["SELECT $n"], "The SQL uses $n: give it a value with -p n=..."),
        (["SELECT $n", "-p", "n=1", "-p", "m=1"], "this SQL has no parameter m."),
        (["SELECT 1; SELECT 2"], "This holds several SQL statements. Give one."),
        (["/* nothing */"], "There is no SQL statement in this. Give one."),
        (["SELEC uri FROM videos"], 'Parser Error: syntax error at or near "SELEC"'),
        (["SELECT urri FROM videos"], 'Referenced column "urri" not found'),
        (["FROM vidoes"], "Table with name vidoes does not exist"),
    ],
)  # fmt: skip
def test_one_sentence_says_what_is_wrong(archive, arguments, message):
    text = error(*arguments, results=archive)
    assert message in text
    assert "LINE 1" not in text


@pytest.mark.parametrize(
    "sql",
    [
        "COPY videos TO '{part}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}'",
        "/* x */ explain (analyze) COPY (SELECT 1) TO '{part}'",
        "DELETE FROM internal.kept",
        "CREATE TABLE t AS SELECT 1",
        "CREATE OR REPLACE VIEW videos AS SELECT 1",
        "EXPLAIN ANALYZE DELETE FROM internal.kept",
        "SET memory_limit = '1MB'",
        "CALL pragma_version()",
        "ATTACH 'x.db'",
        "INSTALL httpfs",
    ],
)
def test_only_reading_statements_are_taken(archive, sql):
    part = next(archive.rglob("part-*.parquet"))
    before = part.read_bytes()
    assert "Results are only read" in error(sql.format(part=part), results=archive)
    assert part.read_bytes() == before


def test_a_view_cannot_be_emptied_by_a_statement_in_a_statement(archive):
    run("WITH gone AS (DELETE FROM internal.kept RETURNING 1) FROM gone", results=archive)
    assert len(rows("FROM videos", results=archive)) == 6


def test_hostile_names_in_errors_are_escaped(archive):
    assert "\x1b" not in error('SELECT "\x1b[2J" FROM videos', results=archive)


def test_importing_the_command_is_light():
    code = "import sys, queries.command; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"duckdb", "pyarrow", "rich", "numpy", "boto3", "botocore"} & set(done.stdout.split())


# --- queries of one's own -------------------------------------------------------------------------------

MINE = """\
-- Videos with a name like this.
-- param like = "a % b"  pattern of LIKE
-- param least=0.5 lowest score
SELECT uri FROM videos WHERE uri LIKE $like AND score >= $least ORDER BY uri
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "named-like.sql").write_text(MINE)
    (folder / "bare.sql").write_text("SELECT 1 AS n", encoding="utf-8-sig")
    (folder / ".hidden.sql").write_bytes(b"\xff")
    (folder / "notes.txt").write_bytes(b"\xff")
    return folder


def test_a_query_of_ones_own(archive, mine):
    found = rows("named-like", "-p", "like=%maybe%", "--queries", str(mine), results=archive)
    assert found == [{"uri": "s3://a/2025/maybe.mp4"}]
    assert rows("named-like", "--queries", str(mine), results=archive) == []
    assert rows("bare", "--queries", str(mine), results=archive) == [{"n": 1}]


def test_queries_of_ones_own_from_the_environment(archive, mine, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "two.sql").write_text("SELECT 2 AS n")
    monkeypatch.setenv("DEEPSWEEP_QUERIES", f"{mine}{os.pathsep}{other}")
    assert rows("bare", results=archive) == [{"n": 1}]
    assert rows("two", results=archive) == [{"n": 2}]


def test_list_names_queries_of_ones_own_by_folder(mine):
    text = run("--list", "--queries", str(mine)).stdout
    assert text.index("uncertain") < text.index(f"{mine}:") < text.index("named-like")
    assert "Videos with a name like this." in text
    assert "-p like=a % b  pattern of LIKE" in text
    assert "-p least=0.5  lowest score" in text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("flagged", "SELECT 1", "there is a query flagged of deepsweep. Rename the file."),
        ("my query", "SELECT 1", "can't be asked by name"),
        ("x", "-- param n\nSELECT $n", "x.sql: '-- param n' should read `-- param name = default  what it is`"),
        ("x", "-- param n = some\nSELECT $n", "should read"),
        ("x", "-- param n = [1]  a list\nSELECT $n", "should read"),
        ("x", "-- title\nSELECT $n", "x uses $n, but its file says nothing of it. Add a line `-- param n = default"),
        ("x", "DELETE FROM internal.kept", "Results are only read"),
        ("x", "", "There is no SQL statement in this."),
        ("x", b"SELECT '\xff'", "could not be read: a file in it is not UTF-8."),
    ],
)
def test_what_is_wrong_with_a_query_of_ones_own(archive, tmp_path, name, text, message):
    (tmp_path / f"{name}.sql").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in error("x", "--queries", str(tmp_path), results=archive)


def test_two_folders_with_the_same_name(mine, tmp_path):
    (tmp_path / "bare.sql").write_text("SELECT 2")
    message = error("--list", "--queries", str(mine), "--queries", str(tmp_path))
    assert message == f"{tmp_path}/bare.sql: there is a query bare in {mine}. Rename the file."


def test_a_folder_of_queries_that_is_not_there(tmp_path):
    assert "nowhere could not be read: No such file" in error("--list", "--queries", str(tmp_path / "nowhere"))


# --- what SQL may do, and what with --unsafe --------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{out}'",
        "ATTACH '{out}'",
        "FROM read_csv('/etc/passwd')",
        "FROM read_text('/etc/passwd')",
        "FROM '/etc/passwd'",
        "FROM read_parquet('https://example.org/x.parquet')",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "PRAGMA enable_profiling",
        "FROM enable_logging(storage = 'file', storage_path = '{out}')",
        "FROM enable_profiling(save_location = '{out}')",
        "FROM query('COPY (SELECT 1) TO ''{out}''')",
        "SELECT 1; COPY (SELECT 1) TO '{out}'",
        "SELECT 1; SELECT 2",
        "CREATE TABLE t AS FROM videos",
        "EXPORT DATABASE '{out}'",
    ],
)
def test_sql_reaches_nothing_else(archive, tmp_path, sql):
    out = tmp_path / "out"
    error(sql.format(out=out), results=archive)
    assert not out.exists()


def test_unsafe_sql_may_and_is_warned_of(archive, tmp_path):
    out = tmp_path / "scores.csv"
    sql = f"SET threads = 1; COPY (SELECT uri FROM videos WHERE score > $s) TO '{out}'; FROM read_csv('{out}')"
    done = run(sql, "-p", "s=0.4", "--unsafe", "--format", "csv", results=archive)
    assert done.stdout.split() == ["uri", "s3://a/2024/fake.mp4", "s3://a/2025/maybe.mp4"]
    assert "--unsafe: this SQL can read, write and delete whatever you can" in done.stderr
    assert "--unsafe" not in run("FROM videos", results=archive).stderr


@pytest.mark.parametrize("sql", ["SET threads = 1", "CREATE TABLE t AS SELECT 1", "ATTACH ':memory:' AS other"])
def test_unsafe_sql_without_an_answer_prints_none(archive, sql):
    done = run(sql, "--unsafe", results=archive)
    assert (done.exit_code, done.stdout) == (EXIT_OK, "")
