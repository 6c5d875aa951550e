"""The report's pictures: ROC, reliability and score plots as PNG."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from models.evaluation import UNNAMED, Report
from models.metrics import auc, reliability, roc

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, FAKE, NEUTRAL = "#3b6fb6", "#c8453b", "#777777"  # told apart with any colour vision
DPI = 130
MOST_LINES = 10  # methods in the ROC, by number of videos
MOST_ROWS = 40  # sources in the score plot
LOWEST_FPR = 1e-3  # left end of the logarithmic axis


def draw_figures(report: Report) -> dict[str, bytes]:
    """File name → PNG."""
    fake = np.array([video["label"] == "fake" for video in report.judged], bool)
    scores = np.array([video["score"] for video in report.judged], np.float64)
    return {
        "roc.png": _png(_roc(report, fake, scores)),
        "reliability.png": _png(_reliability(fake, scores)),
        "scores.png": _png(_scores(report, fake, scores)),
    }


def _roc(report: Report, fake: np.ndarray, scores: np.ndarray) -> Figure:
    """Each method against all reals, and all fakes; on the right the same where archives live: at few false alarms."""
    figure = _figure(11, 5)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        if report.metadata_left_out:
            by_file = np.array([video["metadata_score"] for video in report.judged], np.float64)
            _step(axes, fake, by_file, label="file metadata alone", color=NEUTRAL, linestyle=":", linewidth=1.2)
        for method, mask in _methods(report, fake).items():
            _step(axes, fake[mask], scores[mask], label=method, linewidth=1)
        _step(axes, fake, scores, label="all fakes", color="black", linewidth=2)
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate", ylim=(0, 1.02))
        axes.grid(alpha=0.25)
    left.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=0.6)
    left.set(xlim=(0, 1), title="Videos")
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=7, loc="lower right")
    right.set(xscale="log", xlim=(LOWEST_FPR, 1), title="The same, few false positives")
    return figure


def _methods(report: Report, fake: np.ndarray) -> dict[str, np.ndarray]:
    """Method → (n,) bool: its fakes and all reals. The most frequent ones, where there are several."""
    names = np.array([video["method"] or UNNAMED if video["label"] == "fake" else "" for video in report.judged])
    found, counts = np.unique(names[fake], return_counts=True)
    if len(found) < 2:
        return {}
    return {str(found[i]): ~fake | (names == found[i]) for i in np.argsort(-counts, kind="stable")[:MOST_LINES]}


def _step(axes: Axes, fake: np.ndarray, scores: np.ndarray, label: str, **style) -> None:
    if not 0 < fake.sum() < len(fake):
        return
    tp, fp = roc(fake, scores)
    text = f"{_plain(label)} (AUC {float(auc(fake, scores)):.3f})"
    axes.plot(fp / fp[-1], tp / tp[-1], label=text, **style)


def _reliability(fake: np.ndarray, scores: np.ndarray) -> Figure:
    """Share of fakes in each bin over the bin's mean score, and below it how many videos that is."""
    figure = _figure(5.5, 6.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = reliability(fake, scores)
    at, share = np.array([b.mean_score for b in bins]), np.array([b.fakes for b in bins])
    low, high = _wilson(share, np.array([b.count for b in bins]))
    upper.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=0.8, label="calibrated")
    upper.errorbar(
        at, share, yerr=[share - low, high - share], fmt="o-", color="black", capsize=3, linewidth=1, label="videos"
    )
    upper.set(ylabel="share of fakes", xlim=(0, 1), ylim=(-0.02, 1.02), title="Reliability, 95 % Wilson intervals")
    upper.legend(fontsize=8, loc="upper left")
    edges = np.linspace(0, 1, 11)
    lower.hist([scores[~fake], scores[fake]], bins=edges.tolist(), stacked=True, color=[REAL, FAKE])
    lower.set(xlabel="score", ylabel="videos")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    return figure


def _wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interval of each share of `count` (Wilson 1927, eq. 1, z = 1.96), which holds the share itself."""
    z2 = 1.96**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


def _scores(report: Report, fake: np.ndarray, scores: np.ndarray) -> Figure:
    """One row of dots per source and label: a dot is a video. The band between the thresholds is `uncertain`."""
    rows = list(reversed(_rows(report).items()))
    figure = _figure(8, 1.6 + 0.27 * len(rows))
    axes = figure.subplots()
    wobble = np.random.default_rng(0)
    for height, (_, mine) in enumerate(rows):
        y = height + wobble.uniform(-0.25, 0.25, len(mine))
        axes.scatter(scores[mine], y, s=9, alpha=0.6, linewidths=0, color=FAKE if fake[mine[0]] else REAL)
    axes.axvspan(report.thresholds["real"], report.thresholds["fake"], color=NEUTRAL, alpha=0.15, linewidth=0)
    for threshold in ("real", "fake"):
        axes.axvline(report.thresholds[threshold], color=NEUTRAL, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_plain(name) for name, _ in rows], fontsize=7)
    axes.set(xlabel="score", xlim=(-0.02, 1.02), ylim=(-0.6, len(rows) - 0.4), title="Videos by source")
    axes.grid(alpha=0.25, axis="x")
    return figure


def _rows(report: Report) -> dict[str, list[int]]:
    """Name of a row → indices of its videos; reals first. Past MOST_ROWS the small sources of a label share a row."""
    found: dict[tuple[bool, str], list[int]] = {}
    for index, video in enumerate(report.judged):
        found.setdefault((video["label"] == "fake", video["source"]), []).append(index)
    kept = set(sorted(found, key=lambda key: -len(found[key]))[:MOST_ROWS])
    rows: dict[str, list[int]] = {}
    for key in sorted(found, key=lambda key: (key[0], key not in kept, key[1])):
        label = "fake" if key[0] else "real"
        name = key[1] if key in kept else "other sources"
        rows.setdefault(f"{name} ({label})", []).extend(found[key])
    return rows


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})
    figure.clear()
    return data.getvalue()


def _plain(name: str) -> str:
    """A stranger's name as a label: short, and no formula to matplotlib."""
    return textwrap.shorten(name, 48, placeholder="…").replace("$", r"\$")
