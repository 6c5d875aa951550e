"""Micro-expressions: what is left of motion without the head's, and which kinds of it count as irregular."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.faces import LEFT_EYE_OUTER, RIGHT_EYE_OUTER
from scanner.micro import MIN_SECONDS, NORMAL, REGIONS, RIGID, Motion, analyze_motion, remove_head_motion
from tests.scanner.signals import analysis_of, rotation, still_face

FPS = 15
T = np.arange(6 * FPS) / FPS
FACE = "brows", "eyes", "cheeks", "mouth"


def talking(
    amplitude: float = 2.0, hz: float = 1.0, *, jitter: float = 0.0, lag_left: float = 0.0, alone: bool = False
) -> np.ndarray:
    """A face (frames, 478, 3) whose regions open and close together: sines of `amplitude` px.

    jitter: px of white noise on every landmark. lag_left: cycles by which the left side is late. alone: each region
    moves at its own pace.
    """
    landmarks = np.repeat(still_face()[None], len(T), axis=0)
    for number, sides in enumerate(REGIONS.values()):
        pace = hz * (1 + 0.37 * number) if alone else hz
        for lag, side in zip((0.0, lag_left), sides, strict=True):
            # pauses between movements: speeds that are always the same say nothing of who moves with whom
            stroke = np.sin(2 * np.pi * (pace * T - lag)) * (np.sin(2 * np.pi * (pace * T / 3.1 - lag)) > -0.3)
            landmarks[:, side, 1] += amplitude * stroke[:, None]
    return landmarks + np.random.default_rng(2).normal(0, jitter, landmarks.shape)


def measured(landmarks: np.ndarray) -> Motion:
    motion = analyze_motion(T, landmarks)
    assert motion.irregularity is not None
    return motion


# --- the head's motion ----------------------------------------------------------------------------------

angles = st.lists(st.tuples(*[st.floats(-35, 35)] * 3), min_size=6, max_size=6)


@given(angles, st.floats(0.3, 3), st.integers(0, 1000))
def test_a_head_that_only_moves_as_a_whole_does_not_move(angles, scale, seed):
    rng = np.random.default_rng(seed)
    landmarks = np.stack(
        [
            scale * rng.uniform(0.8, 1.25) * still_face() @ rotation(*turn).T + rng.uniform(-300, 300, 3)
            for turn in angles
        ]
    )
    steady = remove_head_motion(landmarks)
    assert np.abs(steady - steady[0]).max() < 1e-3
    speed = analyze_motion(np.arange(len(landmarks)) / FPS, landmarks).speed
    assert np.isnan(speed[0]) and np.nanmax(speed) < 0.01  # eye distances a second


def test_the_unit_is_the_distance_between_the_outer_corners_of_the_eyes():
    steady = remove_head_motion(np.repeat(7 * still_face()[None], 3, axis=0))
    assert np.linalg.norm(steady[0, LEFT_EYE_OUTER] - steady[0, RIGHT_EYE_OUTER]) == pytest.approx(1, abs=1e-4)


def test_the_speed_is_that_of_the_landmarks_in_these_units():
    """One pixel in 15 ms is 15 px a second, of landmarks that bone does not carry."""
    landmarks = np.repeat(still_face()[None], 3, axis=0)
    moving = sorted({i for sides in REGIONS.values() for side in sides for i in side} - set(RIGID))
    landmarks[1, moving, 0] += 1
    eyes = np.linalg.norm(still_face()[LEFT_EYE_OUTER] - still_face()[RIGHT_EYE_OUTER])
    points = sum(len(side) for sides in REGIONS.values() for side in sides)
    expected = FPS / eyes * len(moving) / points
    assert analyze_motion(T[:3], landmarks).speed[1:] == pytest.approx([expected] * 2, rel=0.02)


@settings(max_examples=20)
@given(st.tuples(*[st.floats(-30, 30)] * 3), st.floats(0.5, 2))
def test_a_moving_head_hides_nothing_and_adds_nothing(turn, scale):
    still = talking(jitter=0.2)
    swing = np.sin(2 * np.pi * 0.4 * T)
    moved = np.stack(
        [
            scale * frame @ rotation(*(s * np.array(turn))).T + [40 * s, 9 * s, 0]
            for s, frame in zip(swing, still, strict=True)
        ]
    )
    assert measured(moved).irregularity == pytest.approx(measured(still).irregularity, abs=0.02)
    assert measured(moved).parts == pytest.approx(measured(still).parts, abs=0.05)


# --- irregularity ---------------------------------------------------------------------------------------


def test_jitter_is_more_irregular_than_smooth_motion():
    levels = [measured(talking(jitter=jitter)) for jitter in (0.02, 0.2, 1.0)]
    for name in ("jerk", "fast_share", "asymmetry", "decoupling"):
        values = [motion.parts[name] for motion in levels]
        assert values == sorted(values) and values[0] < values[-1], name
    figures = [motion.irregularity or 0.0 for motion in levels]
    assert 0 < figures[0] < figures[1] < figures[2]


def test_faster_than_muscles_is_a_larger_fast_share():
    slow, fast = (measured(talking(hz=hz)).parts["fast_share"] for hz in (1.0, 6.0))
    assert slow < 0.2 < 0.8 < fast


def test_one_sided_motion_raises_asymmetry_alone():
    together, apart = measured(talking(jitter=0.05)), measured(talking(jitter=0.05, lag_left=0.25))
    assert apart.parts["asymmetry"] > together.parts["asymmetry"] + 0.3
    assert apart.parts["decoupling"] == pytest.approx(together.parts["decoupling"], abs=0.15)


def test_regions_that_move_on_their_own_raise_decoupling_alone():
    together, apart = measured(talking(jitter=0.05)), measured(talking(jitter=0.05, alone=True))
    assert apart.parts["decoupling"] > together.parts["decoupling"] + 0.3
    assert apart.parts["asymmetry"] == pytest.approx(together.parts["asymmetry"], abs=0.15)


# --- too little, or nothing -----------------------------------------------------------------------------


def test_too_short_a_look_gives_no_figure():
    frames = int((MIN_SECONDS - 0.3) * FPS)
    motion = analyze_motion(T[:frames], talking()[:frames])
    assert (motion.irregularity, motion.parts) == (None, {})
    assert len(motion.speed) == frames
    for few in (0, 1):
        assert analyze_motion(T[:few], talking()[:few]).irregularity is None


def test_short_stretches_do_not_add_up_to_a_long_one():
    gaps = T + np.floor(T / 2) * 5  # two seconds, a pause of five, and so on
    motion = analyze_motion(gaps, talking())
    assert motion.irregularity is None
    assert np.isnan(motion.speed).sum() == 3  # the first sample, and the first after each pause


@given(
    kind=st.sampled_from(["still", "jump", "noise", "point", "wild"]),
    frames=st.integers(0, 90),
    gap=st.integers(0, 90),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
@pytest.mark.filterwarnings("error")
def test_whatever_moves_the_figures_are_numbers_or_none(kind, frames, gap, seed):
    rng = np.random.default_rng(seed)
    landmarks = np.repeat(still_face()[None], frames, axis=0)
    if kind == "jump":
        landmarks[frames // 2 :] += 100
    elif kind == "noise":
        landmarks += rng.normal(0, 3, landmarks.shape)
    elif kind == "point":
        landmarks[:, 61] += rng.normal(0, 3, (frames, 3))
    elif kind == "wild":
        landmarks = rng.uniform(-1e4, 1e4, landmarks.shape)
    t = np.arange(frames) / FPS + (np.arange(frames) > gap)
    motion = analyze_motion(t, landmarks.astype(np.float32))
    assert np.isfinite(motion.speed[1:][np.diff(t) < 0.25]).all()
    assert motion.irregularity is None or 0 <= motion.irregularity <= 1
    assert all(np.isfinite(value) for value in motion.parts.values())
    assert set(motion.parts) == (set() if motion.irregularity is None else set(NORMAL))


def test_a_genuine_face_is_measured():
    (face,) = analysis_of("real_blinks.mp4").faces
    assert face.irregularity is not None and 0 < face.irregularity < 1
    assert 0 < np.nanmedian(face.motion) < 0.5
