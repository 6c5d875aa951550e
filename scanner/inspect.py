"""One video, looked at in this process, without Ray: the stages of a scan, and what its views say of the rows."""

from __future__ import annotations

import dataclasses
import os
import shlex
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from models.spec import ModelError
from queries.catalog import open_catalog
from scanner import blink
from scanner.config import ScanConfig
from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.inspect_progress import Meter, Progress, WatchedGuard
from scanner.manifests import is_manifest
from scanner.micro import REGIONS
from scanner.pipeline import ANALYSIS_MODULES, Analyze, Score, SplitIntoSpans, Work
from scanner.records import RunFacts, Span, face_id, span_row
from scanner.results import FAILED, Status, write_part
from scanner.scan import scratch_base
from scanner.scratch import FetchError, Scratch, sweep
from scanner.sources import Video, check_sources, iter_videos
from scanner.uris import absolute, is_s3, local_path

if TYPE_CHECKING:  # torch: only where an overlay is drawn
    from scanner.inspect_heat import Explainer
    from scanner.inspect_overlay import DrawnFace

__all__ = ["Inspection", "Progress", "find_video", "inspect_video"]

TOP_MOMENTS = 5
#: The views that an inspection holds, each with its order.
VIEWS = {
    "videos": "uri",
    "faces": "t_start, face_id",
    "clips": "t_start, face_id",
    "frames": "t, face_id",
    "signals": "t, face_id",
    "thumbnails": "score DESC NULLS LAST, t, face_id",
}
MOTION = pa.schema([("face_id", pa.string()), ("t", pa.float64()), *((name, pa.float32()) for name in REGIONS)])
#: Shares of the work: scoring takes 0.3 of the analysis, explaining and drawing about as long as both.
ANALYSIS_SHARE = 0.77
UNDRAWN_SHARE = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Inspection:
    """What a scan would have written of one video: tables with the columns of the views of the same names.

    motion: (face_id, t, and a column per region of micro.REGIONS) in eye distances a second; no view keeps these.
    thresholds: from `fake` on a score is flagged, up to `real` it passes, between the two it is uncertain.
    """

    videos: pa.Table  # one row
    faces: pa.Table
    clips: pa.Table
    frames: pa.Table
    signals: pa.Table
    thumbnails: pa.Table  # the most suspicious first
    motion: pa.Table
    thresholds: dict[str, float]
    settings: dict[str, Any]  # those that change scores
    overlay_error: str | None = None  # why there is no overlay video, where one was asked for

    @property
    def video(self) -> dict[str, Any]:
        """The row of `videos`."""
        return self.videos.to_pylist()[0]

    @property
    def model(self) -> str:
        return self.video["model"]

    @property
    def status(self) -> Status:
        return Status(self.video["status"])

    @property
    def failed(self) -> bool:
        """Whether a scan would count the video as failed."""
        return self.status in FAILED

    def moments(self, most: int = TOP_MOMENTS) -> list[dict[str, Any]]:
        """The highest scored clips, highest first: rows of `clips`. Empty where no clip has a score."""
        scored = [clip for clip in self.clips.to_pylist() if clip["score"] is not None]
        return sorted(scored, key=lambda clip: (-clip["score"], clip["t_start"], clip["face_id"]))[:most]

    def verdict(self) -> dict[str, Any]:
        """What verdict.json holds: the columns of `videos`, and what stands behind them. JSON-ready."""
        video = self.video
        return {
            **video,
            "scanned_at": f"{video['scanned_at'].isoformat()}Z",
            "thresholds": self.thresholds,
            "human_blink_rate": {"mean": blink.HUMAN_RATE_MEAN, "sd": blink.HUMAN_RATE_SD},
            "settings": self.settings,
            "faces": [_part(face) for face in self.faces.to_pylist()],
            "moments": [_part(clip) for clip in self.moments()],
        }


