"""The verdict card: what an inspection found, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from queries.report.page import MEANINGS
from queries.report.plots import clock
from queries.text import escape_controls
from scanner import blink
from scanner.inspect import Inspection
from scanner.results import Status

MOST_FACES = 8
BAR = 50  # characters from score 0 to 1
STYLES = {"fake": "bold red", "uncertain": "bold yellow", "real": "bold green"}

#: What a person can do about a video that was not judged.
ADVICE = {
    Status.NO_FACE: "If there is one, it may be very small: the detector misses faces under about 5 % of the width.",
    Status.TOO_SHORT: "A clip needs a face for some seconds; --clip-frames asks for less, and judges less well.",
    Status.UNSUPPORTED: "Check that this is the file you meant.",
    Status.DECODE_ERROR: "Look at the file with `ffmpeg -i`, and fetch it again if it was cut short.",
    Status.TIMEOUT: "Raise --span-timeout, or lower --span-seconds.",
    Status.CRASHED: "PyAV and decord both died on it: please report the file.",
    Status.TOO_LARGE: "Raise the limit that is named.",
    Status.MISSING: "Check the name and your access to it.",
    Status.MODEL_ERROR: "`deepsweep doctor` checks the model.",
}


def print_card(found: Inspection, console: Console) -> None:
    video = found.video
    parts: list[RenderableType] = [_headline(found), *_reasons(found)]
    if found.faces.num_rows:
        parts += [Text(), _figures(found)]
    if found.faces.num_rows > 1:
        parts += [Text(), _faces(found)]
    if found.moments():
        parts += [Text(), _moments(found)]
    parts += [Text(), Text(escape_controls(video["uri"]), style="dim", overflow="fold")]
    name = Text(escape_controls(video["uri"].rpartition("/")[2]), style="bold")
    console.print(Panel(Group(*parts), title=name, title_align="left", padding=(1, 2)))


def _headline(found: Inspection) -> RenderableType:
    video = found.video
    if video["verdict"]:
        line = Text.assemble((video["verdict"].upper(), STYLES[video["verdict"]]), f"   score {video['score']:.3f}")
        return Group(line, Text(), _bar(video["score"], found.thresholds), _scale(found.thresholds))
    if found.status is Status.OK:
        return Text("NO VERDICT: the model is untrained, so its scores mean nothing.", style="bold")
    return Text(f"NOT JUDGED ({found.status.value}): {MEANINGS[found.status.value]}", style="bold")


def _reasons(found: Inspection) -> list[RenderableType]:
    """Why there is no verdict, or not on all of it; and what to do."""
    video = found.video
    lines = [escape_controls(video["error"])] if video["error"] else []
    if video["lost_seconds"]:
        lines.append(f"{clock(video['lost_seconds'])} of it could not be read.")
    if found.status in ADVICE:
        lines.append(ADVICE[found.status])
    return [Text(), *(Text(line) for line in lines)] if lines else []


def _bar(score: float, thresholds: Mapping[str, float]) -> Text:
    """The scale from 0 to 1 in the colours of its bands, and a mark where the score is."""
    real, fake = (round(BAR * thresholds[name]) for name in ("real", "fake"))
    at = min(BAR - 1, int(BAR * score))
    bar = Text("0 ")
    for cell in range(BAR):
        style = STYLES["real" if cell < real else "fake" if cell >= fake else "uncertain"].removeprefix("bold ")
        bar.append("▲" if cell == at else "━", "bold reverse" if cell == at else style)
    return bar.append(" 1")


def _scale(thresholds: Mapping[str, float]) -> Text:
    words = f"real up to {thresholds['real']:.3f}, fake from {thresholds['fake']:.3f}, uncertain between them"
    return Text(words, style="dim")


def _figures(found: Inspection) -> Table:
    video = found.video
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = {
        "network alone": _number(video["cnn_score"], 3),
        "blinks": _blinks(found),
        "micro-expressions": f"irregularity {_number(video['micro_irregularity'], 2)} (0.5 is ordinary, 1 is erratic)",
        "faces": f"{video['n_faces']} at once, seen for {clock(video['face_seconds'])} of {clock(video['duration_s'])}",
        "flagged clips": f"{video['flagged_clips']} of {found.clips.num_rows}",
        "video": f"{video['width']} × {video['height']}, {video['fps']:.4g} frames a second, {video['codec']}",
        "model": f"{video['model']}, a first opinion and no proof" if video["verdict"] else video["model"],
    }
    for name, value in rows.items():
        table.add_row(name, Text(escape_controls(value)))
    return table


def _blinks(found: Inspection) -> str:
    video = found.video
    people = f"people: {blink.HUMAN_RATE_MEAN:.0f} ± {blink.HUMAN_RATE_SD:.0f}, Bentivoglio et al. 1997"
    if video["blink_count"] is None:
        return f"not judged: needs {blink.MIN_SECONDS:.0f} s of one face at {blink.MIN_FPS:.0f} frames a second"
    return f"{video['blink_count']}, {video['blink_rate']:.0f} a minute ({people}){_unusual(video['blink_score'])}"


def _unusual(score: float | None) -> str:
    return "" if score is None else f"; unusual: {score:.2f} of 1"


def _faces(found: Inspection) -> Table:
    table = _table("face", "from", "to", "score", "blinks a minute", "irregularity")
    faces = sorted(found.faces.to_pylist(), key=lambda face: -1.0 if face["score"] is None else -2 - face["score"])
    for face in faces[:MOST_FACES]:
        rate, irregularity = _number(face["blink_rate"], 0), _number(face["micro_irregularity"], 2)
        times = clock(face["t_start"]), clock(face["t_end"])
        table.add_row(face["face_id"], *times, _number(face["score"], 3), rate, irregularity)
    if len(faces) > MOST_FACES:
        table.caption = f"and {len(faces) - MOST_FACES} more"
    return table


def _moments(found: Inspection) -> Table:
    table = _table("moments that matter: from", "to", "face", "score", "")
    for clip in found.moments():
        flagged = Text("flagged", STYLES["fake"]) if clip["flagged"] else Text()
        table.add_row(clock(clip["t_start"]), clock(clip["t_end"]), clip["face_id"], _number(clip["score"], 3), flagged)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", caption_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in ("score", "blinks a minute", "irregularity") else "left")
    return table


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def terminal(quiet: bool = False, *, stderr: bool = False) -> Any:
    """Where the card goes: as wide as it reads well."""
    console = Console(stderr=stderr, quiet=quiet, highlight=False)
    console.width = min(console.width, 100) if console.is_terminal else 100
    return console
