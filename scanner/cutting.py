"""Cutting a stretch out of a video: its packets as they are where that can be played, else encoded anew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.stream
from av.error import FFmpegError

from scanner import clock
from scanner.cut_encode import EDGE_S, READ_ON_S, Source, encode, packets
from scanner.decode import SAFELY, SEEK_BACKOFF_S, DecodeError, probe
from scanner.results import Status

MAX_LEAD_S = 5.0  # a copy begins at a keyframe; one longer ago shows too much of what was not asked for
MAX_DRIFT_S = 0.1  # a copy that begins elsewhere than it says is no evidence

#: What a copy may be written as, in this order: (FFmpeg's name, suffix).
COPIES = (("mp4", ".mp4"), ("matroska", ".mkv"))


@dataclass(frozen=True)
class Cut:
    """What a file that was cut holds. Times in seconds of the video it is from."""

    suffix: str  # ".mp4" or ".mkv"
    method: str  # "copy" or "reencode"
    reason: str | None  # why it was encoded anew
    t_start: float  # what the file's own 0 is
    t_end: float


class CannotCopy(Exception):
    """The packets can't be had as they are: encode the stretch anew."""


def cut(path: str, target: str, t_start: float, t_end: float, reencode: bool = False) -> Cut:
    """Write what a video shows and plays from t_start to t_end (seconds) to the file `target`, over what is there.

    A copy begins at the last keyframe at or before t_start and may end a few frames late; an encoded stretch begins
    and ends where it should, upright, in H.264 and AAC. Sound is kept; subtitles, data and metadata are left out.
    Raises DecodeError.
    """
    try:
        key, seek_to = _find_keyframe(path, t_start)
        if key is not None and key >= t_end:
            raise DecodeError(f"there is no picture from {t_start:.2f} to {t_end:.2f} s")
        try:
            if reencode:
                raise CannotCopy("asked for")
            return _copy(path, target, key, seek_to, t_start, t_end)
        except CannotCopy as why:
            info = probe(Path(path))
            with open_source(path, seek_to) as source:
                begin, end = encode(source, info, target, t_start, t_end)
            return Cut(".mp4", "reencode", str(why), begin, end)
    except FFmpegError as error:  # many are OSErrors, too; none of them survives the way to another process
        raise DecodeError(error.strerror or str(error)) from None
    except (ValueError, OSError) as error:
        raise DecodeError(getattr(error, "strerror", None) or str(error)) from None


# --- reading ----------------------------------------------------------------------------------------------


