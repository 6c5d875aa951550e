"""The way of a record, top to bottom: videos → spans → faces and signals → clip scores → rows on disk."""

from __future__ import annotations

import math
import os
import pickle
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from models.spec import ModelError, ModelSpec
from scanner.analysis import Analysis, SpanSignals, analyze_span, probe_video
from scanner.attempts import DIED, ProcessLost, attempt
from scanner.clips import ClipRef, ClipScores, Thumbnail, clips_of, jpeg, pad
from scanner.config import ScanConfig
from scanner.decode import DecodeError
from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.guard import Guard, GuardFailure
from scanner.metrics import observe, timed
from scanner.records import RunFacts, Span, span_row
from scanner.results import WRITE_PATIENCE_S, Status, write_part
from scanner.scratch import FetchError, Scratch
from scanner.second_opinion import with_second_opinion
from scanner.sources import Video
from scanner.spans import span_bounds, tasks
from scanner.uris import is_s3, local_path

if TYPE_CHECKING:  # the stages work without Ray, too: one video is inspected in a process of its own
    import ray.data

    from cluster.plan import Plan

VIDEOS_PER_BLOCK = 200  # of the input: a million videos are 5,000 blocks of a few KB
ANALYSIS_MODULES = ("scanner.analysis", "mediapipe")  # what a child that analyses should find imported
PROBE_DEADLINE_S = 120.0  # reading a header takes milliseconds; a recording without one is read whole


@dataclass(frozen=True)
class Work:
    """Everything the stages of one run need to know. Travels to every worker once."""

    results: str
    run: RunFacts
    analysis: Analysis
    clip_frames: int
    span_seconds: float
    span_timeout: float
    memory_limit: int  # bytes, of the child that analyses
    max_video_size: int  # bytes
    max_video_seconds: float
    thumbnails: int  # per span
    scratch: Scratch
    spans_per_task: int  # at most, of analysis

    @classmethod
    def of(cls, config: ScanConfig, run: RunFacts, scratch: Scratch, spans_per_task: int = 1) -> Work:
        """The work that a user's settings ask for."""
        spec = run.spec
        return cls(
            # Actors on a cluster that was started elsewhere have another working directory.
            results=config.out if is_s3(config.out) else str(local_path(config.out).absolute()),
            run=run,
            analysis=Analysis(config.fps, min(spec.clip_fps, config.fps), spec.input_size, spec.crop_margin),
            clip_frames=config.clip_frames or spec.clip_frames,
            span_seconds=config.span_seconds,
            span_timeout=config.span_timeout,
            memory_limit=config.memory_limit,
            max_video_size=config.max_video_size,
            max_video_seconds=config.max_video_seconds,
            thumbnails=config.thumbnails,
            scratch=scratch,
            spans_per_task=spans_per_task,
        )


@dataclass(frozen=True)
class Todo:
    """A video to scan, and which of its spans are done already: of so many, or none counts."""

    video: Video
    done: frozenset[int] = frozenset()
    count: int = 0


def dataset(todo: list[pa.Table], work: Work, plan: Plan) -> ray.data.Dataset:
    """The whole scan as a lazy, streaming dataset; reading its rows (see `written`) runs it.

    todo: blocks as `todo_block` makes them. Every video comes out as at least one row:
    stages turn whatever goes wrong with it into a status.
    """
    import ray.data

    videos = ray.data.from_blocks(todo)  # from_arrow would have a task look at each block, on a core of its own
    spans = videos.flat_map(SplitIntoSpans, fn_constructor_args=(work,), **plan.split)
    # Ray's types know classes in map_batches only.
    signals = spans.map(cast(Any, Analyze), fn_constructor_args=(work,), **plan.analyze)
    scored = signals.map_batches(Score, fn_constructor_args=(work, plan.device), **plan.score)
    return scored.map_batches(Sink, fn_constructor_args=(work,), **plan.sink)


# --- what travels between stages: rows of spans, pickled ---------------------------------------------------


class Written(NamedTuple):
    """A span that is in RESULTS, as far as the driver counts it."""

    uri: str
    siblings: int
    status: str
    seconds: float  # of video that were analysed
    flagged: int  # clips


