"""Compaction: fewer files and the same rows, for readers at any moment, however it ends and whoever else is at it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from queries import catalog
from queries.catalog import ask_catalog, list_files, open_catalog
from queries.reviews import Review, append_reviews
from queries.run import run_query
from scanner.cli import main
from scanner.compact import MERGED, carry_out, group_files, plan_compaction
from scanner.errors import EXIT_PREFLIGHT, UserError
from tests.queries.rows import clip, span, write_part, write_run
from tests.s3 import BUCKET
from tests.scans import environment

VIEWS = ("videos", "clips", "thumbnails", "failures", "runs", "spans", "reviews")

#: Parts have about 40 kB, so that three of them are merged, and the merged file is too large to be merged again.
TARGET, MIN_FILES = 100_000, 3
SPAN_PARTS, REVIEW_PARTS, FILES_AFTER = 6, 3, 3


def make_results(results: Path) -> Path:
    """One run of six parts: flags, a failure that was retried, a span written twice; and three reviews."""
    write_run(results)
    for number in range(SPAN_PARTS):
        image = pa.py_buffer(os.urandom(20_000)).to_pybytes()  # does not shrink, like a JPEG
        picture = {"face_id": "0-1", "t": 1.0, "score": 0.9, "image": image, "heatmap": None}
        rows = [
            span(f"long-{number // 2}", number % 2, 2, clips=[clip(1, 0.9)], thumbnails=[picture]),
            span(f"short-{number}", clips=[clip(2, 0.1)]),
        ]
        if number in (1, 2):  # the same row in two parts, as a task that Ray repeats may leave it
            rows.append(span("twice", status="timeout", error="too long"))
        write_part(results, rows, f"part-{number}")
    for number in range(REVIEW_PARTS):
        moment = datetime(2025, 3, 2, 8, number, tzinfo=timezone.utc)
        append_reviews(str(results), [Review("long-0", "tag-1", "0-1", 1.0, 2.0, "confirmed", "yes", "Ada", moment)])
    return results


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("original") / "results")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(original, tmp_path / "results"))


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, original: Path) -> str:
    """A fresh copy of the results, in a folder and on S3."""
    if request.param == "folder":
        return request.getfixturevalue("folder")
    s3 = request.getfixturevalue("s3")
    for file in (file for file in original.rglob("*") if file.is_file()):
        s3.upload_file(str(file), BUCKET, f"night/{file.relative_to(original)}")
    return f"s3://{BUCKET}/night"


def seen(results: str | Path) -> dict[str, list[str]]:
    """The rows of every view, in a fixed order."""
    with open_catalog(str(results)) as connection:
        return {view: shown(connection, view) for view in VIEWS}


def shown(connection: duckdb.DuckDBPyConnection, view: str) -> list[str]:
    """A view's rows in a fixed order, as are their columns."""
    table = connection.execute(f"FROM {view}").to_arrow_table()
    return sorted(map(repr, table.select(sorted(table.column_names)).to_pylist()))


@pytest.fixture(scope="module")
def truth(original: Path) -> dict[str, list[str]]:
    return seen(original)


def compact(results: str | Path) -> Any:
    plan = plan_compaction(str(results), TARGET, MIN_FILES)
    carry_out(str(results), plan, grace_s=0)
    return plan


def parquet_files(results: str | Path) -> list[str]:
    files = list_files(str(results))
    return [*files.parts, *files.reviews]


def test_the_same_rows_in_fewer_files_and_nothing_to_do_then(place, truth):
    done = compact(place)
    files = parquet_files(place)
    assert len(files) == done.files_after == FILES_AFTER and all(MERGED in file for file in files)
    assert seen(place) == truth
    again = plan_compaction(place, TARGET, MIN_FILES)
    assert not again.groups and not again.leftovers


def test_a_row_that_two_parts_have_is_once_in_the_merged_file(place):
    compact(place)
    with open_catalog(place) as connection:
        counted = connection.execute("SELECT count(*) FROM internal.parts WHERE uri = 'twice'").fetchall()
        assert counted == connection.execute("SELECT count(*) FROM spans WHERE uri = 'twice'").fetchall() == [(1,)]


