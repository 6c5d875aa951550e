"""How the driver bears a large archive, and how well more nodes are used, with stages that only take their time.

    python -m tests.bench_scale                    both, about 40 minutes on two cores
    python -m tests.bench_scale driver             1,000,000 keys of a bucket, of which 100,000 spans are left to scan
    python -m tests.bench_scale nodes              the same kind of scan on 1, 2, 4 and 8 nodes
    python -m tests.bench_scale --quick            little of both: whether it works, not how fast it is

`deepsweep scan` itself runs, against Ray nodes on this machine and a bucket that only lists: inventory, anti-join with
RESULTS, dataset, counting, heartbeat and summary are the real ones. Fetching, analysing and scoring take a fixed time
and no CPU, and nothing is written per span, so that two cores drive what would be a large cluster.

It ends with 1 where an aim was missed, and says which: not all spans came through, the driver's time for each is too
long, it or the memory grows, or nodes wait. --quick only wants all spans to come through.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cluster.plan import Room, plan_for
from scanner import pipeline
from scanner import scan as scanning
from scanner.config import ScanConfig
from scanner.decode import VideoInfo
from scanner.errors import EXIT_INTERRUPTED, EXIT_OK
from scanner.progress import Progress
from scanner.records import RunFacts, Span
from scanner.results import Status
from scanner.sources import Video
from scanner.spans import span_bounds
from tests.bench import core_share, machine
from tests.bench_bucket import BUCKET, bucket, write_done

SPANS_PER_VIDEO = 2
STORE_BYTES = 256 << 20  # of each node
SAMPLES = 40  # at least, over a run
MOST_BETWEEN = 50  # spans from one to the next
MIB = 2**20
#: 16 analysers could do 160 spans a second, and 100,000 in 10 minutes. That is about what two cores can pass on, so
#: it is Ray and the driver that are kept busy, not the analysers.
DRIVER_PACE_S = 0.1
NODE_CPUS, NODE_PACE_S = 2, 2.0
DRIVER_AIM_MS, EFFICIENCY_AIM = 5.0, 0.9
MOST_GROWTH = 1.1  # of the driver's memory, from a tenth of the spans to all of them
MOST_SLOWING = 1.25  # of its time for a span, from the first tenth to the last one; single tenths differ that much


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    keys: int
    spans: int
    cpus: int  # of the driver's cluster; about as many analysers
    nodes: tuple[int, ...]
    seconds: float  # that each number of nodes is measured for
    limit_s: float  # after which the driver's scan is interrupted, and told of as far as it came
    judged: bool  # by the aims: too little says nothing of them


FULL = Size(keys=1_000_000, spans=100_000, cpus=16, nodes=(1, 2, 4, 8), seconds=60.0, limit_s=1800.0, judged=True)
QUICK = Size(keys=5_000, spans=400, cpus=8, nodes=(2,), seconds=8.0, limit_s=240.0, judged=False)


@dataclass(frozen=True)
class Sample:
    """The driver after so many spans."""

    spans: int
    wall_s: float
    cpu_s: float  # of this process, all its threads
    resident: int  # bytes


# --- stages that only take their time -----------------------------------------------------------------------


class Split(pipeline.SplitIntoSpans):
    """Every video has so many spans."""

    spans = SPANS_PER_VIDEO

    def __init__(self, work: pipeline.Work) -> None:
        self.work = work

    def split(self, video: Video) -> list[Span]:
        seconds = self.spans * 60.0
        info = VideoInfo(seconds, 0.0, 1280, 720, 25.0, "h264", 0, 1.0, "mov,mp4,m4a,3gp,3g2,mj2")
        bounds = span_bounds(seconds, 60.0)
        return [
            Span(video.uri, video.content_tag, video.size_bytes, i, len(bounds), start, end, info)
            for i, (start, end) in enumerate(bounds)
        ]


def analyze_taking(seconds: float) -> type[pipeline.Analyze]:
    """A stage for which every span takes so long, and shows no face."""

    class Analyze(pipeline.Analyze):
        def __init__(self, work: pipeline.Work) -> None:
            self.work = work

        def analyze(self, span: Span) -> Span:
            time.sleep(seconds)
            return span.failed(Status.NO_FACE, "")

    return Analyze


class Score(pipeline.Score):
    """No network is loaded: no span has a face."""

    def __init__(self, work: pipeline.Work, device: str) -> None:
        self.work = work


class Sink(pipeline.Sink):
    """Makes the rows, and writes none."""

    def __init__(self, work: pipeline.Work) -> None:
        super().__init__(work)
        pipeline.write_part = lambda *_: None


class Watched(Progress):
    """Notes now and then what the driver has used, and ends the scan as Ctrl-C does after limit_s of scanning."""

    every = 1  # spans
    last = 0  # the last one's number
    limit_s = math.inf
    samples: list[Sample]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        Watched.samples = []

    def span(self, *args: Any, **facts: Any) -> None:
        super().span(*args, **facts)
        if self.spans_done in (1, self.last) or self.spans_done % self.every == 0:
            self.samples.append(Sample(self.spans_done, time.perf_counter(), time.process_time(), resident()))
            if self.samples[-1].wall_s - self.samples[0].wall_s > self.limit_s:
                raise KeyboardInterrupt


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def cluster(nodes: int, cpus: int, store: int = STORE_BYTES) -> Iterator[str]:
    """The address of a Ray cluster on this machine: a head without cores, and `nodes` with `cpus` each.

    store: bytes of each object store.
    """
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args=_node(0, store))
    try:
        for _ in range(nodes):
            started.add_node(**_node(cpus, store))
        started.wait_for_nodes()
        yield str(started.address)
    finally:
        started.shutdown()


def _node(cpus: int, store: int) -> dict[str, Any]:
    return {"num_cpus": cpus, "num_gpus": min(cpus, 1), "object_store_memory": store, "include_dashboard": False}


# --- what is measured ---------------------------------------------------------------------------------------


def scan(address: str, results: str, spans: int, pace_s: float, limit_s: float = math.inf) -> list[Sample]:
    """Scan the bucket with stages that stand in, analysis taking pace_s; the driver's samples."""
    config = ScanConfig(sources=(f"s3://{BUCKET}",), out=results, address=address, memory_limit=1, quiet=True)
    Watched.every, Watched.last, Watched.limit_s = max(1, min(MOST_BETWEEN, spans // SAMPLES)), spans, limit_s
    stages = {"SplitIntoSpans": Split, "Analyze": analyze_taking(pace_s), "Score": Score, "Sink": Sink}
    with patch.multiple(pipeline, **stages), patch.object(scanning, "Progress", Watched):
        code = scanning.scan(config)
    samples = Watched.samples
    reached = samples[-1].spans if samples else 0
    if code not in (EXIT_OK, EXIT_INTERRUPTED) or len(samples) < 2:
        raise SystemExit(f"the scan ended with {code} after {reached:,} of {spans:,} spans: too few to measure")
    if code == EXIT_INTERRUPTED:
        print(f"interrupted after {limit_s / 60:g} minutes and {reached:,} of {spans:,} spans")
    return samples


def drive(size: Size) -> list[str]:
    """The driver's memory and time over a scan of many spans from a bucket of many keys; the aims it missed."""
    with tempfile.TemporaryDirectory(prefix="deepsweep-bench-") as folder, bucket(size.keys):
        results = f"{folder}/results"
        facts = RunFacts.of(ScanConfig(sources=("-",), out=results))
        left = size.spans // SPANS_PER_VIDEO
        write_done(results, facts, size.keys - left)
        print(f"{size.keys:,} keys, {size.keys - left:,} of them done; {size.spans:,} spans of {left:,} videos to scan")
        with cluster(1, size.cpus) as address:
            began = Sample(0, time.perf_counter(), time.process_time(), resident())
            samples = scan(address, results, size.spans, DRIVER_PACE_S, size.limit_s)
            ended = time.perf_counter()
            print(f"the object stores spilled {spilled(address)} bytes")
    first, last = samples[0], samples[-1]
    print(
        f"until the first span: {first.wall_s - began.wall_s:.1f} s ({first.cpu_s - began.cpu_s:.1f} s of the driver's"
        f" CPU); after the last one: {ended - last.wall_s:.1f} s"
    )
    shown = [samples[round(share * (len(samples) - 1))].resident / MIB for share in (0.1, 0.5, 1.0)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"resident MiB at 10 %, 50 % and 100 %: {', '.join(f'{mib:.0f}' for mib in shown)}; peak {peak:.0f}")
    for name, place in (("first", 0), ("last", 9)):
        wall, used = tenth(samples, place)
        print(f"{name} tenth: {wall:.2f} ms a span, of it {used:.2f} ms of the driver's CPU")
    print(f"driver: {cpu_ms(first, last):.2f} ms of CPU a span", flush=True)
    return unfinished(samples, size.spans) + (shortfalls(samples) if size.judged else [])


def unfinished(samples: Sequence[Sample], spans: int) -> list[str]:
    """That a scan of so many spans was over before the last one, if it was."""
    reached = samples[-1].spans
    return [] if reached == spans else [f"only {reached:,} of {spans:,} spans came through"]


def shortfalls(samples: Sequence[Sample]) -> list[str]:
    """The driver's aims that a scan has missed."""
    first, early, last = samples[0], samples[round(0.1 * (len(samples) - 1))], samples[-1]
    each, growth = cpu_ms(first, last), last.resident / early.resident
    slowing = tenth(samples, 9)[1] / max(1e-9, tenth(samples, 0)[1])
    aims = {
        f"{each:.2f} ms of the driver's CPU a span, not under {DRIVER_AIM_MS:g}": each < DRIVER_AIM_MS,
        f"{growth:.2f} times the driver's memory of a tenth of the spans, over {MOST_GROWTH:g}": growth <= MOST_GROWTH,
        f"{slowing:.2f} times the first tenth's CPU a span in the last, over {MOST_SLOWING:g}": slowing <= MOST_SLOWING,
    }
    return [what for what, met in aims.items() if not met]


def cpu_ms(first: Sample, last: Sample) -> float:
    """Milliseconds of the driver's CPU for a span between the two."""
    return 1000 * (last.cpu_s - first.cpu_s) / max(1, last.spans - first.spans)


def tenth(samples: Sequence[Sample], number: int) -> tuple[float, float]:
    """(wall, CPU) milliseconds a span in one tenth of a run."""
    ends = [samples[round(share * (len(samples) - 1) / 10)] for share in (number, number + 1)]
    spans = max(1, ends[1].spans - ends[0].spans)
    return 1000 * (ends[1].wall_s - ends[0].wall_s) / spans, cpu_ms(*ends)


def spread(size: Size) -> list[str]:
    """Spans a second on more and more nodes, against what their analysers could do; the aims that were missed."""
    missed = []
    for nodes in size.nodes:
        with cluster(nodes, NODE_CPUS) as address:
            free = [Room(str(n), NODE_CPUS, 1) for n in range(nodes)]
            perfect = plan_for(free, nodes).analyzers / NODE_PACE_S
            spans = SPANS_PER_VIDEO * round(perfect * size.seconds / SPANS_PER_VIDEO)
            with tempfile.TemporaryDirectory(prefix="deepsweep-bench-") as folder, bucket(spans // SPANS_PER_VIDEO):
                samples = scan(address, f"{folder}/results", spans, NODE_PACE_S)
        rate = steady_rate(samples)
        share = f"{nodes} nodes: {rate / perfect:.0%}"
        print(f"{share}: {rate:.2f} spans a second of {perfect:.2f} that its analysers could do", flush=True)
        missed += unfinished(samples, spans)
        if size.judged and rate <= EFFICIENCY_AIM * perfect:
            missed.append(f"{share} of what its analysers could do, not above {EFFICIENCY_AIM:.0%}")
    return missed


def steady_rate(samples: Sequence[Sample]) -> float:
    """Spans a second between a fifth and nine tenths of a run: without its start, while all have work."""
    first, last = (samples[round(share * (len(samples) - 1))] for share in (0.2, 0.9))
    return (last.spans - first.spans) / (last.wall_s - first.wall_s)


def spilled(address: str) -> int:
    """Bytes that the cluster's object stores have written to disk since it was started."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    return get_memory_info_reply(get_state_from_address(address)).store_stats.spilled_bytes_total


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_scale", description="How deepsweep bears size.")
    parser.add_argument("what", nargs="?", choices=("driver", "nodes"), help="by default both")
    parser.add_argument("--quick", action="store_true", help="little of each: whether it works, not how well")
    parser.add_argument("--keys", type=int, help=f"in the bucket (default: {FULL.keys:,})")
    parser.add_argument("--spans", type=int, help=f"left to scan, an even number (default: {FULL.spans:,})")
    parser.add_argument(
        "--minutes", type=float, help=f"that the driver's scan may take (default: {FULL.limit_s / 60:g})"
    )
    args = parser.parse_args(arguments)
    size = QUICK if args.quick else FULL
    limit_s = 60 * args.minutes if args.minutes else size.limit_s
    size = replace(size, keys=args.keys or size.keys, spans=args.spans or size.spans, limit_s=limit_s)
    os.environ["RAY_AUTH_MODE"] = "disabled"  # the clusters want no token; this machine may have one
    print(f"{machine()}\na busy thread gets {core_share():.2f} of a core here", flush=True)
    missed: list[str] = []
    if args.what != "nodes":
        missed += drive(size)
    if args.what != "driver":
        missed += spread(size)
    for aim in missed:
        print(f"MISSED: {aim}")
    return 0 if not missed else 1


if __name__ == "__main__":
    sys.exit(main())
