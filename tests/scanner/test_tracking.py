"""Following faces through pictures of the zoo: who is there when, the same twice, and nobody across a cut."""

from __future__ import annotations

import numpy as np
import pytest

from scanner.faces import landmark_box
from scanner.tracking import LANDMARKS, FaceTracker
from tests.scanner.signals import SETTINGS, follow, frames_of, tracks_of
from tests.zoo import ZOO
from tests.zoo_face import HEIGHT, WIDTH

STEP = 1 / SETTINGS.fps


def middles(landmarks: list[np.ndarray]) -> np.ndarray:
    """(frames, 2): the middle of the face in each."""
    box = landmark_box(np.stack(landmarks))
    return box[:, :2] + box[:, 2:] / 2


def test_two_faces_are_two_tracks_that_keep_their_sides():
    left, right = tracks_of("two_faces.mp4", 0.0, 3.0)
    for track in (left, right):
        assert track.times == pytest.approx(np.arange(45) * STEP, abs=0.03)
        assert {landmarks.shape for landmarks in track.landmarks} == {(LANDMARKS, 3)}
    assert middles(left.landmarks)[:, 0].max() < WIDTH / 2 < middles(right.landmarks)[:, 0].min()
    apart = np.hypot(*(middles(left.landmarks) - middles(right.landmarks)).T)
    assert apart.min() > 100


def test_faces_that_begin_together_need_not_end_together():
    frames = []
    for i, (_, rgb) in enumerate(frames_of("real_blinks.mp4", 0.0, 2.0)):
        four = np.tile(rgb, (2, 2, 1))
        if i >= 15:  # one turns away; the picture around it stays, so that it is no cut
            four[60:280, 840:1080] = four[60:280, 840:1080].mean(axis=(0, 1)).astype(np.uint8)
        frames.append((i * STEP, four))
    tracks = follow(frames)
    assert [track.times[0] for track in tracks] == [0.0] * 4
    places = [tuple(middles(track.landmarks)[0] // (WIDTH, HEIGHT)) for track in tracks]
    ends = {place: round(track.times[-1] / STEP) for place, track in zip(places, tracks, strict=True)}
    assert ends == {(0, 0): 29, (1, 0): 14, (0, 1): 29, (1, 1): 29}


def test_faces_are_there_in_the_promised_stretches_and_nowhere_else():
    tracks = tracks_of("no_face_stretch.mp4")
    spans = ZOO["no_face_stretch.mp4"].face_spans
    assert len(tracks) == len(spans)
    for track, (start, end) in zip(tracks, spans, strict=True):
        assert track.times[0] == pytest.approx(start, abs=STEP)
        assert track.times[-1] == pytest.approx(end, abs=2 * STEP)
        assert np.diff(track.times).max() < 2 * STEP


def test_no_face_is_no_track():
    assert tracks_of("no_face.mp4") == []


def test_the_same_pictures_give_the_same_landmarks_whatever_was_seen_before():
    frames = list(frames_of("real_blinks.mp4", 0.0, 1.5))
    tracker = FaceTracker()
    results = []
    for between in (frames_of("two_faces.mp4", 0.0, 0.5), ()):
        for t, rgb in frames:
            tracker.update(t, rgb)
        results.append(tracker.finish())
        for t, rgb in between:
            tracker.update(t, rgb)
        tracker.finish()
    ((first,), (second,)) = results
    assert first.times == second.times == [t for t, _ in frames]
    assert np.array_equal(first.landmarks, second.landmarks)


def test_a_face_ends_at_a_hard_cut_and_the_next_begins_there():
    before = [rgb for _, rgb in frames_of("real_blinks.mp4", 0.0, 1.0)]
    after = [rgb for _, rgb in frames_of("two_faces.mp4", 5.0, 6.0)]
    tracks = follow([(i * STEP, rgb) for i, rgb in enumerate(before + after)])
    spans = [(round(track.times[0] / STEP), round(track.times[-1] / STEP)) for track in tracks]
    assert spans == [(0, 14), (15, 29), (15, 29)]


def test_a_face_that_is_hidden_for_a_moment_is_the_same_afterwards():
    frames = [(i * STEP, rgb.copy()) for i, (_, rgb) in enumerate(frames_of("real_blinks.mp4", 0.0, 2.0))]
    for _, rgb in frames[12:15]:  # a hand before it, not another scene
        rgb[60:280, 200:440] = rgb[60:280, 200:440].mean(axis=(0, 1)).astype(np.uint8)
    (track,) = follow(frames)
    assert track.times[0] == 0 and track.times[-1] == pytest.approx(29 * STEP)


def test_landmarks_lie_on_the_face_in_pixels_of_the_frame():
    (track,) = tracks_of("rotated_90.mp4", 0.0, 1.0)
    box = landmark_box(np.stack(track.landmarks))
    assert (box[:, 0] > 0).all() and (box[:, 1] > 0).all()
    assert (box[:, 0] + box[:, 2] < WIDTH).all() and (box[:, 1] + box[:, 3] < HEIGHT).all()
    assert box[:, 2].mean() == pytest.approx(147, rel=0.15)  # the face's width, see ZOOM in zoo_face.py


def test_small_faces_are_found():
    frames = []
    for t, rgb in frames_of("real_blinks.mp4", 0.0, 1.0):
        far = np.full((720, 1280, 3), 110, np.uint8)
        far[200:380, 500:820] = rgb[::2, ::2]  # a face 74 px wide: 6 % of the frame
        frames.append((t, far))
    (track,) = follow(frames)
    assert len(track.times) == len(frames)
