"""How much of a GPU the scoring actor uses: its clips per second beside the bare network's, in one run.

    python -m tests.bench_gpu                      on the GPU; without one it says so
    python -m tests.bench_gpu --device cpu         tries the script where there is none

Both are measured in one actor on one device. The bare network is given passes that lie on the device already, in the
scorer's precision. The actor is given pickled spans out of Ray's object store, as in a scan: it unpacks, pads and
copies them, scores them, explains the most suspicious clips and encodes their pictures. The two are measured one after
the other: on a CPU that others use as well they get different shares of it, and their ratio means nothing.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.connect import attach, disconnect
from cluster.plan import SPANS_PER_GPU_BATCH, make_plan
from models.scorer import FRAMES_PER_PASS
from scanner.config import ScanConfig
from scanner.pipeline import Score, Work
from scanner.records import RunFacts, Span
from scanner.scan import set_up_ray_data
from scanner.scratch import Scratch
from tests.bench import machine
from tests.bench_input import make_model
from tests.noise import analyzed_span

AIM = 0.7
BLOCKS = 8  # different spans in the object store; each is scored many times
SPANS = {"cuda": 256, "cpu": 6}
BARE_S = {"cuda": 10.0, "cpu": 5.0}
SPAN_S = {"cuda": 60.0, "cpu": 8.0}


class Meter:
    """Adds up how long the device works on what is called through it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds = 0.0
        self._pairs: list[tuple[Any, Any]] = []

    def through(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, metered; on a GPU by events in its stream, for calls return before the work is done."""
        import torch

        def metered(*args: Any, **options: Any) -> Any:
            if self.device == "cpu":
                began = time.perf_counter()
                try:
                    return function(*args, **options)
                finally:
                    self.seconds += time.perf_counter() - began
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            try:
                return function(*args, **options)
            finally:
                last.record()
                self._pairs.append((first, last))

        return metered

    def read(self) -> float:
        """Seconds since the last time; waits for what is under way."""
        if self._pairs:
            self._pairs[-1][1].synchronize()
        seconds = self.seconds + sum(first.elapsed_time(last) for first, last in self._pairs) / 1000
        self.seconds, self._pairs = 0.0, []
        return seconds


class MeteredScore(Score):
    """The scoring stage; says how much it scored, and when, instead of passing it on."""

    def __init__(self, work: Work, device: str) -> None:
        super().__init__(work, device)
        self.bare = bare_rate(self.scorer, work.clip_frames, BARE_S[device])
        self.meter = Meter(device)
        self.scorer.network.features.forward = self.meter.through(self.scorer.network.features.forward)
        self.scorer.network.heads = self.meter.through(self.scorer.network.heads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        began = time.perf_counter()
        answer = super().__call__(batch)
        spans: list[Span] = [span for item in answer["item"] for span in pickle.loads(item)]
        clips = sum(len(span.scores.clips) for span in spans if span.scores)
        busy = self.meter.read()
        facts = {"clips": clips, "began": began, "ended": time.perf_counter(), "busy": busy, "bare": self.bare}
        return {name: [value] for name, value in facts.items()}


def bare_rate(scorer: Any, clip_frames: int, seconds: float) -> float:
    """Clips a second of the network alone, over full passes that lie on its device."""
    import torch

    count = FRAMES_PER_PASS[scorer.device.type]
    size = scorer.spec.input_size
    frames = scorer._normalised(np.random.default_rng(1).integers(0, 255, (count, size, size, 3), np.uint8))
    clips = max(1, count // clip_frames)
    lengths = torch.full((clips,), min(clip_frames, count), device=scorer.device)

    def one_pass() -> None:
        with torch.no_grad(), scorer._precision():
            maps = scorer.network.features(frames).float()
            pooled = scorer.network.pool(maps)[: clips * clip_frames]
            scorer.network.heads(pooled.reshape(clips, -1, pooled.shape[-1]), lengths)

    def passes(limit_s: float) -> float:
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < limit_s:
            one_pass()
            done += 1
            if scorer.device.type == "cuda":
                torch.cuda.synchronize()
        return done * count / clip_frames / (time.perf_counter() - began)

    passes(seconds / 5)  # kernels are loaded and chosen in the first ones
    return passes(seconds)


def measure(device: str, folder: Path) -> list[dict[str, float]]:
    """What the scoring actor says of each of its batches."""
    import ray.data

    config = ScanConfig(sources=("-",), out=str(folder / "results"), model=str(make_model(folder / "model")))
    work = Work.of(config, RunFacts.of(config), Scratch(folder / "scratch", 1))
    gpus = 1 if device == "cuda" else 0
    attach(None, gpus)
    try:
        set_up_ray_data()
        spans = [analyzed_span(work.analysis, SPAN_S[device], seed) for seed in range(min(BLOCKS, SPANS[device]))]
        blocks = [
            ray.put(pa.table({"item": pa.array([pickle.dumps([one], protocol=5)], pa.binary())})) for one in spans
        ]
        del spans
        todo: list[Any] = (blocks * SPANS[device])[: SPANS[device]]
        stage: dict[str, Any] = dict(make_plan(2, gpus).score)
        if gpus:
            stage["batch_size"] = SPANS_PER_GPU_BATCH  # as in a cluster with many analysers
        scored = ray.data.from_arrow_refs(todo).map_batches(MeteredScore, fn_constructor_args=(work, device), **stage)
        return list(scored.iter_rows())
    finally:
        disconnect()


def report(batches: Sequence[dict[str, float]], device: str) -> None:
    """The figures. The first batch is left out: kernels are loaded in it."""
    batches = sorted(batches, key=lambda batch: batch["began"])
    counted = batches[1:]
    wall = counted[-1]["ended"] - batches[0]["ended"]
    rate = sum(batch["clips"] for batch in counted) / wall
    bare, busy = counted[0]["bare"], sum(batch["busy"] for batch in counted)
    print(f"the bare network: {bare:.4g} clips a second")
    print(f"the scoring actor: {rate:.4g} clips a second, {rate / bare:.0%} of that; the aim is {AIM:.0%}")
    between = wall - sum(batch["ended"] - batch["began"] for batch in counted)
    print(f"the {device.upper()} waits for {1 - busy / wall:.0%} of the time, {between / wall:.0%} between batches")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_gpu", description="How much of a GPU scoring uses.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what scores (default: cuda)")
    device = parser.parse_args(arguments).device
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here, so nothing was measured (--device cpu tries the script without one)")
        return
    name = torch.cuda.get_device_name() if device == "cuda" else "one core"
    print(f"{machine()}; scoring on {name}", flush=True)
    with tempfile.TemporaryDirectory(prefix="deepsweep-bench-") as folder:
        report(measure(device, Path(folder)), device)


if __name__ == "__main__":
    main()
