"""Boxes, crops, head pose and cuts: pure functions, against plain definitions and the zoo's pictures."""

from __future__ import annotations

import itertools
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.faces import (
    CHIN,
    FOREHEAD,
    LEFT_EYE_OUTER,
    RIGHT_EYE_OUTER,
    crop_square,
    fractions,
    head_pose,
    iou,
    is_cut,
    landmark_box,
    square_around,
    thumbnail,
)
from tests.scanner.signals import frames_of, rotation, still_face
from tests.zoo_face import Sitter, backdrop

NOISE = np.random.default_rng(5).integers(0, 256, (90, 160, 3), dtype=np.uint8)
boxes = st.tuples(
    st.floats(-400, 400, width=32),
    st.floats(-400, 400, width=32),
    st.floats(1, 200, width=32),
    st.floats(1, 200, width=32),
).map(lambda box: np.array(box, np.float32))


# --- boxes ----------------------------------------------------------------------------------------------


@given(boxes, boxes, st.integers(-50, 50))
def test_overlap_is_a_symmetric_share_and_moves_with_the_picture(a, b, shift):
    assert 0 <= iou(a, b) <= 1 + 1e-4
    assert iou(a, b) == iou(b, a)
    moved = np.array([shift, 2 * shift, 0, 0], np.float32)
    assert iou(a + moved, b + moved) == pytest.approx(iou(a, b), abs=1e-3)
    assert iou(a, a) == pytest.approx(1, abs=1e-4)


def test_overlap_of_known_boxes():
    a = np.array([0, 0, 10, 10], np.float32)
    assert iou(a, np.array([5, 0, 10, 10], np.float32)) == pytest.approx(50 / 150)
    assert iou(a, np.array([10, 0, 10, 10], np.float32)) == 0
    assert iou(a, np.array([-20, -20, 5, 5], np.float32)) == 0
    assert iou(np.zeros(4, np.float32), np.zeros(4, np.float32)) == 0


def test_a_box_holds_its_landmarks_and_becomes_fractions():
    landmarks = np.array([[[10, 20, 5], [30, 26, -5]], [[0, 0, 0], [64, 36, 0]]], np.float32)
    assert landmark_box(landmarks).tolist() == [[10, 20, 20, 6], [0, 0, 64, 36]]
    assert fractions(landmark_box(landmarks), 64, 36)[1].tolist() == [0, 0, 1, 1]


# --- crops ----------------------------------------------------------------------------------------------


def plain_crop(rgb: np.ndarray, box: np.ndarray, scale: float, size: int) -> np.ndarray:
    """The square out of a frame whose edge pixels go on for ever."""
    x, y, side, _ = square_around(box, scale)
    side = max(2, round(float(side)))
    rows = np.clip(round(float(y)) + np.arange(side), 0, rgb.shape[0] - 1)
    columns = np.clip(round(float(x)) + np.arange(side), 0, rgb.shape[1] - 1)
    square = np.ascontiguousarray(rgb[np.ix_(rows, columns)])
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


@given(boxes, st.floats(0.5, 3), st.integers(8, 64))
def test_a_crop_is_the_square_around_the_box_with_the_edge_repeated(box, scale, size):
    height, width = NOISE.shape[:2]
    x, y, side, _ = square_around(box, scale)
    x0, y0, side = round(float(x)), round(float(y)), max(2, round(float(side)))
    if x0 >= width or y0 >= height or x0 + side <= 0 or y0 + side <= 0:
        with pytest.raises(ValueError, match="outside"):
            crop_square(NOISE, box, scale, size)
        return
    crop = crop_square(NOISE, box, scale, size)
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    assert np.array_equal(crop, plain_crop(NOISE, box, scale, size))


def test_a_crop_at_its_own_size_is_the_very_pixels():
    crop = crop_square(NOISE, np.array([40, 20, 32, 16], np.float32), 1.0, 32)
    assert np.array_equal(crop, NOISE[12:44, 40:72])


# --- head pose ------------------------------------------------------------------------------------------


