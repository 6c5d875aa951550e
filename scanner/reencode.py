"""Copies of videos after one more pass through H.264, as platforms make them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import av.stream
import numpy as np
from av.error import FFmpegError

from scanner.decode import DecodeError, VideoInfo, pictures, probe
from scanner.guard import Guard, GuardFailure
from scanner.results import Status

TICKS = Fraction(1, 90_000)  # seconds; every usual frame rate fits
DEADLINE_S = 60.0  # of a copy, and so many seconds more for each second of video:
DEADLINE_PER_SECOND = 20.0  # 1080p at libx264's medium takes about 5 on one core that others share


def make_copies(wanted: Mapping[str, tuple[Path, float]], crf: int) -> dict[str, tuple[Status, str]]:
    """Write a copy of each video that has none yet; what became of those that could not be copied.

    wanted: path of a video → its copy's path, and the video's seconds. Each is decoded and encoded in a child process
    that is killed when it hangs: see scanner.guard.
    """
    lost: dict[str, tuple[Status, str]] = {}
    guard = Guard(preload=("scanner.reencode",))
    try:
        for path, (copy, seconds) in wanted.items():
            if copy.exists():
                continue
            deadline = DEADLINE_S + DEADLINE_PER_SECOND * seconds
            try:
                guard.run(reencode, path, str(copy), crf, deadline_s=deadline)
            except (GuardFailure, DecodeError) as error:
                lost[path] = (error.status, f"re-encoding: {error}")
            except OSError as error:
                lost[path] = (Status.DECODE_ERROR, f"re-encoding: {error.strerror or error}")
    finally:
        guard.close()
    return lost


def reencode(path: str, target: str, crf: int) -> None:
    """Write the picture of a video to `target` (MP4), encoded by libx264 at `crf`: upright, square pixels, no sound.

    Frames keep their times, so a variable rate stays one; packets that can't be decoded are passed over. `target` is
    there whole or not at all. Raises DecodeError or OSError.
    """
    info = probe(Path(path))
    partial = f"{target}.{os.getpid()}.part"
    try:
        _encode(pictures(Path(path), info), partial, info, crf)
        Path(partial).replace(target)
    except FFmpegError as error:  # many are OSErrors, too; none of them survives the way to another process
        raise DecodeError(error.strerror or str(error)) from None
    finally:
        Path(partial).unlink(missing_ok=True)


def _encode(shown: Iterator[tuple[float, av.VideoFrame]], target: str, info: VideoInfo, crf: int) -> None:
    with av.open(target, "w", format="mp4") as copy:
        stream = copy.add_stream("libx264", rate=Fraction(info.fps or 25).limit_denominator(1001))
        stream.width, stream.height = _even(info.width), _even(info.height)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf)}
        stream.codec_context.time_base = TICKS
        last = -1
        for t, stored in shown:
            ticks = round(t / TICKS)
            if ticks > last:  # an edit list hides what is shown before 0
                picture = _upright(stored, info)
                picture.pts, picture.time_base, last = ticks, TICKS, ticks
                copy.mux(stream.encode(picture))
        copy.mux(stream.encode())


def _upright(picture: av.VideoFrame, info: VideoInfo) -> av.VideoFrame:
    width, height = _even(info.width), _even(info.height)
    if not info.rotation:
        return picture.reformat(width, height, "yuv420p")
    if info.rotation in (90, 270):
        width, height = height, width
    rgb: np.ndarray = picture.reformat(width, height, "rgb24").to_ndarray()
    turned = np.rot90(rgb, info.rotation // 90).astype(np.uint8)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")


def _even(side: int) -> int:
    """yuv420p halves both sides."""
    return max(2, side - side % 2)
