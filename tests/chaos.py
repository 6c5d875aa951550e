"""Chaos: scans of a bucket on a cluster, disturbed by a seeded schedule, and whether their results show it.

    python -m tests.chaos                          20 schedules, as `make chaos`
    python -m tests.chaos --schedules 1 --seed 7   one of them again

What happens is drawn from the seed alone, and when depends on nothing but how many spans are in RESULTS. Which
span is hit still differs from time to time: that is what the results must not depend on. The same command is run
again only after what must end a scan (ENDS_A_RUN); a scan that gives up over anything else has failed its schedule.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import pytest
from ray.cluster_utils import Cluster

from scanner import errors
from scanner.storage import list_results
from tests import processes
from tests.s3 import BUCKET, Proxy, Storm, behind_proxy, empty_bucket, s3_server
from tests.scans import SPANS, command, environment, rows
from tests.zoo import ARCHIVE

Views = dict[str, list[dict[str, Any]]]

VIEWS = ("videos", "clips", "frames", "faces", "signals", "thumbnails")
STAGES = ("SplitIntoSpans", "Analyze", "Score", "Sink")
#: Small ones of each kind that there is: every way a span can end here, and two videos of two spans.
VIDEOS = (
    "broken/empty.mp4",
    'broken/it\'s "ünïcode" ; name.mp4',
    "broken/text.mp4",
    "broken/truncated.mp4",
    "formats/mpegts.ts",
    "formats/vp9.webm",
    "street/no_face.mp4",
    "street/short.mp4",
    "talks/real_blinks.mp4",
)
NODES = 3  # the head among them; each has one CPU, so that two can hold a scan
RUN_LIMIT_S = 400.0  # of the command, each time
STALL_MINUTES = "2"
STORM_REQUESTS = 40
STORE_BYTES = 160 << 20
PACKAGES = ("ray", "pyarrow", "boto3", "moto")
DONE = {errors.EXIT_OK, errors.EXIT_SOME_FAILED}


class Kind(str, Enum):
    """What can happen to a scan."""

    KILL_WORKER = "kill a worker"
    KILL_NODE = "kill a node"
    ADD_NODE = "add a node"
    KILL_DRIVER = "SIGKILL the driver"
    INTERRUPT_DRIVER = "SIGINT the driver"
    STORM = "S3 errors"
    EXPIRY = "expired credentials"


SIGNALS = {Kind.KILL_DRIVER: signal.SIGKILL, Kind.INTERRUPT_DRIVER: signal.SIGINT}
#: What may end a run before it is done, and the exit code that it then has. Lost nodes are not among it: no schedule
#: leaves too few of them.
ENDS_A_RUN = {
    Kind.KILL_DRIVER: -signal.SIGKILL,
    Kind.INTERRUPT_DRIVER: errors.EXIT_INTERRUPTED,
    Kind.EXPIRY: errors.EXIT_PREFLIGHT,
}


@dataclass(frozen=True)
class Event:
    """Something that happens once `after` spans are in RESULTS and a scan runs."""

    after: int
    kind: Kind
    seed: int  # of what is left to chance in it

    def __str__(self) -> str:
        return f"{self.kind.value} after {self.after}"


@dataclass(frozen=True)
class Schedule:
    """What happens to one scan, and where its RESULTS are."""

    seed: int
    in_bucket: bool
    events: tuple[Event, ...]

    @classmethod
    def draw(cls, seed: int, spans: int) -> Schedule:
        """Three to five events for a scan of so many spans, one of each kind before any comes twice.

        Never so few nodes that none holds a scan, and the last one early enough to disturb something.
        """
        rng = random.Random(seed)
        moments = sorted(rng.randrange(0, max(1, spans - 2)) for _ in range(rng.randint(3, 5)))
        events: list[Event] = []
        nodes = NODES
        for after in moments:
            used = {event.kind for event in events}
            possible = [kind for kind in Kind if _possible(kind, nodes)]
            kind = rng.choice([kind for kind in possible if kind not in used] or possible)
            nodes += {Kind.KILL_NODE: -1, Kind.ADD_NODE: 1}.get(kind, 0)
            events.append(Event(after, kind, rng.randrange(1 << 30)))
        return cls(seed, rng.random() < 0.5, tuple(events))


def _possible(kind: Kind, nodes: int) -> bool:
    if kind is Kind.KILL_NODE:
        return nodes > 2
    return kind is not Kind.ADD_NODE or nodes <= NODES


@dataclass
class Outcome:
    """How a schedule went."""

    schedule: Schedule
    exit_codes: list[int] = field(default_factory=list)
    missed: list[Event] = field(default_factory=list)  # of which the scan was over too early
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = "bucket" if self.schedule.in_bucket else "folder"
        missed = f", missed {len(self.missed)}" if self.missed else ""
        events = "; ".join(map(str, self.schedule.events))
        verdict = "EQUAL" if not self.differences else "DIFFERENT\n    " + "\n    ".join(self.differences)
        return (
            f"seed {self.schedule.seed}, results in a {where}: {events}{missed};"
            f" exit codes {' '.join(map(str, self.exit_codes))}; {self.seconds:.0f} s: {verdict}"
        )


class Scene:
    """A bucket with videos behind bad weather, and as many nodes as there are at the moment."""

    def __init__(self, bucket: Any, proxy: Proxy, cluster: Cluster, folder: Path) -> None:
        self.bucket, self.proxy, self.cluster, self.folder = bucket, proxy, cluster, folder

    def scan(self, results: str, pending: deque[Event], log: IO[str]) -> int:
        """Run the command once and let happen what is due; its exit code. Takes from pending what has happened."""
        self.proxy.refusal = ""  # somebody has renewed the credentials
        with subprocess.Popen(
            command(
                *("scan", f"s3://{BUCKET}/tests/archive", "--out", results, "--json"),
                *("--address", str(self.cluster.address), "--scratch", self.folder / "scratch"),
                *(*SPANS, "--stall-minutes", STALL_MINUTES),
            ),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as driver:
            limit = threading.Timer(RUN_LIMIT_S, driver.kill)
            limit.start()
            try:
                assert driver.stdout is not None
                over = False
                for line in driver.stdout:  # an event a line, the first one once the scan has started
                    log.write(f"{time.monotonic():.1f} {line[:200].rstrip()}\n")
                    while pending and not over and pending[0].after <= self.spans(results):
                        event = pending.popleft()
                        log.write(f"{time.monotonic():.1f} --- {event}\n")
                        over = self.happen(event, driver)
                return driver.wait()
            finally:
                limit.cancel()
                driver.kill()

    def spans(self, results: str) -> int:
        """Spans that are in RESULTS: on CPUs each is a part of its own."""
        if not results.startswith("s3://"):
            return len(list_results(results, "spans/", ".parquet"))
        prefix = results.removeprefix(f"s3://{BUCKET}/")
        return self.bucket.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/spans/")["KeyCount"]

    def happen(self, event: Event, driver: subprocess.Popen[str]) -> bool:
        """Do it; whether that was the end of the driver."""
        rng = random.Random(event.seed)
        if event.kind is Kind.STORM:
            self.proxy.storm = Storm(event.seed, STORM_REQUESTS)
        elif event.kind is Kind.EXPIRY:
            self.proxy.refusal = "400 ExpiredToken"  # as S3 answers
        elif event.kind is Kind.ADD_NODE:
            self.cluster.add_node(**NODE)
        elif event.kind is Kind.KILL_NODE:
            self.cluster.remove_node(rng.choice(list(self.cluster.worker_nodes)), allow_graceful=False)
        elif event.kind is Kind.KILL_WORKER:
            kill_worker(rng)
        else:
            driver.send_signal(SIGNALS[event.kind])
        return event.kind in SIGNALS


def kill_worker(rng: random.Random) -> None:
    """SIGKILL one process that does a stage's work; of another stage, where the one drawn has none (any more)."""
    workers = [process for process in processes.family(os.getpid()) if process.command.startswith("ray::MapWorker")]
    for stage in rng.sample(STAGES, len(STAGES)):
        of_stage = [worker.pid for worker in workers if stage in worker.command]
        if of_stage:
            os.kill(rng.choice(of_stage), signal.SIGKILL)
            return


NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE_BYTES}


@contextlib.contextmanager
def scene(
    bucket: Any, proxy: Proxy, folder: Path, nodes: int = NODES, videos: Sequence[str] = VIDEOS
) -> Iterator[Scene]:
    """A cluster of nodes with one CPU each, and the bucket with these videos of the sample archive."""
    for video in videos:
        bucket.upload_file(str(ARCHIVE / video), BUCKET, f"tests/archive/{video}")
    # A node that is gone is given up after 3 s, not Ray's 20.
    quickly = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    head = {**NODE, "include_dashboard": False, "_system_config": quickly}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**NODE)
        yield Scene(bucket, proxy, cluster, folder)
    finally:
        cluster.shutdown()


def undisturbed(at: Scene) -> str:
    """RESULTS of a scan to which nothing happens."""
    results = at.folder / "undisturbed"
    with (at.folder / "undisturbed.log").open("w") as log:
        code = at.scan(str(results), deque(), log)
    assert code in DONE, (code, Path(log.name).read_text())
    return str(results)


def disturbed(at: Scene, schedule: Schedule, truth: Views) -> Outcome:
    """Let a schedule happen to the command, again after each event that ends it; compare what there is then."""
    outcome = Outcome(schedule)
    name = f"disturbed-{schedule.seed}"
    results = f"s3://{BUCKET}/{name}" if schedule.in_bucket else str(at.folder / name)
    pending, began = deque(schedule.events), time.monotonic()
    happened: list[Event] = []  # in this run
    with (at.folder / f"{name}.log").open("w") as log:
        while not outcome.exit_codes or to_be_continued(outcome.exit_codes[-1], happened):
            before = list(pending)
            outcome.exit_codes.append(at.scan(results, pending, log))
            happened = before[: len(before) - len(pending)]
    at.proxy.storm, at.proxy.refusal = Storm(0, 0), ""
    outcome.missed, outcome.seconds = list(pending), time.monotonic() - began
    if "Traceback" in Path(log.name).read_text():
        outcome.differences.append(f"a traceback was printed: {log.name}")
    if outcome.exit_codes[-1] not in DONE:
        what = "; ".join(map(str, happened)) or "nothing"
        outcome.differences.append(f"run {len(outcome.exit_codes)} gave up, to which this had happened: {what}")
        return outcome
    found = views(results)
    for view, wanted in truth.items():
        outcome.differences += differences(view, wanted, found[view])
    return outcome


