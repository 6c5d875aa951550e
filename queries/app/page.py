"""Pieces that both tabs are made of: sentences, facts, and pictures beside their heatmaps. Everything is escaped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from queries.app.files import forget_oldest
from queries.report.elements import Child, Markup, el
from queries.report.parts import VERDICTS
from queries.report.plots import clock

Row = dict[str, Any]

KEPT_PICTURES = 1000  # about 10 MB: those of the last hundred videos or clips
_JPEG = b"\xff\xd8\xff"


def note(text: str, kind: str = "note") -> Markup:
    """A sentence that must be seen. kind: note, problem, or done."""
    return el("p", text, class_=f"ds-{kind}", role="alert" if kind == "problem" else "status")


def card(heading: Child, facts: Sequence[tuple[str, Child]], *more: Child) -> Markup:
    """A heading and what is known, name by value."""
    pairs = [el("div", el("dt", name), el("dd", value)) for name, value in facts]
    return el("section", el("h2", heading), el("dl", pairs) if pairs else None, *more, class_="ds-card")


def verdict_word(verdict: str | None) -> Markup:
    """The verdict in its colour, or that there is none."""
    if verdict in VERDICTS:
        return el("span", verdict, class_=f"ds-{verdict}")
    return el("span", "not judged", class_="ds-quiet")


def pictures(rows: Sequence[Row], folder: Path, face: str | None = None) -> list[tuple[str, str]]:
    """Crops and, behind each, its heatmap, as (file, caption): what a gallery shows.

    rows: of the view `thumbnails`. folder: for the files. face: the face of rows that do not name it.
    What is not a JPEG is left out.
    """
    forget_oldest(folder, KEPT_PICTURES)
    found = []
    for row in rows:
        caption = f"{row.get('face_id') or face} at {clock(row['t'], 2)}"
        for image, words in ((row["image"], caption), (row["heatmap"], "heatmap")):
            if image is not None and image.startswith(_JPEG):
                file = folder / f"{hashlib.sha256(image).hexdigest()[:32]}.jpg"
                file.write_bytes(image)  # also where it is there: it is one of the latest again
                found.append((str(file), words))
    return found


def gallery(name: str, columns: int) -> gr.Gallery:
    """Where pictures are shown, hidden while there are none."""
    return gr.Gallery(
        show_label=False, columns=columns, height="auto", object_fit="contain", buttons=["fullscreen"],
        visible=False, elem_id=name, elem_classes="ds-gallery",
    )  # fmt: skip


def gallery_of(images: Sequence[tuple[str, str]]) -> gr.Gallery:
    """The gallery with other pictures."""
    return gr.Gallery(list(images) or None, visible=bool(images))


def gallery_title(shown: bool) -> Markup:
    """What stands above a gallery."""
    told = "Faces, each beside its Grad-CAM heatmap: what raised the score"
    return el("h3", told, class_="ds-title") if shown else Markup()
