"""The fusion gives calibrated scores, no evidence a wrong sign, and bands with the rates they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.training.calibrate import (
    GENUINE,
    bands_of_crossed,
    crossed,
    fit_fusion,
    fusions_of_others,
    margins,
    score,
    thresholds,
)


def _videos(seed: int, count: int = 4000):
    rng = np.random.default_rng(seed)
    fake = rng.random(count) < 0.5
    strong = rng.normal(0, 1, count) + 1.5 * fake
    useless = rng.normal(0, 1, count)
    misleading = rng.normal(0, 1, count) - 0.8 * fake
    return {"strong": strong, "useless": useless, "misleading": misleading}, _named(fake)


def _named(fake: np.ndarray) -> np.ndarray:
    return np.where(fake, "swap", GENUINE)


def test_a_fitted_score_is_a_probability():
    evidence, methods = _videos(0)
    coefficients = fit_fusion(evidence, methods, ("strong", "useless", "misleading"))
    scores, fake = score(evidence, coefficients), methods != GENUINE
    for low in np.arange(0.1, 0.9, 0.2):
        inside = (scores >= low) & (scores < low + 0.2)
        assert abs(scores[inside].mean() - fake[inside].mean()) < 0.06


def test_evidence_gets_the_weight_that_data_gives_it_and_never_a_negative_one():
    evidence, methods = _videos(1)
    found = fit_fusion(evidence, methods, ("strong", "useless", "misleading"))
    assert found["strong"] == pytest.approx(1.5, abs=0.2)  # log odds of two normals 1.5 apart
    assert found["useless"] < 0.1
    assert found["misleading"] == 0


def test_terms_that_are_left_out_weigh_nothing():
    evidence, methods = _videos(2)
    assert fit_fusion(evidence, methods, ("useless",))["strong"] == 0


def _crossed(evidence, methods, folds, terms):
    return crossed(evidence, folds, fusions_of_others(evidence, methods, folds, terms))


@pytest.mark.parametrize(("judged", "seed"), [(_crossed, 6), (margins, 8)])
def test_a_crossed_score_and_its_margin_do_not_know_the_labels_of_its_fold(judged, seed):
    evidence, methods = _videos(seed, 300)
    folds = np.arange(300) % 3
    before = judged(evidence, methods, folds, ("strong",))
    after = judged(evidence, _named((methods != GENUINE) ^ (folds == 1)), folds, ("strong",))
    assert np.allclose(before[folds == 1], after[folds == 1]) and not np.allclose(before[folds == 0], after[folds == 0])


def test_a_fold_without_which_a_class_is_missing_has_no_crossed_score():
    evidence, methods = _videos(7, 100)
    scores = _crossed(evidence, methods, (methods == GENUINE).astype(int), ("strong",))
    assert np.isnan(scores).all()


def test_margins_need_two_folds_beside_their_own():
    evidence, methods = _videos(9, 200)
    assert np.isnan(margins(evidence, methods, np.arange(200) // 2 % 2, ("strong",))).all()


def test_sources_that_score_higher_than_others_raise_the_band_and_show_in_the_margins():
    """A fold's genuine videos lie far above the others': a fusion fitted on all would not know."""
    evidence, methods = _videos(10, 300)
    folds, fake = np.arange(300) % 3, methods != GENUINE
    evidence["strong"][(folds == 2) & ~fake] += 3.0
    coefficients = fit_fusion(evidence, methods, ("strong",))
    bands = bands_of_crossed(evidence, methods, folds, ("strong",))
    assert bands is not None and bands["fake"] > thresholds(score(evidence, coefficients), fake)["fake"]
    passed = margins(evidence, methods, folds, ("strong",))
    assert (passed[(folds == 2) & ~fake] > 0).mean() > 0.2 and (passed[(folds != 2) & ~fake] > 0).mean() <= 0.01


def test_classes_count_the_same_however_many_videos_they_have():
    evidence, methods = _videos(3)
    fake = methods != GENUINE
    few = ~fake | (np.cumsum(fake) % 10 == 0)
    both = [fit_fusion({k: v[m] for k, v in evidence.items()}, methods[m], ("strong",)) for m in (few, fake >= 0)]
    assert both[0]["intercept"] == pytest.approx(both[1]["intercept"], abs=0.25)


def test_a_few_videos_are_believed_less_than_many_and_a_part_of_many_as_much():
    evidence, methods = _videos(5)
    few = {term: values[:60] for term, values in evidence.items()}
    alone, part, whole = (
        fit_fusion(some, labels, ("strong",), among)["strong"]
        for some, labels, among in ((few, methods[:60], None), (few, methods[:60], 4000), (evidence, methods, None))
    )
    assert alone < 0.7 * whole < part


def test_what_gives_the_most_frequent_method_away_is_not_paid_for_by_the_others():
    """Of two methods, ten times as many talking heads: they never blink, swapped faces blink more than genuine ones."""
    rng = np.random.default_rng(4)
    methods = np.repeat(["", "talkinghead", "swap"], (400, 400, 40))
    blink = rng.normal(np.select([methods == "talkinghead", methods == "swap"], [1.0, -1.0], 0.0), 1.0)
    evidence = {"blink": blink}
    alone = fit_fusion({"blink": blink[methods != "swap"]}, methods[methods != "swap"], ("blink",))
    assert alone["blink"] > 0.5 and fit_fusion(evidence, methods, ("blink",))["blink"] < 0.1
    frequent = fit_fusion(evidence, np.where(methods == "", GENUINE, "any"), ("blink",))
    assert frequent["blink"] > 0.3, "as it was while methods counted by their videos"


def test_one_class_cannot_be_fitted():
    with pytest.raises(ValueError, match="at least two genuine"):
        fit_fusion({"strong": np.arange(5.0)}, np.full(5, "swap"), ("strong",))


@given(st.integers(0, 10_000), st.integers(5, 400), st.integers(5, 400))
def test_the_bands_flag_at_most_one_genuine_video_in_a_hundred(seed, genuine, manipulated):
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.beta(2, 5, genuine), rng.beta(5, 2, manipulated)])
    fake = np.arange(len(scores)) >= genuine
    bands = thresholds(scores, fake)
    assert 0 <= bands["real"] <= bands["fake"] <= 1
    assert (scores[~fake] >= bands["fake"]).mean() <= 0.01
    assert (scores[fake] < bands["real"]).mean() <= 0.10 + 1 / manipulated
