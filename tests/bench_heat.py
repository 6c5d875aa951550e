"""Where heatmaps point, and what a score really rests on: by this, the block that they are drawn from is chosen."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from models.prepared import read_tracks
from models.registry import load_spec
from models.scorer import ClipScorer
from models.training.sampling import Geometry, Sampler, sampled_track

CROPS = 40  # of the manipulated videos' that score highest
PER_TRACK = 6  # crops of a track that are scored
SQUARE, STEP, BLUR = 36, 12, 8.0  # px of a crop: side and distance of the squares that are blurred, and by how much
PAIRS = 300  # of a genuine crop and its pseudo-fake
BLUR_OF_CHANGE = 24  # px: differences of single pixels are noise
SEED = 4242


def measure_heat(prepared: Path, model: str) -> None:
    """Print, for heatmaps of `model` on prepared data, how far they go with two truths.

    Correlation over places of a crop, the mean over crops: with how far the frame's logit falls where a square is
    blurred, on labelled fakes; with how much a pseudo-fake differs from its original.
    """
    scorer = ClipScorer(load_spec(model), "cpu")
    tracks = read_tracks(prepared)
    geometry = Geometry(scorer.spec.input_size, scorer.spec.crop_margin)
    fakes = [track for track in tracks if track.fake and track.kind == "video"]
    crops = np.concatenate([sampled_track(track, geometry, PER_TRACK) for track in fakes])
    crops = crops[np.argsort(-logits(scorer, crops), kind="stable")[:CROPS]]
    blurred = [_agreement(scorer, crop) for crop in crops]
    print(f"{scorer.spec.name}, block {scorer.network.backbone.explained}")
    print(f"where blurring lowers the logit, {len(blurred)} crops of labelled fakes: {np.nanmean(blurred):.3f}")
    sampler = Sampler([track for track in tracks if not track.fake], geometry, seed=SEED)
    changes = []
    for index in range(PAIRS):
        genuine, fake = (drawn.frames[0] for drawn in sampler.pair(index))
        change = cv2.blur(np.abs(fake.astype(np.float32) - genuine).sum(axis=-1), (BLUR_OF_CHANGE, BLUR_OF_CHANGE))
        changes.append(_correlation(change, heatmap(scorer, fake)))
    print(f"what was changed, {len(changes)} pseudo-fakes: {np.nanmean(changes):.3f}")


def heatmap(scorer: ClipScorer, crop: np.ndarray) -> np.ndarray:
    """The heatmap of a crop by itself: (S, S, 3) uint8 RGB to (S, S) float32."""
    return scorer.explain(crop[None], 1)[1]


def logits(scorer: ClipScorer, crops: np.ndarray) -> np.ndarray:
    """Frame logits of crops: (N, S, S, 3) uint8 RGB to (N,) float32."""
    pooled = scorer.score_and_pool(crops[:, None], np.ones(len(crops), int))[2]
    with torch.no_grad():
        return scorer.network.frame_head(pooled).flatten().cpu().numpy()


def _agreement(scorer: ClipScorer, crop: np.ndarray) -> float:
    side = len(crop)
    corners = range(0, side - SQUARE + 1, STEP)
    soft = cv2.GaussianBlur(crop, (0, 0), BLUR)
    changed = [crop]
    for y in corners:
        for x in corners:
            changed.append(crop.copy())
            square = slice(y, y + SQUARE), slice(x, x + SQUARE)
            changed[-1][square] = soft[square]
    scored = logits(scorer, np.stack(changed))
    middles = np.array(corners) + SQUARE // 2
    heat = cv2.blur(heatmap(scorer, crop), (SQUARE, SQUARE))[np.ix_(middles, middles)]
    return _correlation(scored[0] - scored[1:], heat)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """NaN where one of them is flat: a heatmap without heat points nowhere."""
    if not a.std() or not b.std():
        return float("nan")
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
