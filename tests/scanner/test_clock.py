"""Recordings whose clock starts anew: found, and read as one video from end to end."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner import clock
from scanner.cutting import cut
from scanner.decode import DecodeError, Reading, probe, read_frames
from scanner.reencode import reencode
from tests.zoo import ARCHIVE, ZOO
from tests.zoo_face import read_frame_number

SHIPPED = ARCHIVE / ZOO["mpegts.ts"].path  # 8 s, 200 frames, its clock starts at 10 s
FRAMES = 200


def recording(path: Path, starts_at: float, form: str = "mpegts") -> Path:
    """The pictures of mpegts.ts in a recording whose clock starts at `starts_at` seconds."""
    codec = {"mpegts": "libx264", "mpeg": "mpeg2video"}[form]
    with av.open(str(SHIPPED)) as source, av.open(str(path), "w", format=form) as out:
        stream = out.add_stream(codec, rate=25, options={"bf": "2", "g": "50"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 640, 360, "yuv420p", 4_000_000
        for number, picture in enumerate(source.decode(video=0)):
            picture.pts, picture.time_base = round(starts_at * 25) + number, Fraction(1, 25)
            picture.pict_type = 0
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    return path


def joined(folder: Path, starts: tuple[float, ...], form: str = "mpegts") -> Path:
    parts = [recording(folder / f"{number}.part", at, form).read_bytes() for number, at in enumerate(starts)]
    path = folder / "joined.bin"
    path.write_bytes(b"".join(parts))
    return path


def frames(path: Path, start: float = 0.0, end: float = 1e9) -> list[tuple[float, int | None]]:
    reading = Reading()
    found = [(t, read_frame_number(rgb)) for t, rgb in read_frames(path, probe(path), start, end, 100, "pyav", reading)]
    assert reading.lost_s == 0
    return found


@pytest.mark.parametrize(
    ("starts", "form"),
    [
        ((5.0, 5.0), "mpegts"),
        ((5.0, 2.0, 0.5), "mpegts"),
        ((5000.0, 0.0), "mpegts"),  # looks as if the counter had run over
        ((0.0, 50_000.0), "mpegts"),
        ((5.0, 1.0), "mpeg"),
    ],
)
def test_joined_recordings_are_one_video(tmp_path, starts, form):
    path = joined(tmp_path, starts, form)
    info = probe(path)
    assert info.restarts and info.duration_s == pytest.approx(8 * len(starts), abs=0.15)
    found = frames(path)
    assert [number for _, number in found] == list(range(FRAMES)) * len(starts)
    assert np.diff([t for t, _ in found]) == pytest.approx(1 / 25, abs=0.045)


def test_spans_share_out_the_frames_of_joined_recordings(tmp_path):
    path = joined(tmp_path, (5.0, 2.0))
    cuts = [0.0, 3.0, 7.97, 8.03, 12.5, 1e9]
    parts = [frames(path, start, end) for start, end in pairwise(cuts)]
    assert [frame for part in parts for frame in part] == frames(path)
    assert all(start <= t < end for part, (start, end) in zip(parts, pairwise(cuts), strict=True) for t, _ in part)


@pytest.mark.parametrize("name", [clip.name for clip in ZOO.values() if clip.times and clip.shipped])
def test_a_clock_that_goes_on_is_left_alone(name):
    assert not probe(ARCHIVE / ZOO[name].path).restarts


def test_hours_that_are_not_there_are_no_new_clock(tmp_path):
    """As a dry run sees a video in a bucket: both its ends, and nothing between."""
    first, last = (recording(tmp_path / str(at), at).read_bytes() for at in (0.0, 7200.0))
    path = tmp_path / "ends.ts"
    path.write_bytes(first + bytes(40 * len(first)) + last)
    info = probe(path)
    assert not info.restarts and info.duration_s == pytest.approx(7208, abs=0.2)


def test_no_moment_of_joined_recordings_is_cut_out_at_the_wrong_place(tmp_path):
    with pytest.raises(DecodeError, match="ffmpeg -i VIDEO -c copy"):
        cut(str(joined(tmp_path, (5.0, 2.0))), str(tmp_path / "cut"), 9.0, 10.0)


def test_a_copy_of_joined_recordings_has_one_clock(tmp_path):
    path = joined(tmp_path, (5.0, 2.0))
    reencode(str(path), str(tmp_path / "copy.mp4"), 20)
    assert len(frames(tmp_path / "copy.mp4")) == 2 * FRAMES


@given(st.lists(st.lists(st.integers(1, 90_000), max_size=20), max_size=5), st.data())
def test_times_ascend_from_end_to_end_whatever_the_clocks_were(recordings, data):
    packets = []
    for steps in recordings:
        dts = data.draw(st.integers(0, 1 << 33))
        for step in steps:
            packet = av.Packet(1)
            packet.dts, packet.pts, packet.time_base = dts, dts + 3600, Fraction(1, 90_000)
            packets.append(packet)
            dts += step
    found = [(packet.dts, packet.pts) for packet in clock.on_one_clock(iter(packets))]
    steps = np.diff([dts for dts, _ in found])
    assert all(pts - dts == 3600 for dts, pts in found)
    assert (steps > -clock.BACK_S * 90_000).all() and (steps < clock.AHEAD_S * 90_000).all()