def inspect_video(
    source: str, settings: ScanConfig, on_progress: Progress | None = None, overlay: str | Path | None = None
) -> Inspection:
    """Look at one video as a scan does: the same stages with the same settings, so the same numbers.

    source: a path, or s3://bucket/key. settings: the scan's; where results go and what Ray does play no part.
    on_progress: called in this thread with what is being done, and the share of all that is done (0 to 1, rising).
    overlay: a file to write a copy of the video to (MP4) with boxes, scores and heatmaps drawn in.
    Whatever is wrong with the video becomes its status. Raises UserError for a source that is no single video, and
    for settings that can't be used.
    """
    facts = RunFacts.of(settings)
    video = find_video(source)
    base = scratch_base(settings)
    sweep(base)
    scratch = Scratch(base / facts.run_id, settings.scratch_size, full_wait_s=0)
    work = Work.of(settings, facts, scratch)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="deepsweep-inspect-") as folder,
            closing(_Inspector(work, on_progress, Path(folder))) as inspector,
        ):
            found = inspector.inspect(video, None if overlay is None else str(overlay))
    except ModelError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"the inspection broke off: {error.strerror or error}.", EXIT_PREFLIGHT) from None
    finally:
        scratch.close()
        sweep(base)
    changing = [field.name for field in dataclasses.fields(settings) if field.metadata["scores"]]
    used = {name: getattr(settings, name) for name in changing} | {"clip_frames": work.clip_frames}
    return replace(found, settings=used)


def find_video(source: str) -> Video:
    """The one video that a source names. Raises UserError, with what to do, for none and for several."""
    check_sources([source])
    every = f"name one video of it, or look at all with `deepsweep scan {shlex.quote(source)}`."
    if is_s3(source):
        found = next(iter_videos([source]), None)
        if found is None or found.uri != source or is_manifest(source):
            raise UserError(f"{source} is not one video: {every}")
        return found
    path = absolute(str(local_path(source)))
    if Path(path).is_dir():
        raise UserError(f"{source} is a folder: {every}")
    if is_manifest(path):
        raise UserError(f"{source} is a list of videos, by its name: {every}")
    if not os.path.lexists(path):  # check_sources saw the folder that a glob begins in
        raise UserError(f"{source} is a pattern, not one video: {every}")
    return next(iter_videos([source]))


