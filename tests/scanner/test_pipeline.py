"""How the pipeline cuts its work into spans."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from scanner.pipeline import SplitIntoSpans, Todo, span_bounds, tasks
from scanner.records import Span
from scanner.sources import Video


@given(st.floats(0, 1e5), st.floats(5, 600))
def test_spans_cover_a_video_without_gap_in_pieces_of_about_one_length(duration: float, length: float) -> None:
    bounds = span_bounds(duration, length)
    assert bounds[0][0] == 0 and bounds[-1][1] == math.inf
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(bounds))
    last = duration - bounds[-1][0]
    assert len(bounds) == 1 or length / 2 - 1e-3 <= last <= 1.5 * length + 1e-3


@given(st.lists(st.floats(0, 90), max_size=50), st.integers(1, 8))
def test_tasks_hold_every_span_once_and_little_video(lengths: list[float], most: int) -> None:
    spans = [Span(f"{number}.mp4", "-", 1, t_end=length) for number, length in enumerate(lengths)]
    found = list(tasks(spans, most, 60.0))
    assert [span for task in found for span in task] == spans
    for task in found:
        assert 1 <= len(task) <= most
        assert sum(span.seconds for span in task[:-1]) < 90, "which the last one comes to"
    for task, following in itertools.pairwise(found):
        full = len(task) == most or sum(span.seconds for span in task) >= 90
        assert full, f"{following[0].uri} could be among them"


def test_full_spans_go_by_two_and_a_long_last_one_alone() -> None:
    spans = [Span("a.mp4", "-", 1, t_start=start, t_end=end) for start, end in ((0, 60), (60, 120), (120, 210), (0, 5))]
    assert [len(task) for task in tasks(spans, 4, 60.0)] == [2, 1, 1]
    assert [len(task) for task in tasks(spans, 1, 60.0)] == [1, 1, 1, 1]


class Split(SplitIntoSpans):
    """Cuts every video into three."""

    def __init__(self) -> None:
        self.work = cast(Any, SimpleNamespace(run=SimpleNamespace(run_id="run")))

    def split(self, video: Video) -> list[Span]:
        return [replace(Span(video.uri, video.content_tag, 1), index=i, count=3) for i in range(3)]


def test_spans_that_are_done_are_left_out_unless_the_video_was_cut_otherwise() -> None:
    def left(*done: int, of: int) -> list[tuple[int, int]]:
        spans = Split().left(Todo(Video("a.mp4", "1-1", 1), frozenset(done), of))
        return [(span.index, span.siblings) for span in spans]

    assert left(of=0) == [(0, 2), (1, 2), (2, 2)]
    assert left(0, 2, of=3) == [(1, 0)]
    assert left(0, 1, 2, of=4) == left(of=0), "else it would never get its rows"