def written(batch: Mapping[str, Iterable[bytes]]) -> list[Written]:
    """The spans of a batch of `dataset`'s rows."""
    return _unpack(batch)


def todo_block(items: Iterable[Todo]) -> pa.Table:
    """A block of the dataset's input: one row with all of them, 30 instead of 250 bytes each for a bucket's keys."""
    return pa.table({"item": pa.array([zlib.compress(pickle.dumps(list(items)), level=1)], pa.binary())})


def _pack(items: Iterable[Any]) -> dict[str, Any]:
    # As bytes, so that Arrow neither guesses at NULLs nor unpacks pictures that only pass through.
    return {"item": pickle.dumps(list(items), protocol=5)}


def _pack_batch(items: Iterable[Any]) -> dict[str, np.ndarray]:
    # One row, and so one block, which costs the driver as much as one that holds a single item.
    packed = np.empty(1, dtype=object)
    packed[0] = _pack(items)["item"]
    return {"item": packed}


def _unpack(rows_or_row: Mapping[str, Any]) -> list[Any]:
    rows = rows_or_row["item"]
    return [item for packed in ([rows] if isinstance(rows, bytes) else rows) for item in pickle.loads(packed)]


# --- the stages -------------------------------------------------------------------------------------------


class SplitIntoSpans:
    """Videos → spans: fetch each, read its header, cut it into pieces; leave out what is done."""

    def __init__(self, work: Work, guard: Guard | None = None) -> None:
        self.work = work
        self.guard = guard or Guard(preload=("scanner.decode",), memory_limit=work.memory_limit)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        todos: list[Todo] = pickle.loads(zlib.decompress(row["item"]))
        most = self.work.spans_per_task
        # Ray knows the rows of a task that it repeats by their number. Always so many videos together: one that can't
        # be opened the second time then does not move the rows of those behind it.
        for first in range(0, len(todos), most):
            spans = (span for todo in todos[first : first + most] for span in self.left(todo))
            yield from map(_pack, tasks(spans, most, self.work.span_seconds))

    def left(self, todo: Todo) -> list[Span]:
        """The spans of a video that are still to be analysed, or the one that says why there are none."""
        video = todo.video
        with timed("split"), attempt("split", self.work.run.run_id, video.uri, video.content_tag) as may_try:
            spans = self.split(video) if may_try else [_whole(video).failed(Status.CRASHED, DIED)]
        # A video that can't be opened any more says so, whatever was done of it. Where it was cut into another number
        # of spans before, by another FFmpeg, those that are done are not these.
        if spans[0].status is Status.OK and len(spans) == todo.count:
            spans = [span for span in spans if span.index not in todo.done]
        return [replace(span, siblings=len(spans) - 1) for span in spans]

    def split(self, video: Video) -> list[Span]:
        """The spans of a video; one that has failed already if its header can't be read."""
        whole = _whole(video)
        limit = self.work.max_video_size
        if video.error is not None:
            return [whole.failed(Status.MISSING, video.error)]
        if video.size_bytes is not None and video.size_bytes > limit:
            what = f"{video.size_bytes:,} bytes are over --max-video-size ({limit:,})"
            return [whole.failed(Status.TOO_LARGE, what)]
        try:
            with self.work.scratch.fetch(video.uri, video.content_tag, video.size_bytes) as path:
                deadline = min(PROBE_DEADLINE_S, self.work.span_timeout)
                info = self.guard.run(probe_video, str(path), deadline_s=deadline)
        except (DecodeError, FetchError, GuardFailure) as failure:
            return [whole.failed(failure.status, str(failure))]
        except UserError:  # of credentials, scratch space or libraries: no fault of the video, it ends the scan
            raise
        except Exception as error:
            return [whole.failed(Status.DECODE_ERROR, _unforeseen(error))]
        if info.duration_s > self.work.max_video_seconds:
            most = f"{self.work.max_video_seconds:g}"
            what = f"{info.duration_s:.0f} s are over --max-video-seconds ({most})"
            return [replace(whole, info=info).failed(Status.TOO_LARGE, what)]
        bounds = span_bounds(info.duration_s, self.work.span_seconds)
        return [
            replace(whole, info=info, index=i, count=len(bounds), t_start=start, t_end=end)
            for i, (start, end) in enumerate(bounds)
        ]


