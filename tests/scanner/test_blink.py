"""Blinks: the eye aspect ratio by its formula, dips in made-up curves, and the zoo's blinks against their truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.blink import (
    EAR_LEFT,
    EAR_RIGHT,
    MIN_SECONDS,
    analyze_blinks,
    blink_score,
    combine_eyes,
    eye_aspect_ratio,
    find_blinks,
    watched_seconds,
)
from tests.scanner.signals import analysis_of, rotation, still_face
from tests.zoo import ZOO
from tests.zoo_face import CLOSING_S, OPENING_S, Blink

# --- the eye aspect ratio -------------------------------------------------------------------------------


def eye(p1, p2, p3, p4, p5, p6) -> np.ndarray:
    """Landmarks (1, 478, 3) of which only the right eye's six points are set."""
    face = np.zeros((1, 478, 3))
    face[0, EAR_RIGHT] = np.pad(np.array([p1, p2, p3, p4, p5, p6], float), ((0, 0), (0, 1)))
    return face


@pytest.mark.parametrize(
    ("points", "ear"),
    [
        (((0, 0), (1, 1), (3, 1), (4, 0), (3, -1), (1, -1)), 0.5),  # (2 + 2) / (2 * 4)
        (((0, 0), (1, 3), (3, 1), (4, 0), (3, 0), (1, 0)), 0.5),  # (3 + 1) / (2 * 4)
        (((0, 0), (1, 0), (3, 0), (4, 0), (3, 0), (1, 0)), 0.0),
        (((0, 0), (1, 1), (3, 1), (10, 0), (3, -1), (1, -1)), 0.2),
    ],
)
def test_the_ratio_of_hand_made_eyes(points, ear):
    assert eye_aspect_ratio(eye(*points), EAR_RIGHT)[0] == pytest.approx(ear)


def test_where_there_is_no_eye_there_is_no_ratio():
    assert np.isnan(eye_aspect_ratio(np.full((2, 478, 3), np.nan), EAR_LEFT)).all()
    assert np.isnan(eye_aspect_ratio(np.zeros((1, 478, 3)), EAR_LEFT)).all()


@given(
    st.floats(0.1, 10),
    *[st.floats(-40, 40)] * 3,
    st.tuples(*[st.floats(-1000, 1000)] * 3),
    st.sampled_from([EAR_LEFT, EAR_RIGHT]),
)
def test_the_ratio_does_not_depend_on_where_the_head_is_or_how_it_is_turned(scale, yaw, pitch, roll, shift, which):
    face = still_face()[None]
    moved = scale * face @ rotation(yaw, pitch, roll).T + np.array(shift)
    assert eye_aspect_ratio(moved, which) == pytest.approx(eye_aspect_ratio(face, which), abs=1e-4)


def test_on_a_turned_head_the_nearer_eye_counts():
    left, right = np.array([0.1] * 5, np.float32), np.array([0.3] * 5, np.float32)
    yaw = np.array([0, 30, -30, 60, np.nan], np.float32)  # > 0: to the person's left, which shows their right eye
    assert combine_eyes(left, right, yaw) == pytest.approx([0.2, 0.3, 0.1, np.nan, np.nan], nan_ok=True)


# --- dips in curves -------------------------------------------------------------------------------------

OPEN = 0.3


def curve(t: np.ndarray, blinks: Sequence[Blink], *, noise: float = 0.0, drift: float = 0.0) -> np.ndarray:
    """EAR of an eye that shuts to a fifth of its opening in `blinks`."""
    wide = OPEN * (1 + drift * np.sin(2 * np.pi * t / 20))
    shut = np.zeros(len(t))
    for blink in blinks:  # as the zoo's lids move
        half_closed = t - (blink.t - blink.duration / 2)
        falling = np.clip(half_closed / CLOSING_S + 0.5, 0, 1)
        rising = np.clip((half_closed - blink.duration) / OPENING_S + 0.5, 0, 1)
        shut = np.maximum(shut, (np.cos(np.pi * rising) - np.cos(np.pi * falling)) / 2)
    jitter = np.random.default_rng(3).normal(0, noise, len(t))
    return (wide * (1 - 0.8 * shut) + jitter).astype(np.float32)


