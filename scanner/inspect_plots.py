"""Plots of one inspected video: eye aspect ratio with blinks, scores, and facial motion over time."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from models.figures import DPI, FAKE, NEUTRAL
from scanner.micro import REGIONS

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0  # inches
GAP_S = 0.25  # a curve is broken where samples are further apart: nothing is known of the time between
#: Of faces that are there at once (the tracker follows six), told apart with any colour vision (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
BLINK = "#e69f00"


def ear_curve(signals: pa.Table, faces: pa.Table) -> Figure:
    """Eye aspect ratio over time, blinks marked; a row for each face that is there at once.

    signals, faces: columns as in the views of these names.
    """
    rows = lanes(faces.to_pylist())
    figure, axes = _rows(len(rows), "Eye aspect ratio and blinks")
    moments = _by_face(signals)
    for ax, row in zip(axes, rows, strict=True):
        ax.plot(*_curve(moments, row, "ear"), color=COLOURS[0], linewidth=1)
        blinks = [blink for face in row for blink in zip(face["blink_times"], face["blink_durations"], strict=True)]
        spans = [(moment - duration / 2, duration) for moment, duration in blinks]
        ax.broken_barh(spans, (0, 1), transform=ax.get_xaxis_transform(), color=BLINK, alpha=0.45, linewidth=0)
        ax.set(ylabel="eye aspect ratio\n(height / width)", ylim=(0, None))
        ax.set_title(f"{_names(row)}: {_blinks(row)}", fontsize=9, loc="left")
    return _finished(figure, axes, faces)


def score_curve(frames: pa.Table, clips: pa.Table, faces: pa.Table, thresholds: Mapping[str, float]) -> Figure:
    """Scores over time, a row for each face that is there at once: clips as bars, the network's of frames as dots.

    frames, clips, faces: columns as in the views of these names. thresholds: where `real` ends and `fake` begins.
    """
    rows = lanes(faces.to_pylist())
    figure, axes = _rows(len(rows), "Scores: probability that the face was manipulated")
    moments = _by_face(frames)
    scored = [clip for clip in clips.to_pylist() if clip["score"] is not None]
    for ax, row in zip(axes, rows, strict=True):
        ax.axhspan(thresholds["real"], thresholds["fake"], color=NEUTRAL, alpha=0.12, linewidth=0)
        ax.plot(*_curve(moments, row, "score"), "o", color=COLOURS[4], markersize=2.5, markeredgewidth=0)
        ids = {face["face_id"] for face in row}
        bars = [clip for clip in scored if clip["face_id"] in ids]
        y, start, end = ([clip[name] for clip in bars] for name in ("score", "t_start", "t_end"))
        colours = [FAKE if score >= thresholds["fake"] else "black" for score in y]
        ax.hlines(y, start, end, colors=colours, linewidth=2.5)
        ax.set(ylabel="score (0 to 1)", ylim=(-0.03, 1.03))
        ax.set_title(f"{_names(row)}: {_best(row)}", fontsize=9, loc="left")
    if rows:
        _legend(figure, axes[0], _score_marks(thresholds))
    return _finished(figure, axes, faces)


def motion_curve(motion: pa.Table, faces: pa.Table) -> Figure:
    """Motion of each part of the face over time, the head's taken out; a colour for each face that is there at once.

    motion: face_id, t, and a column for each of micro.REGIONS. faces: columns as in the view.
    """
    rows = lanes(faces.to_pylist())
    figure, axes = _rows(len(REGIONS) if rows else 0, "Motion of the face itself, the head's taken out")
    moments = _by_face(motion)
    for ax, region in zip(axes, REGIONS if rows else (), strict=True):
        for row, colour in zip(rows, itertools.cycle(COLOURS), strict=False):
            ax.plot(*_curve(moments, row, region), color=colour, linewidth=0.9, label=_names(row))
        ax.set(ylabel="eye distances\nper second", ylim=(0, None))
        ax.set_title(f"{region}", fontsize=9, loc="left")
    if len(rows) > 1:
        _legend(figure, axes[0], axes[0].get_legend_handles_labels()[0])
    return _finished(figure, axes, faces)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    with rc_context({"agg.path.chunksize": 20_000}):  # Agg refuses a longer line
        FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})
    return data.getvalue()


def lanes(faces: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Face tracks in rows: those of one row follow each other, so there are as many rows as faces at one time.

    faces: with t_start, t_end, x, w (fractions). A track goes on in the free row whose last face was nearest to it:
    a long video is cut into spans, and a person who sits still keeps a row.
    """
    rows: list[list[Mapping[str, Any]]] = []
    for face in sorted(faces, key=lambda face: (face["t_start"], face["x"])):
        free = [row for row in rows if row[-1]["t_end"] < face["t_start"]]
        if free:
            min(free, key=lambda row: abs(_middle(row[-1]) - _middle(face))).append(face)
        else:
            rows.append([face])
    return rows


