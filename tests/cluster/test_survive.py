"""Scans to which things happen: lost nodes, killed workers, an S3 that throttles or refuses, full disks, odd clocks."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.experimental import internal_kv

from scanner import attempts, results
from scanner.attempts import DIED, MOST
from scanner.config import ScanConfig
from scanner.errors import EXIT_PREFLIGHT
from scanner.pipeline import SplitIntoSpans, Todo, Work, todo_block
from scanner.records import RunFacts
from scanner.scratch import Scratch
from scanner.sources import iter_videos
from scanner.storage import CredentialsFailed, get_bytes, list_results, put_bytes
from tests import chaos
from tests.chaos import NODES, Event, Kind, Scene, Schedule
from tests.namespaces import in_namespace
from tests.queries.rows import span, write_part, write_run
from tests.s3 import BUCKET, Storm, put
from tests.scans import ROOT, TIMEOUT_S, environment, videos

pytestmark = pytest.mark.ray

FEW = ("street/no_face.mp4", "talks/real_blinks.mp4")

# --- a cluster ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # the cluster wants no token; this machine may have one
        yield patch


@pytest.fixture(scope="module")
def at(s3_endpoint: str, patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two nodes with one CPU each, and two videos in a bucket."""
    with (
        chaos.empty_bucket(s3_endpoint, patch) as bucket,
        chaos.behind_proxy(s3_endpoint, patch) as proxy,
        chaos.scene(bucket, proxy, tmp_path_factory.mktemp("chaos"), nodes=2, videos=FEW) as scene,
    ):
        yield scene


def test_a_scan_that_loses_a_node_its_driver_and_s3_ends_as_an_undisturbed_one(at: Scene, scanned):
    """A node is preempted and replaced while S3 throttles; then kill -9, and the same command again."""
    events = ((0, Kind.STORM), (1, Kind.KILL_NODE), (1, Kind.ADD_NODE), (2, Kind.KILL_DRIVER))
    schedule = Schedule(1, in_bucket=True, events=tuple(Event(after, kind, seed=1) for after, kind in events))
    truth = {view: [row for row in rows if row["uri"] in FEW] for view, rows in chaos.views(str(scanned[0])).items()}
    assert len(truth["videos"]) == len(FEW) and all(truth.values())
    outcome = chaos.disturbed(at, schedule, truth)
    assert not outcome.differences and not outcome.missed, str(outcome)


DEADLY = """
import json, os, signal, sys
from types import SimpleNamespace
from cluster.connect import attach, disconnect
from scanner.pipeline import Analyze, Score, SplitIntoSpans, Todo, _unpack, todo_block
from scanner.records import Span
from scanner.sources import Video

WORK = SimpleNamespace(run=SimpleNamespace(run_id=sys.argv[2]), spans_per_task=4, span_seconds=60.0)

def die_of(span):
    if span.uri.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    return span

class Split(SplitIntoSpans):
    def __init__(self, work):
        self.work = work

    def split(self, video):
        return [Span(video.uri, "", 0)]

class Analysis(Analyze):
    def __init__(self, work):
        self.work = work

    def analyze(self, span):
        return die_of(span) if span.uri == "deadly to analyse" else span

class Scoring(Score):
    def __init__(self, work):
        self.work = work

    def score(self, spans):
        return [die_of(span) for span in spans]

attach(sys.argv[1])
import ray, ray.data
from scanner.scan import set_up_ray_data
set_up_ray_data()
pool = {"compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 0.1, "fn_constructor_args": (WORK,)}
names = ["a", "deadly to analyse", "deadly to score", "b"]
block = todo_block(Todo(Video(name, "", 0)) for name in names)
rows = ray.data.from_blocks([block]).flat_map(Split, **pool).map(Analysis, **pool)
for row in rows.map_batches(Scoring, batch_size=4, **pool).take_all():
    for span in _unpack(row):
        print(json.dumps([span.uri, span.status.value, span.error]))
disconnect()
"""


