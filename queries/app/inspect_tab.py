"""The tab *Inspect*: one video, uploaded or named, looked at as a scan does, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from queries.app.page import Row, card, gallery, gallery_of, gallery_title, note, pictures, verdict_word
from queries.report.elements import Child, Markup, el
from queries.report.page import MEANINGS
from queries.report.parts import number
from queries.report.plots import clock
from queries.text import escape_controls
from scanner import blink
from scanner.config import ScanConfig
from scanner.errors import UserError
from scanner.names import VIDEO_EXTENSIONS
from scanner.results import Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scanner.inspect import Inspection

EMPTY = note("Choose a video: the verdict, what it rests on, and the pictures appear here.")


class Stopped(Exception):
    """The app is being ended: the inspection with it."""


def inspect_tab(
    settings: ScanConfig,
    folder: Path,
    videos: Callable[[], Sequence[str]],
    any_path: bool,
    stopping: Callable[[], bool],
) -> None:
    """Lay the tab out, inside a gr.Tab.

    folder: for pictures. videos: those that may be picked. any_path: whether any other path or S3 URI may be named,
    too, which is for people who sit at this machine. stopping: whether the app is being ended.
    """
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            upload = gr.File(
                label="Upload a video", file_types=[f".{name}" for name in sorted(VIDEO_EXTENSIONS)], elem_id="upload"
            )
            choices = list(videos())
            picked = gr.Dropdown(
                [(escape_controls(uri), uri) for uri in choices],
                value=None,
                label="or a path, or s3:// URI" if any_path else "or a video of the results",
                allow_custom_value=any_path,
                visible=any_path or bool(choices),
                elem_id="picked",
            )
            start = gr.Button("Inspect", variant="primary", elem_id="inspect")
        with gr.Column(scale=2, min_width=480):
            verdict = gr.HTML(EMPTY, elem_id="verdict", min_height=140)  # room for the progress bar
    title = gr.HTML()
    pictured = gallery("gradcam", 6)
    plots = [gr.Plot(show_label=False, visible=False, elem_id=name) for name in _PLOTS]

    shown = gr.Progress()  # as a default, by which Gradio knows the argument that it passes itself

    def run(file: str | None, path: str | None, progress: gr.Progress = shown):
        source = file or (path or "").strip()
        if not source:
            return [EMPTY, *_hidden()]

        def tell(what: str, share: float) -> None:
            if stopping():
                raise Stopped
            progress(share, desc=what)

        from scanner.inspect import inspect_video

        try:
            seen = inspect_video(source, settings, tell)
        except (UserError, Stopped) as error:
            return [note(str(error) or "The app is being ended.", "problem"), *_hidden()]
        images = pictures(seen.thumbnails.to_pylist(), folder)
        figures = _figures(seen)
        return [
            verdict_card(seen, Path(source).name if file else source),
            gallery_title(bool(images)),
            gallery_of(images),
            *(gr.Plot(figure, visible=figure is not None) for figure in figures),
        ]

    outputs = [verdict, title, pictured, *plots]
    # What was found of the video before goes first: it would be read as this one's, and the bar be drawn over it.
    cleared = start.click(
        lambda: ["", *_hidden()], None, outputs, queue=False, show_progress="hidden", api_visibility="private"
    )
    cleared.then(
        run,
        [upload, picked],
        outputs,
        concurrency_limit=1,  # each takes all cores there are
        show_progress_on=verdict,
        api_visibility="private",
    )
    # One of the two is meant: what was chosen last.
    upload.upload(lambda: None, None, picked, api_visibility="private")
    picked.input(lambda: None, None, upload, api_visibility="private")


_PLOTS = ("score-plot", "ear-plot", "motion-plot")


def _hidden() -> list[Any]:
    return [gallery_title(False), gallery_of([]), *(gr.Plot(None, visible=False) for _ in _PLOTS)]


def _figures(seen: Inspection) -> list[Figure | None]:
    """A plot each of _PLOTS, None where there is nothing to plot."""
    from scanner.inspect_plots import ear_curve, motion_curve, score_curve

    return [
        score_curve(seen.frames, seen.clips, seen.faces, seen.thresholds) if seen.clips.num_rows else None,
        ear_curve(seen.signals, seen.faces) if seen.signals.num_rows else None,
        motion_curve(seen.motion, seen.faces) if seen.motion.num_rows else None,
    ]


def verdict_card(seen: Inspection, name: str) -> Markup:
    """The verdict on a video called `name`, and the figures behind it."""
    video, bands = seen.video, seen.thresholds
    facts: list[tuple[str, Child]] = [("video", name)]
    if video["verdict"]:
        heading = [verdict_word(video["verdict"]), f" – score {video['score']:.3f}"]
        facts += [
            ("probability of a manipulated face", f"{video['score']:.1%}"),
            ("bands", f"fake from {bands['fake']:.3f}, real up to {bands['real']:.3f}, uncertain between"),
        ]
    else:
        heading = "Not judged"
    facts += [
        ("blinks", _blinks(video)),
        ("micro-expression irregularity", f"{number(video['micro_irregularity'], 2)} (ordinary: 0.5)"),
        ("faces at once", number(video["n_faces"], 0)),
        ("face seen", f"{clock(video['face_seconds'])} of {clock(video['duration_s'])}"),
        ("model", f"{video['model']}, a first opinion and no proof" if video["verdict"] else video["model"]),
    ]
    reason = None if video["verdict"] else note(_reason(seen), "problem" if seen.failed else "note")
    return card(heading, facts if seen.faces.num_rows else facts[:1], reason, _moments(seen.moments()))


def _reason(seen: Inspection) -> str:
    """Why there is no verdict, and what to do about it."""
    from scanner.inspect_card import ADVICE

    if seen.status is Status.OK:
        return "The model is untrained, so its scores mean nothing."
    error = f" ({seen.video['error']})" if seen.video["error"] else ""
    sentence = f"{MEANINGS[seen.status.value]}{error}."
    return " ".join([f"{sentence[0].upper()}{sentence[1:]}", ADVICE.get(seen.status, "")]).strip()


def _blinks(video: Row) -> str:
    if video["blink_count"] is None:
        return f"not judged: needs {blink.MIN_SECONDS:.0f} s of one face at {blink.MIN_FPS:.0f} frames a second"
    people = f"people: {blink.HUMAN_RATE_MEAN:.0f} ± {blink.HUMAN_RATE_SD:.0f}"
    return f"{video['blink_count']} ({video['blink_rate']:.1f} per minute; {people})"


def _moments(moments: Sequence[dict[str, Any]]) -> Markup | None:
    if not moments:
        return None
    rows = [
        el("li", f"{clock(m['t_start'])} to {clock(m['t_end'])}: face {m['face_id']}, score {m['score']:.3f}")
        for m in moments
    ]
    return el("div", el("h3", "The moments that matter"), el("ol", rows))
