"""How well scores tell fakes from reals: figures over arrays of labels and scores, and intervals over recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

#: Every metric takes labels (n,) bool (true: fake), scores (n,) in 0..1, and weights (..., n) that say how often each
#: item counts, once by default. It returns one figure per row of weights, (...) float64; NaN where it has no meaning,
#: as an AUC of reals alone. Rows of weights are what makes a thousand resamples one pass over the sorted scores.
Metric = Callable[..., np.ndarray]

Groups = Sequence[str] | np.ndarray  # (n,) the recording of each item

ECE_BINS = 10
LOG_LOSS_EDGE = 1e-6  # a sure error costs 13.8, not infinity: one video must not decide the mean
MIN_GROUPS = 5  # recordings of a label: resamples of fewer hardly differ, and their spread would claim too much
CONFIDENCE = 0.95

_CHUNK = 2_000_000  # weights at a time: 16 MB for each array that a metric makes of them


# --- ranking ------------------------------------------------------------------------------------------------------


def roc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(fakes, reals) that score at or above each distinct score, from "nothing" to "everything".

    Both (..., distinct + 1) float64, counted by weight. Equal scores are one step: no threshold parts them.
    """
    fake, scores, weights = _arrays(labels, scores, weights)
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if len(order) else order
    sorted_weights = weights[..., order]

    def counted(of: np.ndarray) -> np.ndarray:
        sums = np.cumsum(sorted_weights * of[order], axis=-1)[..., last_of_equals]
        return np.concatenate([np.zeros((*sums.shape[:-1], 1)), sums], axis=-1)

    return counted(fake), counted(~fake)


def auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Chance that a fake scores above a real one, ties counting half: U / (fakes * reals) of Mann & Whitney 1947.

    It is the area under the ROC curve by the trapezoid rule, which is how it is computed.
    """
    tp, fp = roc(labels, scores, weights)
    area = np.sum(np.diff(fp) * (tp[..., 1:] + tp[..., :-1]) / 2, axis=-1)
    return _ratio(area, tp[..., -1] * fp[..., -1])


def eer(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Equal error rate: where false positives and misses are equally frequent, on straight lines between ROC points."""
    tp, fp = roc(labels, scores, weights)
    fpr, miss = _ratio(fp, fp[..., -1:]), 1 - _ratio(tp, tp[..., -1:])
    gap = fpr - miss  # rises from -1 to 1
    after = np.argmax(gap >= 0, axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    low, high = np.take_along_axis(gap, before, -1), np.take_along_axis(gap, after, -1)
    start, end = np.take_along_axis(fpr, before, -1), np.take_along_axis(fpr, after, -1)
    return (start + (end - start) * _ratio(-low, high - low))[..., 0]


def average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean precision over the fakes in the order of scores: sum of (R_k - R_(k-1)) P_k, without interpolation.

    It depends on how many of the items are fakes: a coin gets that share.
    """
    tp, fp = roc(labels, scores, weights)
    flagged = tp + fp
    precision = np.divide(tp, flagged, out=np.zeros_like(tp), where=flagged > 0)
    return _ratio(np.sum(np.diff(tp, axis=-1) * precision[..., 1:], axis=-1), tp[..., -1])


def tpr_at_fpr(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None, *, fpr: float) -> np.ndarray:
    """Share of the fakes that are found at the lowest threshold whose false-positive rate is at most `fpr`.

    Only thresholds that exist count; nothing is interpolated. NaN with fewer than 1 / fpr reals: there the rate
    cannot be told from zero, and the figure would be about the single highest real.
    """
    tp, fp = roc(labels, scores, weights)
    reals = np.count_nonzero(~np.asarray(labels, bool))
    if reals * fpr < 1 - 1e-9:
        return np.full(tp.shape[:-1], np.nan)
    reached = fp <= fpr * fp[..., -1:] + 1e-9
    return _ratio(np.max(np.where(reached, tp, 0.0), axis=-1), tp[..., -1])


# --- decisions and probabilities ----------------------------------------------------------------------------------


def tpr_at(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None, *, threshold: float):
    """Share of the fakes that score at least `threshold`."""
    fake, scores, weights = _arrays(labels, scores, weights)
    return _mean((scores >= threshold)[fake], weights[..., fake])


def fpr_at(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None, *, threshold: float):
    """Share of the reals that score at least `threshold`."""
    fake, scores, weights = _arrays(labels, scores, weights)
    return _mean((scores >= threshold)[~fake], weights[..., ~fake])


def log_loss(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of -ln(probability given to what was true), scores clipped to LOG_LOSS_EDGE from 0 and 1."""
    fake, scores, weights = _arrays(labels, scores, weights)
    p = np.clip(scores, LOG_LOSS_EDGE, 1 - LOG_LOSS_EDGE)
    return _mean(-np.log(np.where(fake, p, 1 - p)), weights)


def brier(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean squared distance of the score from the truth (Brier 1950, in its form for two classes)."""
    fake, scores, weights = _arrays(labels, scores, weights)
    return _mean((scores - fake) ** 2, weights)


def mean_score(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of the scores, whatever the labels."""
    _, scores, weights = _arrays(labels, scores, weights)
    return _mean(scores, weights)


def ece(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error: mean distance of each bin's share of fakes from its mean score, by items in it.

    Guo et al. 2017, eq. 3, on the probability of "fake" and over the equal-width bins of `reliability`. Equal width is
    what the literature reports and what a reliability plot shows, and equal scores always share a bin, which they do
    not in bins of equal mass. An empty bin counts nothing. Small sets read too high: chance alone moves a bin's share.
    """
    _, total, hits, sums = _binned(labels, scores, weights)
    return _ratio(np.abs(hits - sums).sum(axis=-1), total.sum(axis=-1))


@dataclass(frozen=True)
class Bin:
    """Items whose score lies in (low, high]; the first bin has 0, too."""

    low: float
    high: float
    count: int
    mean_score: float
    fakes: float  # share of the items that are fake


def reliability(labels: np.ndarray, scores: np.ndarray) -> list[Bin]:
    """The bins of `ece` that hold anything, in order."""
    edges, total, hits, sums = _binned(labels, scores, None)
    return [
        Bin(float(edges[i]), float(edges[i + 1]), int(n), float(sums[i] / n), float(hits[i] / n))
        for i, n in enumerate(total)
        if n
    ]


def _binned(labels, scores, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges (bins + 1,), and of each bin (..., bins): items, fakes, and the sum of scores, by weight."""
    fake, scores, weights = _arrays(labels, scores, weights)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    belongs = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, ECE_BINS - 1)[:, None] == np.arange(ECE_BINS)
    return edges, weights @ belongs, weights @ (belongs * fake[:, None]), weights @ (belongs * scores[:, None])


# --- intervals ----------------------------------------------------------------------------------------------------


def bootstrap(
    metric: Metric,
    labels: np.ndarray,
    scores: np.ndarray,
    groups: Groups,
    n: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of `metric`, from n resamples of the recordings (Efron & Tibshirani 1993, ch. 13).

    groups: (n,) the recording of each item. Whole recordings are drawn, because clips and copies of one resemble each
    other: items drawn singly would claim more evidence than there is. Recordings that hold reals, fakes, or both are
    drawn apart, so that each resample has as many of each as the data. The same seed draws the same recordings for
    every metric. (NaN, NaN) where a label has fewer than MIN_GROUPS recordings.
    """
    if not len(scores) or n < 1 or fewest_groups(labels, groups) < MIN_GROUPS:
        return np.nan, np.nan
    values = np.concatenate([metric(labels, scores, counts) for counts in _resamples(labels, groups, n, seed)])
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_rate(
    metric: Metric,
    labels: np.ndarray,
    scores: np.ndarray,
    groups: Groups,
    n: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """`bootstrap` of a metric that is a share of items, honest where that share is 0 or 1.

    No resample of "never" differs from it. There the exact binomial bound over the m recordings stands in, as if each
    were one trial: up to 1 - 0.025^(1/m) for 0 (Clopper & Pearson 1934), and down to 0.025^(1/m) for 1.
    """
    low, high = bootstrap(metric, labels, scores, groups, n, seed)
    if low == high and low in (0.0, 1.0):
        bound = ((1 - CONFIDENCE) / 2) ** (1 / fewest_groups(labels, groups))
        return (0.0, 1 - bound) if low == 0 else (bound, 1.0)
    return low, high


def fewest_groups(labels: np.ndarray, groups: Groups) -> int:
    """Recordings behind the label that has the fewest of them; labels that do not occur don't count."""
    fake, names = np.asarray(labels, bool), np.asarray(groups)
    return min((len(np.unique(names[fake == label])) for label in np.unique(fake)), default=0)


def _resamples(labels: np.ndarray, groups: Groups, n: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks (rows, items) float64 of n rows altogether: how often each item is in each resample."""
    rng = np.random.default_rng(seed)
    fake = np.asarray(labels, bool)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    size = int(member.max()) + 1
    holds = 2 * (np.bincount(member, fake, size) > 0) + (np.bincount(member, ~fake, size) > 0)
    rows = max(1, _CHUNK // max(len(fake), size))
    for start in range(0, n, rows):
        count = min(rows, n - start)
        counts = np.zeros((count, size))
        for kind in (1, 2, 3):
            stratum = np.flatnonzero(holds == kind)
            if len(stratum):
                drawn = rng.integers(0, len(stratum), (count, len(stratum)))
                flat = drawn + len(stratum) * np.arange(count)[:, None]
                found = np.bincount(flat.ravel(), minlength=count * len(stratum))
                counts[:, stratum] = found.reshape(count, len(stratum))
        yield counts[:, member]


# --- pieces -------------------------------------------------------------------------------------------------------


def rate_metrics(threshold: float) -> dict[str, Metric]:
    """The metrics of one threshold: `tpr` and `fpr`."""
    return {"tpr": partial(tpr_at, threshold=threshold), "fpr": partial(fpr_at, threshold=threshold)}


#: The metrics of every table, in its order.
METRICS: dict[str, Metric] = {
    "auc": auc,
    "eer": eer,
    "ap": average_precision,
    "log_loss": log_loss,
    "brier": brier,
    "ece": ece,
    "tpr_at_fpr_1%": partial(tpr_at_fpr, fpr=0.01),
    "tpr_at_fpr_0.1%": partial(tpr_at_fpr, fpr=0.001),
}


def _arrays(labels, scores, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    fake, scores = np.asarray(labels, bool), np.asarray(scores, np.float64)
    return fake, scores, np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(whole) > 0, np.divide(part, whole), np.nan)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _ratio(weights @ values.astype(np.float64), weights.sum(axis=-1))
