"""Clips: every crop in one of them, none too long, none too short; and what is handed to the network."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.clips import cut
from scanner.clips import ClipRef, clips_of, jpeg, pad
from tests.scanner.signals import analysis_of
from tests.zoo_face import Sitter


@given(st.integers(0, 2000), st.integers(1, 128), st.data())
def test_clips_share_out_the_crops(crops, longest, data):
    least = data.draw(st.integers(1, longest))
    clips = cut(crops, longest, least)
    if crops < least:
        assert clips == []
        return
    assert [i for start, stop in clips for i in range(start, stop)] == list(range(crops))
    sizes = [stop - start for start, stop in clips]
    assert max(sizes) <= longest
    assert max(sizes) - min(sizes) <= 1
    assert len(clips) == -(-crops // longest)  # no more than needed


@given(st.integers(0, 500), st.integers(2, 64))
def test_no_clip_is_shorter_than_asked_for(crops, longest):
    least = longest // 2
    assert all(stop - start >= least for start, stop in cut(crops, longest, least))


def test_each_face_has_its_own_clips():
    faces = analysis_of("two_faces.mp4").faces  # 50 crops each
    few = replace(faces[0], crops=faces[0].crops[:7], crop_frames=faces[0].crop_frames[:7])
    refs = clips_of([faces[0], few, faces[1]], 16, 8)
    assert refs == [ClipRef(face, *part) for face in (0, 2) for part in ((0, 12), (12, 25), (25, 37), (37, 50))]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_clips_of_different_lengths_are_padded_with_black(lengths):
    pictures = [np.full((length, 4, 4, 3), 10 + i, np.uint8) for i, length in enumerate(lengths)]
    padded, found = pad(pictures, 9)
    assert padded.shape == (len(lengths), 9, 4, 4, 3) and padded.dtype == np.uint8
    assert found.tolist() == lengths and found.dtype == np.int64
    for row, picture, length in zip(padded, pictures, lengths, strict=True):
        assert np.array_equal(row[:length], picture)
        assert not row[length:].any()


def test_a_jpeg_keeps_colours():
    rgb = Sitter().picture(0)
    shown = cv2.imdecode(np.frombuffer(jpeg(rgb), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(shown.astype(int) - rgb).mean() < 3
