"""The watchdog: patient while anything moves, then a diagnosis and an end, even where the interrupt is not heard."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster

from cluster.plan import SPANS_PER_TASK
from scanner.config import ScanConfig
from scanner.diagnosis import Stage, diagnose, pulse, stage_sentences
from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.scratch import SLOWEST_DOWNLOAD
from scanner.watchdog import INTERRUPT, Stalled, Watchdog, bounded, patience_s
from tests.scans import ROOT, environment

pytestmark = pytest.mark.ray


def watchdog(pulse=lambda: 0, diagnose=lambda: ["Analyze: waits for Godot."], patience: float = 0.05) -> Watchdog:
    return Watchdog(lambda: patience, pulse, diagnose, poll_s=0.01, grace_s=60, look_s=0.2)


def wait_for_ever() -> NoReturn:
    while True:
        threading.Event().wait()


# --- one that is heard ----------------------------------------------------------------------------------


def test_a_silent_block_is_interrupted_and_told_why(capfd):
    with pytest.raises(UserError) as caught, watchdog():
        wait_for_ever()
    assert caught.value.exit_code == EXIT_PREFLIGHT
    said = "Nothing has moved for 0 seconds. Analyze: waits for Godot."
    assert str(caught.value) == said
    assert capfd.readouterr().err == "".join(f"deepsweep: {line}.\n" for line in said.rstrip(".").split(". "))


def test_the_block_can_close_its_books_and_sees_the_diagnosis():
    with watchdog():
        try:
            wait_for_ever()
        except KeyboardInterrupt as stop:  # so it also ends what only knows Ctrl-C
            assert isinstance(stop, Stalled)
            kept = stop.diagnosis
    assert kept[1:] == ["Analyze: waits for Godot."]


def test_nothing_happens_while_something_moves():
    moves = iter(range(50))
    with pytest.raises(UserError), watchdog(pulse=lambda: next(moves, None)):
        wait_for_ever()
    assert next(moves, None) is None, "every move was waited for"


def test_a_pulse_that_can_not_be_felt_is_no_change():
    moves = iter(range(20))

    def unsteady() -> int:
        move = next(moves, None)
        if move is None or move % 2:
            raise KeyError("an operator that Ray Data has let go of")
        return move

    with pytest.raises(UserError, match="Nothing has moved"), watchdog(pulse=unsteady):
        wait_for_ever()
    assert next(moves, None) is None, "what could be felt in between was a move"


def test_a_block_that_ends_is_left_alone_and_the_signal_is_as_before():
    before = signal.getsignal(INTERRUPT)
    with watchdog(patience=float("inf")):
        assert signal.getsignal(INTERRUPT) != before
    assert signal.getsignal(INTERRUPT) == before


def test_other_errors_of_the_block_pass_through():
    with pytest.raises(ZeroDivisionError), watchdog(patience=float("inf")):
        _ = 1 / 0


def test_a_diagnosis_that_hangs_as_well_stops_nothing():
    with pytest.raises(UserError, match="Ray does not answer when asked"), watchdog(diagnose=wait_for_ever):
        wait_for_ever()


def test_what_is_bounded_answers_fails_or_is_given_up():
    assert bounded(lambda: "answer", 10) == "answer"
    assert bounded(lambda: 1 // 0, 10) is None
    assert bounded(wait_for_ever, 0.01) is None


# --- one that is not ------------------------------------------------------------------------------------

DEAF = """
import signal, threading
from scanner.watchdog import INTERRUPT, Watchdog
with Watchdog(lambda: 0.05, lambda: 0, lambda: ["Score: waits."], poll_s=0.01, grace_s=0.1, look_s=1):
    signal.pthread_sigmask(signal.SIG_BLOCK, [INTERRUPT])  # as foreign code does that never comes back
    print("waiting", flush=True)
    threading.Event().wait()
"""

SWALLOWS = """
import threading
from scanner.watchdog import Watchdog
with Watchdog(lambda: 0.05, lambda: 0, lambda: ["Score: waits."], poll_s=0.01, grace_s=0.1, look_s=1):
    while True:
        try:
            threading.Event().wait()
        except BaseException:
            pass
