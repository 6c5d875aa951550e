"""Faces by formula, and the zoo's faces read once, for the tests of what is measured on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from scanner.analysis import Analysis, SpanSignals, analyze_span
from scanner.decode import Reading, probe, read_frames
from scanner.tracking import FaceTracker, Track
from tests.zoo import ARCHIVE, ZOO

SETTINGS = Analysis(fps=15.0, clip_fps=5.0, crop_size=192, crop_margin=1.4)


def zoo_path(name: str) -> Path:
    return ARCHIVE / ZOO[name].path


def frames_of(name: str, start: float = 0.0, end: float = np.inf) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, picture) of a clip of the zoo, as a scan samples it."""
    path = zoo_path(name)
    yield from read_frames(path, probe(path), start, end, SETTINGS.fps, "pyav", Reading())


@cache
def analysis_of(name: str) -> SpanSignals:
    """What a scan measures on a clip of the zoo."""
    path = zoo_path(name)
    return analyze_span(str(path), probe(path), 0.0, np.inf, SETTINGS, "pyav")


@cache
def tracks_of(name: str, start: float = 0.0, end: float = np.inf) -> list[Track]:
    return follow(frames_of(name, start, end))


def follow(frames: Iterator[tuple[float, np.ndarray]] | Sequence[tuple[float, np.ndarray]]) -> list[Track]:
    tracker = FaceTracker()
    for t, rgb in frames:
        tracker.update(t, rgb)
    return tracker.finish()


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """A turn of the head in FaceMesh's axes (x right, y down, z away from the camera): (3, 3), angles in degrees.

    yaw: towards the person's left, the camera's right. pitch: down. roll: clockwise as the camera sees it.
    """
    a, b, c = np.radians([yaw, pitch, roll])
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    lean = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return lean @ turn @ nod


@cache
def still_face() -> np.ndarray:
    """The median landmarks of the zoo's portrait: (478, 3) float64 px."""
    (track,) = tracks_of("real_blinks.mp4", 0.0, 1.0)
    return np.median(np.stack(track.landmarks), axis=0).astype(np.float64)
