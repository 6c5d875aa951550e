"""What the network looked at in every crop of a face, for a video that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from models.gradcam import grad_cam
from models.scorer import ClipScorer
from models.spec import ModelSpec
from scanner.inspect_overlay import HEAT_SIDE, DrawnFace
from scanner.records import Span, face_id


class Explainer(ClipScorer):
    """A scorer that explains each frame of a clip, where a scan explains the most suspicious one."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        super().__init__(spec, device=device)

    def heatmaps(self, clip: np.ndarray) -> np.ndarray:
        """models.gradcam.grad_cam of every frame of a clip: (T, S, S, 3) uint8 RGB -> (T, S, S) float32 in 0..1."""
        maps = torch.cat(list(self._maps(self.network.early, clip[None], np.ones((1, len(clip)), bool))))
        # features of frames that are not explained are asked for, and here are none
        pooled = maps.new_zeros(len(clip), self.network.frame_head.in_features)
        return grad_cam(self.network, pooled, range(len(clip)), maps, self.spec.input_size)


def drawn_faces(seen: Span, scored: Span, row: Mapping[str, Any], explainer: Explainer | None) -> list[DrawnFace]:
    """What an overlay shows of a span's faces.

    seen: the span with its crops; scored, row: the same with its scores, and as it is written. explainer: None for an
    untrained model, which looks at nothing in particular.
    """
    assert seen.signals is not None, "faces come from signals"
    heat: dict[int, list[np.ndarray]] = {}
    for clip in scored.scores.clips if scored.scores is not None else ():
        crops = seen.signals.faces[clip.face].crops[clip.start : clip.stop]
        heat.setdefault(clip.face, []).append(_small(explainer.heatmaps(crops)) if explainer else _cold(len(crops)))
    return [
        DrawnFace(
            face_id=face_id(seen, number),
            t=face.t,
            boxes=face.boxes,
            scored_t=np.array([frame["t"] for frame in _of(row["frames"], face_id(seen, number))]),
            scores=_clip_scores(row, face_id(seen, number)),
            heat=np.concatenate(heat.get(number, [_cold(0)])),
        )
        for number, face in enumerate(seen.signals.faces)
    ]


def _clip_scores(row: Mapping[str, Any], face: str) -> np.ndarray:
    """The score of the clip that each scored frame of a face is in: (frames,) float32, NaN where it has none."""
    clips = _of(row["clips"], face)
    scores = [
        next((c["score"] for c in clips if c["t_start"] <= frame["t"] <= c["t_end"]), None)
        for frame in _of(row["frames"], face)
    ]
    return np.array([np.nan if score is None else score for score in scores], np.float32)


def _of(rows: list[dict[str, Any]], face: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["face_id"] == face]


def _small(heatmaps: np.ndarray) -> np.ndarray:
    """(T, S, S) in 0..1 -> (T, HEAT_SIDE, HEAT_SIDE) uint8: an hour of one face takes 10 MB."""
    return np.stack([cv2.resize(np.round(h * 255).astype(np.uint8), (HEAT_SIDE, HEAT_SIDE)) for h in heatmaps])


def _cold(count: int) -> np.ndarray:
    return np.zeros((count, HEAT_SIDE, HEAT_SIDE), np.uint8)