def steady(seconds: float, fps: float) -> np.ndarray:
    return np.arange(round(seconds * fps)) / fps


@st.composite
def some_blinks(draw) -> list[Blink]:
    """Up to a dozen blinks, half a second of open eyes between them, in 30 s."""
    t, blinks = 0.4, []
    for _ in range(draw(st.integers(0, 12))):
        duration = draw(st.floats(0.15, 0.5))
        t += draw(st.floats(0.5, 1.8)) + duration / 2
        blinks.append(Blink(t, duration))
        t += duration / 2
    return blinks


def agree(found: np.ndarray, blinks: Sequence[Blink], within: float = 0.2) -> bool:
    return len(found) == len(blinks) and all(
        abs(t - blink.t) < max(within, blink.duration / 2) for t, blink in zip(found, blinks, strict=True)
    )


@settings(max_examples=25)
@given(some_blinks(), st.floats(15, 30), st.floats(0, 0.012), st.floats(-0.3, 0.3), st.floats(0.5, 2))
def test_every_blink_is_found_and_nothing_else(blinks, fps, noise, drift, wide):
    t = steady(30, fps)
    times, durations = find_blinks(t, wide * curve(t, blinks, noise=noise, drift=drift))
    assert agree(times, blinks)
    assert all(0.04 <= d <= 0.8 for d in durations)


@settings(max_examples=25)
@given(some_blinks())
def test_durations_are_right_where_the_curve_is_clean(blinks):
    t = steady(30, 30)
    _, durations = find_blinks(t, curve(t, blinks))
    # measured at a lower closure than the zoo's half: ramps of 0.1 and 0.16 s add up to 0.05 s
    assert durations == pytest.approx([blink.duration + 0.04 for blink in blinks], abs=0.04)


@settings(max_examples=25)
@given(some_blinks(), st.randoms(use_true_random=False))
def test_uneven_sampling_changes_nothing(blinks, random):
    t = np.cumsum([random.choice([1 / 30, 1 / 15, 1 / 12]) for _ in range(500)])
    seen = [blink for blink in blinks if blink.t < t[-1] - 1]
    times, _ = find_blinks(t[t < 30], curve(t[t < 30], seen))
    assert agree(times, seen)


def test_a_squint_and_a_downward_glance_are_no_blinks():
    t = steady(20, 15)
    ear = curve(t, [Blink(15, 0.3)])
    ear[(t > 4) & (t < 5)] *= 0.85  # a squint
    ear[(t > 8) & (t < 11)] *= 0.7  # a look down at a page
    times, _ = find_blinks(t, ear)
    assert agree(times, [Blink(15, 0.3)])


def test_closed_eyes_are_no_blink():
    t = steady(20, 15)
    times, _ = find_blinks(t, curve(t, [Blink(5, 0.3), Blink(10, 1.5), Blink(15, 0.3)]))
    assert agree(times, [Blink(5, 0.3), Blink(15, 0.3)])


def test_a_blink_that_is_cut_off_by_an_end_or_a_gap_is_not_counted():
    blinks = [Blink(0.0, 0.3), Blink(5, 0.3), Blink(10, 0.3), Blink(20, 0.3)]
    t = steady(20, 15)
    ear = curve(t, blinks)
    ear[(t > 10) & (t < 10.5)] = np.nan
    times, _ = find_blinks(t, ear)
    assert agree(times, [blinks[1]])


def test_a_single_dark_sample_counts_only_if_it_is_deep():
    t = steady(20, 10)
    ear = np.full(len(t), OPEN, np.float32)
    ear[50], ear[100] = 0.71 * OPEN, 0.3 * OPEN
    times, _ = find_blinks(t, ear)
    assert times.tolist() == pytest.approx([10.0])