class Analyze:
    """Spans → faces, signals and crops, one after another, by a child process that may be killed at any time."""

    def __init__(self, work: Work, guard: Guard | None = None, tell: Callable[[float], object] | None = None) -> None:
        """tell: called in the child with the share of a span that is analysed, as that grows; picklable."""
        self.work = work
        self.guard = guard or Guard(preload=ANALYSIS_MODULES, memory_limit=work.memory_limit)
        self.guard.warm_up()
        self.tell = tell

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _pack(map(self.attempt, _unpack(row)))

    def attempt(self, span: Span) -> Span:
        """Analyse it, unless it has failed already, or this process died over it time and again."""
        if span.status is not Status.OK:
            return span
        began = time.perf_counter()
        with timed("analyze"), attempt("analyze", *_identity(span, self.work)) as may_try:
            span = self.analyze(span) if may_try else span.failed(Status.CRASHED, DIED)
        return replace(span, worker_s=span.worker_s + time.perf_counter() - began)

    def analyze(self, span: Span) -> Span:
        """The span with its signals, or ended with the reason why there are none."""
        scratch = self.work.scratch
        try:
            with scratch.fetch(span.uri, span.content_tag, span.size_bytes) as path:
                signals = self._signals(span, path)
        except (DecodeError, FetchError, GuardFailure) as failure:
            return span.failed(failure.status, str(failure))
        except UserError:
            raise
        except Exception as error:
            return span.failed(Status.DECODE_ERROR, _unforeseen(error))
        if span.count == 1:
            scratch.release(span.uri, span.content_tag)
        return replace(span, signals=signals, status=self._status(signals))

    def _signals(self, span: Span, path: Path) -> SpanSignals:
        arguments = (str(path), span.info, span.t_start, span.t_end, self.work.analysis)
        limit = self.work.span_timeout
        return with_second_opinion(
            lambda decoder: self.guard.run(analyze_span, *arguments, decoder, self.tell, deadline_s=limit)
        )

    def _status(self, signals) -> Status:
        if not signals.faces:
            return Status.NO_FACE
        spec = self.work.run.spec
        clips = clips_of(signals.faces, self.work.clip_frames, min_clip_frames(spec, self.work.clip_frames))
        return Status.OK if clips else Status.TOO_SHORT


