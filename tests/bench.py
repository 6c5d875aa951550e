"""The benchmark: how fast deepsweep scans, beside the same work done by a straightforward script.

    python -m tests.bench                  speed: the whole scan, each stage, the script (8 minutes on two cores)
    python -m tests.bench --quick          the same with little input: whether it works, not how fast it is
    python -m tests.bench memory           memory of every process while a 2-hour 1080p file is scanned
    python -m tests.bench micro FOLDER     what the micro-expression measures give on genuine footage
    python -m tests.bench heat PREP        where the heatmaps of the built-in model point, and where they should

Everything is measured in turn, several times, so that whatever else the machine does falls on all alike. Where that is
a lot, the CPU seconds are worth more than the rates: they leave out what others took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

from models.registry import DEFAULT_MODEL
from tests import bench_input, processes

ROOT = Path(__file__).resolve().parents[1]
RUN_LIMIT_S = 900.0  # of any one process that is measured
SPIN_S = 0.5
PACKAGES = ("ray", "torch", "mediapipe", "decord", "av", "opencv-python-headless", "numpy")
SCAN, SCAN_ALL = "scan, steady", "scan, with start-up"
# Two threads are worth little to batches of one picture, and cost a lot where they have to wait for a core.
SCRIPTS = {"the script": {}, "the script, PyTorch on one thread": {"OMP_NUM_THREADS": "1"}}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    files: int  # in the archive, each one span
    file_s: float  # length of each
    alone_s: float  # length of the files for the script and for the stages


FULL = Size(rounds=3, files=12, file_s=30.0, alone_s=6.0)
QUICK = Size(rounds=1, files=8, file_s=10.0, alone_s=4.0)


@dataclass(frozen=True)
class Timing:
    """One measurement."""

    video_s: float
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Seconds of video per second."""
        return self.video_s / self.wall_s

    @property
    def cost(self) -> float:
        """CPU seconds per second of video."""
        return self.cpu_s / self.video_s


