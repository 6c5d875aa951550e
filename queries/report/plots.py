"""Plots as inline SVG: the histogram of scores, the overview of a video, and the three strips of a face."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from queries.report.cards import Bin
from queries.report.data import BINS, COLUMNS, Face
from queries.report.elements import Markup, el

WIDTH = 760  # of every plot, in SVG units: pixels at full size
LEFT, RIGHT = 62, 12  # margins: the left one holds tick labels and the name of the axis
LETTER = 6.2  # width of a character of the 11 px labels
MAX_POINTS = 700  # of a curve: about one per pixel
GAP_S = 0.25  # a curve is broken where samples are further apart: nothing is known of the time between
STEPS = 10  # shades of a clip's score
_NICE = (1, 2, 5, 10)


@dataclass(frozen=True)
class Axis:
    """Values low..high over positions start..stop."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.stop - self.start)


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most count + 1 round values within low..high, in ascending order; low < high, count >= 1."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((n * power for n in _NICE if n * power >= rough * (1 - 1e-9)), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, last + 1)]


def thin(t: Sequence[float], y: Sequence[float | None], limit: int = MAX_POINTS) -> list[tuple[float, float | None]]:
    """The curve with about `limit` points at most: of each stretch its lowest and highest, so that no dip is lost."""
    points = [(a, b if b is not None and math.isfinite(b) else None) for a, b in zip(t, y, strict=True)]
    if len(points) <= limit:
        return points
    size = math.ceil(2 * len(points) / limit)
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        known = [p for p in part if p[1] is not None]
        if not known:
            kept.append(part[0])
            continue
        kept += sorted({min(known, key=lambda p: p[1] or 0), max(known, key=lambda p: p[1] or 0)})
    return kept


def path_of(points: Iterable[tuple[float, float | None]], x: Axis, y: Axis, gap: float = GAP_S) -> str:
    """Path data of a curve, broken at None and at gaps in time. A lone sample is a dot."""
    parts: list[str] = []
    last: float | None = None
    for t, value in points:
        if value is None:
            last = None
            continue
        joined = last is not None and t - last <= gap
        parts.append(f"{'L' if joined else 'M'}{x(t):.1f} {y(value):.1f}{'' if joined else 'h.1'}")
        last = t
    return "".join(parts)