"""


@pytest.mark.parametrize("script", [DEAF, SWALLOWS])
def test_a_process_that_cannot_be_interrupted_ends_all_the_same(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == EXIT_PREFLIGHT, done.stderr
    first, *middle, last = done.stderr.splitlines()
    assert first.startswith("deepsweep: Nothing has moved") and middle == ["deepsweep: Score: waits."]
    assert "ended at once" in last


def test_a_job_that_ignores_ctrl_c_is_interrupted_too():
    """As in the background of a script: `deepsweep scan ... &`."""
    script = DEAF.replace("signal.pthread_sigmask(signal.SIG_BLOCK, [INTERRUPT])", "pass").replace("0.1", "60")
    script = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment())
    assert "UserError: Nothing has moved" in done.stderr and "ended at once" not in done.stderr


# --- how patient it is ----------------------------------------------------------------------------------


@given(st.floats(1, 86400), st.lists(st.integers(0, 1 << 40), min_size=1, max_size=SPANS_PER_TASK))
def test_it_waits_longer_than_any_task_may_take(span_timeout, downloads):
    config = ScanConfig(span_timeout=span_timeout)
    assert patience_s(config, downloads) > sum(2 * span_timeout + size / SLOWEST_DOWNLOAD for size in downloads)


def test_or_as_long_as_the_user_says():
    assert patience_s(ScanConfig(stall_minutes=5), [1 << 40]) == 300
    with pytest.raises(UserError, match="--stall-minutes"):
        ScanConfig(stall_minutes=0)


# --- what it says ---------------------------------------------------------------------------------------

STAGE = Stage("Analyze", 0, 0, 0.0, 0, 2, 0, 0, "0.7 CPU", held_back=False, finished=False)


def test_each_stage_says_what_it_waits_for():
    stages = [
        replace(STAGE, name="SplitIntoSpans", finished=True),
        replace(STAGE, tasks=4, oldest_s=2040.0, waiting=6, done=310),
        replace(STAGE, name="Score", running=0, starting=1, needs="0.3 CPU and 1 GPU", waiting=3),
        replace(STAGE, name="Sink"),
        replace(STAGE, name="Later", waiting=2, held_back=True),
        replace(STAGE, name="Last", running=0, restarting=1),
    ]
    assert stage_sentences(stages) == [
        "Analyze: 4 tasks have not ended, the first begun 34 minutes ago; 6 more wait; 310 had ended.",
        "Score: none of its 1 actor could be started: each needs 0.3 CPU and 1 GPU free on one node; 3 more wait.",
        "Sink: waits for Score.",
        "Later: 2 wait, but Ray holds them back until the stages after it have taken what is finished.",
        "Last: its 1 actor died and could not be started again yet.",
    ]


counts = st.integers(0, 5)


@given(
    st.lists(
        st.builds(
            Stage, st.sampled_from("abc"), counts, counts, st.floats(0, 1e6), counts, counts, counts, counts,
            st.just("1 CPU"), st.booleans(), st.booleans(),
        )
    )
)  # fmt: skip
def test_there_is_always_a_sentence_and_one_for_each_stage_that_has_not_ended(stages):
    said = stage_sentences(stages)
    assert len(said) == max(1, sum(not stage.finished for stage in stages))
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in said)


# --- a real pipeline that stands still ------------------------------------------------------------------

PIPELINE = """
import sys, threading
from pathlib import Path
from cluster.connect import attach, disconnect
from scanner.diagnosis import diagnose, pulse
from scanner.watchdog import Watchdog

address, marker = sys.argv[1], Path(sys.argv[2])

class Forward:
    def __call__(self, row):
        return row

class Stuck:
    def __call__(self, row):
        if row["id"] == 2:
            marker.touch()
            threading.Event().wait()
        return row

seen = []

def patience():  # once the stage is known to hang, soon; until then, for ever
    return 0.5 if marker.exists() else float("inf")

with Watchdog(patience, lambda: (len(seen), *pulse()), diagnose, poll_s=0.05, grace_s=60):
    attach(address)
    import ray.data
    from ray.data import ActorPoolStrategy
    try:
        context = ray.data.DataContext.get_current()
        context.target_max_block_size = context.target_min_block_size = 1
        pools = [{"compute": ActorPoolStrategy(size=1), "num_cpus": share} for share in (0.1, 0.3)]
        rows = ray.data.range(4, override_num_blocks=4)
        rows = rows.map(Forward, **pools[0]).map(Stuck, **pools[1])
        for batch in rows.iter_batches(batch_size=None, prefetch_batches=0):
            seen.append(batch)
            assert pulse(), "Ray Data's counters are where they were looked for"
    finally:
        print(len(seen), flush=True)
        disconnect()
"""


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


def test_a_stage_that_hangs_is_named_and_the_scan_ends(ray_address: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE, ray_address, str(tmp_path / "marker")],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment(RAY_AUTH_MODE="disabled"),  # the cluster wants no token; this machine may have one
        cwd=ROOT,
    )
    said = done.stderr
    assert done.stdout.strip() == "2", "what came before was kept"
    assert "UserError: Nothing has moved for" in said and "ended at once" not in said, said
    assert "deepsweep: Stuck: " in said and "not ended, the first begun" in said
    assert "Free in the cluster: " in said and "The driver is in " in said


def test_without_a_pipeline_there_is_nothing_to_say_of_stages():
    assert pulse() == ()
    first, *_, last = bounded(diagnose, 60) or ["nothing"]
    assert first == "No stage of the scan is running yet."
    assert last.startswith("The driver is in bounded (")
