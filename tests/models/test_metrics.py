"""Each metric against its definition, written out item by item, and the intervals' promises."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.metrics import (
    ECE_BINS,
    LOG_LOSS_EDGE,
    METRICS,
    MIN_GROUPS,
    auc,
    average_precision,
    bootstrap,
    bootstrap_rate,
    brier,
    ece,
    eer,
    fewest_groups,
    fpr_at,
    log_loss,
    mean_score,
    reliability,
    tpr_at,
    tpr_at_fpr,
)

ALL = {
    **METRICS,
    "tpr_at_fpr_50%": partial(tpr_at_fpr, fpr=0.5),
    "tpr": partial(tpr_at, threshold=0.5),
    "fpr": partial(fpr_at, threshold=0.5),
    "mean": mean_score,
}

#: Few distinct scores, so that ties are common, and the edges of bins and of the range among them.
SCORES = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5, 0.50001, 0.7, 0.9, 1.0]) | st.floats(0, 1)


@st.composite
def items(draw, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores, at least so many of each label."""
    reals = draw(st.lists(SCORES, min_size=least, max_size=12))
    fakes = draw(st.lists(SCORES, min_size=least, max_size=12))
    order = draw(st.permutations(range(len(reals) + len(fakes))))
    labels = np.array([False] * len(reals) + [True] * len(fakes))[order]
    return labels, np.array(reals + fakes)[order]


def _points(labels: np.ndarray, scores: np.ndarray) -> list[tuple[Fraction, Fraction]]:
    """(false-positive rate, true-positive rate) at every threshold, from none to all."""
    fakes, reals = int(labels.sum()), int((~labels).sum())
    points = [(Fraction(0), Fraction(0))]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        hit = scores >= threshold
        points.append((Fraction(int((hit & ~labels).sum()), reals), Fraction(int((hit & labels).sum()), fakes)))
    return points


@given(items())
def test_auc_is_the_share_of_pairs_in_the_right_order(case):
    labels, scores = case
    pairs = [(f > r) + (f == r) / 2 for f in scores[labels] for r in scores[~labels]]
    assert float(auc(labels, scores)) == pytest.approx(np.mean(pairs))


@given(items())
def test_eer_is_where_the_roc_crosses_the_diagonal(case):
    labels, scores = case
    points = _points(labels, scores)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 + y1 >= 1:  # the line x + y = 1, where misses equal false positives
            along = (1 - x0 - y0) / (x1 + y1 - x0 - y0)
            assert float(eer(labels, scores)) == pytest.approx(float(x0 + along * (x1 - x0)))
            return
    raise AssertionError("the curve ends at (1, 1)")


@given(items())
def test_average_precision_sums_precision_over_recall(case):
    labels, scores = case
    total, before = 0.0, 0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        hit = scores >= threshold
        found = int((hit & labels).sum())
        total += (found - before) / labels.sum() * found / hit.sum()
        before = found
    assert float(average_precision(labels, scores)) == pytest.approx(total)


@given(items(least=2), st.sampled_from([0.5, 0.6, 0.9, 1.0]))
def test_tpr_at_fpr_is_the_best_threshold_that_exists(case, limit):
    labels, scores = case
    best = max(y for x, y in _points(labels, scores) if x <= limit)
    assert float(tpr_at_fpr(labels, scores, fpr=limit)) == pytest.approx(float(best))


def test_tpr_at_fpr_says_nothing_with_too_few_reals():
    scores = np.r_[np.linspace(0, 0.5, 99), 0.9]
    labels = scores > 0.8
    assert math.isnan(tpr_at_fpr(labels, scores, fpr=0.01))
    scores = np.r_[0.1, scores]
    assert float(tpr_at_fpr(scores > 0.8, scores, fpr=0.01)) == 1.0


@given(items())
def test_log_loss_brier_and_mean_are_means(case):
    labels, scores = case
    losses = []
    for fake, p in zip(labels, scores, strict=True):
        p = min(max(p, LOG_LOSS_EDGE), 1 - LOG_LOSS_EDGE)
        losses.append(-math.log(p if fake else 1 - p))
    assert float(log_loss(labels, scores)) == pytest.approx(np.mean(losses))
    assert float(brier(labels, scores)) == pytest.approx(np.mean((scores - labels) ** 2))
    assert float(mean_score(labels, scores)) == pytest.approx(scores.mean())


@given(items())
def test_ece_weighs_the_gap_of_each_bin(case):
    labels, scores = case
    total, counted = 0.0, 0
    edges = np.linspace(0, 1, ECE_BINS + 1)
    for index in range(ECE_BINS):
        inside = (scores > edges[index]) & (scores <= edges[index + 1])
        if index == 0:
            inside |= scores == 0
        counted += inside.sum()
        if inside.any():
            total += inside.mean() * abs(labels[inside].mean() - scores[inside].mean())
    assert counted == len(scores)
    assert float(ece(labels, scores)) == pytest.approx(total)
    assert sum(b.count for b in reliability(labels, scores)) == len(scores)


@given(items(), st.floats(0, 1))
def test_rates_at_a_threshold_count_from_it_on(case, threshold):
    labels, scores = case
    assert float(tpr_at(labels, scores, threshold=threshold)) == pytest.approx((scores[labels] >= threshold).mean())
    assert float(fpr_at(labels, scores, threshold=threshold)) == pytest.approx((scores[~labels] >= threshold).mean())


