"""The guard against real misbehaviour: each child here really hangs, dies or grows."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from scanner.guard import Guard, GuardFailure
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
