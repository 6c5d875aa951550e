"""What a scan measures on one span of the zoo: faces, seconds, crops on the face, and the same twice."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mediapipe.python.solutions.face_mesh import FaceMesh

from scanner.analysis import SpanSignals, analyze_span, shown_s
from scanner.decode import probe
from tests.scanner.signals import SETTINGS, analysis_of, zoo_path
from tests.zoo import ZOO

FACES = [
    *("real_blinks.mp4", "fake_selfblend.mp4", "no_face_stretch.mp4", "two_faces.mp4", "rotated_90.mp4"),
    *("variable_fps.mp4", "mpegts.ts", "av1.mp4", "bitrot.mp4"),
]


@pytest.mark.parametrize("name", FACES)
def test_seconds_and_faces_are_those_of_the_clip(name):
    clip, signals = ZOO[name], analysis_of(name)
    promised = sum(end - start for start, end in clip.face_spans)
    assert signals.n_faces == clip.faces
    assert len(signals.faces) == clip.faces * len(clip.face_spans)
    assert signals.analyzed_s + signals.lost_s == pytest.approx(clip.duration, abs=0.05)
    assert signals.face_s == pytest.approx(promised, abs=0.15)
    for face in signals.faces:
        assert len(face.t) == len(face.boxes) == len(face.ear) == len(face.motion)
        assert (np.diff(face.t) > 0).all()
        assert ((face.boxes > 0) & (face.boxes < 1)).all()


@pytest.mark.parametrize(
    ("name", "decoder", "lost_s"),
    [
        ("real_blinks.mp4", "pyav", 0.0),
        ("variable_fps.mp4", "pyav", 0.0),
        ("mpegts.ts", "pyav", 0.0),
        ("av1.mp4", "pyav", 0.0),
        ("bitrot.mp4", "pyav", 0.24),
    ],
)
def test_the_decoder_and_what_it_lost_are_told(name, decoder, lost_s):
    signals = analysis_of(name)
    assert signals.decoder == decoder
    assert signals.lost_s == pytest.approx(lost_s, abs=0.05)


@pytest.mark.parametrize("name", FACES)
def test_crops_come_at_the_networks_pace_from_the_moments_they_name(name):
    for face in analysis_of(name).faces:
        assert face.crops.shape == (len(face.crop_frames), SETTINGS.crop_size, SETTINGS.crop_size, 3)
        assert face.crops.dtype == np.uint8
        shown = face.t[face.crop_frames]
        assert shown[0] - face.t[0] < 1 / SETTINGS.clip_fps
        assert np.diff(shown) == pytest.approx(1 / SETTINGS.clip_fps, abs=0.105)  # one frame of the slowest, at 10 fps
        assert len(shown) == pytest.approx((face.t[-1] - face.t[0]) * SETTINGS.clip_fps, abs=2)


@pytest.mark.parametrize("name", ["real_blinks.mp4", "two_faces.mp4", "rotated_90.mp4"])
def test_crops_show_the_face_in_their_middle(name):
    with FaceMesh(static_image_mode=True) as mesh:
        for face in analysis_of(name).faces:
            for crop in face.crops[::20]:
                result: Any = mesh.process(crop)
                (found,) = result.multi_face_landmarks
                points = np.array([(p.x, p.y) for p in found.landmark])
                low, high = points.min(axis=0), points.max(axis=0)
                assert (low > 0).all() and (high < 1).all()
                assert (low + high) / 2 == pytest.approx([0.5, 0.5], abs=0.05)
                assert (high - low).max() == pytest.approx(1 / SETTINGS.crop_margin, rel=0.1)


def test_both_faces_are_cropped_at_the_same_moments():
    left, right = analysis_of("two_faces.mp4").faces
    assert np.array_equal(left.t[left.crop_frames], right.t[right.crop_frames])
    assert np.abs(left.crops.astype(int) - right.crops).mean() > 10  # a mirror image is another picture


def test_the_backdrop_has_no_face():
    signals = analysis_of("no_face.mp4")
    assert (signals.faces, signals.n_faces, signals.face_s) == ([], 0, 0.0)
    assert signals.analyzed_s == pytest.approx(4.0, abs=0.05)


def test_a_span_is_measured_within_its_bounds():
    path = zoo_path("late_start.mkv")
    info = probe(path)
    signals = analyze_span(str(path), info, 0.0, 4.0, SETTINGS, "pyav")
    (face,) = signals.faces
    assert face.t[0] == pytest.approx(2.0, abs=0.01) and 3.8 < face.t[-1] < 4.0
    assert signals.analyzed_s == pytest.approx(2.0, abs=0.01)
    assert analyze_span(str(path), info, 0.0, 1.5, SETTINGS, "pyav").analyzed_s == 0


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40, unique=True), st.data())
def test_a_frame_stands_until_the_next_one_that_was_looked_at(ticks, data):
    looked_at = np.sort(ticks) / 10
    shown = np.array(data.draw(st.lists(st.booleans(), min_size=len(ticks), max_size=len(ticks))), bool)
    end = looked_at[-1] + data.draw(st.floats(0, 2))
    stands = [min(0.5, after - t) for t, after in zip(looked_at, [*looked_at[1:], end], strict=True)]
    assert shown_s(looked_at[shown], looked_at, end) == pytest.approx(np.array(stands)[shown].sum())


def same(a: Any, b: Any) -> bool:
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b


def again(name: str, decoder: str) -> SpanSignals:
    path = zoo_path(name)
    return analyze_span(str(path), probe(path), 0.0, np.inf, SETTINGS, decoder)


def test_the_same_span_gives_the_same_signals_whatever_came_between():
    first = analysis_of("short.mp4")
    analysis_of("two_faces.mp4")
    assert same(again("short.mp4", "pyav"), first)
    assert same(again("late_start.mkv", "pyav"), analysis_of("late_start.mkv"))


def test_both_decoders_lead_to_the_same_findings():
    ours, theirs = analysis_of("rotated_90.mp4"), again("rotated_90.mp4", "decord")
    assert (ours.decoder, theirs.decoder) == ("pyav", "decord")
    (a,), (b,) = ours.faces, theirs.faces
    assert a.t == pytest.approx(b.t, abs=1e-3)
    assert a.boxes == pytest.approx(b.boxes, abs=0.01)
    assert a.blinks.count == b.blinks.count
    assert np.abs(a.crops.astype(int) - b.crops).mean() < 4
