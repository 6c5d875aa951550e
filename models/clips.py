"""How a face's crops are cut into clips: one rule for scanning and for training."""

from __future__ import annotations

import itertools


def cut(crops: int, clip_frames: int, min_clip_frames: int) -> list[tuple[int, int]]:
    """Split so many crops into clips: [start, stop) each, of nearly equal length, at most `clip_frames`.

    Every crop is in exactly one clip, so nothing is scored twice and no tail goes unseen. Fewer than
    `min_clip_frames` crops make no clip.
    """
    if crops < min_clip_frames:
        return []
    count = -(-crops // clip_frames)
    bounds = [crops * i // count for i in range(count + 1)]
    return list(itertools.pairwise(bounds))
