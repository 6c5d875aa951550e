"""Cut files hold the frames and times that they say; names, merging and subtitles of stretches."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.cutting import MAX_LEAD_S, Cut, cut
from scanner.decode import DecodeError
from scanner.stretches import Stretch, clip_name, json_safe, merge, stretch_of, subtitle_name, subtitles
from tests.zoo import ARCHIVE, ZOO
from tests.zoo_face import read_frame_number, stamp_frame_number
from tests.zoo_files import set_rotation

EXACT_S = 2e-3  # Matroska counts milliseconds


def make(name: str, start: float, end: float, tmp_path: Path, *, reencode: bool = False) -> tuple[Cut, Path]:
    return make_from(ARCHIVE / ZOO[name].path, start, end, tmp_path, reencode=reencode)


def make_from(source: Path, start: float, end: float, tmp_path: Path, *, reencode: bool = False) -> tuple[Cut, Path]:
    work = tmp_path / "work"
    made = cut(str(source), str(work), start, end, reencode)
    return made, work.rename(tmp_path / f"clip{made.suffix}")


def shown(path: Path) -> list[tuple[float, int | None]]:
    """(time, stamped number) of what a player shows, the display matrix heeded."""
    with av.open(str(path)) as container:
        return [
            (frame.time, read_frame_number(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)))
            for frame in container.decode(video=0)
            if frame.time is not None
        ]


def sound(path: Path) -> tuple[float, float, float]:
    """(start, end, loudness) of the first audio track."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    loud = math.sqrt(np.mean([np.mean(np.square(frame.to_ndarray().astype(float))) for frame in frames]))
    return frames[0].time or 0.0, (frames[-1].time or 0.0) + frames[-1].samples / frames[-1].sample_rate, loud


# --- what is in a file ------------------------------------------------------------------------------------

STRETCHES = [
    ("real_blinks.mp4", 5.0, 7.0),
    ("variable_fps.mp4", 3.5, 4.5),
    ("rotated_90.mp4", 4.5, 5.5),
    ("late_start.mkv", 6.5, 8.0),
    ("mpegts.ts", 5.0, 6.0),
    ("av1.mp4", 3.0, 4.0),
]


@pytest.mark.parametrize(("name", "start", "end"), STRETCHES)
def test_a_copy_holds_the_stretch_at_the_times_it_says(name, start, end, tmp_path):
    made, path = make(name, start, end, tmp_path)
    assert (made.method, made.suffix, made.reason) == ("copy", ".mp4", None)
    assert start - MAX_LEAD_S <= made.t_start <= start
    assert end - 0.1 <= made.t_end <= end + 0.2
    times = ZOO[name].times
    pictures = shown(path)
    assert pictures[0][0] == pytest.approx(0, abs=EXACT_S)
    for t, number in pictures:
        assert number is not None
        assert made.t_start + t == pytest.approx(float(times[number]), abs=EXACT_S)
    wanted = {number for number, t in enumerate(times) if made.t_start - EXACT_S <= t < end}
    assert wanted <= {number for _, number in pictures}


@pytest.mark.parametrize(("name", "start", "end"), STRETCHES)
def test_an_encoded_stretch_holds_exactly_what_was_asked_for(name, start, end, tmp_path):
    made, path = make(name, start, end, tmp_path, reencode=True)
    assert (made.method, made.suffix, made.reason) == ("reencode", ".mp4", "asked for")
    assert (made.t_start, made.t_end) == (pytest.approx(start, abs=0.02), pytest.approx(end, abs=0.05))
    times = ZOO[name].times
    wanted = [number for number, t in enumerate(times) if start - EXACT_S <= t < end]
    pictures = [(t, number) for t, number in shown(path) if number in wanted]
    assert [number for _, number in pictures] == wanted
    for t, number in pictures:
        assert number is not None
        assert made.t_start + t == pytest.approx(float(times[number]), abs=EXACT_S)


def test_an_encoded_rotated_video_lies_upright_in_the_file(tmp_path):
    _, path = make("rotated_90.mp4", 1, 1.2, tmp_path, reencode=True)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height, frame.rotation) == (640, 360, 0)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_copy_and_an_encoded_stretch_are_turned_alike(degrees, tmp_path):
    source = tmp_path / "turned.mp4"
    source.write_bytes((ARCHIVE / ZOO["short.mp4"].path).read_bytes())
    set_rotation(source, degrees)
    pictures = []
    for reencode in (False, True):
        _, path = make_from(source, 0, 0.4, tmp_path, reencode=reencode)
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
        pictures.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90).astype(int))
    copied, encoded = pictures
    assert copied.shape == encoded.shape
    assert np.abs(copied - encoded).mean() < 3


def test_an_encoded_stretch_begins_with_the_picture_that_was_on_screen(tmp_path):
    made, path = make("variable_fps.mp4", 3.05, 3.5, tmp_path, reencode=True)
    before = max(number for number, t in enumerate(ZOO["variable_fps.mp4"].times) if t <= 3.05)
    assert made.t_start == 3.05
    assert shown(path)[0] == (0, before)