def broken(t: np.ndarray, y: np.ndarray, gap: float = GAP_S) -> tuple[np.ndarray, np.ndarray]:
    """A curve with NaN put into each pause longer than `gap` seconds, so that no line is drawn across it.

    t, y: (samples,), t ascending. Returns both, longer by the number of pauses.
    """
    cuts = np.flatnonzero(np.diff(t) > gap) + 1
    return np.insert(t, cuts, t[cuts - 1] + gap / 2), np.insert(y, cuts, np.nan)


def _middle(face: Mapping[str, Any]) -> float:
    return face["x"] + face["w"] / 2


def _by_face(table: pa.Table) -> dict[str, pa.Table]:
    """The rows of each face, in order of time: hours of video have a thousand faces and a million moments."""
    ordered = table.sort_by([("face_id", "ascending"), ("t", "ascending")])
    ids, counts = np.unique(ordered["face_id"].to_numpy().astype(str), return_counts=True)
    starts = np.cumsum(counts) - counts
    return {str(name): ordered.slice(a, n) for name, a, n in zip(ids, starts.tolist(), counts.tolist(), strict=True)}


def _curve(faces: Mapping[str, pa.Table], row: Sequence[Mapping[str, Any]], column: str) -> tuple[np.ndarray, ...]:
    """Moments and values of the faces of a row, one behind the other, NaN where nothing is known."""
    mine = pa.concat_tables([faces[face["face_id"]].select(["t", column]) for face in row if face["face_id"] in faces])
    return broken(mine["t"].to_numpy().astype(float), mine[column].cast(pa.float64()).to_numpy())


def _names(row: Sequence[Mapping[str, Any]]) -> str:
    ids = ", ".join(face["face_id"] for face in row)
    return ("Face " if len(row) == 1 else "Faces ") + textwrap.shorten(ids, 60, placeholder=" …")


def _blinks(row: Sequence[Mapping[str, Any]]) -> str:
    judged = [face for face in row if face["blink_count"] is not None]
    if not judged:
        return "blinks not judged (too short, or too few frames)"
    count, seconds = sum(face["blink_count"] for face in judged), sum(face["blink_seconds"] for face in judged)
    return f"{count} blink{'' if count == 1 else 's'}, {60 * count / seconds:.0f} a minute"


def _best(row: Sequence[Mapping[str, Any]]) -> str:
    scores = [face["score"] for face in row if face["score"] is not None]
    return f"score {max(scores):.3f}" if scores else "not scored"


def _score_marks(thresholds: Mapping[str, float]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color="black", linewidth=2.5, label="clip, calibrated"),
        Line2D([], [], color=FAKE, linewidth=2.5, label=f"clip, flagged (from {thresholds['fake']:.3f})"),
        Line2D([], [], color=COLOURS[4], marker="o", markersize=4, linestyle="", label="frame, the network alone"),
        Patch(color=NEUTRAL, alpha=0.2, label=f"uncertain (above {thresholds['real']:.3f})"),
    ]


def _legend(figure: Figure, ax: Axes, handles: Sequence[Any]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def _rows(count: int, title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.1 + 1.7 * max(1, count)), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, list(figure.subplots(max(1, count), 1, sharex=True, squeeze=False)[:, 0])[:count]


def _finished(figure: Figure, axes: Sequence[Axes], faces: pa.Table) -> Figure:
    if not axes:
        figure.axes[0].set(xticks=[], yticks=[])
        figure.axes[0].text(0.5, 0.5, "no face was followed in this video", ha="center", va="center", color=NEUTRAL)
        return figure
    start, end = min(faces["t_start"].to_pylist()), max(faces["t_end"].to_pylist())
    edge = 0.01 * max(end - start, 0.1)  # room for the marks at both ends
    axes[-1].set(xlabel="time in the video, seconds", xlim=(start - edge, end + edge))
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=8)
    return figure
