"""Draws docs/blinks.png, the picture in the README, from a real analysis: `python -m tests.picture`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from scanner.analysis import Analysis, analyze_span, probe_video
from tests.zoo import ARCHIVE

TARGET = Path(__file__).parents[1] / "docs" / "blinks.png"
CROPS = 8


def draw(target: Path) -> None:
    """Crops around blinks above the EAR curve of the same face."""
    path = str(ARCHIVE / "talks" / "real_blinks.mp4")
    signals = analyze_span(path, probe_video(path), 0, np.inf, Analysis(15, 15, 160, 1.4), "pyav")
    (face,) = signals.faces
    shut = face.blinks.times[: CROPS // 2]
    moments = np.sort(np.r_[shut, shut + 0.6])
    figure = plt.figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, CROPS, height_ratios=(1, 1.5))
    for column, moment in enumerate(moments):
        nearest = int(np.abs(face.t[face.crop_frames] - moment).argmin())
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(face.crops[nearest])
        axes.set_title(f"{face.t[face.crop_frames[nearest]]:.2f} s", fontsize=8)
        axes.axis("off")
    axes = figure.add_subplot(grid[1, :])
    axes.plot(face.t, face.ear, lw=1.2, color="#205080")
    for moment, duration in zip(face.blinks.times, face.blinks.durations, strict=True):
        axes.axvspan(moment - duration / 2, moment + duration / 2, color="#d08030", alpha=0.35, lw=0)
    axes.set(xlabel="time, s", ylabel="eye aspect ratio", xlim=(0, face.t[-1]), ylim=(0, None))
    axes.set_title(f"{face.blinks.count} blinks, {face.blinks.rate:.0f} a minute", fontsize=9)
    figure.savefig(target)


if __name__ == "__main__":
    draw(TARGET)
