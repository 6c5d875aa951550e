"""Memory of a scan's processes over time, while a file of hours goes through."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from tests import bench_input
from tests.bench import scan_process
from tests.processes import Process, Watch, end
from tests.zoo_files import render_long

EVERY_S = 2.0
END_LIMIT_S = 120.0  # an interrupted scan sums up what it has
WARM_UP = 0.4  # of the run, in which caches fill; the slope is taken behind it
LINES = 15
MIB = 2**20
KINDS = ("driver", "analysing child", "Ray actor", "Ray itself", "fork server")
LIMITS_GIB = {"driver": 1.0, "analysing child": 0.75}


def measure_memory(seconds: float, limit_s: float | None) -> None:
    """Scan a 1080p file of `seconds` and print the resident memory of each kind of process, largest of its kind.

    limit_s: interrupt the scan after so long; None: let it finish.
    """
    with tempfile.TemporaryDirectory(prefix="deepsweep-bench-") as scratch:
        folder = Path(scratch)
        video = folder / "archive" / "long.mp4"
        video.parent.mkdir()
        began = time.monotonic()
        render_long(video, seconds)
        print(f"{seconds / 3600:g} h of 1080p: {video.stat().st_size / 1e6:.0f} MB, {time.monotonic() - began:.0f} s")
        model = bench_input.make_model(folder / "model")
        process = scan_process(video, folder / "results", model, folder / "log", subprocess.DEVNULL)
        with Watch(process.pid, EVERY_S) as watch:
            _let_run(process, watch, limit_s)
        done = sum(1 for _ in (folder / "results" / "spans").rglob("*.parquet"))
        code = process.returncode
        print(f"the scan ended with {code} after {watch.samples[-1][0] / 60:.1f} min, {done} spans were written\n")
    # Summing up at the end is not scanning: it would bend the slope.
    _print([(t, family) for t, family in watch.samples if limit_s is None or t <= limit_s])


def _let_run(process: subprocess.Popen, watch: Watch, limit_s: float | None) -> None:
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            end(watch.everyone())
            process.wait()
    except BaseException:
        end(watch.everyone())
        raise


def kind_of(process: Process, family: dict[int, Process], root: int) -> str:
    """One of KINDS."""
    if process.pid == root:
        return "driver"
    if "multiprocessing.forkserver" in process.command:
        parent = family.get(process.parent)
        forked = parent is not None and "multiprocessing.forkserver" in parent.command
        return "analysing child" if forked else "fork server"
    return "Ray actor" if process.command.startswith("ray::") else "Ray itself"


def _print(samples: list[tuple[float, list[Process]]]) -> None:
    root = samples[0][1][0].pid
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)  # kind: (minutes, MiB of the largest)
    private: dict[str, float] = defaultdict(float)
    for t, processes in samples:
        family = {p.pid: p for p in processes}
        largest: dict[str, int] = defaultdict(int)
        for process in processes:
            kind = kind_of(process, family, root)
            largest[kind] = max(largest[kind], process.resident)
            private[kind] = max(private[kind], process.private / MIB)
        for kind, resident in largest.items():
            series[kind].append((t / 60, resident / MIB))
    print("minute  " + "".join(f"{kind:>17}" for kind in KINDS) + "   (resident MiB, the largest of its kind)")
    for t, _ in samples[:: max(1, len(samples) // LINES)]:
        cells = [next((f"{mib:17.0f}" for at, mib in series[kind] if at >= t / 60), " " * 17) for kind in KINDS]
        print(f"{t / 60:6.1f}  " + "".join(cells))
    print()
    for kind in KINDS:
        if not series[kind]:
            continue
        peak = max(mib for _, mib in series[kind])
        limit = LIMITS_GIB.get(kind)
        verdict = "" if limit is None else f", {'under' if peak < limit * 1024 else 'OVER'} the limit of {limit} GiB"
        figures = f"peak {peak:6.0f} MiB, of it private {private[kind]:6.0f}, {slope(series[kind]):+7.2f} MiB a minute"
        print(f"{kind:16} {figures}{verdict}")


def slope(series: list[tuple[float, float]]) -> float:
    """MiB a minute that (minutes, MiB) grow by once warmed up: the least-squares line. NaN of too few."""
    minutes, mib = np.array(series).T
    late = minutes >= minutes[0] + WARM_UP * (minutes[-1] - minutes[0])
    return float(np.polyfit(minutes[late], mib[late], 1)[0]) if late.sum() > 2 else float("nan")
