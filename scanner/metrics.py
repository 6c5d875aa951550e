"""What a scan tells Prometheus, through the metrics port of every Ray node: names, units, and how to count."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

PREFIX = "ray_"  # Ray puts it before the name of every metric


@dataclass(frozen=True)
class Metric:
    """boundaries: upper ends of a histogram's buckets."""

    kind: Literal["counter", "histogram"]
    help: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


#: Counted by the driver as spans arrive there, which they do anyhow; stages and the network by the actors themselves.
METRICS = {
    "deepsweep_videos_total": Metric("counter", "Videos of which this scan has written the last span."),
    "deepsweep_spans_total": Metric("counter", "Spans that are written to RESULTS.", ("status",)),
    "deepsweep_video_seconds_total": Metric("counter", "Seconds of video that were analysed."),
    "deepsweep_flagged_clips_total": Metric("counter", "Clips that were flagged."),
    "deepsweep_stage_seconds": Metric(
        "histogram",
        "Seconds that a stage took for one task: a video, a span, or a batch of spans.",
        ("stage",),
        (0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
    ),
    "deepsweep_pass_fill_ratio": Metric(
        "histogram",
        "Share of the frames in the network's passes that were real ones, 0 to 1, per batch of spans.",
        ("device",),
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    ),
}


def count(name: str, amount: float = 1, **tags: str) -> None:
    """Add to a counter. Nothing happens in a process without Ray, where nobody could ask for it."""
    if amount and _ray_runs():
        _made(name).inc(amount, tags)


def observe(name: str, value: float, **tags: str) -> None:
    """Add a value to a histogram; see `count`."""
    if _ray_runs():
        _made(name).observe(value, tags)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Observe how long the block takes as one task of a stage."""
    began = perf_counter()
    try:
        yield
    finally:
        observe("deepsweep_stage_seconds", perf_counter() - began, stage=stage)


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")  # not imported for this: inspecting one video does without
    return ray is not None and ray.is_initialized()


@functools.cache
def _made(name: str) -> Any:
    from ray.util.metrics import Counter, Histogram

    metric = METRICS[name]
    if metric.kind == "counter":
        return Counter(name, metric.help, metric.tags)
    return Histogram(name, metric.help, list(metric.boundaries), metric.tags)
