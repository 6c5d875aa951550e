"""Decoding: every frame of every format at its own time, upright, once; and what is said of files without any."""

from __future__ import annotations

import itertools
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import av.error
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner import decode
from scanner.decode import (
    DecodeError,
    Reading,
    VideoInfo,
    analysis_size,
    probe,
    read_frames,
)
from scanner.results import Status
from scanner.second_opinion import DecordGaveUp
from scanner.thinning import Thinning, sample
from tests.zoo import ARCHIVE, ZOO, render
from tests.zoo_face import Sitter, read_frame_number, stamp_frame_number
from tests.zoo_files import SAMPLE_RATE, set_rotation, write_video

EVERY_FRAME = 1000.0  # fps: above any video's, so that nothing is thinned out
END = 1e9  # seconds: behind any video's
NOT_WITH_DECORD = {"mpegts.ts", "av1.mp4", "mpeg2.mpg", "bitrot.mp4", "truncated_faststart.mp4"}
#: The zoo, but of the formats that are rendered here 60 frames are enough.
CLIPS = {
    name: clip if clip.shipped else replace(clip, times=clip.times[:60], readable=60) for name, clip in ZOO.items()
}
PLAYABLE = [clip for clip in CLIPS.values() if clip.times]
SOUND = [clip.name for clip in PLAYABLE if clip.readable == len(clip.times)]
DAMAGED = ["bitrot.mp4", "truncated_faststart.mp4"]


@pytest.fixture(scope="module")
def zoo_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """zoo_file(name): where a clip lies; what is not shipped is rendered."""

    @cache
    def find(name: str) -> Path:
        clip = CLIPS[name]
        return ARCHIVE / clip.path if clip.shipped else render(clip, tmp_path_factory.mktemp("zoo"))

    return find


def numbers(path: Path, info: VideoInfo, decoder: str, start: float = 0.0, end: float = END) -> list[tuple[float, int]]:
    """(time, stamped number) of the frames of a span; a picture without a readable number counts as -1."""
    return [(t, _number(rgb)) for t, rgb in read_frames(path, info, start, end, EVERY_FRAME, decoder, Reading())]


@dataclass(frozen=True)
class Seen:
    """All frames of a file: what is worth keeping of them."""

    times: list[float]
    numbers: list[int]
    small: np.ndarray  # (frames, h, w, 3) uint8: every eighth pixel
    shapes: set[tuple[int, ...]]
    lost_s: float


@cache
def seen(path: Path, decoder: str) -> Seen:
    reading = Reading()
    frames = [
        (t, _number(rgb), rgb[::8, ::8].copy(), rgb.shape)
        for t, rgb in read_frames(path, probe(path), 0.0, END, EVERY_FRAME, decoder, reading)
    ]
    times, numbers, small, shapes = zip(*frames, strict=True)
    return Seen(list(times), list(numbers), np.stack(small), set(shapes), reading.lost_s)


def _number(rgb: np.ndarray) -> int:
    found = read_frame_number(rgb)
    return -1 if found is None else found


# --- every format ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_every_frame_comes_once_upright_and_at_its_own_time(zoo_file, name, decoder):
    clip = CLIPS[name]
    if decoder == "decord" and name in NOT_WITH_DECORD:
        with pytest.raises(DecordGaveUp):
            seen(zoo_file(name), decoder)
        return
    video = seen(zoo_file(name), decoder)
    assert video.numbers == list(range(len(clip.times)))
    assert video.times == pytest.approx([float(t) for t in clip.times], abs=1e-3)
    assert video.shapes == {(360, 640, 3)}
    assert video.lost_s == 0


@pytest.mark.parametrize("name", [name for name in SOUND if name not in NOT_WITH_DECORD])
def test_both_decoders_show_the_same_pictures(zoo_file, name):
    ours, theirs = (seen(zoo_file(name), decoder) for decoder in ("decord", "pyav"))
    assert ours.times == pytest.approx(theirs.times, abs=1e-9)  # the file's PTS, though decord rounds them
    difference = np.abs(ours.small.astype(int) - theirs.small).mean(axis=(1, 2, 3))
    assert difference.max() < 2.5  # grey levels: they round and interpolate colours differently