def test_a_part_of_which_another_has_every_row_is_merged_away(folder, truth):
    part = Path(folder, "spans", "run_id=run-001", "part-0.parquet")
    shutil.copy(part, part.with_name("part-9.parquet"))
    pq.write_table(pq.ParquetFile(part).read().slice(0, 0), part.with_name("part-empty.parquet"))
    carry_out(folder, plan_compaction(folder, 100 * TARGET, 2), grace_s=0)
    assert len(list_files(folder).parts) == 1 and seen(folder) == truth


def test_the_merged_file_next_to_all_that_it_was_made_of_changes_no_answer(place, truth, monkeypatch):
    monkeypatch.setattr("scanner.storage.delete_file", lambda file: None)
    compact(place)
    assert len(parquet_files(place)) == SPAN_PARTS + REVIEW_PARTS + FILES_AFTER
    assert seen(place) == truth


# --- killed at any step ---------------------------------------------------------------------------------

#: Runs a compaction per step in a fork of its own, which kills itself before that write or removal.
_KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import pyarrow.parquet, queries.catalog, scanner.results, scanner.status, scanner.storage  # once for all forks
from scanner.compact import carry_out, plan_compaction

original, base, steps, target, min_files = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])

def dying(work, count):
    def step(*arguments):
        count[0] -= 1
        if count[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*arguments)
    return step

for number in range(steps):
    results = str(shutil.copytree(original, base / str(number)))
    child = os.fork()
    if not child:
        count = [number]
        scanner.storage.put_bytes = scanner.results.put_bytes = dying(scanner.storage.put_bytes, count)
        scanner.storage.delete_file = dying(scanner.storage.delete_file, count)
        carry_out(results, plan_compaction(results, target, min_files), 0)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
#: A removal that tries whether that is allowed, each merged file, the new generation, each file that is removed.
STEPS = 1 + FILES_AFTER + 1 + SPAN_PARTS + REVIEW_PARTS


