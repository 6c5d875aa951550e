"""Pieces that several sections of the report share: sections, tables, verdicts, figures."""

from __future__ import annotations

from collections.abc import Iterable

from queries.report.data import Row
from queries.report.elements import Child, Markup, el

VERDICTS = ("fake", "uncertain", "real")


def section(id_: str, heading: str, *children: Child) -> Markup:
    return el("section", el("h2", heading, id=f"{id_}-heading"), *children, id=id_, aria_labelledby=f"{id_}-heading")


def table(label: str, headings: list[str], rows: list[list[Child]], *, kinds: str) -> Markup:
    """A table that scrolls by itself. kinds: one letter per column, n for figures, t for long text, else a dot.

    label: its name for those who hear the page.
    """
    classes = [{"n": "n", "t": "text"}.get(kind) for kind in kinds]
    return el(
        "div",
        el(
            "table",
            el("thead", el("tr", [el("th", h, scope="col", class_=c) for h, c in zip(headings, classes, strict=True)])),
            el(
                "tbody",
                [el("tr", [el("td", v, class_=c) for v, c in zip(row, classes, strict=True)]) for row in rows],
            ),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=label,
    )


def fitting(parts: Iterable[Markup], most: int) -> list[Markup]:
    """The first of these that hold `most` bytes together at most; none is made that is not wanted."""
    kept = []
    for part in parts:
        most -= len(part.encode())
        if most < 0:
            break
        kept.append(part)
    return kept


def anchor(video: Row) -> str:
    """The id of a video's evidence. Made from its rank: names from an archive stay out of addresses."""
    return f"video-{video['rank']}"


def verdict_text(video: Row) -> Markup:
    """The verdict, or why there is none."""
    if video["verdict"]:
        return el("span", video["verdict"], class_=video["verdict"] if video["verdict"] in VERDICTS else None)
    if video["status"] == "ok":
        return el("span", "no verdict", class_="quiet")
    return el("span", "not judged", class_="quiet")


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def count_of(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
