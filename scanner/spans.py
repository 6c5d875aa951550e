"""Cutting videos into spans, and handing these out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from scanner.records import Span


def span_bounds(duration_s: float, span_seconds: float) -> list[tuple[float, float]]:
    """Cut a video into spans [start, end): full ones, and a last one of half to one and a half lengths.

    The last one has no end: what a header says of a video's duration may be too little.
    """
    count = max(1, int(duration_s / span_seconds + 0.5))
    starts = [i * span_seconds for i in range(count)]
    return list(zip(starts, [*starts[1:], math.inf], strict=True))


def tasks(spans: Iterable[Span], most: int, span_seconds: float) -> Iterator[list[Span]]:
    """The spans in their order, by tasks: up to `most` at once, of one or two full spans' length together."""
    task: list[Span] = []
    seconds = 0.0
    for span in spans:
        task.append(span)
        seconds += span.seconds
        if len(task) >= most or seconds >= 1.5 * span_seconds:
            yield task
            task, seconds = [], 0.0
    if task:
        yield task