def clock(seconds: float | None, digits: int = 1) -> str:
    """A moment as people read it: 12.3 s, 4:05.0, 1:02:03.0."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    scale = 10**digits
    whole, rest = divmod(round(seconds * scale), 60 * scale)
    fraction = f"{rest / scale:.{digits}f}"
    if whole == 0:
        return f"{fraction} s"
    padded = fraction.zfill(3 + digits if digits else 2)
    return f"{whole}:{padded}" if whole < 60 else f"{whole // 60}:{whole % 60:02}:{padded}"


# --- plots ------------------------------------------------------------------------------------------------


def histogram(counts: Sequence[int], lines: Sequence[tuple[str, float]]) -> Markup:
    """Videos per bin of score. lines: (name, score) of each threshold, drawn and named above the bars."""
    head = 18 * len(lines) + 20
    height = head + 170
    x, y = Axis(0, 1, LEFT, WIDTH - RIGHT), Axis(0, max(max(counts), 1), height, head)
    width = (WIDTH - RIGHT - LEFT) / BINS
    parts: list[Markup] = []
    band = sorted(value for _, value in lines)
    if len(band) > 1:
        parts.append(_rect(x(band[0]), head, x(band[-1]) - x(band[0]), height - head, "band"))
    labels = []
    for i, count in enumerate(counts):
        if count:
            top = min(y(count), height - 2)  # one video in ten thousand must show
            bar = _rect(LEFT + i * width + 1, top, width - 2, height - top, "bar")
            parts.append(el("g", el("title", f"{i / BINS:.2f} to {(i + 1) / BINS:.2f}: {count:,} videos"), bar))
            labels.append(_text(LEFT + (i + 0.5) * width, top - 4, _short(count), "middle", "over"))
    for row, (name, value) in enumerate(lines):
        at, label_y = x(value), 14 + 18 * row
        parts.append(_line(at, label_y + 4, at, height, "threshold"))
        side = "start" if value < 0.5 else "end"
        parts.append(_text(at + (5 if side == "start" else -5), label_y, f"{name} {value:.3f}", side, "label"))
    parts += labels
    parts += _x_axis(x, height, [i / 10 for i in range(11)], "score: calibrated probability of manipulation")
    parts += _y_axis(y, [v for v in ticks(0, y.high, 4) if v == int(v)], "videos")
    return _svg(height + 40, f"Histogram of the scores of {sum(counts):,} videos", parts)


def reliability(bins: Sequence[Bin]) -> Markup:
    """Share of fakes among the labelled videos of each stretch of score, and the line where it equals the score.

    How many videos that are stands above each bar: of a few, the share says little.
    """
    top, bottom = 24, 204
    x, y = Axis(0, 1, LEFT, WIDTH - RIGHT), Axis(0, 1, bottom, top)
    parts: list[Markup] = []
    for one in bins:
        left, right, height = x(one.low) + 1, x(one.high) - 1, min(y(one.fakes), bottom - 2)
        told = f"{one.low:.2f} to {one.high:.2f}: {one.fakes:.0%} of {one.count:,} videos are fake"
        bar = _rect(left, height, max(right - left, 1), bottom - height, "bar")
        parts.append(el("g", el("title", told), bar))
        parts.append(_text((left + right) / 2, top - 10, _short(one.count), "middle"))  # clear of the line
    parts.append(_line(x(0), y(0), x(1), y(1), "threshold"))
    parts += _x_axis(x, bottom, [i / 10 for i in range(11)], "score")
    parts += _y_axis(y, [0, 0.5, 1], "share of fakes")
    total = sum(one.count for one in bins)
    return _svg(bottom + 40, f"Reliability: share of fakes by score, of {total:,} labelled videos", parts)


def overview(columns: Sequence[tuple[int, float]], duration: float, threshold: float | None) -> Markup:
    """Highest clip score in each stretch of a whole video. columns: (column of COLUMNS, score)."""
    top, bottom = 10, 100
    x, y = Axis(0, duration, LEFT, WIDTH - RIGHT), Axis(0, 1, bottom, top)
    width = (WIDTH - RIGHT - LEFT) / COLUMNS
    parts = [
        _rect(
            LEFT + i * width,
            min(y(score), bottom - 1),
            max(width, 1.5),
            bottom - min(y(score), bottom - 1),
            shade(score),
        )
        for i, score in columns
    ]
    if threshold is not None:
        parts.append(_line(LEFT, y(threshold), WIDTH - RIGHT, y(threshold), "threshold"))
    parts += _x_axis(x, bottom, ticks(0, duration, 10), "time in the video, s")
    parts += _y_axis(y, [0, 0.5, 1], "clip score")
    return _svg(bottom + 40, f"Highest clip score over {clock(duration)} of video", parts)


def face_plot(face: Face, name: str) -> Markup:
    """One track: clip scores as a strip, EAR with its blinks, and motion, above one axis of time."""
    start, stop = face.row["t_start"], face.row["t_end"]
    x = Axis(start, max(stop, start + 0.1), LEFT, WIDTH - RIGHT)
    blinks = list(zip(face.row["blink_times"] or [], face.row["blink_durations"] or [], strict=False))
    parts = _strip(face, x, blinks)
    panels = [("EAR, ratio", thin(face.t, face.ear), 0.4), ("motion, eyes/s", thin(face.t, face.motion), 0.1)]
    top, height = 56, 84
    for number, (label, points, at_least) in enumerate(panels):
        y = Axis(0, max([v for _, v in points if v is not None] + [at_least]) * 1.08, top + height, top)
        if number == 0:
            for moment, duration in blinks:
                left, right = x(moment - duration / 2), x(moment + duration / 2)
                parts.append(
                    el(
                        "g",
                        el("title", f"blink at {clock(moment, 2)}, {1000 * duration:.0f} ms"),
                        _rect(left, top, max(right - left, 1.5), height, "blink"),
                    )
                )
        parts.append(el("path", d=path_of(points, x, y), class_="curve"))
        if not any(value is not None for _, value in points):
            parts.append(_text((LEFT + WIDTH - RIGHT) / 2, top + height / 2, "not measured", "middle"))
        parts += _y_axis(y, ticks(0, y.high, 3), label)
        parts.append(_line(LEFT, top + height, WIDTH - RIGHT, top + height, "axis"))
        top += height + 16
    bottom = top - 16
    parts += _x_axis(x, bottom, ticks(x.low, x.high, 10), "time in the video, s")
    return _svg(bottom + 40, f"{name}: clip scores, eye aspect ratio with blinks, and facial motion over time", parts)


def meter(share: float) -> Markup:
    """A small bar, `share` of its width long."""
    bar = _rect(0, 1, max(1.0, 100 * min(share, 1)), 8, "bar")
    return el("svg", bar, viewBox="0 0 100 10", width=100, height=10, class_="meter", aria_hidden="true")


def shade(score: float | None) -> str:
    """The class that colours a clip by its score."""
    return "unscored" if score is None else f"clip s{min(int(score * STEPS), STEPS - 1)}"


# --- parts ------------------------------------------------------------------------------------------------


def _strip(face: Face, x: Axis, blinks: Sequence[tuple[float, float]]) -> list[Markup]:
    """A box per clip, shaded by its score, which stands in it where there is room; blinks as marks above."""
    top, height = 16, 24
    parts: list[Markup] = [_text(LEFT - 4, top + 16, "clip score", "end")]
    for clip in face.clips:
        left = x(clip["t_start"])
        width = max(x(clip["t_end"]) - left - 1, 1.5)
        score = clip["score"]
        told = "no score" if score is None else f"score {score:.3f}" + (", flagged" if clip["flagged"] else "")
        box = _rect(left, top, width, height, shade(score) + (" flagged" if clip["flagged"] else ""))
        title = el("title", f"{clock(clip['t_start'])} to {clock(clip['t_end'])}: {told}")
        parts.append(el("g", title, box))
        if score is not None and width > 28:
            tone = "on-dark" if score >= 0.6 else "on-light"
            parts.append(_text(left + width / 2, top + 16, f"{score:.2f}", "middle", tone))
    for moment, _ in blinks:
        at = x(moment)
        parts.append(el("path", d=f"M{at - 3:.1f} {top - 8}h6l-3 6z", class_="mark"))
    return parts


def _x_axis(x: Axis, y: float, values: Sequence[float], name: str) -> list[Markup]:
    parts = [_line(x.start, y, x.stop, y, "axis")]
    labels = [_number(value) for value in values]
    every = max(1, math.ceil((max(map(len, labels), default=1) + 2) * LETTER * len(labels) / (x.stop - x.start)))
    for value, label in list(zip(values, labels, strict=True))[::every]:
        parts += [_line(x(value), y, x(value), y + 4, "axis"), _text(x(value), y + 16, label, "middle")]
    parts.append(_text((x.start + x.stop) / 2, y + 33, name, "middle", "name"))
    return parts


def _y_axis(y: Axis, values: Sequence[float], name: str) -> list[Markup]:
    parts = [_line(LEFT, y.start, LEFT, y.stop, "axis")]
    for value in values:
        parts += [
            _line(LEFT - 4, y(value), LEFT, y(value), "axis"),
            _text(LEFT - 7, y(value) + 4, _short(value), "end"),
        ]
    middle = (y.start + y.stop) / 2
    turned = f"rotate(-90 12 {middle:.0f})"
    return [*parts, el("text", name, x=12, y=f"{middle:.0f}", transform=turned, text_anchor="middle", class_="name")]


def _svg(height: float, description: str, parts: Iterable[Markup]) -> Markup:
    return el("svg", *parts, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=description, class_="plot")


def _rect(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    return el("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.1f}", height=f"{height:.1f}", class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return el("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", class_=class_)


def _text(x: float, y: float, text: str, anchor: str, class_: str | None = None) -> Markup:
    return el("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def _number(value: float) -> str:
    return f"{value:.10g}"


def _short(value: float) -> str:
    """A count in four characters: 950, 12k, 3.4M."""
    for scale, unit in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * scale or (value >= scale and unit == "M"):
            return f"{value / scale:.3g}{unit}"
    return _number(value)