@contextmanager
def open_source(path: str, seek_to: float | None = None) -> Iterator[Source]:
    """A video to read packets of, from a keyframe at or before seek_to (seconds) on. Raises DecodeError."""
    try:
        container = av.open(path, options=SAFELY, metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DecodeError(f"not a video that can be read: {reason}", Status.UNSUPPORTED) from None
    with container:
        pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not pictures:
            raise DecodeError("there is no video stream in it", Status.UNSUPPORTED)
        if container.format.name in clock.CAN_RESTART and probe(Path(path)).restarts:
            raise DecodeError(
                "its clock starts anew on the way, so that no moment can be found: give it one with "
                "`ffmpeg -i VIDEO -c copy NEW.mkv`, and scan that"
            )
        origin = Fraction(container.start_time or 0, av.time_base)
        if seek_to is not None:
            with suppress(FFmpegError, OverflowError):  # some containers can't seek: they are read from the start
                container.seek(int((seek_to + origin) * av.time_base), backward=True)
        yield Source(container, pictures[0], list(container.streams.audio), origin)


def _seconds(ticks: int | None, packet: av.Packet, source: Source) -> Fraction | None:
    """A packet's pts or dts in seconds of the video."""
    return None if ticks is None else ticks * Fraction(packet.time_base) - source.origin


def _find_keyframe(path: str, t_start: float) -> tuple[Fraction | None, float | None]:
    """(time of the last keyframe at or before t_start, seek target from which reading meets it).

    The first keyframe where the picture begins later; None where packets have no times. The target is None for
    the start of the file.
    """
    for backoff in (*SEEK_BACKOFF_S, math.inf):
        seek_to = t_start - backoff if t_start > backoff else None
        key = first = None
        with open_source(path, seek_to) as source:
            for packet in packets(source, [source.video]):
                t = _seconds(packet.pts, packet, source)
                if packet.size and t is None:
                    return None, None
                if t is not None and packet.is_keyframe:
                    first = t if first is None else first
                    key = t if t <= t_start + EDGE_S else key
                decoded_at = _seconds(packet.dts, packet, source)
                if decoded_at is not None and decoded_at > t_start and first is not None:
                    break
        if key is not None:
            return key, seek_to
        if seek_to is None:
            return first, None
    return None, None


# --- copying ----------------------------------------------------------------------------------------------


def _copy(path: str, target: str, key: Fraction | None, seek_to: float | None, t_start: float, t_end: float) -> Cut:
    if key is None or _lacks_times(path):
        raise CannotCopy("its packets have no times")
    lead = t_start - float(key)
    if lead > MAX_LEAD_S:
        raise CannotCopy(f"the keyframe before it is {lead:.1f} s away")
    problem = ""
    for name, suffix in COPIES:
        try:
            end = _copy_packets(path, target, name, key, seek_to, t_end)
            if end <= t_start:
                raise DecodeError(f"the picture ends at {end:.2f} s, before {t_start:.2f} s")
            _play(target)
            return Cut(suffix, "copy", None, float(key), end)
        except (FFmpegError, ValueError) as error:
            problem = getattr(error, "strerror", None) or str(error)
    raise CannotCopy(f"it can't be copied into MP4 or Matroska: {problem}")


def _lacks_times(path: str) -> bool:
    """Whether pictures are reordered by times that FFmpeg guesses: AVI stores none."""
    with open_source(path) as source:
        context = source.video.codec_context
        return source.container.format.name == "avi" and (context is None or context.has_b_frames)


def _copy_packets(path: str, target: str, name: str, key: Fraction, seek_to: float | None, t_end: float) -> float:
    """Write the packets from the keyframe at `key` on; where the picture ends, in seconds of the video."""
    options = {"movflags": "+faststart"} if name == "mp4" else {}
    with open_source(path, seek_to) as source, av.open(target, "w", format=name, options=options) as out:
        # opaque: the codec is the stream's own, not an encoder of the decoder's name (there is no libdav1d to write).
        streams = {s.index: out.add_stream_from_template(s, opaque=True) for s in (source.video, *source.audio)}
        pictures = _Pictures(key, t_end)
        sound_done: set[int] = set()
        for packet in packets(source, (source.video, *source.audio)):
            at = _seconds(packet.pts, packet, source)
            if not packet.size or at is None:
                continue
            if packet.stream.index == source.video.index:
                ready = pictures.take(packet, at, _seconds(packet.dts, packet, source))
            else:
                ready = [packet] if key <= at < t_end else []
                if at >= t_end:
                    sound_done.add(packet.stream.index)
            for item in ready:
                _shift(item, key + source.origin)
                item.stream = streams[item.stream.index]
                out.mux(item)
            if at > t_end + READ_ON_S or (pictures.done and len(sound_done) == len(source.audio)):
                break
        if pictures.end is None:
            raise CannotCopy("its packets have no times")
        return float(pictures.end)


@dataclass
class _Pictures:
    """Chooses the video packets of a stretch, in the order in which they are decoded."""

    key: Fraction
    t_end: float
    end: Fraction | None = None  # of the last picture taken
    done: bool = False
    _begun: bool = False
    _dts: int | None = None
    _held: list[av.Packet] = field(default_factory=list)  # at or behind t_end: kept only if a wanted one follows

    def take(self, packet: av.Packet, at: Fraction, decoded_at: Fraction | None) -> list[av.Packet]:
        """Packets that can be written now that this one has come."""
        if self.done or (not self._begun and not (packet.is_keyframe and at == self.key)):
            return []
        self._begun = True
        if at < self.key:  # refers to pictures before the keyframe
            return []
        if decoded_at is not None and decoded_at >= self.t_end:
            self.done = True
            return []
        self._held.append(packet)
        if at >= self.t_end:
            return []
        ready, self._held = self._held, []
        for item in ready:
            self._complete(item)
            assert item.pts is not None
            assert packet.pts is not None
            last = at + (item.pts - packet.pts + (item.duration or 0)) * Fraction(item.time_base)
            self.end = last if self.end is None else max(self.end, last)
        return ready

    def _complete(self, packet: av.Packet) -> None:
        # Matroska stores no decoding times, and FFmpeg does not know the first ones after a seek.
        assert packet.pts is not None
        if packet.dts is None:
            reorder = 2 * (packet.duration or 0)
            packet.dts = packet.pts - reorder if self._dts is None else min(packet.pts, self._dts + 1)
        if self._dts is not None and packet.dts <= self._dts:
            raise ValueError("its packets are out of order")
        self._dts = packet.dts


def _shift(packet: av.Packet, by: Fraction) -> None:
    ticks = round(by / Fraction(packet.time_base))
    if packet.pts is not None:
        packet.pts -= ticks
    if packet.dts is not None:
        packet.dts -= ticks


def _play(target: str) -> None:
    """Raises ValueError or FFmpegError unless the first packets of a copy decode, at the copy's start."""
    with av.open(target) as copy:
        first = next(copy.decode(video=0), None)
    if first is None or first.time is None or abs(first.time) > MAX_DRIFT_S:
        raise ValueError("the copy can't be played")
