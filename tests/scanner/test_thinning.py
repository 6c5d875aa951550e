"""Which frames of a span are looked at, and which packets need not be decoded for them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scanner.thinning import LOOK_AHEAD, SLOT_NUDGE, Thinning, sample

ascending = st.lists(st.integers(1, 200_000), max_size=60, unique=True).map(lambda ms: np.sort(ms) / 1000)


@given(ascending, st.floats(0, 200), st.floats(0, 200), st.floats(1, 60))
def test_sampling_takes_the_first_frame_behind_each_line_of_the_grid(times, a, b, fps):
    start, end = min(a, b), max(a, b)
    kept = sample(times, start, end, fps)
    inside = times[(times >= start) & (times < end)]
    slots = np.floor(inside * fps + SLOT_NUDGE)
    first = [t for i, t in enumerate(inside) if i == 0 or slots[i] > slots[i - 1]]
    assert times[kept].tolist() == first


@given(ascending, st.floats(0, 200), st.floats(1, 60))
def test_cutting_a_video_adds_at_most_one_sample_a_cut(times, where, fps):
    whole = set(sample(times, 0, np.inf, fps))
    parts = [*sample(times, 0, where, fps), *sample(times, where, np.inf, fps)]
    assert whole <= set(parts)
    assert len(parts) == len(set(parts)) <= len(whole) + 1


@given(st.integers(1, 240), st.integers(1, 60), st.integers(0, 7200))
def test_a_steady_video_is_sampled_at_the_rate_asked_for_also_with_single_precision(video_fps, fps, start):
    times = (start + np.arange(8 * video_fps) / video_fps).astype(np.float32)
    kept = sample(times.astype(np.float64), 0, np.inf, fps)
    assert abs(len(kept) - 8 * min(video_fps, fps)) <= 1


@st.composite
def decoding_orders(draw, reach: int) -> list[float]:
    """Moments in the order of decoding: each comes at most `reach` places late."""
    times = draw(ascending)
    late = draw(st.lists(st.integers(0, reach), min_size=len(times), max_size=len(times)))
    return [float(times[i]) for i in sorted(range(len(times)), key=lambda i: (i + late[i], i))]


@given(decoding_orders(LOOK_AHEAD), st.floats(0, 200), st.floats(1, 60))
def test_what_is_sampled_is_decoded_and_nothing_else_in_whatever_order_it_comes(order, start, fps):
    thinning = Thinning(start, fps)
    kept = [t for t, _ in thinning.ahead((t, None) for t in order) if t is not None and not thinning.leaves_out(t)]
    times = np.sort(np.array(order))
    assert sorted(kept) == times[sample(times, start, np.inf, fps)].tolist()


@given(decoding_orders(60), st.floats(0, 200), st.floats(1, 60))
def test_pictures_that_come_later_than_any_codec_sends_them_cost_no_sample(order, start, fps):
    thinning = Thinning(start, fps)
    kept = {t for t, _ in thinning.ahead((t, None) for t in order) if t is not None and not thinning.leaves_out(t)}
    times = np.sort(np.array(order))
    assert kept >= set(times[sample(times, start, np.inf, fps)])


@given(decoding_orders(LOOK_AHEAD), st.floats(0, 200), st.floats(1, 60))
def test_what_was_left_out_is_told_once_at_its_place(order, start, fps):
    thinning = Thinning(start, fps)
    handed_on = list(thinning.ahead((t, str(t)) for t in [*order, None]))
    assert handed_on == [(t, str(t)) for t in [*order, None]]
    shown = sorted(t for t, _ in handed_on if t is not None and not thinning.leaves_out(t))
    told = [t for picture in shown for t in [*thinning.passed(picture), picture]]
    last = shown[-1] if shown else -1.0
    assert told == [t for t in sorted(order) if start <= t <= last]
