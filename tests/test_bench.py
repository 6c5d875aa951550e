"""The benchmark's own arithmetic: a wrong ruler would go unnoticed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.bench import steady
from tests.bench_memory import slope
from tests.bench_micro import middle_and_spread
from tests.bench_scale import MIB, Sample, shortfalls, unfinished
from tests.processes import Process, Watch, end, family
from tests.scans import ROOT, environment

pytestmark = pytest.mark.ray


def arrivals(spans: int, workers: int, start: float, each: float) -> list[float]:
    """When results come from workers that began together and take equally long, a little apart."""
    return sorted(start + each * (1 + i // workers) + 0.1 * (i % workers) for i in range(spans))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("start", [0.0, 45.0])
def test_steady_rate_knows_neither_start_up_nor_the_tail(workers: int, start: float) -> None:
    watch = Watch(0, samples=[(t, [Process(1, 0, "", 0, 0, 2.0 * t)]) for t in np.arange(0.0, 300.0, 0.5)])
    timing = steady(arrivals(12, workers, start, each=10.0), 30.0, watch)
    assert timing.rate == pytest.approx(workers * 30 / 10, rel=0.06)
    assert timing.cpu_s / timing.wall_s == pytest.approx(2.0, rel=0.1)


def test_family_holds_children_of_children_and_ends_with_them() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # the grandchild is there
    found = family(process.pid)
    assert found[0].pid == process.pid
    assert len(found) == 2 and found[1].parent == process.pid and found[1].resident > found[1].private > 0
    end(found)
    process.wait()
    assert family(process.pid) == []


def test_own_process_is_seen_with_its_memory() -> None:
    block = np.ones(64 * 2**20, np.uint8)
    me = family(os.getpid())[0]
    assert me.private > block.nbytes and me.cpu_s > 0


def test_slope_of_the_later_part_is_mib_a_minute() -> None:
    warming = [(m / 10, 500.0 * m) for m in range(20)]
    assert slope([*warming, *((2 + m / 10, 9_500 + 3.0 * m / 10) for m in range(100))]) == pytest.approx(3.0)


def test_spread_of_a_normal_distribution_is_its_deviation() -> None:
    median, spread = middle_and_spread(np.random.default_rng(1).normal(5.0, 2.0, 100_000))
    assert median == pytest.approx(5.0, abs=0.05) and spread == pytest.approx(2.0, rel=0.03)


def drive(spans: int, ms: float = 3.0, mib_later: float = 0.0, slower: float = 1.0) -> list[Sample]:
    """Samples of a driver that spends ms on a span, `slower` times as much in the second half, and grows by so much."""
    samples, cpu_s = [], 0.0
    for n in range(1, spans + 1):
        cpu_s += ms / 1000 * (slower if n > spans / 2 else 1)
        samples.append(Sample(n, n / 100, cpu_s, round((500 + mib_later * n / spans) * MIB)))
    return samples


def test_a_driver_that_misses_an_aim_is_told_which():
    assert shortfalls(drive(1000, mib_later=20, slower=1.1)) == unfinished(drive(1000), 1000) == []
    for samples, aim in (
        (drive(1000, ms=5.1), "5.10 ms of the driver's CPU a span, not under 5"),
        (drive(1000, mib_later=100), "1.18 times the driver's memory"),
        (drive(1000, slower=1.5), "1.50 times the first tenth's CPU a span"),
    ):
        (missed,) = shortfalls(samples)
        assert missed.startswith(aim)
    assert unfinished(drive(900), 1000) == ["only 900 of 1,000 spans came through"]


def test_a_little_of_bench_queries_and_bench_report_runs_to_its_end():
    for bench, figures in (
        (["tests.bench_queries", "--rows", "9000"], ("9,000 frames in 10 spans", "flagged ", "summary ")),
        (["tests.bench_report", "--videos", "20"], ("20 videos: written in", "on the screen after")),
    ):
        if "tests.bench_report" in bench and not shutil.which("chromium"):
            pytest.skip("no Chromium on this machine: `apt-get install chromium` lets the report's bench run")
        said = run(*bench)
        assert all(figure in said for figure in figures), said


def test_a_little_of_bench_scale_runs_to_its_end():
    said = run("tests.bench_scale", "--quick")
    for figure in ("the object stores spilled 0 bytes", "ms of CPU a span", "2 nodes: "):
        assert figure in said


def run(*module: str) -> str:
    """What a benchmark prints; it must end with 0."""
    done = subprocess.run(
        [sys.executable, "-m", *module],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