def test_what_kills_its_process_each_time_ends_as_crashed_and_the_rest_goes_on(at: Scene):
    """Real actors whose process is killed whenever it works on certain spans, as the kernel does for want of memory."""
    done = subprocess.run(
        [sys.executable, "-c", DEADLY, str(at.cluster.address), "run"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = {uri: (status, error) for uri, status, error in map(json.loads, done.stdout.splitlines())}
    crashed = dict.fromkeys(("deadly to analyse", "deadly to score"), ("crashed", DIED))
    assert found == {"a": ("ok", None), "b": ("ok", None), **crashed}
    assert str(MOST) in DIED


@pytest.fixture
def counted(monkeypatch) -> dict[bytes, bytes]:
    """What a cluster's memory would hold."""
    held: dict[bytes, bytes] = {}

    def put(key: bytes, value: bytes, overwrite: bool = True, namespace: bytes = b"") -> bool:
        there = key in held
        held[key] = value if overwrite else held.get(key, value)
        return there

    monkeypatch.setattr(attempts, "_ray_runs", lambda: True)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace: held.get(key))
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key, namespace: held.pop(key))
    return held


def test_what_raises_is_not_counted_among_what_kills_its_process(counted):
    for _ in range(2 * MOST):
        with pytest.raises(OSError, match="full"), attempts.attempt("run", "a.mp4", 0) as allowed:
            assert allowed
            raise OSError("full")
    assert counted == {}, "nothing is left behind in the cluster's memory"


def test_a_lost_gpu_counts_as_a_death_so_that_what_loses_it_each_time_ends_as_crashed(counted):
    allowed = []
    for _ in range(MOST + 1):
        with contextlib.suppress(attempts.ProcessLost), attempts.attempt("score", "a.mp4") as may_try:
            allowed.append(may_try)
            if may_try:
                raise attempts.ProcessLost("the GPU does not answer any more")
    assert allowed == [True] * MOST + [False] and counted == {}


@given(st.integers(0, 1 << 32), st.integers(1, 1000))
def test_a_schedule_is_its_seeds_alone_and_always_leaves_nodes_for_a_scan(seed: int, spans: int):
    schedule = Schedule.draw(seed, spans)
    assert schedule == Schedule.draw(seed, spans)
    nodes = NODES
    for event, before in zip(schedule.events, (Event(0, Kind.STORM, 0), *schedule.events), strict=False):
        nodes += {Kind.KILL_NODE: -1, Kind.ADD_NODE: 1}.get(event.kind, 0)
        assert nodes >= 2 and before.after <= event.after < spans


@pytest.mark.parametrize(
    ("code", "kinds", "goes_on"),
    [
        (-9, [Kind.KILL_DRIVER], True),
        (130, [Kind.STORM, Kind.INTERRUPT_DRIVER], True),
        (4, [Kind.EXPIRY, Kind.KILL_NODE], True),
        (4, [Kind.KILL_NODE, Kind.KILL_WORKER, Kind.STORM, Kind.ADD_NODE], False),
        (4, [Kind.KILL_DRIVER, Kind.INTERRUPT_DRIVER], False),
        (4, [], False),
        (-9, [Kind.EXPIRY], False),  # it hung until it was killed
        (0, [Kind.EXPIRY], False),
    ],
)
def test_chaos_goes_on_only_after_what_must_end_a_scan(code: int, kinds: list[Kind], goes_on: bool):
    assert chaos.to_be_continued(code, [Event(0, kind, seed=1) for kind in kinds]) == goes_on


# --- S3 -------------------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 32), st.integers(0, 200))
def test_a_storm_is_its_seeds_alone_passes_and_lets_each_request_through_in_time(seed: int, requests: int):
    storm, same = Storm(seed, requests), Storm(seed, requests)
    suffered = [storm.next("GET", "/a") for _ in range(requests + 10)]
    assert suffered == [same.next("GET", "/a") for _ in range(requests + 10)]
    assert not any(suffered[requests:])
    most = Storm.MOST_IN_A_ROW + 1
    assert all("" in suffered[start : start + most] for start in range(requests))


def test_results_are_written_listed_and_read_through_a_storm(proxy, s3):
    proxy.storm = Storm(seed=5, requests=12)
    where = f"s3://{BUCKET}/results"
    for number in range(3):
        put_bytes(f"{where}/runs/{number}.json", bytes([number]))
    assert list_results(where, "runs/") == [f"{where}/runs/{number}.json" for number in range(3)]
    assert [get_bytes(f"{where}/runs/{number}.json") for number in range(3)] == [b"\0", b"\1", b"\2"]
    assert len(proxy.requests) > 3 + 1 + 3, "some had to be repeated"