@dataclass
class Bench:
    """Measurements of one run, round by round."""

    model: Path
    archive: bench_input.Archive
    short: bench_input.Archive  # the same people, for what is measured alone
    size: Size
    scratch: Path
    timings: dict[str, list[Timing]] = field(default_factory=dict)
    facts: dict[str, list[float]] = field(default_factory=dict)  # further figures, by name

    def round(self, number: int) -> None:
        """Measure everything once; each round begins with another one."""
        steps: list[Callable[[], None]] = [self.scan, self.script, self.stages, self.ffmpeg]
        for step in steps[number % len(steps) :] + steps[: number % len(steps)]:
            self._fact("share of a core that one busy thread gets here", core_share())
            began = time.perf_counter()
            step()
            print(f"round {number + 1}: {step.__name__}, {time.perf_counter() - began:.0f} s", file=sys.stderr)

    def scan(self) -> None:
        """The whole command over the archive; see `steady` for how its start-up is left out."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        videos = self.archive.folder(self.size.files, folder / "archive")
        began = time.monotonic()
        process = scan_process(videos, folder / "results", self.model, folder / "log")
        arrivals = []
        with processes.Watch(process.pid, every_s=0.5) as watch, ended_in_time(process, watch, RUN_LIMIT_S):
            for line in process.stdout or ():
                if json.loads(line)["event"] == "span":
                    arrivals.append(time.monotonic() - began)
            process.wait()
        wall_s = time.monotonic() - began
        if process.returncode != 0:
            raise SystemExit(f"the scan ended with {process.returncode}:\n{(folder / 'log').read_text()[-2000:]}")
        shutil.rmtree(folder)
        video_s = self.size.files * self.archive.seconds
        self._note(SCAN_ALL, Timing(video_s, wall_s, watch.cpu_s()))
        constant = steady(arrivals, self.archive.seconds, watch)
        self._note(SCAN, constant)
        self._fact("first result of a scan after, s", arrivals[0])
        self._fact("start-up and end of a scan, s", wall_s - video_s / constant.rate)
        self._fact("cores that a scan keeps busy once started", constant.cpu_s / constant.wall_s)

    def script(self) -> None:
        """What one would write first; its own clock starts when everything is imported and loaded."""
        for name, environment in SCRIPTS.items():
            began = time.perf_counter()
            result = self._python("tests.bench_script", environment)
            self._note(name, Timing(result["video_s"], result["wall_s"], result["cpu_s"]))
            self._fact("start-up of the script, s", time.perf_counter() - began - result["wall_s"])
            self._fact("frames in which the script saw a face, share", result["faces"] / result["frames"])

    def stages(self) -> None:
        """Every stage alone, in one process."""
        for stage, result in self._python("tests.bench_stages", {}).items():
            self._note(stage, Timing(**result))

    def ffmpeg(self) -> None:
        """Decoding every frame and doing nothing with it: no scanner that looks at all frames is faster."""
        for threads in (1, 0):
            name = f"only decoding, {{}}, {'one thread' if threads else 'all threads'}"
            if (binary := shutil.which("ffmpeg")) is not None:
                self._note(name.format("ffmpeg"), self._ffmpeg(binary, threads))
            else:
                self._note(name.format("PyAV"), self._pyav(threads))

    def _ffmpeg(self, binary: str, threads: int) -> Timing:
        began, before = time.perf_counter(), os.times()
        for file in self.archive.files:
            command = [binary, "-nostdin", "-v", "error", "-threads", str(threads), "-i", str(file)]
            subprocess.run([*command, "-an", "-f", "null", "-"], check=True, timeout=RUN_LIMIT_S)
        after = os.times()
        cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
        return Timing(len(self.archive.files) * self.archive.seconds, time.perf_counter() - began, cpu_s)

    def _pyav(self, threads: int) -> Timing:
        began, used = time.perf_counter(), time.process_time()
        for file in self.archive.files:
            with av.open(str(file)) as container:
                context = container.streams.video[0].codec_context
                context.thread_type, context.thread_count = "AUTO", threads
                for _ in container.decode(video=0):
                    pass
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - used
        return Timing(len(self.archive.files) * self.archive.seconds, wall_s, cpu_s)

    def _python(self, module: str, environment: dict[str, str]) -> dict:
        command = [sys.executable, "-m", module, str(self.model), *map(str, self.short.files)]
        settings = {"cwd": ROOT, "timeout": RUN_LIMIT_S, "env": os.environ | environment}
        done = subprocess.run(command, capture_output=True, text=True, **settings)
        if done.returncode != 0:
            raise SystemExit(f"{module} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def _note(self, name: str, timing: Timing) -> None:
        self.timings.setdefault(name, []).append(timing)

    def _fact(self, name: str, value: float) -> None:
        self.facts.setdefault(name, []).append(value)


def steady(arrivals: Sequence[float], span_s: float, watch: processes.Watch) -> Timing:
    """A scan's speed without start-up and end, from when its spans of `span_s` were written (seconds, ascending).

    The slope from the second result on (each analyser has begun) to the last but two (each still has another span in
    hand), so that as much is half done where the clock starts as where it stops.
    """
    if len(arrivals) < 6:
        raise ValueError("a slope needs six spans or more")
    counted = np.array(arrivals[1:-2])
    wall_s = float(np.polyfit(np.arange(len(counted)), counted, 1)[0]) * (len(counted) - 1)
    cpu_s = watch.cpu_s(until=counted[-1]) - watch.cpu_s(until=counted[0])
    return Timing(span_s * (len(counted) - 1), wall_s, cpu_s * wall_s / (counted[-1] - counted[0]))


def scan_process(
    videos: Path, results: Path, model: Path, log: Path, stdout: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """`deepsweep scan` as a process of its own, from this checkout; prints its events as JSON."""
    arguments = ["scan", str(videos), "--out", str(results), "--model", str(model), "--json"]
    code = "from scanner.cli import main; main()"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=stdout,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )


@contextlib.contextmanager
def ended_in_time(process: subprocess.Popen, watch: processes.Watch, limit_s: float) -> Iterator[None]:
    """End the process and all it started after `limit_s`, and if the block is left early."""
    timer = threading.Timer(limit_s, lambda: processes.end(watch.everyone()))
    timer.start()
    try:
        yield
    except BaseException:
        processes.end(watch.everyone())
        raise
    finally:
        timer.cancel()


# --- the figures ------------------------------------------------------------------------------------------


def table(bench: Bench) -> Table:
    """Rates and costs: medians over the rounds, rates with their range; ratios are paired by round."""
    script = max((bench.timings[name] for name in SCRIPTS), key=lambda ts: statistics.median(t.rate for t in ts))
    shown = Table(title="seconds of video per second; ratios are to the faster script", title_justify="left")
    shown.add_column("what")
    for name in ("median", "min to max", "x the script", "CPU s per video s", "of the script's"):
        shown.add_column(name, justify="right")
    for name, timings in bench.timings.items():
        rates, costs = [t.rate for t in timings], [t.cost for t in timings]
        faster = statistics.median(t.rate / s.rate for t, s in zip(timings, script, strict=True))
        share = statistics.median(t.cost / s.cost for t, s in zip(timings, script, strict=True))
        cells = (_short(statistics.median(rates)), f"{_short(min(rates))} to {_short(max(rates))}", f"{faster:.2f}")
        shown.add_row(name, *cells, f"{statistics.median(costs):.4f}", f"{share:.1%}")
    return shown


def machine() -> str:
    """What this ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {names[0] if names else platform.machine()}; Python {platform.python_version()}, {versions}"


