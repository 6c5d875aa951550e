"""Analysed spans whose crops are noise: of the size of real ones, and all the same to the network."""

from __future__ import annotations

import numpy as np

from scanner.analysis import Analysis, FaceSignals, SpanSignals
from scanner.blink import analyze_blinks
from scanner.micro import REGIONS
from scanner.records import Span


def analyzed_span(settings: Analysis, seconds: float, seed: int) -> Span:
    """A span of so many seconds as the analysis leaves it, with one face from beginning to end."""
    chance = np.random.default_rng(seed)
    t = np.arange(0, seconds, 1 / settings.fps)
    shown = np.arange(0, len(t), round(settings.fps / settings.clip_fps))
    size = settings.crop_size
    ear = np.full(len(t), 0.3, np.float32)
    face = FaceSignals(
        t=t,
        boxes=np.full((len(t), 4), 0.25, np.float32),
        ear=ear,
        eyes=np.stack([ear, ear], axis=1),
        pose=np.zeros((len(t), 3), np.float32),
        motion=np.zeros(len(t), np.float32),
        region_motion=np.zeros((len(t), len(REGIONS)), np.float32),
        blinks=analyze_blinks(t, ear),
        irregularity=None,
        crops=chance.integers(0, 255, (len(shown), size, size, 3), np.uint8),
        crop_frames=shown,
    )
    signals = SpanSignals("pyav", 0.0, seconds, seconds, 1, [face])
    return Span(f"noise-{seed}", "-", None, t_end=seconds, signals=signals)
