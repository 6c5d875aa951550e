"""Fusion: a small logistic model over all evidence of a video, its bands, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

#: Of the summed log-loss, for terms scaled to a mean square of one: a normal prior of the coefficients. Videos of one
#: source say much the same, so it is far stronger than independent ones would need: with next to none, blinks and
#: motion cost unseen sources more than they give (LOG.md, 2026-11-29). Thousands of videos outweigh it.
RIDGE = 20.0
STEPS = 4000
FEWEST = 2  # videos of each class that a fit needs
GENUINE = ""  # the method of a video that was not manipulated
FAKE_FPR = 0.01  # the band `fake` starts where so many genuine videos held out would be flagged
REAL_FNR = 0.10  # the band `real` ends where so many manipulated ones would be called real


def fit_fusion(
    evidence: Mapping[str, np.ndarray], methods: np.ndarray, terms: Sequence[str], among: int | None = None
) -> dict[str, float]:
    """Coefficients of a logistic model, none below zero: more evidence of a manipulation never lowers a score.

    evidence: each term's values (videos,) float, 0 where the term could not be judged. methods: (videos,) str, GENUINE
    or how each was manipulated. terms: the ones to use; the others' coefficients are 0. among: of how many videos these
    are a part, by default of none but themselves.

    Both classes count the same, so that a score is a probability where half of the videos are manipulated; so do the
    methods among these. What gives the most frequent one away, as a lack of blinks does talking heads, would otherwise
    be paid for by the others: a swapped face blinks.

    Minimises the weighted mean log-loss plus half of RIDGE / `among` times the squared coefficients, by projected
    gradient descent with momentum (the problem is convex): fits of a part and of all then shrink alike, and their
    scores can be compared. Raises ValueError with fewer than two videos of a class.
    """
    fake = methods != GENUINE
    if not enough(fake):
        raise ValueError("fusion needs at least two genuine and two manipulated videos")
    _, kind, counts = np.unique(methods, return_inverse=True, return_counts=True)
    each = np.where(fake, 0.5 / (len(counts) - 1), 0.5) / counts[kind]
    x = np.stack([np.asarray(evidence[term], float) for term in terms], axis=1) if terms else np.zeros((len(fake), 0))
    scale = np.maximum(np.sqrt(each @ x**2), 1e-6)
    x = x / scale
    theta, velocity = np.zeros(x.shape[1] + 1), np.zeros(x.shape[1] + 1)
    design = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    strength = RIDGE / (among or len(x))
    rate = 1.0 / (0.25 * np.linalg.eigvalsh((design * each[:, None]).T @ design).max() + strength)
    ridge = np.array([0.0, *[strength] * x.shape[1]])
    for step in range(STEPS):
        ahead = theta + step / (step + 3) * velocity
        probability = 1 / (1 + np.exp(-np.clip(design @ ahead, -30, 30)))
        gradient = design.T @ (each * (probability - fake)) + ridge * ahead
        after = ahead - rate * gradient
        after[1:] = np.maximum(after[1:], 0.0)
        velocity, theta = after - theta, after
    found = dict(zip(terms, theta[1:] / scale, strict=True))
    return {"intercept": float(theta[0]), **{term: float(found.get(term, 0.0)) for term in evidence}}


def enough(fake: np.ndarray) -> bool:
    """Whether videos with these labels, (videos,) bool, can carry a fit."""
    return min(fake.sum(), (~fake).sum()) >= FEWEST


def fusions_of_others(
    evidence: Mapping[str, np.ndarray],
    methods: np.ndarray,
    folds: np.ndarray,
    terms: Sequence[str],
    among: int | None = None,
) -> dict[int, dict[str, float]]:
    """fold → the coefficients that the other folds give, where those are enough.

    folds: (videos,) int. terms, among: as in fit_fusion.
    """
    outside = {int(fold): folds != fold for fold in np.unique(folds)}
    return {
        fold: fit_fusion(_of(evidence, others), methods[others], terms, among or len(folds))
        for fold, others in outside.items()
        if enough(methods[others] != GENUINE)
    }


def crossed(
    evidence: Mapping[str, np.ndarray], folds: np.ndarray, fusions: Mapping[int, Mapping[str, float]]
) -> np.ndarray:
    """Each video's score with coefficients that the other folds gave: (videos,), NaN where those are too few.

    Fitting and judging on the same videos would flatter. folds: (videos,) int. fusions: of fusions_of_others.
    """
    scores = np.full(len(folds), np.nan)
    for fold, coefficients in fusions.items():
        inside = folds == fold
        scores[inside] = score(_of(evidence, inside), coefficients)
    return scores


def bands_of_crossed(
    evidence: Mapping[str, np.ndarray],
    methods: np.ndarray,
    folds: np.ndarray,
    terms: Sequence[str],
    among: int | None = None,
) -> dict[str, float] | None:
    """thresholds() of the scores that `crossed` gives; None where too few videos have one.

    A fusion's own videos would set them too low: sources that it was not fitted to score further from the middle.
    terms, among: as in fit_fusion.
    """
    scores = crossed(evidence, folds, fusions_of_others(evidence, methods, folds, terms, among))
    known, fake = ~np.isnan(scores), methods != GENUINE
    return thresholds(scores[known], fake[known]) if enough(fake[known]) else None


def margins(
    evidence: Mapping[str, np.ndarray], methods: np.ndarray, folds: np.ndarray, terms: Sequence[str]
) -> np.ndarray:
    """By how much each video's score passes the band `fake`, both as the other folds alone would have set them.

    (videos,), negative below the band; NaN where the other folds are too few, as with fewer than three. What share of
    the genuine videos is above zero estimates how many of other sources will be flagged; bands_of_crossed() can't, for
    its bands were set so.
    """
    passed = crossed(evidence, folds, fusions_of_others(evidence, methods, folds, terms))
    for fold in np.unique(folds):
        inside = folds == fold
        bands = bands_of_crossed(_of(evidence, ~inside), methods[~inside], folds[~inside], terms, len(folds))
        passed[inside] -= bands["fake"] if bands else np.nan
    return passed


def _of(evidence: Mapping[str, np.ndarray], videos: np.ndarray) -> dict[str, np.ndarray]:
    return {term: values[videos] for term, values in evidence.items()}


def score(evidence: Mapping[str, np.ndarray], coefficients: Mapping[str, float]) -> np.ndarray:
    """Calibrated probabilities (videos,) of the same logistic model."""
    total = coefficients["intercept"] + sum(coefficients[name] * np.asarray(v, float) for name, v in evidence.items())
    return 1 / (1 + np.exp(-np.clip(total, -30, 30)))


def thresholds(scores: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Where the bands lie: {"fake": ..., "real": ...}, in calibrated scores.

    `fake` starts above the scores of all but FAKE_FPR of the genuine videos (rounded towards fewer false alarms: with
    under 100 of them, above every one). `real` ends where REAL_FNR of the manipulated ones lie below, never above
    `fake`.
    """
    fake = np.asarray(fake, bool)
    genuine, manipulated = np.sort(scores[~fake]), np.sort(scores[fake])
    allowed = int(np.floor(FAKE_FPR * len(genuine)))
    top = genuine[len(genuine) - 1 - allowed]
    higher = scores[scores > top]
    upper = float((top + higher.min()) / 2) if len(higher) else float((top + 1) / 2)
    lower = float(manipulated[int(np.floor(REAL_FNR * len(manipulated)))])
    return {"fake": upper, "real": min(lower, upper)}
