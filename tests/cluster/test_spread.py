"""A long video on a real cluster: its spans spread over the actors, and their crops fit into the object store."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from cluster.backpressure import RunAhead
from cluster.connect import connect, disconnect
from cluster.plan import plan_for
from scanner import metrics, pipeline
from scanner.config import ScanConfig
from scanner.diagnosis import _executors, forget_blocks
from scanner.pipeline import Todo, Work, dataset, todo_block
from scanner.records import RunFacts, Span
from scanner.results import Status
from scanner.scan import set_up_ray_data
from scanner.scratch import Scratch
from scanner.sources import Video
from tests.bench_scale import Split, cluster, spilled
from tests.noise import analyzed_span
from tests.scans import ROOT

pytestmark = pytest.mark.ray

SPANS = 24
STORE = 256 << 20  # bytes of each node's object store: a third of all the crops, 33 MB a span
MEET_S = 120.0


def stages_running() -> list[Any]:
    """Ray Data's operators, the input first."""
    return [operator for executor in _executors() for operator in executor._topology]


def policies(executor: Any) -> list[type]:
    """What holds a Ray Data executor's stages back, its own budgets among them."""
    budgets = executor._resource_manager._op_resource_allocator
    return [type(one) for one in (*executor._backpressure_policies, budgets) if one is not None]


class Long(Split):
    """One video of many spans."""

    spans = SPANS


class Analyze(pipeline.Analyze):
    """Gives crops; begins only once another process analyses another span of the video."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.met = False

    def analyze(self, span: Span) -> Span:
        if not self.met:
            folder = Path(self.work.results)
            (folder / str(os.getpid())).touch()
            deadline = time.monotonic() + MEET_S
            while len(list(folder.iterdir())) < 2:
                assert time.monotonic() < deadline, "no other actor analyses this video"
                time.sleep(0.05)
            self.met = True
        return replace(span, signals=analyzed_span(self.work.analysis, 60.0, seed=1).signals)


class Score(pipeline.Score):
    """Slower than what comes before it, so that crops pile up where nothing holds them back."""

    def __init__(self, work: Work, device: str) -> None:
        self.work = work

    def score(self, spans: list[Span]) -> list[Span]:
        time.sleep(0.6 * len(spans))
        return [span.failed(Status.NO_FACE, "") for span in spans]


class Sink(pipeline.Sink):
    """Passes on which spans came."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        return {"index": [span.index for item in batch["item"] for span in pickle.loads(item)]}


def scraped(patterns: set[str]) -> None:
    """Wait until Prometheus would find a line for each of these on some node of the cluster."""
    import ray

    deadline = time.monotonic() + MEET_S
    missing = patterns
    while missing:
        assert time.monotonic() < deadline, f"no node tells {missing}"
        for node in ray.nodes():
            with contextlib.suppress(OSError):  # its agent is not up yet
                address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                text = urllib.request.urlopen(address, timeout=5).read().decode()
                missing = {one for one in missing if not re.search(f"^{metrics.PREFIX}{one}", text, re.MULTILINE)}


def test_spans_of_one_video_are_analysed_at_once_nothing_is_spilled_and_prometheus_finds_their_counts(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # the cluster wants no token; this machine may have one
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the actors import these stages
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    config = ScanConfig(sources=("-",), out=str(tmp_path))
    work = Work.of(config, RunFacts.of(config), Scratch(tmp_path / "scratch", 1))
    with cluster(1, 4, STORE) as address:
        resources = connect(address, 0)
        try:
            set_up_ray_data()
            video = todo_block([Todo(Video("long.mp4", "-", 1))])
            stages = {"SplitIntoSpans": Long, "Analyze": Analyze, "Score": Score, "Sink": Sink}
            with patch.multiple(pipeline, **stages):
                found = []
                batches = dataset([video], work, plan_for(resources.rooms, 0)).iter_batches(batch_size=None)
                for batch in batches:
                    figures = [getattr(stage, "_output_blocks_stats", None) for stage in stages_running()]
                    assert found or None not in figures[1:], "Ray Data's figures of blocks are where they are dropped"
                    assert found or [policies(one) for one in _executors()] == [[RunAhead]], "it asks nobody else"
                    forget_blocks()
                    found += list(batch["index"])
            assert sorted(found) == list(range(SPANS))
            assert len(list(tmp_path.iterdir())) >= 2, "by two processes at least"
            assert spilled(address) == 0
            metrics.count("deepsweep_spans_total", SPANS, status="no_face")
            told = {f'deepsweep_stage_seconds_count{{.*stage="{stage}"' for stage in ("split", "analyze", "score")}
            scraped(told | {f'deepsweep_spans_total{{.*status="no_face".* {SPANS}.0$'})
        finally:
            disconnect()