@pytest.mark.parametrize("name", SOUND)
def test_a_video_is_described_as_a_viewer_sees_it(zoo_file, name):
    clip, info = CLIPS[name], probe(zoo_file(name))
    assert (info.width, info.height, info.pixel_aspect) == (640, 360, 1.0)
    assert info.start_s == pytest.approx(float(clip.times[0]), abs=1e-3)
    assert info.duration_s == pytest.approx(float(clip.times[0]) + clip.duration, abs=0.06)
    assert info.fps == pytest.approx(len(clip.times) / clip.duration, rel=0.01)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("real_blinks.mp4", "h264"),
        ("av1.mp4", "av1"),
        ("vp9.webm", "vp9"),
        ("mpeg2.mpg", "mpeg2video"),
        ("prores.mov", "prores"),
    ],
)
def test_codecs_go_by_their_own_names_whatever_library_decodes_them(zoo_file, name, codec):
    assert probe(zoo_file(name)).codec == codec


@pytest.mark.parametrize("clockwise", [180, 270])
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_pictures_on_their_head_or_right_side_are_turned_too(tmp_path, clockwise, decoder):
    clip = replace(CLIPS["short.mp4"], path=f"turned_{clockwise}.mp4", rotation=clockwise)
    path = render(clip, tmp_path)
    frames = list(read_frames(path, probe(path), 0.0, END, EVERY_FRAME, decoder, Reading()))
    assert [read_frame_number(rgb) for _, rgb in frames] == list(range(10))
    assert {rgb.shape for _, rgb in frames} == {(360, 640, 3)}


def stamped(number: int) -> np.ndarray:
    picture = Sitter().picture(number / 25)
    stamp_frame_number(picture, number)
    return picture


