"""Grad-CAM: the heat lies on what the score rests on, and its picture shows the face."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from models.gradcam import grad_cam, overlay
from models.scorer import ClipScorer
from tests.tiny_model import FACE_RADII, SPEC, SyntheticClip, synthetic_clip

SIZE = SPEC.input_size
T = SPEC.clip_frames
X, Y = np.meshgrid((np.arange(SIZE) + 0.5) / SIZE, (np.arange(SIZE) + 0.5) / SIZE)
FACE = ((X - 0.5) / FACE_RADII[0]) ** 2 + ((Y - 0.5) / FACE_RADII[1]) ** 2 < 1
MASKED_SHARE = (1 / 3**2) / (np.pi * FACE_RADII[0] * FACE_RADII[1])  # of the face: a ninth of the crop


def without(clip: SyntheticClip, pixels: np.ndarray) -> np.ndarray:
    """The fake with some pixels (flat indices) of every frame replaced by the blurred real ones."""
    chosen = np.zeros(SIZE * SIZE, bool)
    chosen[pixels] = True
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 6.0) for frame in clip.real])
    return np.where(chosen.reshape(SIZE, SIZE, 1), blurred, clip.fake)


def test_masking_hot_regions_lowers_the_score_more_than_masking_cold_ones(tiny_scorer: ClipScorer):
    clips = [synthetic_clip(seed) for seed in range(24)]
    falls = []
    for clip in clips:
        _, heatmap = tiny_scorer.explain(clip.fake, T)
        face = np.flatnonzero(FACE)
        by_heat = face[np.argsort(heatmap.ravel()[face], kind="stable")]
        count = int(MASKED_SHARE * len(face))
        variants = np.stack([clip.fake, without(clip, by_heat[-count:]), without(clip, by_heat[:count])])
        whole, hot_masked, cold_masked = tiny_scorer.score(variants, np.full(3, T))[0]
        falls.append((whole - hot_masked, whole - cold_masked))
    hot, cold = np.array(falls).T
    assert hot.mean() > cold.mean() + 0.6
    assert (hot > cold).mean() >= 0.95


def test_heat_lies_where_the_face_was_changed(tiny_scorer: ClipScorer):
    agreement = []
    for seed in range(24):
        clip = synthetic_clip(seed)
        frame, heatmap = tiny_scorer.explain(clip.fake, T)
        change = np.abs(clip.fake[frame].astype(float) - clip.real[frame]).sum(axis=-1)
        agreement.append(np.corrcoef(cv2.blur(change, (12, 12)).ravel(), heatmap.ravel())[0, 1])
    assert np.mean(agreement) > 0.7


def test_the_heat_is_on_the_side_of_the_patch(tiny_scorer: ClipScorer):
    def centre_of_heat(patch_x: float) -> float:
        heat = sum(tiny_scorer.explain(synthetic_clip(300 + i, patch_x).fake, T)[1] for i in range(8))
        return float((heat * X).sum() / np.sum(heat))

    assert centre_of_heat(0.36) < centre_of_heat(0.64)


def test_the_explained_frame_is_the_most_suspicious_one(tiny_scorer: ClipScorer):
    for seed in range(4):
        clip = synthetic_clip(seed).fake
        length = T - seed
        frame, heatmap = tiny_scorer.explain(clip, length)
        scores = tiny_scorer.score(clip[None], np.array([length]))[1][0]
        assert scores[frame] >= np.nanmax(scores) - 1e-6  # scores of a sure model round to the same number
        assert (heatmap.shape, heatmap.dtype) == ((SIZE, SIZE), np.float32)
        assert (heatmap.min() >= 0, heatmap.max()) == (True, 1.0)


def test_padding_is_neither_explained_nor_seen(tiny_scorer: ClipScorer):
    clip = synthetic_clip(0)
    mixed = np.concatenate([clip.real[:5], clip.fake[5:]])
    frame, heatmap = tiny_scorer.explain(mixed, 5)
    alone = tiny_scorer.explain(mixed[:5], 5)
    assert frame == alone[0] < 5
    np.testing.assert_array_equal(heatmap, alone[1])


def test_a_wrong_length_is_refused(tiny_scorer: ClipScorer):
    with pytest.raises(ValueError, match="length"):
        tiny_scorer.explain(synthetic_clip(0).fake, T + 1)


def test_what_scoring_hands_on_explains_the_same(tiny_scorer: ClipScorer):
    clip = synthetic_clip(5).fake
    *_, pooled = tiny_scorer.score_and_pool(clip[None], np.array([T]))
    frame, heatmap = tiny_scorer.explain(clip, T)
    again, spared = tiny_scorer.explain(clip, T, pooled[0])
    assert frame == again
    np.testing.assert_allclose(heatmap, spared, atol=1e-5)


def test_nothing_suspicious_gives_no_heat(tiny_scorer: ClipScorer):
    network = tiny_scorer.network
    maps = torch.zeros_like(network.early(torch.zeros(1, 3, SIZE, SIZE)))
    heatmaps = grad_cam(network, torch.zeros(3, network.frame_head.in_features), [1], maps, SIZE)
    np.testing.assert_array_equal(heatmaps, np.zeros((1, SIZE, SIZE), np.float32))


def test_an_overlay_shows_the_plain_face_where_it_is_cold():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    heatmap = np.zeros((8, 8), np.float32)
    heatmap[:, 4:] = 1.0
    picture = overlay(image, heatmap)
    assert (picture.shape, picture.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(picture[:, :4], image[:, :4])
    changes = np.abs(picture[:, 4:].astype(int) - image[:, 4:]).mean()
    assert changes > 20
    red, _, blue = overlay(np.full((1, 1, 3), 128, np.uint8), np.full((1, 1), 0.7, np.float32))[0, 0]
    assert red > blue  # RGB, not OpenCV's BGR: inferno is orange there


def test_an_overlay_of_another_size_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        overlay(np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4), np.float32))