@pytest.mark.parametrize("reencode", [False, True])
def test_sound_is_kept_and_stays_with_the_picture(reencode, tmp_path):
    made, path = make("late_start.mkv", 6.5, 8.0, tmp_path, reencode=reencode)
    start, end, loud = sound(path)
    assert start == pytest.approx(0, abs=0.05)
    assert made.t_start + end == pytest.approx(8.0, abs=0.1)
    assert loud == pytest.approx(0.05 / math.sqrt(2), rel=0.2)


@pytest.mark.parametrize("reencode", [False, True])
def test_a_stretch_from_before_the_picture_begins_with_it(reencode, tmp_path):
    made, path = make("late_start.mkv", 0.0, 3.0, tmp_path, reencode=reencode)
    assert made.t_start == pytest.approx(2.0)
    assert shown(path)[0] == (pytest.approx(0, abs=EXACT_S), 0)


def test_a_keyframe_that_is_too_long_ago_means_encoding(tmp_path):
    made, path = make("vp9.webm", 5.08, 5.6, tmp_path)  # keyframes at 0 and 5.12 s
    assert made.method == "reencode"
    assert made.reason == "the keyframe before it is 5.1 s away"
    assert shown(path)[0][1] == 127


def stamped(numbers: int) -> list[np.ndarray]:
    pictures = []
    for number in range(numbers):
        picture = np.full((180, 320, 3), 90, np.uint8)
        stamp_frame_number(picture, number)
        pictures.append(picture)
    return pictures


def write(path: Path, codec: str, pix_fmt: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 180, pix_fmt
        for number, picture in enumerate(stamped(50)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_what_does_not_go_into_mp4_is_copied_into_matroska(tmp_path):
    made, path = make_from(
        write(tmp_path / "old.webm", "libvpx", "yuv420p", {"b": "2000000", "g": "20"}), 1.0, 1.5, tmp_path
    )
    assert (made.method, made.suffix) == ("copy", ".mkv")
    assert [number for _, number in shown(path)] == list(range(round(made.t_start * 25), round(made.t_end * 25)))


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_container_without_times_is_encoded_in_the_order_of_the_pictures(codec, tmp_path):
    source = write(tmp_path / "old.avi", codec, "yuv420p", {"bf": "2", "b": "2000000", "g": "10"})
    made, path = make_from(source, 1.0, 1.5, tmp_path)
    assert (made.method, made.reason) == ("reencode", "its packets have no times")
    pictures = shown(path)
    assert [number for _, number in pictures] in ([*range(24, 36)], [*range(24, 37)], [*range(25, 38)])
    assert [t for t, _ in pictures] == [pytest.approx(k / 25, abs=EXACT_S) for k in range(len(pictures))]


@pytest.mark.parametrize(("name", "end"), [("bitrot.mp4", 7.0), ("truncated_faststart.mp4", 3.0)])
def test_of_a_damaged_video_what_can_be_read_is_cut(name, end, tmp_path):
    made, path = make(name, end - 1, end, tmp_path)
    assert len(shown(path)) >= 20
    assert made.t_end == pytest.approx(end, abs=0.2)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("truncated.mp4", "not a video that can be read"),
        ("text.mp4", "not a video that can be read"),
        ("empty.mp4", "not a video that can be read"),
        ("audio_only.mp4", "no video stream"),
        ("no_frames.mp4", "no frame could be decoded"),
    ],
)
def test_what_is_no_video_is_refused_with_a_reason(name, says, tmp_path):
    with pytest.raises(DecodeError, match=says):
        make(name, 0, 1, tmp_path)


@pytest.mark.parametrize(("start", "end"), [(12.5, 13.0), (500.0, 501.0), (1e300, 1e301)])
def test_a_stretch_behind_the_end_is_refused(start, end, tmp_path):
    with pytest.raises(DecodeError, match=r"no picture|picture ends"):
        make("real_blinks.mp4", start, end, tmp_path)


