"""What the parts of the micro-expression figure measure on genuine footage: the numbers of NORMAL."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scanner import micro
from scanner.config import ScanConfig
from scanner.decode import DecodeError, Reading, probe, read_frames
from scanner.guard import Guard, GuardFailure
from scanner.sources import iter_videos
from scanner.tracking import FaceTracker

FILE_LIMIT_S = 300.0
MAD_TO_SPREAD = 1.4826  # of a normal distribution: its standard deviation in median absolute deviations


def measure_micro(folder: Path) -> None:
    """Print median and spread of every part over the face tracks of all videos of a folder."""
    guard = Guard(preload=(__name__,))
    measured: list[dict[str, float]] = []
    failed = files = 0
    try:
        for video in iter_videos((str(folder),), (), ()):
            files += 1
            try:
                measured += guard.run(tracks_of, video.uri, deadline_s=FILE_LIMIT_S)
            except (DecodeError, GuardFailure) as failure:
                failed += 1
                print(f"{Path(video.uri).name}: {failure}")
    finally:
        guard.close()
    if not measured:
        raise SystemExit(f"no face was seen for {micro.MIN_SECONDS:g} s in any of {files} videos of {folder}")
    print(f"{len(measured)} face tracks of {files} videos, {failed} unreadable")
    print("NORMAL = {")
    for name in micro.NORMAL:
        median, spread = middle_and_spread(np.array([parts[name] for parts in measured]))
        print(f'    "{name}": ({median:.3f}, {spread:.3f}),')
    print("}")


def middle_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Median, and the standard deviation that a normal distribution with this median absolute deviation has."""
    median = float(np.median(values))
    return median, MAD_TO_SPREAD * float(np.median(np.abs(values - median)))


def tracks_of(path: str) -> list[dict[str, float]]:
    """The parts of every face track of a video that lasts long enough for them."""
    file = Path(path)
    info = probe(file)
    tracker = FaceTracker()
    for t, rgb in read_frames(file, info, 0.0, info.duration_s + 1, ScanConfig().fps, "pyav", Reading()):
        tracker.update(t, rgb)
    parts = [micro.analyze_motion(np.array(t.times), np.stack(t.landmarks)).parts for t in tracker.finish()]
    return [part for part in parts if part]
