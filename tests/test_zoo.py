"""The zoo keeps its promises: shipped files show what `ZOO` says, broken ones are broken that way."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mediapipe.python.solutions import face_detection, face_mesh

from tests.zoo import ARCHIVE, NOTES, ZOO, Clip, render, zoo_archive
from tests.zoo_face import HEIGHT, WIDTH, Blink, closure, read_frame_number, stamp_frame_number
from tests.zoo_files import render_long

EAR_EYES = ((33, 160, 158, 133, 153, 144), (362, 385, 387, 263, 373, 380))
SHIPPED = [clip for clip in ZOO.values() if clip.shipped]
SOUND = [clip for clip in SHIPPED if clip.readable == len(clip.times) > 0]
BLINKING = [clip for clip in SOUND if any(clip.blinks)]
MICROSECOND = Fraction(1, 1_000_000)  # PyAV's unit for a container's start


def decode(path: Path) -> Iterator[tuple[Fraction, np.ndarray]]:
    """(seconds after the container's start, upright RGB picture) of each frame that can be read."""
    with av.open(str(path)) as container:
        start = (container.start_time or 0) * MICROSECOND
        for packet in container.demux(container.streams.video[0]):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                assert frame.pts is not None and frame.time_base is not None
                upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                yield frame.pts * frame.time_base - start, np.ascontiguousarray(upright)


def ids(clip: Clip) -> str:
    return clip.name


@pytest.mark.parametrize("clip", SOUND, ids=ids)
def test_every_frame_stands_at_its_promised_time(clip: Clip):
    seen = [(time, read_frame_number(rgb), rgb.shape) for time, rgb in decode(ARCHIVE / clip.path)]
    assert [number for _, number, _ in seen] == list(range(len(clip.times)))
    assert {shape for *_, shape in seen} == {(HEIGHT, WIDTH, 3)}
    assert [time for time, *_ in seen] == list(clip.times)


def test_the_archive_holds_the_shipped_files_and_nothing_else():
    files = {p.relative_to(ARCHIVE).as_posix() for p in ARCHIVE.rglob("*") if p.is_file()}
    assert files == {clip.path for clip in SHIPPED} | {NOTES}
    assert sum((ARCHIVE / f).stat().st_size for f in files) < 3_000_000


def test_the_rotated_clip_is_stored_lying_down():
    with av.open(str(ARCHIVE / ZOO["rotated_90.mp4"].path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == (HEIGHT, WIDTH)
        assert frame.rotation == -90  # PyAV counts anticlockwise: the picture wants a turn clockwise


def test_the_late_video_starts_two_seconds_after_its_sound():
    with av.open(str(ARCHIVE / ZOO["late_start.mkv"].path)) as container:
        first = {kind: next(container.decode(**{kind: 0})).time for kind in ("audio", "video")}
    assert first["video"] == 2.0
    assert abs(first["audio"]) < 0.05


def test_the_transport_stream_does_not_start_at_zero():
    with av.open(str(ARCHIVE / ZOO["mpegts.ts"].path)) as container:
        assert (container.start_time or 0) * MICROSECOND >= 10


# --- faces and lids -------------------------------------------------------------------------------


def openness(rgb: np.ndarray) -> float:
    """Mean EAR of both eyes of the one face in `rgb`; NaN without a face."""
    result: Any = _mesh().process(rgb)
    found = result.multi_face_landmarks
    if not found:
        return float("nan")
    points = np.array([(p.x * rgb.shape[1], p.y * rgb.shape[0]) for p in found[0].landmark])

    def ear(eye: tuple[int, ...]) -> float:
        p1, p2, p3, p4, p5, p6 = points[list(eye)]
        return np.linalg.norm([p2 - p6, p3 - p5], axis=1).sum() / (2 * float(np.linalg.norm(p1 - p4)))

    return float(np.mean([ear(eye) for eye in EAR_EYES]))


def middles_of_faces(rgb: np.ndarray) -> list[float]:
    """Middles of the faces that MediaPipe's full-range detector sees, as fractions of the width."""
    found: Any = _detector().process(rgb)
    boxes = [detection.location_data.relative_bounding_box for detection in found.detections or ()]
    return sorted(box.xmin + box.width / 2 for box in boxes)


@cache
def _mesh() -> face_mesh.FaceMesh:
    return face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True)


@cache
def _detector() -> face_detection.FaceDetection:
    return face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.4)


@pytest.mark.parametrize("clip", BLINKING, ids=ids)
def test_the_eyes_close_when_promised_and_at_no_other_time(clip: Clip):
    for face, blinks in enumerate(clip.blinks):
        left, right = face * WIDTH // clip.faces, (face + 1) * WIDTH // clip.faces
        for time, rgb in _around_blinks(clip, blinks):
            ear = openness(np.ascontiguousarray(rgb[:, left:right]))
            down = closure(float(time), blinks)
            if down == 0:
                assert ear > 0.25, f"open at {float(time):.2f}"
            elif down > 0.9:
                assert ear < 0.6 * 0.25, f"closed at {float(time):.2f}"


def _around_blinks(clip: Clip, blinks: tuple[Blink, ...]) -> Iterator[tuple[Fraction, np.ndarray]]:
    """The frames in and near a blink, and every fifth of the others, where the clip shows a face."""
    for number, (time, rgb) in enumerate(decode(ARCHIVE / clip.path)):
        seen = any(start <= time < end for start, end in clip.face_spans)
        near = any(abs(float(time) - blink.t) < blink.duration for blink in blinks)
        if seen and (near or number % 5 == 0):
            yield time, rgb


@pytest.mark.parametrize("name", ["no_face.mp4", "no_face_stretch.mp4"])
def test_no_face_is_found_where_none_is_promised(name: str):
    clip = ZOO[name]
    for time, rgb in list(decode(ARCHIVE / clip.path))[::5]:
        promised = any(start <= time < end for start, end in clip.face_spans)
        assert bool(middles_of_faces(rgb)) == promised, f"at {float(time):.2f}"


def test_two_faces_are_found_side_by_side():
    for _, rgb in list(decode(ARCHIVE / ZOO["two_faces.mp4"].path))[::10]:
        assert [int(middle * 2) for middle in middles_of_faces(rgb)] == [0, 1]


# --- broken files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["empty.mp4", "text.mp4", "truncated.mp4"])
def test_what_is_no_container_cannot_be_opened(name: str):
    with pytest.raises(av.error.InvalidDataError):
        av.open(str(ARCHIVE / ZOO[name].path))


def test_the_audio_file_has_no_video_track():
    with av.open(str(ARCHIVE / ZOO["audio_only.mp4"].path)) as container:
        assert not container.streams.video
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 3 * 48_000


def test_the_header_promises_frames_that_never_come():
    path = ARCHIVE / ZOO["no_frames.mp4"].path
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert list(decode(path)) == []


@pytest.mark.parametrize("name", ["bitrot.mp4", "truncated_faststart.mp4"])
def test_most_of_a_damaged_file_can_be_read_and_its_times_are_right(name: str):
    clip = ZOO[name]
    seen = [(time, read_frame_number(rgb)) for time, rgb in decode(ARCHIVE / clip.path)]
    assert clip.readable <= len(seen) < len(clip.times)
    numbers = [number for _, number in seen if number is not None]
    assert len(numbers) >= len(seen) - 3
    assert all(time == clip.times[number] for time, number in seen if number is not None)


def test_decord_gives_up_on_rot_and_av1():
    decord = pytest.importorskip("decord")
    with pytest.raises(decord.DECORDError):
        decord.VideoReader(str(ARCHIVE / ZOO["av1.mp4"].path))
    rotten = decord.VideoReader(str(ARCHIVE / ZOO["bitrot.mp4"].path), num_threads=1)
    with pytest.raises(decord.DECORDError):
        for _ in range(len(rotten)):
            rotten.next()


# --- rendering ------------------------------------------------------------------------------------


def test_rendering_again_gives_the_same_pictures(tmp_path: Path):
    clip = ZOO["short.mp4"]
    again = render(clip, tmp_path)
    for (_, ours), (_, shipped) in zip(decode(again), decode(ARCHIVE / clip.path), strict=True):
        assert np.abs(ours.astype(int) - shipped).mean() < 2  # another encoder version may round differently


@pytest.mark.parametrize("clip", [clip for clip in ZOO.values() if not clip.shipped], ids=ids)
def test_formats_that_are_not_shipped_keep_their_times(clip: Clip, tmp_path: Path):
    seen = [(time, read_frame_number(rgb)) for time, rgb in decode(render(clip, tmp_path))]
    assert seen == [(time, number) for number, time in enumerate(clip.times)]


def test_the_whole_zoo_lands_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quick = {name: ZOO[name] for name in ("short.mp4", "empty.mp4", "no_frames.mp4")}
    monkeypatch.setattr("tests.zoo.ZOO", quick)
    zoo_archive(tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {clip.path for clip in quick.values()} | {NOTES}


def test_a_long_video_fills_the_seconds_asked_for(tmp_path: Path):
    path = tmp_path / "long.mp4"
    render_long(path, 95.0, (320, 180))
    with av.open(str(path)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    assert np.allclose(times, np.arange(100 * 25) / 25)


@given(number=st.integers(0, 4095), width=st.sampled_from([320, 480, 640, 1280]), noise=st.integers(0, 60))
def test_a_stamped_number_is_read_back(number: int, width: int, noise: int):
    frame = np.full((width * 9 // 16, width, 3), 90, np.uint8)
    stamp_frame_number(frame, number)
    rough = frame + np.random.default_rng(number).integers(-noise, noise + 1, frame.shape)
    assert read_frame_number(np.clip(rough, 0, 255).astype(np.uint8)) == number


def test_a_picture_without_a_stamp_has_no_number():
    assert read_frame_number(np.full((HEIGHT, WIDTH, 3), 200, np.uint8)) is None
    assert read_frame_number(np.zeros((HEIGHT, WIDTH, 3), np.uint8)) is None


@given(t=st.floats(0, 10), blink=st.builds(Blink, st.floats(1, 9), st.floats(0.16, 0.6)))
def test_lids_are_half_down_for_as_long_as_a_blink_lasts(t: float, blink: Blink):
    down = closure(t, (blink,))
    assert 0 <= down <= 1
    if abs(abs(t - blink.t) - blink.duration / 2) > 1e-6:
        assert (down > 0.5) == (abs(t - blink.t) < blink.duration / 2)