def report(bench: Bench) -> dict:
    """Everything measured, for --json."""
    return {
        "machine": machine(),
        "input": f"{bench.archive.shows}, 1280x720 H.264",
        "rounds": bench.size.rounds,
        "timings": {name: [t.__dict__ for t in timings] for name, timings in bench.timings.items()},
        "facts": bench.facts,
    }


def core_share() -> float:
    """How much of a core a thread that never waits gets: 1 on a machine that nobody else uses."""
    began, used = time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < SPIN_S:
        pass
    return (time.thread_time() - used) / (time.perf_counter() - began)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


# --- the command line -------------------------------------------------------------------------------------


def speed(size: Size, json_file: Path | None) -> None:
    """Measure, print the table."""
    with tempfile.TemporaryDirectory(prefix="deepsweep-bench-") as scratch:
        archive, short = bench_input.talking_heads(size.file_s), bench_input.talking_heads(size.alone_s)
        bench = Bench(bench_input.make_model(Path(scratch) / "model"), archive, short, size, Path(scratch))
        for number in range(size.rounds):
            bench.round(number)
    result = report(bench)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"{result['machine']}\n{result['input']}; {size.rounds} rounds\n", highlight=False)
    console.print(table(bench))
    for name, values in bench.facts.items():
        middle, low, high = statistics.median(values), min(values), max(values)
        console.print(f"{name}: {middle:.3g} ({low:.3g} to {high:.3g})", highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="How fast deepsweep scans.")
    parser.set_defaults(command="speed", quick=False, json=None)
    parser.add_argument("--quick", action="store_true", help="little input, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    commands = parser.add_subparsers(dest="command", metavar="memory|micro|heat")
    memory = commands.add_parser("memory", help="memory while a long file is scanned")
    memory.add_argument("--hours", type=float, default=2.0, help="length of the file (default: 2)")
    memory.add_argument("--minutes", type=float, default=10.0, help="interrupt the scan after (default: 10)")
    memory.add_argument("--full", action="store_true", help="do not interrupt it")
    micro = commands.add_parser("micro", help="NORMAL of scanner/micro.py from genuine videos")
    micro.add_argument("folder", type=Path)
    heat = commands.add_parser("heat", help="how far heatmaps go with what a score rests on")
    heat.add_argument("prepared", type=Path, help="made by `deepsweep prepare`")
    heat.add_argument("--model", default=DEFAULT_MODEL, help="name or folder of a model (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.command == "memory":
        from tests.bench_memory import measure_memory

        measure_memory(args.hours * 3600, None if args.full else args.minutes * 60)
    elif args.command == "micro":
        from tests.bench_micro import measure_micro

        measure_micro(args.folder)
    elif args.command == "heat":
        from tests.bench_heat import measure_heat

        measure_heat(args.prepared, args.model)
    else:
        speed(QUICK if args.quick else FULL, args.json)


if __name__ == "__main__":
    main()