def to_be_continued(code: int, happened: Sequence[Event]) -> bool:
    """Whether something that happened to a run is the reason of its exit code."""
    return code in {ENDS_A_RUN[event.kind] for event in happened if event.kind in ENDS_A_RUN}


def views(results: str) -> Views:
    """What RESULTS say, less what two scans of the same videos may differ in."""
    return {view: rows(results, view) for view in VIEWS}


def differences(view: str, wanted: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of a view that are there too often, not at all, or otherwise."""
    left = sorted(map(repr, wanted))
    more = []
    for row in map(repr, found):
        if row in left:
            left.remove(row)
        else:
            more.append(row)
    return [f"{view}: missing {row[:300]}" for row in left] + [f"{view}: too many {row[:300]}" for row in more]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Scans that are disturbed by seeded schedules."
    )
    parser.add_argument("--schedules", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the first schedule; the next ones count on")
    parser.add_argument("--keep", action="store_true", help="keep RESULTS and logs, and say where they are")
    options = parser.parse_args(arguments)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's server tells every request
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell, drivers would ignore it
    folder = Path(tempfile.mkdtemp(prefix="deepsweep-chaos-"))
    equal = events = missed = 0
    with pytest.MonkeyPatch.context() as patch, s3_server() as endpoint:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        with empty_bucket(endpoint, patch) as bucket, behind_proxy(endpoint, patch) as proxy:
            with scene(bucket, proxy, folder) as at:
                results = undisturbed(at)
            truth, spans = views(results), at.spans(results)
            print(f"{len(VIDEOS)} videos of {spans} spans, {NODES} nodes", flush=True)
            for seed in range(options.seed, options.seed + options.schedules):
                with scene(bucket, proxy, folder) as at:  # a fresh cluster: no schedule inherits another's wounds
                    outcome = disturbed(at, Schedule.draw(seed, spans), truth)
                equal += not outcome.differences
                events, missed = events + len(outcome.schedule.events), missed + len(outcome.missed)
                print(outcome, flush=True)
    print(
        f"{equal} of {options.schedules} schedules: results equal to an undisturbed run's; {missed} of {events} events"
        f" missed, the scan being over. {surroundings()}"
    )
    if options.keep or equal < options.schedules:
        print(f"RESULTS and logs: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if equal == options.schedules else 1


def surroundings() -> str:
    """The machine and what runs on it."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in PACKAGES)]
    return f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, {', '.join(versions)}"


if __name__ == "__main__":
    sys.exit(main())
