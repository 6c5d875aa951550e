"""The ranked table of videos, with what report.js needs to search, filter and sort it."""

from __future__ import annotations

from queries.report.data import Findings, Row
from queries.report.elements import Child, Markup, el
from queries.report.parts import VERDICTS, anchor, count_of, fitting, number, section, verdict_text
from queries.report.plots import clock

MAX_ROWS_BYTES = 5_700_000  # room for MAX_ROWS of them, unless names are there to fill the page

#: (heading, value in the row, digits; None for text, what the first press orders by)
COLUMNS: tuple[tuple[str, str, int | None, str], ...] = (
    ("rank", "rank", 0, "ascending"),
    ("video", "uri", None, "ascending"),
    ("verdict", "verdict", None, "ascending"),
    ("score", "score", 3, "descending"),
    ("flagged clips", "flagged_clips", 0, "descending"),
    ("top at", "top_t", 1, "ascending"),
    ("blinks/min", "blink_rate", 1, "ascending"),
    ("irregularity", "micro_irregularity", 2, "descending"),
    ("faces", "n_faces", 0, "descending"),
    ("duration", "duration_s", 1, "descending"),
    ("status", "status", None, "ascending"),
)


def videos_section(findings: Findings, shown: set[str]) -> Markup:
    total, videos = findings.totals["videos"], findings.videos
    if not videos:
        return section("ranking", "Videos", el("p", "There are no videos to list."))
    prefix = _common_folder([video["uri"] for video in videos])
    rows = fitting((_row(video, prefix, video["uri"] in shown) for video in videos), MAX_ROWS_BYTES)
    videos = videos[: len(rows)]
    heads = [
        el(
            "th",
            el("button", heading, type="button"),
            scope="col",
            class_=None if digits is None else "n",
            data_kind="text" if digits is None else "number",
            data_first=first,
            aria_sort="ascending" if key == "rank" else None,
        )
        for heading, key, digits, first in COLUMNS
    ]
    order = "the highest score" if findings.totals["scored"] else "by name, those with faces"
    more = (
        f"The first {len(rows):,} of {total:,} videos by rank, {total - len(rows):,} are left out:"
        " deepsweep query lists all."
        if total > len(rows)
        else f"{count_of(total, 'video')}, {order} first."
    )
    return section(
        "ranking",
        "Videos",
        _controls(videos),
        el("p", "All in ", el("b", prefix)) if prefix else None,
        el(
            "div",
            el(
                "table",
                el("caption", more),
                el("thead", el("tr", heads)),
                el("tbody", rows),
                id="videos",
                class_="wide",
            ),
            class_="scroll",
            tabindex=0,
            role="region",
            aria_label="Ranked videos",
        ),
    )


def _controls(videos: list[Row]) -> Markup:
    """Hidden until the script that they need has run."""
    statuses = sorted({video["status"] for video in videos})
    found = {video["verdict"] for video in videos}
    verdicts = [(name, name) for name in VERDICTS if name in found] + (
        [("none", "no verdict")] if None in found else []
    )
    return el(
        "div",
        el("label", "Search names and statuses", el("input", id="search", type="search", autocomplete="off")),
        el("label", "Verdict", _select("verdict", verdicts)),
        el("label", "Status", _select("status", [(name, name) for name in statuses])),
        el("span", id="count", role="status"),
        id="controls",
        hidden=True,
    )


def _select(name: str, options: list[tuple[str, str]]) -> Markup:
    return el("select", el("option", "all", value=""), [el("option", t, value=v) for v, t in options], id=name)


def _row(video: Row, prefix: str, linked: bool) -> Markup:
    cells = []
    for _, key, digits, _ in COLUMNS:
        value = video[key]
        shown: Child = value if digits is None else number(value, digits)
        if key == "uri":
            name = value[len(prefix) :]
            shown = el("a", name, href=f"#{anchor(video)}") if linked else name
        elif key == "verdict":
            shown = verdict_text(video)
        elif key in ("top_t", "duration_s"):
            shown = clock(value)
        kind = "name" if key == "uri" else None if digits is None else "n"
        cells.append(el("td", shown, class_=kind, data_value=value))
    return el("tr", cells, data_verdict=video["verdict"] or "none", data_status=video["status"])


def _common_folder(uris: list[str]) -> str:
    """The longest start that all share, up to a slash."""
    low, high = min(uris), max(uris)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[: low.rfind("/", 0, same) + 1]
