"""Pseudo-fakes touch what they say they touch, and only that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.training import fakes
from models.training.fakes import Face, animate, blend, lip_sync, match_colours, re_render, self_blend, swap
from models.training.masks import OVAL, deform, hull_mask, region_points, soften
from models.training.warp import warp

MAKERS = [self_blend, lip_sync, animate, re_render, lambda face, rng: swap(face, face, rng)]


@pytest.mark.parametrize("make", MAKERS, ids=["self_blend", "lip_sync", "animate", "re_render", "swap"])
@pytest.mark.parametrize("seed", range(6))
def test_a_fake_keeps_the_clip_s_shape_and_changes_the_frames_it_names(face, make, seed):
    fake = make(face, np.random.default_rng(seed))
    assert fake.frames.shape == face.frames.shape and fake.frames.dtype == np.uint8
    assert fake.touched.any()
    changed = (fake.frames != face.frames).any(axis=(1, 2, 3))
    assert changed[fake.touched].mean() >= 0.8  # a mouth of the same moment may come back as it was
    assert not changed[~fake.touched].any()


@pytest.mark.parametrize("make", MAKERS, ids=["self_blend", "lip_sync", "animate", "re_render", "swap"])
def test_a_single_frame_can_be_manipulated_too(face, make):
    still = Face(face.frames[:1], face.landmarks[:1])
    fake = make(still, np.random.default_rng(3))
    assert fake.touched.tolist() == [True]
    assert (fake.frames != still.frames).any()


def test_the_same_seed_gives_the_same_fake(face):
    first, second = (self_blend(face, np.random.default_rng(5)) for _ in range(2))
    assert (first.frames == second.frames).all()


def test_a_partial_manipulation_covers_one_stretch_of_at_least_half(face):
    stretches = [fakes._moments(12, np.random.default_rng(seed)) for seed in range(200)]
    partial = [touched for touched in stretches if not touched.all()]
    assert 0.1 < len(partial) / len(stretches) < 0.3
    for touched in partial:
        assert touched.sum() >= 6
        assert np.abs(np.diff(np.concatenate([[0], touched.astype(int), [0]]))).sum() == 2


def test_a_lip_sync_leaves_the_forehead_alone(face):
    seen = 0
    for seed in range(8):
        fake = lip_sync(face, np.random.default_rng(seed))
        for before, after, points in zip(face.frames, fake.frames, face.landmarks, strict=True):
            above = slice(0, int(points[151, 1]))  # the middle of the forehead
            assert (before[above] == after[above]).all()
            seen += (before != after).any()
    assert seen


def test_a_warp_brings_the_source_s_landmarks_to_the_target_s(face):
    picture = np.zeros_like(face.frames[0])
    x, y = np.round(face.landmarks[0][1]).astype(int)  # the nose's tip
    picture[y - 2 : y + 3, x - 2 : x + 3] = 255
    moved = warp(picture, face.landmarks[0], face.landmarks[0] + np.array([9.0, 5.0], np.float32))
    rows, columns = np.nonzero(moved[..., 0] > 128)
    assert abs(columns.mean() - (x + 9)) < 1.5 and abs(rows.mean() - (y + 5)) < 1.5
    assert (
        warp(face.frames[0], face.landmarks[0], face.landmarks[0])[2:-2, 2:-2] == face.frames[0][2:-2, 2:-2]
    ).mean() > 0.98


def test_matched_colours_have_the_target_s_mean(face):
    inside = hull_mask(region_points(face.landmarks[0], "face"), len(face.frames[0])) > 0.5
    source = np.clip(face.frames[0] * np.array([0.6, 1.0, 0.8]) + 20, 0, 255).astype(np.uint8)
    matched = match_colours(source, face.frames[0], inside)
    assert np.abs(matched[inside].mean(axis=0) - face.frames[0][inside].mean(axis=0)).max() < 6


@given(hnp.arrays(np.float32, (12, 12), elements=st.floats(0, 1, width=32)))
def test_a_blend_lies_between_its_two_pictures(mask):
    a, b = np.full((12, 12, 3), 40, np.uint8), np.full((12, 12, 3), 200, np.uint8)
    mixed = blend(a, b, mask)
    assert mixed.min() >= 40 and mixed.max() <= 200
    assert (mixed[mask == 0] == 200).all() and (mixed[mask == 1] == 40).all()


@given(st.floats(0.5, 10), st.integers(0, 1000))
def test_a_softened_mask_stays_in_range_and_reaches_one(sigma, seed):
    rng = np.random.default_rng(seed)
    points = 64 + 30 * np.stack([np.cos(a := rng.uniform(0, 2 * np.pi, 30)), np.sin(a)], axis=1)
    mask = soften(hull_mask(deform(points, 1.0, rng.uniform(0.9, 1.1, 6)), 128), sigma)
    assert mask.min() >= 0 and mask.max() == pytest.approx(1)
    assert mask[:2].max() == 0


def test_the_face_s_outline_holds_the_other_landmarks(face):
    mask = hull_mask(region_points(face.landmarks[0], "face"), len(face.frames[0]))
    inside = [mask[y, x] > 0 for x, y in np.round(face.landmarks[0]).astype(int)]
    assert np.mean(inside) > 0.95
    assert len(OVAL) == len(set(OVAL)) == 36
