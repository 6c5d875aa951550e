"""The guard against real misbehaviour: each child here really hangs, dies or grows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from scanner.errors import EXIT_PREFLIGHT
from scanner.guard import Guard, GuardFailure, NoChild
from scanner.results import Status
from tests.scanner import misbehave

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def guard():
    guard = Guard(preload=("tests.scanner.misbehave",), memory_limit=400 << 20)
    yield guard
    guard.close()


@pytest.mark.parametrize(
    ("function", "args", "status"),
    [
        (misbehave.hang_holding_gil, (), Status.TIMEOUT),
        (misbehave.hang_deaf, (), Status.TIMEOUT),
        (misbehave.segfault, (), Status.CRASHED),
        (misbehave.abort, (), Status.CRASHED),
        (misbehave.eat_memory, (), Status.TOO_LARGE),
        (misbehave.eat_memory_holding_gil, (1 << 40,), Status.TOO_LARGE),
    ],
)
def test_misbehaviour_becomes_a_status_and_the_next_task_runs(guard, function, args, status):
    with pytest.raises(GuardFailure) as failure:
        guard.run(function, *args, deadline_s=3 if status is Status.TIMEOUT else 60)
    assert failure.value.status is status
    assert guard.run(misbehave.answer, 42, deadline_s=60) == 42


@pytest.mark.parametrize("noticed", [False, True])
def test_a_child_that_dies_while_it_has_nothing_to_do_is_replaced(noticed):
    """As by the kernel, for want of memory: pebble gives up its pool then, and would fail every later video."""
    guard = Guard(preload=("tests.scanner.misbehave",))
    try:
        for number in range(3):
            os.kill(guard.run(misbehave.pid, deadline_s=60), signal.SIGKILL)
            while noticed and guard._pool.active:
                time.sleep(0.01)
            assert guard.run(misbehave.answer, number, deadline_s=60) == number
    finally:
        guard.close()


def test_where_no_child_can_start_no_video_is_blamed(monkeypatch):
    monkeypatch.setattr("scanner.guard._confine", misbehave.leave)
    guard = Guard()
    try:
        with pytest.raises(NoChild, match="dies as soon as it is started") as refused:
            guard.run(misbehave.answer, 42, deadline_s=60)
        assert refused.value.exit_code == EXIT_PREFLIGHT
    finally:
        guard.close()


def test_a_missing_library_is_no_videos_fault(guard):
    with pytest.raises(NoChild, match=r"No module named 'mediapipe_of_another_machine', on .*doctor"):
        guard.run(misbehave.import_module, "mediapipe_of_another_machine", deadline_s=60)


def test_a_clock_that_is_set_neither_kills_nor_spares_a_child(guard, monkeypatch):
    now = time.time

    def set_while_it_works(offset_s: float) -> None:
        threading.Timer(0.3, lambda: monkeypatch.setattr(time, "time", lambda: now() + offset_s)).start()

    guard.run(misbehave.pid, deadline_s=60)
    set_while_it_works(7200)
    assert guard.run(misbehave.answer_after, 1.0, 42, deadline_s=3600) == 42
    set_while_it_works(-7200)
    with pytest.raises(GuardFailure, match="no answer within 2 s"):
        guard.run(misbehave.hang_deaf, deadline_s=2)


def test_an_ordinary_exception_passes_through(guard):
    with pytest.raises(ValueError, match="no such codec"):
        guard.run(misbehave.fail, "no such codec", deadline_s=60)


def test_a_segfault_is_named(guard):
    with pytest.raises(GuardFailure, match="SIGSEGV"):
        guard.run(misbehave.segfault, deadline_s=60)


def test_the_child_is_recycled():
    guard = Guard(recycle=2)
    try:
        pids = [guard.run(misbehave.pid, deadline_s=60) for _ in range(4)]
    finally:
        guard.close()
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_preloaded_modules_are_there_in_a_new_child(guard):
    assert guard.run(misbehave.imported, "tests.scanner.misbehave", deadline_s=60)


def test_no_child_outlives_a_killed_parent():
    script = textwrap.dedent("""
        import os, signal
        from scanner.guard import Guard
        from tests.scanner import misbehave
        if __name__ == "__main__":
            guard = Guard()
            print(guard.run(misbehave.pid, deadline_s=60), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    child = int(done.stdout)
    for _ in range(200):
        if not _running(child):
            return
        os.sched_yield()
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail(f"child {child} still runs")


def _running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