def test_a_script_that_names_other_files_is_no_video(tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes((ARCHIVE / ZOO["short.mp4"].path).read_bytes())
    script = tmp_path / "innocent.mp4"
    script.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(DecodeError, match="not a video"):
        make_from(script, 0, 0.4, tmp_path)


# --- stretches --------------------------------------------------------------------------------------------


def stretch(start: float, end: float, uri: str = "/a/v.mp4", **more: Any) -> Stretch:
    return stretch_of({"uri": uri, "t_start": start, "t_end": end, **more})


moments = st.integers(0, 400).map(lambda tenths: tenths / 8)
some_stretches = st.lists(
    st.builds(lambda t, length, uri: stretch(t, t + length, uri), moments, moments, st.sampled_from(["/a", "/b"])),
    max_size=12,
)


@given(some_stretches, st.sampled_from([0.0, 0.5, 2.0]))
def test_merged_stretches_lie_apart_and_lose_nothing(stretches, gap):
    merged = merge(stretches, gap)
    assert sorted(id(row) for s in merged for row in s.rows) == sorted(id(row) for s in stretches for row in s.rows)
    for one in merged:
        assert one.t_start == min(row["t_start"] for row in one.rows)
        assert one.t_end == max(row["t_end"] for row in one.rows)
        assert {row["uri"] for row in one.rows} == {one.uri}
        for other in merged:
            if other is not one and other.uri == one.uri:
                distance = max(one.t_start, other.t_start) - min(one.t_end, other.t_end)
                assert distance > 0
                assert distance >= gap
    assert merge(merged, gap) == merged


def test_merging_keeps_the_querys_order():
    merged = merge([stretch(50, 51), stretch(3, 4, "/b"), stretch(1, 2), stretch(51.2, 52)], 0.5)
    assert [(s.uri, s.t_start, s.t_end) for s in merged] == [("/a/v.mp4", 50, 52), ("/b", 3, 4), ("/a/v.mp4", 1, 2)]


def test_touching_stretches_become_one_even_without_a_gap():
    assert len(merge([stretch(1, 2), stretch(2, 3)], 0)) == 1
    assert len(merge([stretch(1, 2), stretch(2.1, 3)], 0)) == 2


@pytest.mark.parametrize(
    ("start", "end"), [(None, 1.0), (1.0, None), (math.nan, 1.0), (1.0, math.inf), (2.0, 1.0), (-2.0, -1.0)]
)
def test_times_that_are_none_are_refused(start, end):
    with pytest.raises(ValueError, match=r"t_start|end"):
        stretch_of({"uri": "/v.mp4", "t_start": start, "t_end": end})


@given(st.text(min_size=1), st.text(max_size=300))
def test_a_name_is_one_safe_file_name(key, face):
    name = clip_name(stretch(1, 2, f"s3://b/{key}", face_id=face)) + ".json"
    assert "/" not in name
    assert "\\" not in name
    assert not name.startswith((".", "-"))
    assert name.isprintable()
    assert len(name.encode()) <= 200
    assert name == clip_name(stretch(1, 2, f"s3://b/{key}", face_id=face)) + ".json"


def test_names_tell_videos_times_and_faces_apart():
    one = clip_name(stretch(62.5, 64, "s3://b/2024/talk.mp4", face_id="1-0"))
    assert one.startswith("talk_00062.500-00064.000_face1-0_")
    others = [
        clip_name(stretch(62.5, 64, "s3://b/2025/talk.mp4", face_id="1-0")),
        clip_name(stretch(62.6, 64, "s3://b/2024/talk.mp4", face_id="1-0")),
        clip_name(stretch(62.5, 64, "s3://b/2024/talk.mp4", face_id="1-1")),
    ]
    assert len({one, *others}) == 4
    assert subtitle_name("s3://b/2024/talk.mp4") != subtitle_name("s3://b/2025/talk.mp4")


def test_a_file_uri_of_a_name_that_is_not_utf8_has_a_name():
    assert clip_name(stretch(0, 1, "file:///a/caf%E9.mp4")).startswith("caf")


@pytest.mark.parametrize("value", [math.nan, -math.inf, b"\xff", Decimal("1.5"), [math.nan, {"a": b"x"}], None, True])
def test_values_of_rows_become_json(value):
    json.dumps(json_safe(value), allow_nan=False)


def test_moments_and_durations_become_json():
    assert json_safe(datetime(2025, 3, 1, tzinfo=timezone.utc)) == "2025-03-01T00:00:00+00:00"
    assert json_safe(timedelta(seconds=1.5)) == 1.5


def test_subtitles_mark_each_face_with_its_highest_score():
    rows = [(1, 2, "0-0", 0.7), (1.9, 3, "0-0", 0.912), (2.5, 3.5, "0-1", 0.6), (3725.04, 3726, "62-0", None)]
    text = subtitles([stretch(a, b, face_id=face, score=score, flagged=True) for a, b, face, score in rows], 0.5)
    assert text == (
        "1\n00:00:01,000 --> 00:00:03,000\nflagged · face 0-0 · score 0.91\n\n"
        "2\n00:00:02,500 --> 00:00:03,500\nflagged · face 0-1 · score 0.60\n\n"
        "3\n01:02:05,040 --> 01:02:06,000\nflagged · face 62-0\n"
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([True, False], "flagged · face 0-0"),
        ([False, True], "flagged · face 0-0"),
        ([False, False], "not flagged · face 0-0"),
        ([False, None], "face 0-0"),
        ([], "face 0-0"),
    ],
)
def test_subtitles_say_flagged_where_a_clip_is_and_nothing_where_it_is_not_told(flags, says):
    rows = [{"flagged": flag} for flag in flags] or [{}, {}]
    text = subtitles([stretch(i, i + 1, face_id="0-0", **row) for i, row in enumerate(rows)], 0.5)
    assert text.splitlines()[1:] == ["00:00:00,000 --> 00:00:02,000", says]


def test_a_cue_is_never_empty():
    assert subtitles([stretch(0, 1)], 0.5).splitlines()[2] == "stretch"


def test_subtitles_cannot_be_broken_out_of():
    text = subtitles([stretch(0, 1, face_id="<b>\n\n2\n00:00:00,000 --> 00:00:09,000")], 0.5)
    assert len(text.splitlines()) == 3
    assert "<b>" not in text
