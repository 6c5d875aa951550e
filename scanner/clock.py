"""Recordings whose clock starts anew on the way: several of them joined, chapters of a DVD, a counter that ran over.

Containers made for broadcasting allow it. FFmpeg hands such times on as they are, and seeks by them, so that whatever
follows would be passed over as seen already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

import av
from av.error import FFmpegError

CAN_RESTART = frozenset({"mpegts", "mpeg"})
BACK_S = 1.0  # a step back that makes a new clock; pictures are decoded in another order, but dts ascend
#: A step ahead that makes one: the counter has 33 bits, and a clock that starts 60 s or more below the first one looks
#: as if it had run over, hours ahead.
AHEAD_S = 3600.0
LOOKS = 64  # places of a file where the clock is read
TAIL_BYTES = 1 << 19
HELD_PACKETS = 3000  # of a stream that marks no keyframes; a minute or two of them

#: When its picture is shown, in seconds, where that is known, and a packet.
TimedPacket: TypeAlias = tuple[float | None, av.Packet]


def restarts(container, stream) -> bool:
    """Whether the clock starts anew somewhere in an open file, as far as LOOKS places and its end tell.

    The file is of no further use: what looks like a stream of its own on the way is added to it.
    """
    size = container.size
    places = {size * k // LOOKS for k in range(LOOKS)} | {max(0, size - TAIL_BYTES)}
    clocks = [_clock_at(container, stream, place) for place in sorted(places)]
    read = [t for t in clocks if t is not None]
    # What can't be read may have taken hours: of a video in a bucket a dry run has both ends, and nothing between.
    leaps = [t - before >= AHEAD_S for before, t in pairwise(clocks) if before is not None and t is not None]
    return any(leaps) or any(t - before <= -BACK_S for before, t in pairwise(read))


def on_one_clock(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """The packets of a stream from the start of its file, their times counted on where the clock starts anew."""
    shift = step = 0
    last: int | None = None
    for packet in packets:
        decoded_at = packet.pts if packet.dts is None else packet.dts
        if decoded_at is not None and packet.time_base:
            if last is not None and _is_new(float((decoded_at + shift - last) * packet.time_base)):
                shift = last + step - decoded_at
            elif last is not None:
                step = decoded_at + shift - last  # packets of MPEG-TS don't tell how long they last
            last = decoded_at + shift
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        yield packet


def from_keyframe(packets: Iterator[TimedPacket], t: float) -> Iterator[TimedPacket]:
    """The packets from the last keyframe more than BACK_S before t seconds on; reading the others is cheap."""
    held: list[TimedPacket] = []
    for shown_at, packet in packets:
        if packet.is_keyframe and shown_at is not None and shown_at < t - BACK_S:
            held.clear()
        held.append((shown_at, packet))
        if (shown_at is not None and shown_at >= t) or len(held) > HELD_PACKETS:
            break
    yield from held
    yield from packets


def _is_new(step_s: float) -> bool:
    return not -BACK_S < step_s < AHEAD_S


def _clock_at(container, stream, place: int) -> float | None:
    with contextlib.suppress(FFmpegError, OSError, IndexError):  # the last: PyAV's, of a stream that was added
        container.seek(place, unsupported_byte_offset=True)
        for packet in container.demux(stream):
            if packet.dts is not None:
                return float(packet.dts * packet.time_base)
    return None
