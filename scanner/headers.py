"""Durations of videos from their headers alone, also of videos in a bucket, of which only the ends are fetched."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scanner.analysis import probe_video
from scanner.decode import DecodeError, VideoInfo
from scanner.guard import Guard, GuardFailure
from scanner.names import has_video_extension
from scanner.sources import Video
from scanner.storage import S3_ERRORS, get_object_bytes
from scanner.uris import is_s3, local_path, split_s3

DEADLINE_S = 30.0  # for one header: a recording without one would be read whole
#: Bytes fetched of each end of a video in a bucket. A header is at one of the two; that of an hour takes 2 MB.
ENDS = (1 << 20, 16 << 20)
SURE_START_S = 1.0  # a first picture after that may only be the first one behind the hole, and counts the rest twice


@dataclass(frozen=True)
class Duration:
    """One sampled video: its bytes, and the seconds that a scan would look at: 0 where it is no video."""

    size_bytes: int
    seconds: float


def durations(videos: Sequence[Video], memory_limit: int) -> list[Duration]:
    """The durations of those videos whose header could be read, or was found to be broken.

    Headers are read in a child process, for they come from strangers. memory_limit: bytes, of that child.
    """
    guard = Guard(preload=("scanner.decode",), memory_limit=memory_limit)
    try:
        return [found for video in videos if (found := _duration(video, guard)) is not None]
    finally:
        guard.close()


def _duration(video: Video, guard: Guard) -> Duration | None:
    size = video.size_bytes or 0
    if video.error is not None:
        return Duration(size, 0.0)
    if not is_s3(video.uri):
        try:
            return Duration(size, _info(local_path(video.uri), guard).duration_s)
        except DecodeError:
            return Duration(size, 0.0)
        except (GuardFailure, OSError):
            return None
    for piece in ENDS:
        with contextlib.suppress(DecodeError, GuardFailure, OSError, *S3_ERRORS), _ends(video, piece) as path:
            info = _info(path, guard)
            if info.start_s <= SURE_START_S or size <= 2 * piece:
                return Duration(size, info.duration_s)
    return None


def _info(path: Path, guard: Guard) -> VideoInfo:
    return guard.run(probe_video, str(path), deadline_s=DEADLINE_S)


@contextlib.contextmanager
def _ends(video: Video, piece: int) -> Iterator[Path]:
    """A local file as long as the video, with the first and the last `piece` bytes of it and a hole between."""
    _, key = split_s3(video.uri)
    size = video.size_bytes or 0
    starts = [0] if size <= 2 * piece else [0, size - piece]
    with tempfile.NamedTemporaryFile(prefix="deepsweep-header-", suffix=extension(key)) as file:
        file.truncate(size)  # takes no space on the disk
        for start in starts:
            end = size if len(starts) == 1 else start + piece
            file.seek(start)
            file.write(get_object_bytes(video.uri, Range=f"bytes={start}-{end - 1}"))
        file.flush()
        yield Path(file.name)


def extension(key: str) -> str:
    """The extension of a video's key, which some containers are recognised by; "" for any other."""
    return Path(key).suffix if has_video_extension(key) else ""