def test_credentials_that_expire_end_a_scan_and_are_held_against_no_video(proxy, s3, tmp_path):
    """Where they end it, the same command goes on with others: nothing that says `missing` is in the way."""
    uri, tag, size = put(s3, "a.mp4", b"not a video")
    config = ScanConfig()
    split = SplitIntoSpans(Work.of(config, RunFacts.of(config), Scratch(tmp_path, 1 << 20)))
    (video,) = iter_videos([f"s3://{BUCKET}"])
    assert (video.uri, video.content_tag, video.size_bytes) == (uri, tag, size)
    (row,) = todo_block([Todo(video)]).to_pylist()
    (unsized,) = todo_block([Todo(replace(video, size_bytes=None))]).to_pylist()
    for refusal, sentence in (
        ("400 ExpiredToken", r"ExpiredToken.*credentials: renew them"),
        ("403 RequestTimeTooSkewed", r"Set this machine's clock"),
    ):
        proxy.refusal = refusal
        for attempt in (
            lambda: list(split(row)),
            lambda: list(split(unsized)),
            lambda: list(iter_videos([f"s3://{BUCKET}"])),
        ):
            with pytest.raises(CredentialsFailed, match=sentence) as caught:
                pytest.fail(f"{attempt()} came out")
            assert caught.value.exit_code == EXIT_PREFLIGHT
    with pytest.raises(CredentialsFailed):
        raise pickle.loads(pickle.dumps(caught.value))  # as it comes from a worker
    proxy.refusal = ""
    (answer,) = split(row)
    (span,) = pickle.loads(answer["item"])
    assert span.status is results.Status.UNSUPPORTED, "it was fetched and looked at"
    split.guard.close()


# --- full disks -----------------------------------------------------------------------------------------

FULL = """
import os, subprocess, sys
from types import SimpleNamespace
from scanner.config import ScanConfig
from scanner.errors import UserError
from scanner.pipeline import Sink, _pack_batch
from scanner.records import RunFacts, Span
from scanner.results import Status

where = sys.argv[1]
facts = RunFacts.of(ScanConfig(out=where))
sink = Sink(SimpleNamespace(results=where, run=facts))
noise = os.urandom(200_000).hex()

def write(name, error):
    try:
        sink(_pack_batch([Span(name, "", 1).failed(Status.DECODE_ERROR, error)]))
    except UserError as error:
        print(error.exit_code, error)
    print(sum(len(names) for _, _, names in os.walk(where)))

write("a.mp4", "damaged")
write("b.mp4", noise)
subprocess.run(["mount", "-o", "remount,size=4m", where], check=True)
write("b.mp4", noise)
"""


def test_results_on_a_full_disk_keep_what_they_have_and_go_on_once_there_is_room(tmp_path: Path):
    done = in_namespace(f"cd {ROOT} && mount -t tmpfs -o size=128k none {tmp_path}", FULL, str(tmp_path))
    sentence = f"4 {tmp_path} can't be written to any more: No space left on device. Make room or mend it."
    assert done.stdout.splitlines() == ["1", sentence, "1", "2"], done.stderr


# --- clocks ---------------------------------------------------------------------------------------------

moments = st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1), timezones=st.just(timezone.utc))


@given(moments)
def test_a_run_comes_after_the_last_one_whatever_the_clock_says(moment: datetime):
    before = f"{moment:%Y%m%d-%H%M%S-%f}-abcd"
    runs = [before]
    for _ in range(3):
        runs.append(results.new_run_id(after=runs[-1]))
    assert sorted(set(runs)) == runs and {len(run) for run in runs} == {len(before)}
    now = results.new_run_id()
    assert results.new_run_id(after="not ours")[:4] == now[:4]


def test_a_retry_counts_although_the_clock_was_put_back_since(tmp_path: Path):
    first = "20991231-235959-000000-abcd"
    write_run(tmp_path, run_id=first)
    (tmp_path / "runs" / "run-001.json").rename(tmp_path / "runs" / f"{first}.json")
    write_part(tmp_path, [span("/archive/a.mp4", run_id=first, status="timeout")])
    again = results.new_run_id(after=results.latest_run(str(tmp_path)))
    write_part(tmp_path, [span("/archive/a.mp4", run_id=again)])
    assert videos(tmp_path)["a.mp4"]["status"] == "ok"
