"""How the pipeline cuts its work into spans."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from scanner.pipeline import span_bounds


@given(st.floats(0, 1e6), st.floats(1, 600))
def test_spans_cover_a_video_without_gap_in_pieces_of_about_one_length(duration: float, length: float) -> None:
    bounds = span_bounds(duration, length)
    assert bounds[0][0] == 0 and bounds[-1][1] == math.inf
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(bounds))
    last = duration - bounds[-1][0]
    assert len(bounds) == 1 or length / 2 - 1e-3 <= last <= 1.5 * length + 1e-3
