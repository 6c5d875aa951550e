"""Which frames of a span are looked at: the first behind each line of a grid; and which need not be decoded for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

SLOT_NUDGE = 0.02  # of a sampling interval: 1.3 ms at 15 fps, and float32 is good to 0.5 ms after two hours
#: Packets that are read before one is decoded. H.264 and its like show at most 16 pictures ahead of an earlier one.
LOOK_AHEAD = 16
SAME_S = 1e-6  # no two pictures are closer

T = TypeVar("T")


def grid_slot(t, fps: float):
    """Number of the grid line at or before each moment: int64, of the shape of t (seconds)."""
    # decord's times come from float32: the nudge keeps 0.2 s * 15 fps in slot 3 though it computes to 2.9999.
    return np.floor(np.asarray(t) * fps + SLOT_NUDGE).astype(np.int64)


def sample(times: np.ndarray, t_start: float, t_end: float, fps: float) -> np.ndarray:
    """Indices of the frames to keep of a span: the first after each line of a grid of 1/fps seconds.

    times: (frames,) seconds, ascending. Returns (kept,) int64.
    """
    inside = np.flatnonzero((times >= t_start) & (times < t_end))
    if not len(inside):
        return inside
    slots = grid_slot(times[inside], fps)
    return inside[np.r_[True, np.diff(slots) > 0]]


class Thinning:
    """Of the packets of a span, those whose pictures nobody asks for: before it, or not the first of their slot."""

    def __init__(self, t_start: float, fps: float) -> None:
        self._t_start = t_start
        self._fps = fps
        self._first: dict[int, float] = {}  # by slot: when its earliest picture is shown
        self._left_out: list[float] = []

    def ahead(self, packets: Iterable[tuple[float | None, T]]) -> Iterator[tuple[float | None, T]]:
        """The same (time at which its picture is shown, packet), each handed on when LOOK_AHEAD more have been read.

        A picture of the same slot that comes later still is decoded for nothing, which is all that can go wrong.
        """
        waiting: deque[tuple[float | None, T]] = deque()
        for t, packet in packets:
            if t is not None and t >= self._t_start:
                slot = self._slot(t)
                self._first[slot] = min(t, self._first.get(slot, t))
            waiting.append((t, packet))
            if len(waiting) > LOOK_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def leaves_out(self, t: float) -> bool:
        """Whether the picture at t seconds is none that `sample` keeps; if it is of the span, `passed` tells of it."""
        if t < self._t_start:
            return True
        needless = self._first.get(self._slot(t), t) < t
        if needless:
            self._left_out.append(t)
        return needless

    def passed(self, t: float) -> list[float]:
        """What was left out of the span and would have been shown before t seconds, ascending; each is told once."""
        passed = sorted(s for s in self._left_out if s < t - SAME_S)
        self._left_out = [s for s in self._left_out if s > t + SAME_S]
        return passed

    def _slot(self, t: float) -> int:
        return int(grid_slot(t, self._fps))