class Score:
    """Spans → the network's scores and heatmaps, in batches mixed from many spans."""

    def __init__(self, work: Work, device: str) -> None:
        from models.scorer import ClipScorer  # torch: only where it is used

        self.work = work
        threads = 1 if device == "cpu" else None  # one actor, one core: Ray places as many as there are
        self.scorer = ClipScorer(work.run.spec, device=device, threads=threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        spans: list[Span] = _unpack(batch)
        began = time.perf_counter()
        try:
            with timed("score"):
                spans = self.attempt(spans)
        except ProcessLost:
            os._exit(EXIT_PREFLIGHT)  # Ray starts another, which begins with a new CUDA context
        each = (time.perf_counter() - began) / len(spans)
        return _pack_batch(replace(span, worker_s=span.worker_s + each) for span in spans)

    def attempt(self, spans: list[Span]) -> list[Span]:
        """Score them, unless this process died over the same ones time and again: then one by one, but the culprit."""
        with attempt("score", *(part for span in spans for part in _identity(span, self.work))) as may_try:
            if may_try:
                return self.score(spans)
            if len(spans) == 1:
                return [spans[0].failed(Status.CRASHED, DIED)]
            return [one for span in spans for one in self.attempt([span])]

    def score(self, spans: list[Span]) -> list[Span]:
        """The same spans, those with clips scored, all without their crops."""
        spec = self.work.run.spec
        least = min_clip_frames(spec, self.work.clip_frames)
        clips = [clips_of(span.signals.faces, self.work.clip_frames, least) if span.signals else [] for span in spans]
        pictures = [_crops(span, clip) for span, refs in zip(spans, clips, strict=True) for clip in refs]
        if not pictures:
            return [_without_crops(span) for span in spans]
        if len(spans) > 1 and self.scorer.device.type == "cpu":
            # No faster together there, and apart a span has the same scores to the last bit whatever comes with it.
            return [one for span in spans for one in self.score([span])]
        try:
            padded, lengths = pad(pictures, self.work.clip_frames)
            probabilities, frames, pooled = self.scorer.score_and_pool(padded, lengths)
            self._observe_fill(int(np.sum(lengths)))
        except (ModelError, RuntimeError, MemoryError) as error:  # RuntimeError: torch, out of memory too
            self._go_on_after(error)
            if len(spans) == 1:
                return [spans[0].failed(Status.MODEL_ERROR, _unforeseen(error))]
            return [one for span in spans for one in self.score([span])]  # the others shall not suffer
        scored, first = [], 0
        for span, refs in zip(spans, clips, strict=True):
            here = slice(first, first + len(refs))
            first += len(refs)
            if refs:
                answers = [f[:n] for f, n in zip(frames[here], lengths[here], strict=True)]
                scores = ClipScores(refs, probabilities[here], answers, [])
                kept = self._thumbnails(scores, padded[here], lengths[here], pooled[here])
                span = replace(span, scores=replace(scores, thumbnails=kept))
            scored.append(_without_crops(span))
        return scored

    def _observe_fill(self, frames: int) -> None:
        from models.scorer import FRAMES_PER_PASS

        device = self.scorer.device.type
        room = math.ceil(frames / FRAMES_PER_PASS[device]) * FRAMES_PER_PASS[device]
        observe("deepsweep_pass_fill_ratio", frames / room, device=device)

    def _go_on_after(self, error: BaseException) -> None:
        """Raise ProcessLost where it is no fault of the clips: on a GPU whose context is lost every one would fail."""
        if not self.scorer.works():
            raise ProcessLost(f"the GPU does not answer any more: {_unforeseen(error)}", EXIT_PREFLIGHT) from None

    def _thumbnails(self, scores: ClipScores, padded, lengths, pooled) -> list[Thumbnail]:
        """Pictures of the most suspicious clips; from an untrained model the first ones, without heatmaps."""
        from models.gradcam import overlay

        kept = []
        trained = self.work.run.spec.trained
        ranking = np.argsort(-scores.probabilities, kind="stable") if trained else range(len(scores.clips))
        for number in list(ranking)[: self.work.thumbnails]:
            ref = scores.clips[number]
            heatmap, frame = None, 0
            if trained:
                try:
                    frame, heat = self.scorer.explain(padded[number], int(lengths[number]), pooled[number])
                    heatmap = jpeg(overlay(padded[number][frame], heat))
                except (RuntimeError, MemoryError) as error:  # no room for it beside another job: scores are there
                    self._go_on_after(error)
            image = jpeg(padded[number][frame])
            kept.append(Thumbnail(ref.face, ref.start + frame, int(number), image, heatmap))
        return kept


class Sink:
    """Spans → rows of one Parquet part; passes on only what the driver counts, see `written`."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        spans: list[Span] = _unpack(batch)
        rows = [span_row(span, self.work.run) for span in spans]
        with timed("write"):
            write_part(self.work.results, self.work.run.run_id, rows, WRITE_PATIENCE_S)
        return _pack_batch(
            Written(
                row["uri"],
                span.siblings,
                row["status"],
                row["analyzed_s"] or 0.0,
                sum(clip["flagged"] for clip in row["clips"]),
            )
            for span, row in zip(spans, rows, strict=True)
        )


# --- small helpers ----------------------------------------------------------------------------------------


def min_clip_frames(spec: ModelSpec, clip_frames: int) -> int:
    """The fewest crops that make a clip, where the user asked for shorter clips too."""
    return min(spec.min_clip_frames, clip_frames)


def _whole(video: Video) -> Span:
    return Span(video.uri, video.content_tag, video.size_bytes)


def _identity(span: Span, work: Work) -> tuple[str, str, str, int]:
    return work.run.run_id, span.uri, span.content_tag, span.index


def _crops(span: Span, clip: ClipRef) -> np.ndarray:
    assert span.signals is not None, "clips come from signals"
    return span.signals.faces[clip.face].crops[clip.start : clip.stop]


def _without_crops(span: Span) -> Span:
    if span.signals is None:
        return span
    faces = [replace(face, crops=face.crops[:0]) for face in span.signals.faces]
    return replace(span, signals=replace(span.signals, faces=faces))


def _unforeseen(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:500]