class _Inspector:
    """The way of one video: spans, signals, scores, rows, and then the views over the rows."""

    def __init__(self, work: Work, on_progress: Progress | None, folder: Path) -> None:
        self.work = work
        modules = (*ANALYSIS_MODULES, "scanner.inspect_overlay")
        self.guard = WatchedGuard(self._look, modules, work.memory_limit)
        self.results = str(folder / "results")
        self.meter = Meter(folder / "meter")
        self.on_progress = on_progress
        self.stage = ("", 0.0, 0.0)  # what is being done, from which share on, as how large a part of all
        self.done = 0.0
        self.stopped: BaseException | None = None
        self.explainer: Explainer | None = None
        self.drawn: list[DrawnFace] = []

    def close(self) -> None:
        self.guard.close()

    def inspect(self, video: Video, overlay: str | None) -> Inspection:
        scratch = self.work.scratch
        self.tell("Loading the model", 0.0)
        analyze = Analyze(self.work, self.guard, self.meter)  # first: its child starts while the model is loaded
        score = Score(self.work, _best_device())
        split = SplitIntoSpans(self.work, self.guard)
        spans = self.watch("Opening the video", 0.0, 0.0, lambda: split.split(video))
        with ExitStack() as kept:
            path = None
            if overlay and spans[0].status is Status.OK:
                with suppress(FetchError):  # the analysis meets it as well, and says so
                    path = kept.enter_context(scratch.fetch(video.uri, video.content_tag, video.size_bytes))
                self._prepare_drawing(score)
            each = (UNDRAWN_SHARE if path else 1.0) / len(spans)
            motion = [self._span(span, span.index * each, each, analyze, score, path is not None) for span in spans]
            found = self._read(pa.concat_tables(motion))
            if overlay:
                found = replace(found, overlay_error=self._draw(path, spans[0], found, overlay))
        self.tell("Done", 1.0)
        return found

    def _span(self, span: Span, start: float, share: float, analyze: Analyze, score: Score, is_drawn: bool) -> pa.Table:
        """Take one span through all stages, and write its row. Returns its faces' motion."""
        began = time.perf_counter()
        seen = span
        if span.status is Status.OK:
            seen = self.watch("Following faces", start, ANALYSIS_SHARE * share, lambda: analyze.analyze(span))
            self.tell("Scoring faces", start + ANALYSIS_SHARE * share)
        (scored,) = score.score([seen])
        row = span_row(replace(scored, worker_s=time.perf_counter() - began), self.work.run)
        write_part(self.results, self.work.run.run_id, [row])
        if is_drawn and seen.signals is not None:
            from scanner.inspect_heat import drawn_faces

            self.tell("Explaining scores", start + 0.9 * share)
            self.drawn += drawn_faces(seen, scored, row, self.explainer)
        return _motion(seen)

    def _read(self, motion: pa.Table) -> Inspection:
        """What the views say of the rows."""
        with closing(open_catalog(self.results)) as connection:
            tables = {
                view: connection.sql(f"FROM {view} ORDER BY {order}").to_arrow_table() for view, order in VIEWS.items()
            }
        run = self.work.run
        thresholds = {"fake": run.threshold, "real": min(run.threshold, run.spec.thresholds["real"])}
        return Inspection(**tables, motion=motion, thresholds=thresholds, settings={})

    # --- the overlay ---

    def _prepare_drawing(self, score: Score) -> None:
        from scanner.inspect_heat import Explainer

        if self.work.run.spec.trained:
            self.explainer = Explainer(self.work.run.spec, score.scorer.device.type)

    def _draw(self, path: Path | None, span: Span, found: Inspection, overlay: str) -> str | None:
        """Write the overlay video; a sentence where that fails."""
        from scanner.inspect_overlay import Caption, write_overlay

        info, video = span.info, found.video
        if path is None or info is None:
            return f"the video could not be read ({found.status.value})"
        caption = Caption(self.work.run.spec.label, video["score"], video["verdict"], found.thresholds)
        margin = self.work.analysis.crop_margin
        return self.watch(
            "Drawing the overlay",
            UNDRAWN_SHARE,
            1 - UNDRAWN_SHARE,
            lambda: write_overlay(self.guard, path, overlay, info, self.drawn, caption, margin, self.meter),
        )

    # --- progress ---

    def tell(self, what: str, share: float) -> None:
        self.done = max(self.done, min(1.0, share))  # a second attempt at a span does not go back
        if self.on_progress is not None:
            self.on_progress(what, self.done)

    def watch(self, what: str, start: float, share: float, call: Callable[[], T]) -> T:
        """Run a stage, and tell how far its child is, as `share` of the whole from `start` on."""
        self.meter(0.0)
        self.stage = (what, start, share)
        self.tell(what, start)
        answer = call()
        if self.stopped is not None:  # a stage makes a status of every error, also of the caller's
            raise self.stopped
        return answer

    def _look(self) -> None:
        what, start, share = self.stage
        try:
            self.tell(what, start + share * self.meter.read())
        except BaseException as error:
            self.stopped = error
            raise


def _motion(span: Span) -> pa.Table:
    """Rows of MOTION of a span's faces, in their order."""
    faces = span.signals.faces if span.signals is not None else []
    parts = [
        pa.table(
            [
                pa.array([face_id(span, number)] * len(face.t)),
                pa.array(face.t),
                *(pa.array(column, pa.float32(), from_pandas=True) for column in face.region_motion.T),
            ],
            schema=MOTION,
        )
        for number, face in enumerate(faces)
    ]
    return pa.concat_tables([MOTION.empty_table(), *parts])


def _best_device() -> str:
    import torch  # seconds, and only here

    return "cuda" if torch.cuda.is_available() else "cpu"


def _part(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a view, without what is said of the whole video already."""
    return {name: value for name, value in row.items() if name not in ("uri", "run_id")}
