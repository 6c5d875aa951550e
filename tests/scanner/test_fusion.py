"""Fusion: each piece of evidence pulls the way its coefficient says, and what is missing pulls nowhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.spec import FUSION_TERMS
from scanner.fusion import fuse, logit, top_mean, verdict

NEUTRAL = dict.fromkeys(FUSION_TERMS, 0.0)
shares = st.floats(0, 1)
clips = st.lists(shares, min_size=1, max_size=8).map(np.array)
weights = st.fixed_dictionaries({name: st.floats(-2, 2) for name in FUSION_TERMS})


@given(clips, st.none() | shares, st.none() | shares, weights)
def test_a_score_is_a_probability(probabilities, blink, micro, coefficients):
    assert 0 <= fuse(probabilities, blink, micro, coefficients) <= 1


@given(clips, shares, shares, shares, weights)
def test_blinks_and_motion_pull_the_way_of_their_coefficients(probabilities, low, high, other, coefficients):
    low, high = min(low, high), max(low, high)
    by_blink = fuse(probabilities, high, other, coefficients) - fuse(probabilities, low, other, coefficients)
    by_micro = fuse(probabilities, other, high, coefficients) - fuse(probabilities, other, low, coefficients)
    assert by_blink * np.sign(coefficients["blink"]) >= -1e-12
    assert by_micro * np.sign(coefficients["micro"]) >= -1e-12


@given(clips, st.integers(0, 7), shares, st.floats(0, 2), st.floats(0, 2))
def test_a_more_suspicious_clip_never_lowers_the_score(probabilities, which, value, top, mean):
    coefficients = NEUTRAL | {"cnn_top": top, "cnn_mean": mean}
    more = probabilities.copy()
    more[which % len(more)] = max(value, more[which % len(more)])
    assert fuse(more, None, None, coefficients) >= fuse(probabilities, None, None, coefficients) - 1e-12


@given(clips, weights, shares, shares)
def test_what_is_unknown_pulls_in_no_direction(probabilities, coefficients, blink, micro):
    without = {**coefficients, "blink": 0.0, "micro": 0.0}
    assert fuse(probabilities, None, None, coefficients) == fuse(probabilities, blink, micro, without)
    usual = fuse(probabilities, 0.0, 0.5, coefficients)  # blinks as often and moves as smoothly as most
    assert fuse(probabilities, None, None, coefficients) == pytest.approx(usual)


def test_the_score_of_one_clip_is_the_networks_where_the_fusion_says_so():
    for p in (0.02, 0.5, 0.97):
        assert fuse(np.array([p]), None, None, NEUTRAL | {"cnn_top": 1.0}) == pytest.approx(p)
    assert fuse(np.array([0.9]), None, None, NEUTRAL | {"intercept": 1.0}) == pytest.approx(1 / (1 + np.exp(-1)))


def test_a_few_fake_clips_do_not_drown_in_many_real_ones():
    mixed = np.r_[np.full(3, 0.99), np.full(50, 0.01)]
    assert fuse(mixed, None, None, NEUTRAL | {"cnn_top": 1.0}) == pytest.approx(0.99)
    assert top_mean(np.array([0.1, 0.9])) == pytest.approx(0.5)


@given(st.floats(0.001, 0.999))
def test_log_odds_turn_back_into_the_probability(p):
    assert 1 / (1 + np.exp(-logit(p))) == pytest.approx(p)
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


@given(shares, shares, shares)
def test_verdict_bands(score, a, b):
    real, fake = min(a, b), max(a, b)
    expected = "fake" if score >= fake else "real" if score <= real else "uncertain"
    assert verdict(score, fake, real) == expected


def test_the_band_edges_belong_to_the_verdicts():
    assert [verdict(s, 0.8, 0.2) for s in (0.0, 0.2, 0.21, 0.79, 0.8, 1.0)] == [
        *("real", "real", "uncertain", "uncertain", "fake", "fake")
    ]