def write_anamorphic(path: Path, turned: bool) -> None:
    """Ten frames of 640 x 360, stored with half their columns and pixels twice as wide; or lying, with half the rows.

    Pixels that are twice as wide as high in a picture that lies on its side stand for twice the height.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = (180, 640, "yuv420p") if turned else (320, 360, "yuv420p")
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for number in range(10):
            picture = stamped(number)
            picture = np.rot90(picture[::2]) if turned else picture[:, ::2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if turned:
        set_rotation(path, 90)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_pixels_that_are_not_square_are_made_square(tmp_path, decoder, turned):
    path = tmp_path / "anamorphic.mp4"
    write_anamorphic(path, turned)
    info = probe(path)
    assert (info.width, info.height, info.pixel_aspect) == (640, 360, 2.0)
    frames = list(read_frames(path, info, 0.0, END, EVERY_FRAME, decoder, Reading()))
    assert [read_frame_number(rgb) for _, rgb in frames] == list(range(10))
    original = stamped(0).astype(int)
    assert np.abs(frames[0].rgb - original).mean() < 6


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_large_pictures_are_analysed_smaller_and_upright(tmp_path, decoder, clockwise):
    path = tmp_path / "large.mp4"
    large = [np.repeat(np.repeat(stamped(k), 3, axis=0), 3, axis=1) for k in range(2)]
    write_video(path, [np.rot90(picture, clockwise // 90) for picture in large], [Fraction(k, 25) for k in range(2)])
    if clockwise:
        set_rotation(path, clockwise)
    info = probe(path)
    assert (info.width, info.height) == (1920, 1080)
    frames = list(read_frames(path, info, 0.0, END, EVERY_FRAME, decoder, Reading()))
    assert [(read_frame_number(rgb), rgb.shape) for _, rgb in frames] == [(k, (720, 1280, 3)) for k in range(2)]


@given(st.integers(1, 8192), st.integers(1, 8192))
def test_the_analysed_size_keeps_shape_and_limit(width, height):
    info = VideoInfo(1.0, 0.0, width, height, 25.0, "h264", 0, 1.0, "mp4")
    small_width, small_height = analysis_size(info)
    assert min(small_width, small_height) >= 2
    assert max(small_width, small_height) <= max(2, min(max(width, height), decode.ANALYSIS_LONG_SIDE))
    scale = max(small_width, small_height) / max(width, height)
    assert abs(small_width - width * scale) <= 2
    assert abs(small_height - height * scale) <= 2


# --- spans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("variable_fps.mp4", "decord"),
        *((name, "pyav") for name in ("variable_fps.mp4", "late_start.mkv", "mpegts.ts", "bitrot.mp4", "av1.mp4")),
        *((name, "pyav") for name in ("vp9.webm", "mpeg2.mpg", "prores.mov", "rotated_90.mp4")),
    ],
)
@settings(max_examples=4)
@given(data=st.data())
def test_spans_share_out_the_frames_of_a_video(zoo_file, name, decoder, data):
    path, clip = zoo_file(name), CLIPS[name]
    moments = st.one_of(st.floats(0, 11), st.sampled_from([float(t) for t in clip.times]))
    cuts = sorted(data.draw(st.sets(moments, min_size=1, max_size=3)))
    info = probe(path)
    spans = data.draw(st.permutations(list(zip([0.0, *cuts], [*cuts, END], strict=True))))
    found = {span: numbers(path, info, decoder, *span) for span in spans}
    for (start, end), frames in found.items():
        assert all(start - 1e-3 < t < end + 1e-3 for t, _ in frames)  # decord's times have single precision
    together = [frame for span in sorted(found) for frame in found[span]]
    whole = seen(path, decoder)
    assert together == list(zip(whole.times, whole.numbers, strict=True))


def test_a_span_outside_the_video_is_empty(zoo_file):
    path = zoo_file("late_start.mkv")
    info = probe(path)
    for decoder in ("decord", "pyav"):
        assert numbers(path, info, decoder, 0.0, 1.9) == []
        assert numbers(path, info, decoder, 11.0, 20.0) == []


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_thinning_keeps_true_times(zoo_file, decoder):
    path, clip = zoo_file("variable_fps.mp4"), CLIPS["variable_fps.mp4"]
    frames = list(read_frames(path, probe(path), 0.0, END, 15.0, decoder, Reading()))
    times = np.array([t for t, _ in frames])
    truth = np.array([float(clip.times[read_frame_number(rgb) or 0]) for _, rgb in frames])
    assert times == pytest.approx(truth, abs=1e-3)
    # every second frame where there are 30 a second, every one where there are 10
    assert np.diff(times[times < 2]) == pytest.approx(1 / 15, abs=1e-3)
    assert np.diff(times[(times > 2) & (times < 4)]) == pytest.approx(1 / 10, abs=1e-3)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_file_that_is_replaced_is_read_anew(zoo_file, tmp_path, decoder):
    path = tmp_path / "same name.mp4"
    for name in ("short.mp4", 'it\'s "ünïcode" ; name.mp4'):
        shutil.copy(zoo_file(name), path)
        assert len(numbers(path, probe(path), decoder)) == len(CLIPS[name].times)


H264 = [name for name in SOUND if name.endswith((".mp4", ".mkv")) and name not in ("av1.mp4",)]


@pytest.mark.parametrize("name", H264)
@settings(max_examples=3)
@given(fps=st.floats(2, 30), start=st.floats(0, 9), length=st.floats(0.1, 9))
def test_thinning_leaves_out_only_what_nobody_asks_for(zoo_file, name, fps, start, length):
    path, whole = zoo_file(name), seen(zoo_file(name), "pyav")
    reading = Reading()
    frames = list(read_frames(path, probe(path), start, start + length, fps, "pyav", reading))
    kept = sample(np.array(whole.times), start, start + length, fps)
    assert [t for t, _ in frames] == [whole.times[i] for i in kept]
    assert reading.frames == sum(start <= t < start + length for t in whole.times)
    assert all(np.array_equal(rgb[::8, ::8], whole.small[i]) for (_, rgb), i in zip(frames, kept, strict=True))


@pytest.mark.parametrize(("name", "fps", "most"), [("real_blinks.mp4", 15.0, 0.9), ("real_blinks.mp4", 2.0, 0.75)])
def test_pictures_that_nobody_asks_for_and_none_refers_to_are_not_decoded(zoo_file, name, fps, most):
    with av.open(str(zoo_file(name))) as container:
        stream, errors, thinning = container.streams.video[0], decode._Errors(), Thinning(0.0, fps)
        packets = decode._timed(decode._packets(container, stream, errors), 0.0)
        decoded = sum(1 for _ in decode._decode_tolerant(stream, packets, errors, thinning))
    assert decoded < most * len(CLIPS[name].times)


# --- damaged files --------------------------------------------------------------------------------------


def plain_pyav(path: Path) -> Iterator[float]:
    """Times of all frames that PyAV decodes when asked packet by packet."""
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in frames:
                assert frame.time is not None
                yield frame.time


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_yield_every_frame_that_can_be_read(zoo_file, name):
    clip, path = CLIPS[name], zoo_file(name)
    with pytest.raises(DecordGaveUp):
        numbers(path, probe(path), "decord")
    video = seen(path, "pyav")
    assert video.times == pytest.approx(list(plain_pyav(path)), abs=1e-6)
    assert len(video.times) >= clip.readable
    readable = [(t, float(clip.times[n])) for t, n in zip(video.times, video.numbers, strict=True) if n >= 0]
    assert len(readable) >= len(video.times) - 3  # some stamps are scarred
    assert all(abs(t - truth) < 1e-3 for t, truth in readable)


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("fps", [15.0, EVERY_FRAME])
def test_what_was_lost_is_told_in_seconds(zoo_file, name, fps):
    path = zoo_file(name)
    reading = Reading()
    for _ in read_frames(path, probe(path), 0.0, END, fps, "pyav", reading):
        pass
    missing = (len(CLIPS[name].times) - reading.frames) / 25
    assert reading.lost_s == pytest.approx(missing, abs=0.05)


def test_a_hole_in_a_broadcast_is_told_though_nothing_in_it_failed(zoo_file, tmp_path):
    whole = zoo_file("mpegts.ts").read_bytes()
    start, end = len(whole) // 3 // 188 * 188, len(whole) // 2 // 188 * 188
    path = tmp_path / "hole.ts"
    path.write_bytes(whole[:start] + b"\xff" * (end - start) + whole[end:])
    reading = Reading()
    times = [t for t, _ in read_frames(path, probe(path), 0.0, END, EVERY_FRAME, "pyav", reading)]
    assert len(times) < 195
    assert reading.lost_s == pytest.approx((len(CLIPS["mpegts.ts"].times) - len(times)) / 25, abs=0.1)


@pytest.mark.parametrize("form", ["matroska", "webm", "flv", "mp4"])
def test_a_clock_that_does_not_begin_at_zero_makes_no_video_longer(zoo_file, tmp_path, form):
    name = "vp9.webm" if form == "webm" else "real_blinks.mp4"
    path, length = tmp_path / "late", CLIPS[name].duration
    with av.open(str(zoo_file(name))) as source, av.open(str(path), "w", format=form) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                late = round(5000 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + late, packet.dts + late, stream
                out.mux(packet)
    assert probe(path).duration_s == pytest.approx(length, abs=0.1)
    assert len(numbers(path, probe(path), "pyav")) == len(CLIPS[name].times)


def test_pictures_of_an_avi_come_in_order_though_it_knows_no_pts(zoo_file, tmp_path):
    path = tmp_path / "b-frames.avi"
    with av.open(str(zoo_file("real_blinks.mp4"))) as source, av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number, picture in enumerate(itertools.islice(source.decode(video=0), 100)):
            picture.pts, picture.time_base, picture.pict_type = number, Fraction(1, 25), 0
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    found = numbers(path, probe(path), "pyav")
    assert [number for _, number in found] == list(range(100))
    assert np.diff([t for t, _ in found]) == pytest.approx(1 / 25)
    assert found[0][0] < 0.2


# --- no video at all ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [clip.name for clip in CLIPS.values() if not clip.times])
def test_what_shows_nothing_says_why(zoo_file, name):
    with pytest.raises(DecodeError) as caught:
        probe(zoo_file(name))
    assert caught.value.status in CLIPS[name].status
    assert str(caught.value)


@pytest.mark.parametrize("content", [b"GIF89a", b"\0" * 4096, bytes(range(256)) * 40, b"%PDF-1.7\n", b"G" + b" " * 400])
def test_whatever_is_called_mp4_is_not_a_video_for_that(tmp_path, content):
    path = tmp_path / "renamed.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError) as caught:
        probe(path)
    assert caught.value.status is Status.UNSUPPORTED


@pytest.mark.parametrize("name", ["vp9.webm", "mpegts.ts", "late_start.mkv"])
@pytest.mark.parametrize("kept", [4, 60])
def test_the_stump_of_a_video_fails_as_damaged_or_unsupported(zoo_file, tmp_path, name, kept):
    path = tmp_path / name
    path.write_bytes(zoo_file(name).read_bytes()[:kept])
    with pytest.raises(DecodeError) as caught:
        probe(path)
    assert caught.value.status in (Status.DECODE_ERROR, Status.UNSUPPORTED)


def test_a_bare_stream_is_told_what_it_lacks(zoo_file, tmp_path):
    path = tmp_path / "bare.h264"
    with av.open(str(zoo_file("short.mp4"))) as source, av.open(str(path), "w", format="h264") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for picture in source.decode(video=0):
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    with pytest.raises(DecodeError, match=r"ffmpeg -i VIDEO NEW\.mp4") as caught:
        probe(path)
    assert caught.value.status is Status.UNSUPPORTED


def test_pictures_beyond_the_limit_are_too_large(zoo_file, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 640 * 360 - 1)
    with pytest.raises(DecodeError, match="640 x 360") as caught:
        probe(zoo_file("short.mp4"))
    assert caught.value.status is Status.TOO_LARGE
    monkeypatch.setattr(decode, "MAX_PIXELS", 640 * 360)
    assert probe(zoo_file("short.mp4")).width == 640


def test_a_song_with_a_cover_picture_is_no_video(tmp_path):
    cover = _cover_png()
    song = tmp_path / "song.mp3"
    with av.open(str(song), "w") as container:
        stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE, layout="mono")
        for start in range(0, SAMPLE_RATE, 1152):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    picture = b"\0image/png\0\x03\0" + cover  # ID3v2.3 APIC: encoding, MIME type, front cover, no description
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path = tmp_path / "song.mp4"
    path.write_bytes(b"ID3\x03\0\0" + size + frame + song.read_bytes())
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1  # FFmpeg shows the cover as a video track
    with pytest.raises(DecodeError, match="no video stream") as caught:
        probe(path)
    assert caught.value.status is Status.UNSUPPORTED


def _cover_png() -> bytes:
    codec = av.CodecContext.create("png", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.width = codec.height = 64
    codec.pix_fmt, codec.time_base = "rgb24", Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def test_reasons_survive_the_way_out_of_a_child_process():
    import pickle

    error = pickle.loads(pickle.dumps(DecodeError("gone", Status.TOO_LARGE)))
    assert (str(error), error.status) == ("gone", Status.TOO_LARGE)


def test_a_script_that_calls_itself_a_video_reads_no_neighbour(tmp_path):
    (tmp_path / "secret.mp4").write_bytes((ARCHIVE / "talks" / "real_blinks.mp4").read_bytes())
    script = tmp_path / "video.mp4"
    script.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(DecodeError) as caught:
        probe(script)
    assert caught.value.status is Status.UNSUPPORTED