def test_hand_computed():
    labels = np.array([True, False, True, False])
    scores = np.array([0.9, 0.8, 0.35, 0.1])
    assert float(auc(labels, scores)) == 0.75
    assert float(eer(labels, scores)) == 0.5
    assert float(average_precision(labels, scores)) == pytest.approx((1 + 2 / 3) / 2)
    assert float(brier(labels, scores)) == pytest.approx((0.01 + 0.64 + 0.4225 + 0.01) / 4)
    assert float(ece(labels, scores)) == pytest.approx((0.1 + 0.8 + 0.65 + 0.1) / 4)


@given(items(least=2), st.data())
@settings(max_examples=40)
def test_a_weight_is_that_many_copies(case, data):
    labels, scores = case
    weights = st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores))
    rows = np.array(data.draw(st.lists(weights, min_size=1, max_size=3)), float)
    for name, metric in ALL.items():
        together = metric(labels, scores, rows)
        assert together.shape == (len(rows),), name
        for row, value in zip(rows.astype(int), together, strict=True):
            if name.startswith("tpr_at_fpr") and np.repeat(~labels, row).sum() < 2:
                continue  # whether there are reals enough is asked of the data, not of a resample
            expected = metric(np.repeat(labels, row), np.repeat(scores, row))
            assert value == pytest.approx(float(expected), nan_ok=True), name


@pytest.mark.parametrize("name", ALL)
def test_what_cannot_be_computed_is_nan(name):
    assert math.isnan(ALL[name](np.zeros(0, bool), np.zeros(0)))
    if name in ("auc", "eer", "ap", "tpr_at_fpr_50%", "tpr"):
        assert math.isnan(ALL[name](np.zeros(300, bool), np.linspace(0, 1, 300)))


# --- intervals ----------------------------------------------------------------------------------------------------


def _noisy(recordings: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and recordings: one item each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(recordings) % 2 == 0
    scores = 1 / (1 + np.exp(-rng.normal(np.where(labels, 1.0, -1.0), 1.5)))
    return labels, scores, np.array([f"r{i}" for i in range(recordings)])


def test_copies_of_a_recording_are_no_new_evidence():
    labels, scores, groups = _noisy(60)
    once = bootstrap(auc, labels, scores, groups)
    copied = [np.repeat(a, 5) for a in (labels, scores, groups)]
    assert bootstrap(auc, *copied) == pytest.approx(once)
    as_if_new = bootstrap(auc, copied[0], copied[1], np.arange(300).astype(str))
    assert as_if_new[1] - as_if_new[0] < 0.6 * (once[1] - once[0])


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    truth = float(auc(*_noisy(200_000, seed=1)[:2]))
    intervals = [bootstrap(auc, *_noisy(80, seed=seed), n=300) for seed in range(100)]
    held = sum(low <= truth <= high for low, high in intervals)
    assert 88 <= held <= 99  # percentile intervals are a little narrow


def test_each_resample_has_as_many_recordings_of_each_kind():
    labels = np.array([True, True, False, False, True, False] * 5)
    groups = np.array(["f", "f", "r", "r", "both", "both"] * 5, object) + np.repeat([str(i) for i in range(5)], 6)
    seen = []

    def spy(labels, scores, weights):
        seen.append(weights)
        return weights.sum(axis=-1)

    bootstrap(spy, labels, np.linspace(0, 1, 30), groups.astype(str), n=50)
    weights = np.concatenate(seen)
    assert weights.shape == (50, 30)
    assert (weights.sum(axis=1) == 30).all() and weights.std() > 0
    for kind, size in (("f", 2), ("r", 2), ("both", 2)):
        mine = np.array([str(group).startswith(kind) for group in groups])
        assert (weights[:, mine].sum(axis=1) == 5 * size).all()
        assert (weights[:, mine][:, ::2] == weights[:, mine][:, 1::2]).all()  # whole recordings


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    case = _noisy(40)
    first = bootstrap(auc, *case, seed=3)
    assert bootstrap(auc, *case, seed=3) == first != bootstrap(auc, *case, seed=4)
    assert first[0] < float(auc(*case[:2])) < first[1]


def test_too_few_recordings_have_no_interval():
    labels = np.array([True] * 20 + [False] * 20)
    groups = np.array([f"f{i % (MIN_GROUPS - 1)}" for i in range(20)] + [f"r{i}" for i in range(20)])
    assert fewest_groups(labels, groups) == MIN_GROUPS - 1
    assert np.isnan(bootstrap(auc, labels, np.linspace(0, 1, 40), groups)).all()
    assert np.isnan(bootstrap(auc, labels[:0], np.zeros(0), groups[:0])).all()


def test_never_is_not_certain():
    labels, groups = np.zeros(20, bool), np.array([f"r{i}" for i in range(20)])
    low, high = bootstrap_rate(mean_score, labels, np.zeros(20), groups)
    assert low == 0 and (1 - high) ** 20 == pytest.approx(0.025)
    low, high = bootstrap_rate(mean_score, labels, np.ones(20), groups)
    assert high == 1 and low**20 == pytest.approx(0.025)
    some = np.r_[np.ones(10), np.zeros(10)]
    assert bootstrap_rate(mean_score, labels, some, groups) == bootstrap(mean_score, labels, some, groups)