@pytest.fixture(scope="module")
def killed(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of RESULTS per step, as a compaction left them that was killed before it; the last one ended well."""
    base = tmp_path_factory.mktemp("killed")
    arguments = [str(original), str(base), *map(str, (STEPS + 1, TARGET, MIN_FILES))]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, *arguments],
        **{"capture_output": True, "text": True, "timeout": 300, "env": environment()},
    )
    assert done.stdout.split() == ["-9"] * STEPS + ["0"], done.stderr
    return base


@pytest.mark.parametrize("step", range(STEPS))
def test_killed_before_any_step_no_row_is_lost_or_doubled_and_the_next_one_finishes(killed, truth, step):
    results = killed / str(step)
    assert seen(results) == truth
    compact(results)
    assert len(parquet_files(results)) == FILES_AFTER
    assert seen(results) == truth


# --- several at once ------------------------------------------------------------------------------------


def test_a_second_compaction_of_the_same_files_steps_aside(place, truth):
    plans = [plan_compaction(place, TARGET, MIN_FILES) for _ in range(2)]
    for plan in plans:
        carry_out(place, plan, grace_s=0)
    assert (plans[0].gone, plans[1].gone) == (0, FILES_AFTER)
    assert seen(place) == truth and len(parquet_files(place)) == FILES_AFTER


def test_two_that_group_differently_at_the_same_time_lose_nothing(folder, truth):
    plans = [plan_compaction(folder, target, 2) for target in (TARGET, 2 * TARGET)]
    threads = [threading.Thread(target=carry_out, args=(folder, plan, 0)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen(folder) == truth
    compact(folder)
    assert seen(folder) == truth


_READER = """
import sys
from pathlib import Path
from queries.catalog import ask_catalog

results, stop, looks = sys.argv[1], Path(sys.argv[2]), 0
COUNTS = [f"SELECT count(*) FROM {view}" for view in ("videos", "clips", "spans", "reviews")]
COUNTS += ["SELECT sum(flagged_clips)::INT FROM videos", "SELECT sum(octet_length(image))::INT FROM thumbnails"]
last = False
while not last:
    last = stop.exists()
    counts = ask_catalog(results, lambda connection: [connection.execute(sql).fetchone()[0] for sql in COUNTS])
    print(*counts, flush=True)
"""


def test_readers_in_other_processes_see_the_same_counts_all_the_while(place, tmp_path):
    """Round after round is compacted without any time of grace, which is harder on readers than any night."""
    stop = tmp_path / "stop"
    command = [sys.executable, "-c", _READER, place, str(stop)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
    try:
        first = [reader.stdout.readline() for reader in readers if reader.stdout]
        for target in (90_000, 200_000, 400_000, 800_000):
            carry_out(place, plan_compaction(place, target, 2), grace_s=0)
            for reader in readers:  # each looks between the rounds, too
                assert reader.stdout and reader.stdout.readline() == first[0]
        stop.touch()
        rest = [reader.communicate(timeout=120)[0] for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
    assert [reader.returncode for reader in readers] == [0, 0]
    assert {line for text in rest for line in text.splitlines(keepends=True)} == {first[0]} == set(first)
    assert len(parquet_files(place)) == 2  # one of spans, one of reviews


def test_a_listing_that_a_compaction_tears_apart_is_made_again(place, truth, monkeypatch):
    """The first half of the names is listed before the compaction, the rest after it: every part is missed."""
    list_results, torn = catalog.list_results, []

    def list_in_halves(results: str, prefix: str, suffix: str) -> list[str]:
        if torn or prefix != "spans/":
            return list_results(results, prefix, suffix)
        torn.append(prefix)
        before = list_results(results, prefix, suffix)
        compact(results)
        return [file for file in list_results(results, prefix, suffix) if file in before]  # none

    monkeypatch.setattr(catalog, "list_results", list_in_halves)
    assert seen(place) == truth and torn


def test_a_catalog_that_is_opened_while_files_go_is_opened_again(place, truth, monkeypatch):
    open_parts, rounds = catalog._open_parts, []

    def open_late(connection: Any, results: str, parts: list[str], by_name: bool) -> Any:
        if not rounds:
            rounds.append(parts)
            compact(results)
        return open_parts(connection, results, parts, by_name)

    monkeypatch.setattr(catalog, "_open_parts", open_late)
    assert seen(place) == truth and rounds


def test_a_question_to_a_catalog_that_was_opened_before_is_told_to_be_asked_again(place):
    with open_catalog(place) as connection:
        compact(place)
        with pytest.raises(UserError, match=r"gone since they were opened.*ask again"):
            list(run_query(connection, "FROM clips").batches)


def test_a_question_of_the_scan_itself_is_asked_again_when_files_go_meanwhile(place, truth):
    rounds = []

    def ask(connection: duckdb.DuckDBPyConnection) -> list[str]:
        if not rounds:
            rounds.append(compact(place))
        return shown(connection, "clips")

    assert ask_catalog(place, ask) == truth["clips"] and rounds


# --- what is left alone ---------------------------------------------------------------------------------


def live_record(**values: Any) -> dict[str, Any]:
    return {"finished_at": None, "alive_at": datetime.now(timezone.utc).isoformat(), **values}


def test_a_run_that_goes_on_is_left_alone_and_a_dead_one_is_not(folder, truth):
    write_run(Path(folder), **live_record())
    before = list_files(folder).parts
    assert compact(folder).live_runs == 1 and list_files(folder).parts == before
    long_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    write_run(Path(folder), **live_record(alive_at=long_ago.isoformat()))
    assert compact(folder).live_runs == 0
    assert len(parquet_files(folder)) == FILES_AFTER
    assert seen(folder)["videos"] == truth["videos"]


def truncate(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:1000])


def add_a_column(part: Path) -> None:
    pq.write_table(pq.ParquetFile(part).read().append_column("novelty", pa.array([1, 1])), part)


@pytest.mark.parametrize("spoil", [truncate, add_a_column])
def test_a_part_that_is_damaged_or_of_a_later_version_is_left_as_it_is(folder, spoil: Callable[[Path], None]):
    part = Path(folder, "spans", "run_id=run-001", "part-0.parquet")
    spoil(part)
    content = part.read_bytes()
    answer = CliRunner().invoke(main, ["compact", folder, "--grace", "0"])
    assert answer.exit_code == 0 and "part-0.parquet, damaged or of another version" in answer.output
    assert part.read_bytes() == content and len(list_files(folder).parts) == 2


@pytest.mark.parametrize("part", ["part-0", "part-5"])
def test_parts_of_an_earlier_version_get_the_new_columns_empty(folder, part):
    path = Path(folder, "spans", "run_id=run-001", f"{part}.parquet")
    rows = pq.ParquetFile(path).read().drop_columns(["lost_s", "schema_version"])
    pq.write_table(rows.append_column("schema_version", pa.array([0] * len(rows), pa.int32())), path)
    before = seen(folder)
    compact(folder)
    assert len(parquet_files(folder)) == FILES_AFTER and seen(folder) == before


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_tells_before_and_after(folder):
    planned = CliRunner().invoke(main, ["compact", folder, "--dry-run", "--min-files", "3"])
    assert planned.exit_code == 0 and "9 of them" in planned.output and "would become 2" in planned.output
    assert len(parquet_files(folder)) == 9
    done = CliRunner().invoke(main, ["compact", folder, "--grace", "0", "--min-files", "3"])
    assert done.exit_code == 0 and "9 files" in done.output and "became 2 files" in done.output
    assert "nothing to merge" in CliRunner().invoke(main, ["compact", folder]).output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{results}", "--target-size", "big"], "'big' is not a size"),
        (["{results}", "--target-size", "0"], "more than 0"),
        (["{results}", "--target-size", "20GB"], "at most 1.0 GB"),
        (["{results}/nowhere"], "There are no results"),
    ],
)
def test_what_can_not_be_done_is_one_sentence_and_exit_code_2(folder, arguments, sentence):
    answer = CliRunner().invoke(main, ["compact", *(word.format(results=folder) for word in arguments)])
    assert answer.exit_code == 2 and sentence in answer.output


def test_a_bucket_that_refuses_the_second_listing_is_one_sentence(proxy, s3, original, monkeypatch):
    for file in (file for file in original.rglob("*") if file.is_file()):
        s3.upload_file(str(file), BUCKET, f"night/{file.relative_to(original)}")
    listings = []

    def refuse_later(method: str, path: str) -> str:
        listings.extend([path] if "list-type" in path else [])
        return "403 AccessDenied" if len(listings) > 3 else ""  # spans, runs and reviews are there

    monkeypatch.setattr(proxy, "next_fault", refuse_later)
    answer = CliRunner().invoke(main, ["compact", f"s3://{BUCKET}/night"])
    assert answer.exit_code == EXIT_PREFLIGHT and len(listings) == 4
    assert f"could not be listed: AccessDenied. deepsweep needs s3:ListBucket on {BUCKET}." in answer.output


# --- which files become one -----------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300)), st.integers(1, 400), st.integers(1, 6))
def test_groups_are_of_small_neighbours_and_no_larger_than_wanted(sizes, target, min_files):
    files = {f"{number:03}": size for number, size in enumerate(sizes)}
    groups = group_files(files, target, min_files)
    flat = [file for group in groups for file in group]
    assert flat == sorted(set(flat))
    for group in groups:
        assert len(group) >= max(2, min_files)
        assert sum(files[file] for file in group[:-1]) < target
        assert all(files[file] < target / 2 for file in group)


def test_the_record_of_what_was_merged_is_in_the_merged_file(folder):
    names = {Path(file).name for file in list_files(folder).reviews}
    compact(folder)
    (merged,) = list_files(folder).reviews
    metadata = pq.read_metadata(merged).metadata
    assert set(json.loads(metadata[b"deepsweep.merged_from"])) == names
