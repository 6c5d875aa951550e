"""From evidence to one calibrated score, and from a score to a verdict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

TOP_CLIPS = 3  # a fake that shows in a few clips only must not drown in the mean of the others
_EDGE = 1e-6  # keeps the logit of a saturated probability finite


def logit(probability: np.ndarray) -> np.ndarray:
    """Log odds of probabilities, clipped to ±13.8."""
    p = np.clip(np.asarray(probability, dtype=np.float64), _EDGE, 1 - _EDGE)
    return np.log(p / (1 - p))


def top_mean(values: np.ndarray) -> float:
    """Mean of the TOP_CLIPS largest of (n,) values, n >= 1."""
    return float(np.sort(values)[-TOP_CLIPS:].mean())


def evidence(
    clip_probabilities: np.ndarray, blink_score: float | None, micro_irregularity: float | None
) -> dict[str, float]:
    """What a face gives the fusion: its terms, by name, each higher where more speaks for a manipulation.

    clip_probabilities: (clips,) the network's, clips >= 1. blink_score, micro_irregularity: 0..1, or None where they
    could not be judged: what is unknown is 0 and pulls in no direction.
    """
    odds = logit(clip_probabilities)
    return {
        "cnn_top": top_mean(odds),
        "cnn_mean": float(odds.mean()),
        "blink": blink_score or 0.0,
        "micro": 0.0 if micro_irregularity is None else micro_irregularity - 0.5,
    }


def fuse(
    clip_probabilities: np.ndarray,
    blink_score: float | None,
    micro_irregularity: float | None,
    coefficients: Mapping[str, float],
) -> float:
    """Calibrated probability that a face was manipulated: a logistic model over its `evidence`.

    coefficients: `intercept`, and the weights of `cnn_top` and `cnn_mean` (log odds), `blink` and `micro` (0 where
    ordinary), fitted with the model.
    """
    terms = evidence(clip_probabilities, blink_score, micro_irregularity)
    total = coefficients["intercept"] + sum(coefficients[name] * value for name, value in terms.items())
    return float(1 / (1 + np.exp(-np.clip(total, -30, 30))))


def verdict(score: float, fake: float, real: float) -> str:
    """`fake` from the upper threshold, `real` up to the lower one, `uncertain` between them."""
    if score >= fake:
        return "fake"
    return "real" if score <= real else "uncertain"
