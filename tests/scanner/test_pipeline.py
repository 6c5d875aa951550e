"""How the pipeline cuts its work into spans, and what it makes of a GPU that fails."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scanner.attempts import ProcessLost
from scanner.config import ScanConfig
from scanner.pipeline import Score, SplitIntoSpans, Todo, Work, todo_block
from scanner.records import RunFacts, Span
from scanner.results import Status
from scanner.scratch import Scratch
from scanner.sources import Video
from scanner.spans import span_bounds, tasks
from tests.noise import analyzed_span


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
        self.work = cast(Any, SimpleNamespace(run=SimpleNamespace(run_id="run"), spans_per_task=4, span_seconds=60.0))

    def split(self, video: Video) -> list[Span]:
        return [replace(Span(video.uri, video.content_tag, 1), index=i, count=3) for i in range(3)]


def test_spans_that_are_done_are_left_out_unless_the_video_was_cut_otherwise() -> None:
    def left(*done: int, of: int) -> list[tuple[int, int]]:
        spans = Split().left(Todo(Video("a.mp4", "1-1", 1), frozenset(done), of))
        return [(span.index, span.siblings) for span in spans]

    assert left(of=0) == [(0, 2), (1, 2), (2, 2)]
    assert left(0, 2, of=3) == [(1, 0)]
    assert left(0, 1, 2, of=4) == left(of=0), "else it would never get its rows"


class Short(Split):
    """Every video is one short span, or a failure."""

    def __init__(self, *broken: int) -> None:
        super().__init__()
        self.broken = broken

    def split(self, video: Video) -> list[Span]:
        span = Span(video.uri, video.content_tag, 1, t_end=20.0)
        return [span.failed(Status.MISSING, "gone") if int(video.uri) in self.broken else span]


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_a_repeated_task_has_the_same_videos_in_the_same_rows(broken: set[int], then: set[int]) -> None:
    """Ray takes from a repetition the rows that it has not had, by their number: what has moved would be lost."""
    row = todo_block(Todo(Video(str(number), "1-1", 1)) for number in range(21)).to_pylist()[0]

    def rows(split: Short) -> list[list[str]]:
        return [[span.uri for span in pickle.loads(found["item"])] for found in split(row)]

    everyone = [str(number) for number in range(21)]
    assert rows(Short(*broken)) == rows(Short(*then)) == [everyone[first : first + 4] for first in range(0, 21, 4)]


# --- a GPU that fails ---------------------------------------------------------------------------------------


class Scorer:
    """Answers as `ClipScorer` does, until its device fails."""

    device = torch.device("cuda")

    def __init__(self, fault: Exception, *, works: bool, explains_only: bool = False) -> None:
        self.fault, self.alive, self.explains_only = fault, works, explains_only

    def works(self) -> bool:
        return self.alive

    def score_and_pool(self, clips: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self.explains_only:
            raise self.fault
        return np.full(len(clips), 0.5, np.float32), np.full(clips.shape[:2], 0.5, np.float32), np.zeros(len(clips))

    def explain(self, *_: Any) -> Any:
        raise self.fault


def scoring(tmp_path: Path, scorer: Scorer) -> tuple[Score, list[Span]]:
    config = ScanConfig(out=str(tmp_path))
    work = Work.of(config, RunFacts.of(config), Scratch(tmp_path / "scratch", 1))
    stage = Score.__new__(Score)
    stage.work, stage.scorer = work, cast(Any, scorer)
    return stage, [analyzed_span(work.analysis, 4.0, seed) for seed in range(2)]


LOST = RuntimeError("CUDA error: an illegal memory access was encountered")
FULL = torch.OutOfMemoryError("CUDA out of memory")


def test_a_gpu_that_is_lost_is_no_clips_fault(tmp_path: Path) -> None:
    """All that came after it were called model_error, and counted as done."""
    for explains_only in (False, True):
        stage, spans = scoring(tmp_path, Scorer(LOST, works=False, explains_only=explains_only))
        with pytest.raises(ProcessLost, match="the GPU does not answer any more: RuntimeError: CUDA error"):
            stage.score(spans)


def test_what_does_not_fit_onto_a_gpu_is_one_spans_fault_and_a_heatmap_can_be_done_without(tmp_path: Path) -> None:
    stage, spans = scoring(tmp_path, Scorer(FULL, works=True))
    assert [span.status for span in stage.score(spans)] == [Status.MODEL_ERROR] * 2
    stage, spans = scoring(tmp_path, Scorer(FULL, works=True, explains_only=True))
    for span in stage.score(spans):
        assert span.status is Status.OK and span.scores is not None
        assert span.scores.thumbnails and all(one.image and one.heatmap is None for one in span.scores.thumbnails)
