"""What `status` says of runs: live ones by their heartbeat, ended ones by their record, from a folder or S3."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from scanner import errors
from scanner.cli import main
from scanner.heartbeat import Heartbeat
from scanner.progress import Progress
from scanner.results import Status
from scanner.status import SILENT_AFTER_S, State, read_runs, run_of
from tests.queries.rows import write_run
from tests.s3 import BUCKET

NOW = datetime(2025, 3, 2, 6, tzinfo=timezone.utc)
RUN_ID = "20250301-220000-000000-ab12"


def record(**values: Any) -> dict[str, Any]:
    started = (NOW - timedelta(hours=8)).isoformat()
    return {"run_id": RUN_ID, "started_at": started, "finished_at": None, "interrupted": False, **values}


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"alive_at": ago(12)}, State.RUNNING),
        ({"alive_at": ago(-90)}, State.RUNNING),  # a clock that is ahead
        ({"alive_at": ago(-SILENT_AFTER_S - 1)}, State.SILENT),  # of a machine whose clock was wrong by years
        ({"alive_at": ago(SILENT_AFTER_S + 1)}, State.SILENT),
        ({}, State.SILENT),  # of a version without heartbeats, begun eight hours ago
        ({"finished_at": ago(60)}, State.FINISHED),
        ({"finished_at": ago(60), "alive_at": ago(90)}, State.FINISHED),
        ({"finished_at": ago(60), "interrupted": True}, State.INTERRUPTED),
        ({"finished_at": ago(60), "interrupted": True, "stalled": ["Nothing moved."]}, State.STALLED),
        ({"finished_at": ago(60), "broke_off": "the GCS is gone"}, State.BROKE_OFF),
    ],
)
def test_the_state_of_a_run(values, state):
    assert run_of(record(**values), NOW).state is state


@pytest.mark.parametrize("damage", [{"run_id": 3}, {"started_at": None}, {"started_at": "yesterday"}])
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(ValueError):
        run_of(record() | damage, NOW)


# --- while a run goes on --------------------------------------------------------------------------------


def live_record() -> dict[str, Any]:
    return record(started_at=datetime.now(timezone.utc).isoformat(), model="sweep4")


def progress_of_a_night() -> Progress:
    progress = Progress(quiet=True)
    progress.videos, progress.listing = 10, False
    progress.span("a", 0, "ok", failed=False, flagged=2, seconds=1800)
    progress.span("b", 0, "timeout", failed=True, flagged=0, seconds=0)
    return progress


@pytest.fixture(params=["folder", "s3"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "results")
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/results"


def test_a_live_run_tells_how_far_it_is_and_a_finished_one_what_it_found(results):
    with Heartbeat(results, live_record(), progress_of_a_night(), every_s=3600) as heart:
        heart.start()
        (run,) = read_runs(results)
    assert run.is_live and run.silence_s is not None and run.silence_s < SILENT_AFTER_S
    assert (run.videos, run.videos_found, run.spans, run.flagged_clips) == (2, 10, 2, 2)
    assert (
        (run.counts, run.counted) == ({"ok": 1, "timeout": 1}, "spans")
        and run.video_hours == 0.5
        and run.left_s is not None
    )


def test_the_record_is_rewritten_while_the_run_goes_on(tmp_path):
    progress = progress_of_a_night()
    with Heartbeat(str(tmp_path), live_record(), progress, every_s=0.01) as heart:
        heart.start()
        progress.span("c", 0, "ok", failed=False, flagged=1, seconds=60)
        while read_runs(str(tmp_path))[0].spans < 3:  # the suite's timeout ends a heart that stands still
            pass
    assert read_runs(str(tmp_path))[0].flagged_clips == 3


def test_an_error_that_ends_a_run_is_in_its_record(tmp_path):
    with pytest.raises(RuntimeError), Heartbeat(str(tmp_path), live_record(), Progress(quiet=True)) as heart:
        heart.start()
        raise RuntimeError("the GCS is gone")
    (run,) = read_runs(str(tmp_path))
    assert (run.state, run.reason) == (State.BROKE_OFF, "the GCS is gone")


def test_a_run_that_never_began_leaves_no_record(tmp_path):
    with pytest.raises(RuntimeError), Heartbeat(str(tmp_path), live_record(), Progress(quiet=True)):
        raise RuntimeError("no Ray cluster answers")
    assert not (tmp_path / "runs").exists()


def test_results_that_can_not_be_written_to_for_a_while_do_not_end_the_run(tmp_path):
    with Heartbeat(str(tmp_path / "results"), live_record(), Progress(quiet=True), every_s=0.01) as heart:
        heart.start()
        (tmp_path / "results").rename(tmp_path / "elsewhere")
        (tmp_path / "results").touch()  # a file where the folder was: every write fails
        assert heart._thread is not None
        heart._thread.join(timeout=0.2)
        assert heart._thread.is_alive()


# --- the command ----------------------------------------------------------------------------------------


def status(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["status", *arguments])


@pytest.fixture
def past(tmp_path: Path) -> str:
    """A finished run, and after it one that its watchdog ended."""
    results = tmp_path / "results"
    write_run(results, 1, flagged_clips=7)
    write_run(results, 2, stalled=["Nothing has moved for 40 minutes.", "\x1b[31mAnalyze waits."])
    return str(results)


def test_the_table_has_the_latest_first_and_the_exit_code_is_its_state(past):
    answer = status(past)
    lines = answer.stdout.splitlines()
    assert answer.exit_code == 4
    assert lines[1].startswith("run-002") and "stalled" in lines[1]
    assert lines[2].startswith("run-001") and "finished" in lines[2] and " 7 " in lines[2] and "8:00:00" in lines[2]


def test_one_run_in_full(past):
    answer = status(past, "--run", "run-001")
    assert answer.exit_code == 0
    for words in ("finished", "2 ok, 1 timeout", "2.0 hours", "builtin-1", "8:00:00"):
        assert words in answer.stdout
    latest = status(past, "--run", "latest")
    assert latest.exit_code == 4 and "Nothing has moved for 40 minutes. \\x1b[31mAnalyze waits." in latest.stdout


def test_json_is_for_scripts(past):
    answer = status(past, "--json")
    runs = json.loads(answer.stdout)
    assert [run["run_id"] for run in runs] == ["run-002", "run-001"]
    assert runs[0]["state"] == "stalled" and runs[1]["counts"] == {"ok": 2, "timeout": 1}
    assert datetime.fromisoformat(runs[1]["started_at"]).tzinfo is not None
    assert [run["run_id"] for run in json.loads(status(past, "--json", "--run", "run-001").stdout)] == ["run-001"]


def test_what_is_not_there_is_one_sentence_and_exit_code_2(past, tmp_path):
    for arguments, words in (
        ((past, "--run", "run-009"), "no run run-009"),
        ((past, "--run", "../../x"), "no run"),
        ((str(tmp_path / "nowhere"),), "There are no results"),
    ):
        answer = status(*arguments)
        assert answer.exit_code == 2 and words in answer.output


def test_a_damaged_record_is_named(past):
    Path(past, "runs", "run-003.json").write_text('{"run_id": "run-003"}')
    answer = status(past)
    assert answer.exit_code == 2 and "run-003.json is not a run record" in answer.output


# --- the runbook ----------------------------------------------------------------------------------------

_PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
_EXIT_CODES = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("Exit codes of `scan`", sorted(map(str, _EXIT_CODES))),
        ("Statuses of a video", [status.value for status in Status]),
        ("States of a run", [state.value for state in State]),
    ],
)
def test_the_operations_page_says_what_to_do_for_every_one_of_them(section, words):
    (table,) = (part for part in _PAGE.split("\n## ") if part.startswith(f"{section}\n"))
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    told = {word.strip("` ") for cell in cells for word in cell.split(",")}
    assert set(words) <= told and told <= {*words, "code", "status", "state", "---"}