def flat_face() -> np.ndarray:
    """A face that looks straight into the camera, of the four points that the pose is taken from."""
    face = np.zeros((478, 3))
    face[RIGHT_EYE_OUTER], face[LEFT_EYE_OUTER] = (-50, 0, 0), (50, 0, 0)
    face[FOREHEAD], face[CHIN] = (0, -70, 0), (0, 90, 0)
    return face


angles = st.floats(-60, 60)


@given(yaw=angles, pitch=angles, roll=angles, scale=st.floats(0.2, 5), x=st.floats(-500, 500))
def test_the_pose_is_the_turn_of_the_head(yaw, pitch, roll, scale, x):
    turned = scale * flat_face() @ rotation(yaw, pitch, roll).T + [x, -x, x / 3]
    found = head_pose(turned[None])[0]
    assert found[0] == pytest.approx(yaw, abs=0.1)
    assert found[2] == pytest.approx(roll, abs=0.1)
    # the angle between chin-to-forehead and the picture's plane: a head that is turned away nods less towards it
    nod = np.degrees(np.arcsin(np.cos(np.radians(yaw)) * np.sin(np.radians(pitch))))
    assert found[1] == pytest.approx(nod, abs=0.1)


@pytest.mark.parametrize(("axis", "turn"), [(0, {"yaw": 25}), (1, {"pitch": 25}), (2, {"roll": 25})])
def test_signs_of_the_pose_on_a_real_face(axis, turn):
    face = still_face()
    nose, centre = face[1], face.mean(axis=0)
    turned = (face - centre) @ rotation(**turn).T
    moved = turned[1] - (nose - centre)
    # seen from the camera: turning left and looking down carry the nose right and down
    assert {0: moved[0] > 5, 1: moved[1] > 5, 2: turned[LEFT_EYE_OUTER][1] > turned[RIGHT_EYE_OUTER][1]}[axis]
    before, after = head_pose(np.stack([face - centre, turned]))
    assert after[axis] - before[axis] == pytest.approx(25, abs=4)


def test_the_portrait_looks_nearly_straight_into_the_camera_and_nan_stays_nan():
    face = still_face()
    assert np.all(np.abs(head_pose(face[None])[0]) < 15)
    assert np.isnan(head_pose(np.full((1, 478, 3), np.nan))).all()


# --- cuts -----------------------------------------------------------------------------------------------


@cache
def portrait_thumbnail() -> np.ndarray:
    return thumbnail(Sitter().picture(0))


@pytest.mark.parametrize("name", ["real_blinks.mp4", "fake_selfblend.mp4", "variable_fps.mp4"])
def test_no_cut_within_a_shot(name):
    small = [thumbnail(rgb) for _, rgb in frames_of(name, 0, 4)]
    assert not any(is_cut(a, b) for a, b in itertools.pairwise(small))


def test_a_cut_wherever_the_scene_changes():
    small = [thumbnail(rgb) for _, rgb in frames_of("no_face_stretch.mp4", 3, 9)]
    cuts = [i for i in range(1, len(small)) if is_cut(small[i - 1], small[i])]
    assert cuts == [15, 75]  # the seconds 4 and 8, at 15 pictures a second from 3 on


def test_the_size_of_a_frame_does_not_matter_for_cuts():
    face, stripes = Sitter().picture(0), backdrop(0)
    large = np.repeat(np.repeat(face, 2, axis=0), 2, axis=1)
    assert not is_cut(thumbnail(face), thumbnail(large))
    assert is_cut(thumbnail(large), thumbnail(stripes))


@given(st.floats(0.3, 1.0), st.floats(0, 120))
def test_a_flash_or_a_fade_is_no_cut(gain, offset):
    face = portrait_thumbnail()
    assert not is_cut(face, np.minimum(gain * face + offset, 255))


def test_noise_in_the_dark_is_no_cut_and_black_to_picture_is():
    rng = np.random.default_rng(1)
    a, b = (rng.normal(8, 4, (18, 32)).astype(np.float32) for _ in range(2))
    assert not is_cut(a, b)
    assert is_cut(np.zeros((18, 32), np.float32), portrait_thumbnail())
