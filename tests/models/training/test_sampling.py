"""Pairs differ in the manipulation only, are the same on every machine, and crops are those of a scan."""

from __future__ import annotations

import numpy as np
import pytest

from models.prepared import MARGIN
from models.training.sampling import Geometry, Sampler, whole_track
from scanner.faces import crop_square, landmark_box

GEOMETRY = Geometry(input_size=96, crop_margin=1.4)


def test_a_pair_is_one_genuine_and_one_manipulated_clip(tracks):
    sampler = Sampler(tracks, GEOMETRY, length=8, labelled=0.5)
    for index in range(12):
        real, fake = sampler.pair(index)
        assert real.frames.shape == fake.frames.shape == (8, 96, 96, 3)
        assert not real.touched.any() and fake.touched.any()


def test_the_same_index_gives_the_same_pair(tracks):
    first, second = (Sampler(tracks, GEOMETRY, labelled=0.5, seed=3).pair(7) for _ in range(2))
    assert (first[0].frames == second[0].frames).all() and (first[1].frames == second[1].frames).all()
    other = Sampler(tracks, GEOMETRY, labelled=0.5, seed=4).pair(7)
    assert (first[0].frames != other[0].frames).any()


def test_both_of_a_pseudo_pair_take_the_same_way_through_the_archive(tracks):
    """Outside the face nothing may tell them apart, or the network would learn codecs."""
    sampler = Sampler([t for t in tracks if not t.fake], GEOMETRY, length=1, seed=1)
    gaps = []
    for index in range(30):
        real, fake = sampler.pair(index)
        gaps.append(np.abs(real.frames.astype(int) - fake.frames)[:, :4].mean())
    assert np.median(gaps) < 4


def test_labelled_fakes_are_shown_as_often_as_asked(tracks):
    sampler = Sampler(tracks, GEOMETRY, labelled=1.0, degrading=False)
    for index in range(10):
        fake = sampler.pair(index)[1].frames[0].astype(int)
        green = (fake[..., 1] - fake[..., 0] > 80) & (fake[..., 1] - fake[..., 2] > 80)
        assert green.mean() > 0.02


def test_without_genuine_faces_there_is_nothing_to_learn(tracks):
    with pytest.raises(ValueError, match="no genuine face"):
        Sampler([t for t in tracks if t.fake], GEOMETRY)


def test_a_track_is_scored_on_the_crops_that_a_scan_would_cut(crop, tracks):
    rgb, landmarks = crop
    track = next(t for t in tracks if t.kind == "image")
    ours = whole_track(track, GEOMETRY)[0]
    stored = track.frames(0, 1)[0][0]
    box = landmark_box(landmarks * len(rgb))
    theirs = crop_square(stored, box, GEOMETRY.crop_margin, GEOMETRY.input_size)
    assert abs(float(max(box[2:])) * MARGIN - len(rgb)) < 3
    assert np.abs(ours.astype(int) - theirs).mean() < 4  # half a pixel of rounding
