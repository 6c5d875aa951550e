"""No source, recording or person is on both sides of a split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.prepared import FaceTrack
from models.training.folds import assign, components

EMPTY = FaceTrack("", "video", "real", None, "", "", 0, np.zeros(1), [b""], np.zeros((1, 478, 2), np.float16))

MANY = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 15), st.sampled_from(["", "swap", "lips"])), min_size=1)


def _tracks(facts):
    return [
        replace(
            EMPTY,
            uri=str(i),
            source=f"s{source}",
            group=f"g{group}",
            label="fake" if method else "real",
            method=method or None,
        )
        for i, (source, group, method) in enumerate(facts)
    ]


@given(MANY, st.integers(2, 4))
def test_groups_never_cross_and_sources_don_t_where_there_are_enough(facts, folds):
    tracks = _tracks(facts)
    fold_of = assign(tracks, folds)
    assert set(fold_of) == {track.group for track in tracks}
    assert set(fold_of.values()) <= set(range(folds))
    if len(components(tracks, lambda track: track.source)) >= folds:
        sides = {}
        for track in tracks:
            assert sides.setdefault(track.source, fold_of[track.group]) == fold_of[track.group]


@given(MANY)
def test_components_hold_every_group_once(facts):
    tracks = _tracks(facts)
    names = [name for names in components(tracks, lambda track: track.source) for name in names]
    assert sorted(names) == sorted({track.group for track in tracks})


def test_folds_are_about_even():
    methods = ["swap", "swap", "lips", "lips"]
    facts = [(s, s, "") for s in range(12)] + [(20 + s, 20 + s, method) for s, method in enumerate(methods)]
    tracks = _tracks(facts)
    fold_of = assign(tracks, 2)
    for fold in (0, 1):
        mine = [track for track in tracks if fold_of[track.group] == fold]
        assert sum(not track.fake for track in mine) == 6
        assert sorted(track.method or "" for track in mine if track.fake) == ["lips", "swap"]


def test_a_single_data_set_is_split_by_its_recordings():
    tracks = _tracks([(0, group, "swap" if group % 2 else "") for group in range(8)])
    assert sorted(assign(tracks, 4).values()) == [0, 0, 1, 1, 2, 2, 3, 3]
