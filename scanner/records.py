"""One span's row: what was found, in the schema's columns, with NULL for everything that is not known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np

from models.registry import load_spec
from models.spec import ModelError, ModelSpec
from scanner.analysis import FaceSignals, SpanSignals
from scanner.clips import ClipScores
from scanner.config import ScanConfig
from scanner.decode import VideoInfo
from scanner.errors import UserError
from scanner.fusion import fuse, top_mean, verdict
from scanner.results import SCHEMA_VERSION, SIGNAL, SPAN, Status, new_run_id

SIGNAL_NAMES = [SIGNAL.field(i).name for i in range(SIGNAL.num_fields)]


@dataclass(frozen=True)
class Span:
    """A span on its way through the pipeline; each stage fills in what it knows."""

    uri: str
    content_tag: str
    size_bytes: int | None
    index: int = 0
    count: int = 1
    t_start: float = 0.0
    t_end: float | None = None
    info: VideoInfo | None = None
    status: Status = Status.OK
    error: str | None = None
    signals: SpanSignals | None = None
    scores: ClipScores | None = None
    worker_s: float = 0.0
    siblings: int = 0  # how many other spans of its video the run scans

    @property
    def end(self) -> float | None:
        """Seconds into the video; the last span's, which has no end of its own, is the video's."""
        return self.t_end if self.info is None or self.t_end is None else min(self.t_end, self.info.duration_s)

    @property
    def seconds(self) -> float:
        """Of video; 0 where its header could not be read."""
        return max(0.0, (self.end or 0.0) - self.t_start)

    def failed(self, status: Status, error: str) -> Span:
        """The same span, ended early."""
        return replace(self, status=status, error=error, signals=None, scores=None)


@dataclass(frozen=True)
class RunFacts:
    """What all rows of a run share."""

    run_id: str
    spec: ModelSpec
    settings_digest: str
    threshold: float  # from here on a clip is flagged and a verdict is `fake`

    @classmethod
    def of(cls, config: ScanConfig) -> RunFacts:
        """The facts of a new run with a user's settings. Raises UserError for a model that can't be used."""
        try:
            spec = load_spec(config.model)
        except ModelError as error:
            raise UserError(str(error)) from None
        return cls(
            run_id=new_run_id(),
            spec=spec,
            settings_digest=config.digest(config.clip_frames or spec.clip_frames),
            threshold=spec.thresholds["fake"] if config.threshold is None else config.threshold,
        )


def span_row(span: Span, run: RunFacts) -> dict[str, Any]:
    """The Parquet row (columns of results.SPAN) of a finished span."""
    row: dict[str, Any] = dict.fromkeys(SPAN.names)
    row |= {
        "schema_version": SCHEMA_VERSION,
        "run_id": run.run_id,
        "scanned_at": datetime.now(timezone.utc),
        "uri": span.uri,
        "content_tag": span.content_tag,
        "size_bytes": span.size_bytes,
        "span_index": span.index,
        "span_count": span.count,
        "t_start": span.t_start,
        "t_end": span.end,
        "status": span.status.value,
        "error": span.error,
        "model": run.spec.label,
        "model_digest": run.spec.digest,
        "settings_digest": run.settings_digest,
        "threshold": run.threshold,
        "worker_s": round(span.worker_s, 3),
        "faces": [],
        "clips": [],
        "frames": [],
        "thumbnails": [],
    }
    if span.info is not None:
        row |= {
            "duration_s": span.info.duration_s,
            "width": span.info.width,
            "height": span.info.height,
            "fps": span.info.fps,
            "codec": span.info.codec,
        }
    if span.signals is not None:
        row |= _findings(span, span.signals, run)
    return row


def _findings(span: Span, signals: SpanSignals, run: RunFacts) -> dict[str, Any]:
    faces = [_face_row(span, number, face, run) for number, face in enumerate(signals.faces)]
    row = {
        "decoder": signals.decoder,
        "lost_s": signals.lost_s,
        "analyzed_s": signals.analyzed_s,
        "face_s": signals.face_s,
        "n_faces": signals.n_faces,
        "faces": faces,
        **_blink_totals(faces),
    }
    motion = [(f["micro_irregularity"], f["face_s"]) for f in faces if f["micro_irregularity"] is not None]
    if motion:
        values, weights = zip(*motion, strict=True)
        row["micro_irregularity"] = float(np.average(values, weights=weights))
    if span.scores is not None:
        row |= {
            "clips": _clip_rows(span, span.scores, run),
            "frames": _frame_rows(span, span.scores, run),
            "thumbnails": _thumbnail_rows(span, span.scores, run),
        }
    scored = [f for f in faces if f["score"] is not None]
    if scored and span.status is Status.OK:
        most = max(scored, key=lambda f: f["score"])
        row |= {
            "score": most["score"],
            "cnn_score": most["cnn_score"],
            "verdict": verdict(most["score"], run.threshold, run.spec.thresholds["real"]),
        }
    return row


def _face_row(span: Span, number: int, face: FaceSignals, run: RunFacts) -> dict[str, Any]:
    probabilities = np.zeros(0)
    if span.scores is not None:
        mine = [i for i, clip in enumerate(span.scores.clips) if clip.face == number]
        probabilities = span.scores.probabilities[mine]
    judged = run.spec.trained and len(probabilities) > 0
    return {
        "face_id": face_id(span, number),
        "t_start": float(face.t[0]),
        "t_end": float(face.t[-1]),
        "face_s": _seconds(face.t),
        "score": _clip_score(probabilities, face, run) if judged else None,
        "cnn_score": top_mean(probabilities) if judged else None,
        "blink_count": face.blinks.count,
        "blink_rate": face.blinks.rate,
        "blink_score": face.blinks.score,
        "blink_s": face.blinks.seconds,
        "blink_t": face.blinks.times,
        "blink_d": face.blinks.durations,
        "micro_irregularity": face.irregularity,
        **_box(np.median(face.boxes, axis=0)),
        "signals": _signal_rows(face),
    }


def _signal_rows(face: FaceSignals) -> list[dict[str, Any]]:
    columns = (face.t, face.ear, *face.eyes.T, face.motion, *face.pose.T)
    return [
        {name: _known(value) for name, value in zip(SIGNAL_NAMES, moment, strict=True)}
        for moment in zip(*columns, strict=True)
    ]


def _clip_rows(span: Span, scores: ClipScores, run: RunFacts) -> list[dict[str, Any]]:
    rows = []
    for clip, probability in zip(scores.clips, scores.probabilities, strict=True):
        face = _face(span, clip.face)
        shown = face.crop_frames[clip.start : clip.stop]
        score = _clip_score(np.array([probability]), face, run) if run.spec.trained else None
        rows.append(
            {
                "face_id": face_id(span, clip.face),
                "t_start": float(face.t[shown[0]]),
                "t_end": float(face.t[shown[-1]]),
                "score": score,
                "cnn_score": float(probability) if run.spec.trained else None,
                "flagged": score is not None and score >= run.threshold,
                **_box(np.median(face.boxes[shown], axis=0)),
            }
        )
    return rows


def _frame_rows(span: Span, scores: ClipScores, run: RunFacts) -> list[dict[str, Any]]:
    rows = []
    for clip, probabilities in zip(scores.clips, scores.frames, strict=True):
        face = _face(span, clip.face)
        shown = face.crop_frames[clip.start : clip.stop]
        for i, probability in zip(shown, probabilities, strict=True):
            rows.append(
                {
                    "face_id": face_id(span, clip.face),
                    "t": float(face.t[i]),
                    "score": float(probability) if run.spec.trained else None,
                    "ear": _known(face.ear[i]),
                    "blink": _in_blink(float(face.t[i]), face),
                    **_box(face.boxes[i]),
                }
            )
    return rows


def _thumbnail_rows(span: Span, scores: ClipScores, run: RunFacts) -> list[dict[str, Any]]:
    rows = []
    for picture in scores.thumbnails:
        face = _face(span, picture.face)
        probability = scores.probabilities[[picture.clip]]
        rows.append(
            {
                "face_id": face_id(span, picture.face),
                "t": float(face.t[face.crop_frames[picture.crop]]),
                "score": _clip_score(probability, face, run) if run.spec.trained else None,
                "image": picture.image,
                "heatmap": picture.heatmap,
            }
        )
    return rows


def face_id(span: Span, number: int) -> str:
    """Unique within a video: the span's number and the face's within it."""
    return f"{span.index}-{number}"


def _face(span: Span, number: int) -> FaceSignals:
    assert span.signals is not None, "scores come from signals"
    return span.signals.faces[number]


def _clip_score(probabilities: np.ndarray, face: FaceSignals, run: RunFacts) -> float:
    return fuse(probabilities, face.blinks.score, face.irregularity, run.spec.fusion)


def _blink_totals(faces: list[dict[str, Any]]) -> dict[str, Any]:
    """Blinks of a span: counts and watched seconds add up over the faces whose blinks could be judged."""
    judged = [f for f in faces if f["blink_count"] is not None]
    if not judged:
        return {}
    count, seconds = sum(f["blink_count"] for f in judged), sum(f["blink_s"] for f in judged)
    return {
        "blink_count": count,
        "blink_s": seconds,
        "blink_rate": 60 * count / seconds,
        "blink_score": max(f["blink_score"] for f in judged),
    }


def _in_blink(t: float, face: FaceSignals) -> bool | None:
    if face.blinks.count is None:
        return None
    return bool(np.any(np.abs(face.blinks.times - t) <= face.blinks.durations / 2))


def _seconds(t: np.ndarray) -> float:
    # A sampled moment stands for the time until the next, so n of them span n / (n - 1) of their distance.
    return float((t[-1] - t[0]) * len(t) / (len(t) - 1)) if len(t) > 1 else 0.0


def _box(box: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip("xywh", box, strict=True)}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
