"""decord, asked where PyAV hangs or dies: it brings another FFmpeg along."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scanner.decode import Frame, Reading, VideoInfo, analysis_size
from scanner.guard import GuardFailure
from scanner.results import Status
from scanner.thinning import sample

#: decord shows wrong pictures of these without a word: it starts MPEG-TS at the second keyframe.
NOT_FOR_DECORD = frozenset({"mpegts"})

T = TypeVar("T")


class DecordGaveUp(Exception):
    """decord can't read this file, or not all of the span."""


def with_second_opinion(run: Callable[[str], T]) -> T:
    """What a guarded `run(decoder)` answers with PyAV; where the child hangs or dies, with decord, another FFmpeg.

    decord does not come first. Its thread decodes hundreds of frames ahead of a slower reader, for nothing where a
    keyframe follows, and it gives up when one of them is damaged, inside the span or behind it: as its thread ran.
    Raises GuardFailure: PyAV's, if decord fails as well.
    """
    try:
        return run("pyav")
    except GuardFailure as failure:
        if failure.status is not Status.TOO_LARGE:
            with contextlib.suppress(GuardFailure, DecordGaveUp):
                return run("decord")
        raise


def decord_frames(
    path: Path, info: VideoInfo, t_start: float, t_end: float, fps: float, reading: Reading
) -> Iterator[Frame]:
    """Yield the frames of a span, as `decode.read_frames` does. Raises DecordGaveUp."""
    # decord rereads a file 16 times over an unreadable stretch unless this is set when it is loaded.
    os.environ.setdefault("DECORD_REWIND_RETRY_MAX", "1")
    import decord  # here, since it brings another FFmpeg along, which most processes never need

    try:
        reader, times = _open(decord, path, info)
        wanted = sample(times, t_start, t_end, fps)
        if not len(wanted):
            return
        reader.seek_accurate(int(wanted[0]))
        upcoming = int(wanted[0])
        for index in wanted:
            if index > upcoming:
                reader.skip_frames(int(index) - upcoming)
            rgb = reader.next().asnumpy()
            upcoming = int(index) + 1
            reading.seen(float(times[index]), interval=0.0)
            yield Frame(float(times[index]), rgb)
    except (StopIteration, decord.DECORDError, decord.DECORDLimitReachedError, OSError) as error:
        raise DecordGaveUp(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _open(decord: Any, path: Path, info: VideoInfo) -> tuple[Any, np.ndarray]:
    if info.container in NOT_FOR_DECORD:
        raise DecordGaveUp("not for decord")
    if info.restarts:
        raise DecordGaveUp("its clock starts anew on the way")
    width, height = analysis_size(info)
    if (width, height) == (info.width, info.height) and info.pixel_aspect == 1:
        width = height = -1  # as stored: scaling costs more than it saves
    # decord fills unreadable frames with copies of their neighbours unless it is told to tolerate none.
    options: dict[str, Any] = {"num_threads": 1, "width": width, "height": height, "fault_tol": 1e-9}
    reader = decord.VideoReader(str(path), **options)
    times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0] if len(reader) else np.zeros(0)
    if not len(times) or not np.all(np.isfinite(times)) or np.any(np.diff(times) < 0):
        raise DecordGaveUp("no usable timestamps")
    if times[0] < 0:
        raise DecordGaveUp("an edit list hides the first frames, which decord miscounts")
    # decord counts from the first picture, we from the container's start.
    return reader, on_ticks(times, info) + info.start_s


def on_ticks(times: np.ndarray, info: VideoInfo) -> np.ndarray:
    """The PTS that single-precision times stand for, (frames,) float64 seconds: 2.4, and not 2.4000000953674316.

    Where single precision is coarser than the stream's ticks (of 1/90,000 s: after two minutes), the nearest one.
    """
    ticks = np.round(times.astype(np.float64) / float(info.tick))
    return ticks * info.tick.numerator / info.tick.denominator
