"""Degradation goes through real encoders, loses no frame and treats every clip alike."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.degrade import CODECS, degrade, encode, film_screen, jpeg, letterbox, recolour, rescale


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [1, 6])
def test_an_encoder_gives_every_frame_back_a_little_worse(face, codec, count):
    _, _, _, low, high = CODECS[codec]
    frames = face.frames[:count, :151, :151]  # an odd size, which no codec takes as it is
    errors = [np.abs(encode(frames, codec, q).astype(int) - frames).mean() for q in (low, high)]
    assert encode(frames, codec, low).shape == frames.shape
    assert 0 < errors[0] < errors[1] < 25


def test_jpeg_and_rescaling_lose_detail(face):
    detail = [np.abs(np.diff(f.astype(int), axis=1)).mean() for f in (face.frames, rescale(face.frames, 0.4, 1))]
    assert detail[1] < 0.8 * detail[0]
    worse, better = (np.abs(jpeg(face.frames, q).astype(int) - face.frames).mean() for q in (40, 95))
    assert worse > better


def test_one_draw_holds_for_the_whole_clip(face):
    still = np.repeat(face.frames[:1], 4, axis=0)
    changed = recolour(still, np.random.default_rng(1))
    assert (changed == changed[0]).all() and (changed != still).any()


@pytest.mark.parametrize("seed", range(12))
def test_any_way_through_an_archive_keeps_shape_and_picture(face, seed):
    seen = degrade(face.frames, np.random.default_rng(seed))
    assert seen.shape == face.frames.shape and seen.dtype == np.uint8
    assert np.corrcoef(seen.mean(axis=3).ravel(), face.frames.mean(axis=3).ravel())[0, 1] > 0.9


def test_bars_cover_two_sides_at_most_and_leave_the_rest_alone(face):
    bars, frames = set(), face.frames.clip(20, 250)  # so that no pixel has a bar's colour
    for seed in range(20):
        seen = letterbox(frames, np.random.default_rng(seed))
        covered = (seen != frames).any(axis=(0, 3))
        rows, columns = covered.all(axis=1), covered.all(axis=0)
        assert not (rows.any() and columns.any()) or covered.all()
        assert (rows if rows.any() else columns).mean() <= 0.3
        assert not (covered & ~(rows[:, None] | columns)).any(), "what lies between the bars was touched"
        bars.add((bool(rows.any()), bool(columns.any())))
    assert bars == {(True, False), (False, True), (False, False)}


def test_a_filmed_screen_shows_the_same_grid_in_every_frame(face):
    still = np.repeat(face.frames[:1], 3, axis=0)
    seen = film_screen(still, np.random.default_rng(2))
    assert (seen == seen[0]).all()
    grey = np.full((1, 96, 96, 3), 128, np.uint8)
    spectrum = np.abs(np.fft.rfft(film_screen(grey, np.random.default_rng(2))[0, 48, :, 1] - 128.0))
    assert spectrum[16:].max() > 3 * np.median(spectrum[16:]), "a line of pixels, over and over"
