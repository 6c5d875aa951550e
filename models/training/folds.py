"""Leave-sources-out folds: a source, a recording and a person are on one side of a split only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.prepared import FaceTrack

GENUINE, MANIPULATED = "genuine", "manipulated"


def assign(tracks: Sequence[FaceTrack], folds: int) -> dict[str, int]:
    """The fold of each group, so that every fold holds about as much of each method and of the genuine ones.

    Sources stay whole where there are at least so many that are not tied together by common groups; otherwise, as
    with a single data set, groups do. Deterministic: large and rare parts are placed first, each where it leaves the
    folds most even.
    """
    parts = components(tracks, lambda track: track.source)
    if len(parts) < folds:
        parts = components(tracks, lambda track: track.group)
    kinds = sorted({kind for track in tracks for kind in _kinds(track)})
    totals = {kind: len({track.uri for track in tracks if kind in _kinds(track)}) for kind in kinds}
    contents = []
    for groups in parts:
        inside = [track for track in tracks if track.group in groups]
        counts = {kind: len({track.uri for track in inside if kind in _kinds(track)}) for kind in kinds}
        contents.append((groups, counts))
    # manipulated sources are rare and lumpy: they go first, the genuine ones then even the folds out
    contents.sort(key=lambda item: (-max(n / totals[k] for k, n in item[1].items() if n and k), sorted(item[0])))
    filled = [dict.fromkeys(kinds, 0) for _ in range(folds)]
    placed: dict[str, int] = {}
    for groups, counts in contents:
        best = min(range(folds), key=lambda fold: (_unevenness(filled, fold, counts, totals), fold))
        for kind, count in counts.items():
            filled[best][kind] += count
        placed |= dict.fromkeys(groups, best)
    return placed


def components(tracks: Sequence[FaceTrack], key: Callable[[FaceTrack], str]) -> list[set[str]]:
    """Sets of groups that stay together, because tracks of one `key` (or of one group) do."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for track in tracks:
        parent[root(("key", key(track)))] = root(("group", track.group))
    sets: dict[tuple[str, str], set[str]] = {}
    for track in tracks:
        sets.setdefault(root(("group", track.group)), set()).add(track.group)
    return list(sets.values())


def _kinds(track: FaceTrack) -> tuple[str, ...]:
    """What a track counts as: genuine; or manipulated, and its method besides."""
    return (MANIPULATED, f"method {track.method}") if track.fake else (GENUINE,)


def _unevenness(filled: list[dict[str, int]], fold: int, counts: dict[str, int], totals: dict[str, int]) -> float:
    """Sum of squared shares of every kind, were `counts` put into `fold`."""
    total = 0.0
    for number, there in enumerate(filled):
        for kind, count in there.items():
            total += ((count + (counts[kind] if number == fold else 0)) / totals[kind]) ** 2
    return total
