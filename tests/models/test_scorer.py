"""Scores: they follow the evidence, and depend on nothing but the clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.folding import fold_batch_norms
from models.network import ClipNet
from models.registry import load_network, load_spec
from models.scorer import ClipScorer
from models.spec import Architecture, ModelError
from tests.tiny_model import SPEC, synthetic_clip

HELD_OUT = range(24)


@pytest.fixture(scope="module")
def mixed() -> tuple[np.ndarray, np.ndarray]:
    """Six clips of different lengths, real and fake."""
    clips = [synthetic_clip(seed) for seed in range(3)]
    lengths = np.array([8, 5, 8, 4, 7, 6])
    return np.stack([clip.real for clip in clips] + [clip.fake for clip in clips]), lengths


def test_fakes_score_higher_than_reals(tiny_scorer: ClipScorer):
    clips = [synthetic_clip(seed) for seed in HELD_OUT]
    lengths = np.full(len(clips), SPEC.clip_frames)
    fake, fake_frames = tiny_scorer.score(np.stack([clip.fake for clip in clips]), lengths)
    real, _ = tiny_scorer.score(np.stack([clip.real for clip in clips]), lengths)
    assert (fake[:, None] > real).mean() > 0.95  # the area under the ROC curve
    shown = np.stack([clip.shown for clip in clips])
    assert fake_frames[shown].mean() > 0.5 > fake_frames[~shown].mean()


def test_scores_have_the_documented_form(tiny_scorer: ClipScorer, mixed):
    clips, lengths = mixed
    clip_scores, frame_scores = tiny_scorer.score(clips, lengths)
    assert (clip_scores.shape, clip_scores.dtype) == ((6,), np.float32)
    assert (frame_scores.shape, frame_scores.dtype) == ((6, 8), np.float32)
    assert ((clip_scores >= 0) & (clip_scores <= 1)).all()
    np.testing.assert_array_equal(np.isnan(frame_scores), np.arange(8) >= lengths[:, None])


def test_no_clips_give_no_scores(tiny_scorer: ClipScorer):
    clip_scores, frame_scores = tiny_scorer.score(np.empty((0, 8, 96, 96, 3), np.uint8), np.empty(0, int))
    assert clip_scores.shape == (0,) and frame_scores.shape == (0, 8)


def test_a_score_does_not_depend_on_the_other_clips(tiny_scorer: ClipScorer, mixed):
    clips, lengths = mixed
    together = tiny_scorer.score(clips, lengths)
    for i in range(len(clips)):
        alone = tiny_scorer.score(clips[i : i + 1], lengths[i : i + 1])
        np.testing.assert_allclose(alone[0][0], together[0][i], atol=1e-5)
        np.testing.assert_allclose(alone[1][0], together[1][i], atol=1e-5)


def test_two_runs_give_equal_scores(tiny_folder, tiny_scorer: ClipScorer, mixed):
    first = tiny_scorer.score(*mixed)
    second = ClipScorer(load_spec(tiny_folder), device="cpu").score(*mixed)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_padding_does_not_change_a_score(tiny_folder, tiny_scorer: ClipScorer, mixed):
    clips, lengths = mixed
    noisy = clips.copy()
    rng = np.random.default_rng(0)
    for clip, length in zip(noisy, lengths, strict=True):
        clip[length:] = rng.integers(0, 256, clip[length:].shape)
    for one, other in zip(tiny_scorer.score(clips, lengths), tiny_scorer.score(noisy, lengths), strict=True):
        np.testing.assert_array_equal(one, other)
    network = load_network(load_spec(tiny_folder))  # which, unlike the scorer, does see the padding
    with torch.no_grad():
        logits = [
            network(torch.from_numpy(batch).permute(0, 1, 4, 2, 3) / 127.5 - 1, torch.from_numpy(lengths))[1]
            for batch in (clips, noisy)
        ]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("width_mult", [0.35, 1.0])
def test_folding_batch_norms_changes_nothing(width_mult: float):
    torch.manual_seed(0)
    network = ClipNet(Architecture(width_mult=width_mult)).train()
    frames, lengths = torch.rand(2, 4, 3, 96, 96) * 2 - 1, torch.tensor([4, 3])
    with torch.no_grad():
        for _ in range(20):
            network(frames, lengths)  # gives the batch norms statistics worth folding
        expected = network.eval()(frames, lengths)
        folded = fold_batch_norms(network)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(frames, lengths), expected, atol=1e-4, rtol=1e-4)


def test_the_untrained_model_runs_too():
    scorer = ClipScorer(load_spec("untrained"), device="cpu")
    clips = np.zeros((1, 2, 192, 192, 3), np.uint8)
    assert np.isfinite(scorer.score(clips, np.array([2]))[1]).all()


def test_a_score_that_is_not_a_number_is_an_error(tiny_folder, mixed):
    scorer = ClipScorer(load_spec(tiny_folder), device="cpu")
    scorer.network.clip_head.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="not a number"):
        scorer.score(*mixed)


@pytest.mark.parametrize(
    ("clips", "lengths"),
    [
        (np.zeros((1, 8, 64, 64, 3), np.uint8), [8]),
        (np.zeros((1, 8, 96, 96, 3), np.float32), [8]),
        (np.zeros((8, 96, 96, 3), np.uint8), [8]),
        (np.zeros((1, 8, 96, 96, 3), np.uint8), [9]),
        (np.zeros((1, 8, 96, 96, 3), np.uint8), [0]),
        (np.zeros((1, 8, 96, 96, 3), np.uint8), [8, 8]),
    ],
)
def test_wrong_shapes_are_refused(tiny_scorer: ClipScorer, clips: np.ndarray, lengths: list[int]):
    with pytest.raises(ValueError, match="must be"):
        tiny_scorer.score(clips, np.array(lengths))


def test_a_model_whose_weights_disappeared_is_an_error(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="could not be read"):
        ClipScorer(replace(load_spec(tiny_folder), directory=tmp_path))
