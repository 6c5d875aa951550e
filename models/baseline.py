"""What a file's container alone says of its label: the baseline that a detector must not merely equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

L2 = 1.0  # on standardised features: enough that a separable fold has finite weights
NEWTON_STEPS = 50
NEWTON_TOLERANCE = 1e-8
MAX_FOLDS = 10


@dataclass(frozen=True)
class Container:
    """What is known of a video without looking at its pictures; None where it is not."""

    size_bytes: int | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    codec: str | None = None


def container_features(files: Sequence[Container]) -> np.ndarray:
    """(files, features) float64: logarithms of size, bitrate, width, height and duration, the frame rate, and one
    column for each codec. NaN where something is not known."""
    columns = [
        [_log(f.size_bytes) for f in files],
        [_log(f.size_bytes) - _log(f.duration_s) for f in files],
        [_log(f.width) for f in files],
        [_log(f.height) for f in files],
        [_log(f.duration_s) for f in files],
        [np.nan if f.fps is None else f.fps for f in files],
        *([float(f.codec == codec) for f in files] for codec in sorted({f.codec or "" for f in files})),
    ]
    return np.array(columns, np.float64).T


def unseen_scores(
    features: np.ndarray, labels: np.ndarray, sources: Sequence[str], groups: Sequence[str]
) -> tuple[np.ndarray, str] | None:
    """Probability of "fake" for each file from a model that saw no file of its source, and "source".

    Where a label has one source only, recordings are left out instead, and the second value is "recording". None
    where even that is impossible.

    features: (n, features), NaN allowed. labels: (n,) bool. Each fold leaves out sources of both labels, and weighs
    both alike in training. Leaving out one at a time would tell the model something: the label of which it sees less
    is the one it is asked for, and the AUC of features that only name the source falls to 0. A little of that is left
    where sources are of unequal sizes: such features then give 0.4 to 0.5.
    """
    labels = np.asarray(labels, bool)
    for units, name in ((sources, "source"), (groups, "recording")):
        folds = _folds(labels, units)
        if folds is not None and all(_has_both(labels[folds != fold]) for fold in np.unique(folds)):
            scores = np.empty(len(labels))
            for fold in np.unique(folds):
                test = folds == fold
                scores[test] = _fit_and_score(features[~test], labels[~test], features[test])
            return scores, name
    return None


def _folds(labels: np.ndarray, units: Sequence[str]) -> np.ndarray | None:
    """(n,) the fold of each file, the same in each run: whole units, in folds of about the same size for each kind of
    unit: those of reals, of fakes, and of both. None where a label has one unit only."""
    holds: dict[str, set[bool]] = {}
    for unit, label in zip(units, labels.tolist(), strict=True):
        holds.setdefault(unit, set()).add(label)
    count = min(MAX_FOLDS, *(sum(label in kinds for kinds in holds.values()) for label in (False, True)))
    if count < 2:
        return None
    sizes = Counter(units)
    filled: dict[frozenset[bool], list[int]] = {}
    fold_of = {}
    for unit, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        mine = filled.setdefault(frozenset(holds[unit]), [0] * count)
        fold_of[unit] = min(range(count), key=mine.__getitem__)
        mine[fold_of[unit]] += size
    return np.array([fold_of[unit] for unit in units], int)


def _has_both(labels: np.ndarray) -> bool:
    return bool(labels.any() and not labels.all())


def _fit_and_score(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    known = np.isfinite(train)
    count = np.maximum(known.sum(axis=0), 1)
    centre = np.where(known, train, 0).sum(axis=0) / count
    spread = np.sqrt((np.where(known, train - centre, 0) ** 2).sum(axis=0) / count)
    spread[spread == 0] = 1

    def design(raw: np.ndarray) -> np.ndarray:
        return np.hstack([np.ones((len(raw), 1)), np.nan_to_num((raw - centre) / spread)])

    return _sigmoid(design(test) @ fit_logistic(design(train), labels))


def fit_logistic(design: np.ndarray, labels: np.ndarray, l2: float = L2) -> np.ndarray:
    """Coefficients (features,) of a ridge-penalised logistic regression, by Newton's method.

    design: (n, features), the first column of ones, which is not penalised. labels: (n,) bool, both present; each
    label's items weigh n / 2 together.
    """
    n = len(labels)
    weight = np.where(labels, n / (2 * labels.sum()), n / (2 * (~labels).sum()))
    ridge = np.diag([0.0] + [l2] * (design.shape[1] - 1))
    coefficients = np.zeros(design.shape[1])
    for _ in range(NEWTON_STEPS):
        p = _sigmoid(design @ coefficients)
        slope = design.T @ (weight * (p - labels)) + ridge @ coefficients
        curvature = (design.T * (weight * p * (1 - p))) @ design + ridge
        step = np.linalg.solve(curvature, slope)
        coefficients = coefficients - step
        if np.abs(step).max() < NEWTON_TOLERANCE:
            break
    return coefficients


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def _log(value: float | None) -> float:
    return np.nan if value is None or value <= 0 else float(np.log(value))