def test_an_eye_that_never_blinks_has_zero_and_one_that_was_never_seen_has_none():
    t = steady(20, 15)
    assert analyze_blinks(t, np.full(len(t), OPEN, np.float32)).count == 0
    unseen = analyze_blinks(t, np.full(len(t), np.nan, np.float32))
    assert (unseen.count, unseen.rate, unseen.score, unseen.seconds) == (None, None, None, 0.0)


@pytest.mark.parametrize(
    ("seconds", "fps", "judged"),
    [(30, 15, True), (30, 10.5, True), (30, 9, False), (30, 3, False), (9, 15, True), (7.5, 15, False), (0, 15, False)],
)
def test_too_few_samples_or_seconds_give_no_figures(seconds, fps, judged):
    t = steady(seconds, fps)
    blinks = analyze_blinks(t, curve(t, [Blink(3, 0.3), Blink(5, 0.3)]))
    assert blinks.seconds == pytest.approx(seconds if fps > 4 else 0, abs=0.2)
    if judged:
        assert blinks.count == 2
        assert blinks.rate == pytest.approx(60 * 2 / seconds, rel=0.02)
        assert blinks.score is not None
    else:
        assert (blinks.count, blinks.rate, blinks.score) == (None, None, None)
        assert len(blinks.times) == len(blinks.durations) == 0


def test_pauses_do_not_count_as_watching():
    t = np.r_[steady(5, 15), 100 + steady(5, 15)]
    ear = np.full(len(t), OPEN, np.float32)
    assert watched_seconds(t, ear) == pytest.approx(10, abs=0.2)
    ear[20:35] = np.nan
    assert watched_seconds(t, ear) == pytest.approx(9, abs=0.2)


# --- the zoo --------------------------------------------------------------------------------------------

BLINKING = [clip for clip in ZOO.values() if clip.shipped and any(clip.blinks) and clip.readable == len(clip.times)]


@pytest.mark.parametrize("clip", [*BLINKING, ZOO["bitrot.mp4"]], ids=lambda clip: clip.name)
def test_the_zoo_blinks_as_promised(clip):
    watched = sum(end - start for start, end in clip.face_spans)
    one_stretch = len(clip.face_spans) == 1
    signals = analysis_of(clip.name)
    if not one_stretch or watched < MIN_SECONDS:
        assert all(face.blinks.count is None and face.blinks.rate is None for face in signals.faces)
        return
    assert len(signals.faces) == len(clip.blinks)
    for face, truth in zip(signals.faces, clip.blinks, strict=True):
        assert face.blinks.count == len(truth)
        within = 0.1 if clip.readable == len(clip.times) else 0.15  # the deepest picture may be a lost one
        assert face.blinks.times == pytest.approx([blink.t for blink in truth], abs=within)
        assert face.blinks.durations == pytest.approx([blink.duration for blink in truth], abs=0.1)
        assert face.blinks.rate == pytest.approx(60 * len(truth) / watched, rel=0.02)


# --- how unusual a count is -----------------------------------------------------------------------------


@given(st.integers(0, 300), st.floats(0.1, 600))
def test_the_score_is_a_share(count, seconds):
    assert 0 <= blink_score(count, seconds) <= 1


def test_nobody_goes_a_minute_without_a_blink_but_many_blink_17_times():
    assert blink_score(0, 60) > 0.9
    assert blink_score(0, 600) > blink_score(0, 60) > blink_score(0, 15)
    assert blink_score(17, 60) < 0.3
    assert blink_score(90, 60) > 0.99
    assert blink_score(0, 0) == 0


@settings(max_examples=30)
@given(st.floats(10, 600))
def test_the_score_rises_on_either_side_of_the_usual_count(seconds):
    scores = np.array([blink_score(count, seconds) for count in range(120)])
    lowest = int(scores.argmin())
    assert np.all(np.diff(scores[: lowest + 1]) <= 1e-9)
    assert np.all(np.diff(scores[lowest:]) >= -1e-9)
