"""The tab *Review*: flagged clips one after the other, and what the reviewer says of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from queries.app.desk import Clip, Desk, Queue
from queries.app.page import Row, card, gallery, gallery_of, gallery_title, note, pictures, verdict_word
from queries.report.elements import Child, Markup, el
from queries.report.parts import count_of, number
from queries.report.plots import clock
from queries.reviews import LABELS, MAX_NOTE, Label
from scanner.errors import UserError

Handler = Callable[..., list[Any]]

WORDS: dict[str, str] = {"confirmed": "Confirmed", "false_alarm": "False alarm", "unsure": "Unsure"}
_KEYS: dict[Label, str] = {"confirmed": "c", "false_alarm": "f", "unsure": "u"}  # app.js listens for them


@dataclass(frozen=True)
class Place:
    """Where a reviewer is. said: what the reviewer has said of the queue's clips, by position: (label, note).

    loads: how often the queue was loaded, this one included. drafts: notes without an answer yet, by position.
    """

    queue: Queue
    loads: int = 0
    at: int = 0
    said: dict[int, tuple[Label, str]] = field(default_factory=dict)
    drafts: dict[int, str] = field(default_factory=dict)

    @classmethod
    def first(cls, queue: Queue, loads: int) -> Place:
        """At the queue's first clip that the reviewer has said nothing of, or at its first one."""
        waiting = (i for i in range(len(queue.clips)) if i not in queue.said)
        return cls(queue, loads, next(waiting, 0), queue.said)

    @property
    def clip(self) -> Clip | None:
        return self.queue.clips[self.at] if self.at < len(self.queue.clips) else None

    @property
    def token(self) -> str:
        """Names the clip that is shown, and no other: at the same position there may be another after a reload."""
        key = "" if self.clip is None else repr(self.clip.key)
        return f"{self.loads} {hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"

    @property
    def left(self) -> int:
        return len(self.queue.clips) - len(self.said)

    @property
    def text(self) -> str:
        """The note on the clip that is shown, as far as it was written."""
        return self.drafts.get(self.at, self.said.get(self.at, ("", ""))[1])

    def drafted(self, text: str) -> Place:
        """With a note on the clip that is shown, to go on with later."""
        return self if text == self.text else replace(self, drafts=self.drafts | {self.at: text})

    def moved(self, by: int) -> Place:
        """One clip on or back; one behind the last is the end."""
        return replace(self, at=min(max(0, self.at + by), len(self.queue.clips)))

    def marked(self, label: Label, text: str) -> Place:
        """With a review of the clip that is shown, and on to the next without one; from one that had one, just on."""
        said = self.said | {self.at: (label, text)}
        drafts = {i: draft for i, draft in self.drafts.items() if i != self.at}
        waiting = (i for i in range(self.at + 1, len(self.queue.clips)) if i not in said)
        at = self.at + 1 if self.at in self.said else next(waiting, len(self.queue.clips))
        return replace(self, said=said, drafts=drafts, at=at)


@dataclass
class Screen:
    """What a session shows now, changed in place: a file that took long to cut may be of a clip that was left."""

    clip: Clip | None = None


def review_tab(desk: Desk, folder: Path, demo: gr.Blocks) -> None:
    """Lay the tab out, inside a gr.Tab. folder: for pictures."""
    place = gr.State(Place(Queue((), 0)))
    screen = gr.State(Screen())
    seen = gr.Textbox("", visible="hidden")  # the token of the clip that the browser shows
    status = gr.HTML(note("Reading the results …"), elem_id="review-status")
    with gr.Row(elem_id="review"):
        with gr.Column(scale=3, min_width=420):
            video = gr.Video(
                show_label=False, height=360, autoplay=True, loop=True, buttons=[], visible=False, elem_id="clip"
            )
            remark = gr.HTML(elem_id="remark")
            title = gr.HTML()
            pictured = gallery("faces", 4)
        with gr.Column(scale=2, min_width=360):
            facts = gr.HTML(elem_id="facts")
            text = gr.Textbox(
                label="Note",
                lines=3,
                max_length=MAX_NOTE,
                placeholder="What speaks for it or against it",
                elem_id="note",
            )
            with gr.Row():
                marks: dict[Label, gr.Button] = {
                    label: gr.Button(
                        f"{WORDS[label]} ({_KEYS[label]})",
                        variant="stop" if label == "confirmed" else "secondary",
                        elem_id=f"mark-{label}",
                        min_width=90,
                        size="md",
                        interactive=False,
                    )
                    for label in LABELS
                }
            with gr.Row():
                back = gr.Button("Previous (p)", elem_id="previous", interactive=False)
                on = gr.Button("Next (n)", elem_id="next", interactive=False)
            again = gr.Button("Look for new clips", size="sm", elem_id="reload")
            too = gr.Checkbox(
                label="Go through what I have reviewed, too", value=False, container=False, elem_id="reviewed-too"
            )
    outputs = [place, seen, status, video, remark, title, pictured, facts, text, *marks.values(), back, on]

    def show(here: Place) -> list[Any]:
        """Everything about the clip at a place but its file, which takes a moment."""
        clip = here.clip
        if clip is None:
            images: list[tuple[str, str]] = []
            about = end_of_queue(desk, here)
        else:
            evidence = desk.evidence(clip)
            images = pictures(evidence.pictures, folder, clip.face_id)
            about = clip_card(clip, evidence.facts, here.said.get(here.at))
        can = clip is not None
        return [
            here,
            here.token,
            progress_line(here),
            gr.Video(None, visible=False),
            note("Cutting the clip out of its video …") if can else "",
            gallery_title(bool(images)),
            gallery_of(images),
            about,
            gr.Textbox(here.text, interactive=can),
            *(gr.Button(interactive=can) for _ in marks),
            gr.Button(interactive=here.at > 0),
            gr.Button(interactive=can),
        ]

    def answer(on_screen: Screen, make: Callable[[], Place], before: Place) -> list[Any]:
        """The outputs for a new place; where RESULTS fail, the old place and the reason."""
        try:
            here = make()
            values = show(here)
            on_screen.clip = here.clip
        except UserError as error:
            values = [before, *([gr.skip()] * (len(outputs) - 1))]
            values[outputs.index(status)] = progress_line(before) + note(str(error), "problem")
        return values

    def load(on_screen: Screen, here: Place, reviewed_too: bool) -> list[Any]:
        return answer(on_screen, lambda: Place.first(desk.load(reviewed_too), here.loads + 1), here)

    def move(by: int) -> Handler:
        def act(on_screen: Screen, here: Place, token: str, said: str) -> list[Any]:
            left = here.drafted(said) if here.clip is not None and token == here.token else here
            return answer(on_screen, lambda: left.moved(by), here)

        return act

    def mark(label: Label) -> Handler:
        def act(on_screen: Screen, here: Place, token: str, said: str) -> list[Any]:
            def record() -> Place:
                if here.clip is None or token != here.token:
                    return here  # a key that was pressed before this clip was to be seen is not meant for it
                desk.record(here.clip, label, said)
                return here.marked(label, said)

            return answer(on_screen, record, here)

        return act

    def play(on_screen: Screen) -> tuple[Any, Any]:
        clip = on_screen.clip
        if clip is None:
            return gr.Video(None, visible=False), ""
        played = desk.play(clip, lambda: on_screen.clip is clip)
        if played is None or on_screen.clip is not clip:
            return gr.skip(), gr.skip()
        sentence = note(played.remark, "note" if played.path else "problem") if played.remark else ""
        return gr.Video(None if played.path is None else str(played.path), visible=played.path is not None), sentence

    def when(event: Callable[..., Any], act: Handler, *inputs: gr.Textbox | gr.Checkbox) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        done = event(act, [screen, place, *inputs], outputs, concurrency_limit=None, **quiet)
        done.then(play, screen, [video, remark], trigger_mode="multiple", concurrency_limit=None, **quiet)

    when(demo.load, load, too)
    when(again.click, load, too)
    when(too.input, load, too)
    when(back.click, move(-1), seen, text)
    when(on.click, move(1), seen, text)
    for label, button in marks.items():
        when(button.click, mark(label), seen, text)


# --- what is shown ----------------------------------------------------------------------------------------


def progress_line(here: Place) -> Markup:
    """How many flagged clips this reviewer has reviewed, and how many are left."""
    done, left = here.queue.reviewed + len(here.said), here.left
    if not done + left:
        return el("p", "No clips to review", class_="ds-progress")
    at = f"clip {here.at + 1:,} of {len(here.queue.clips):,} in the queue, " if here.clip else ""
    return el("p", f"{at}{done:,} reviewed, {left:,} left", class_="ds-progress")


def clip_card(clip: Clip, facts: Row, said: tuple[Label, str] | None) -> Markup:
    """What is known of a clip, and what others said of it."""
    blinks = "not judged"
    if facts.get("blink_count") is not None:
        blinks = f"{facts['blink_count']} ({number(facts['blink_rate'], 1)} per minute)"
    found: list[tuple[str, Child]] = [
        ("video", clip.uri),
        ("moment", f"{clock(clip.t_start, 2)} to {clock(clip.t_end, 2)} of {clock(facts.get('duration_s'))}"),
        ("face", clip.face_id),
        ("the video", [verdict_word(facts.get("verdict")), f", score {number(facts.get('score'), 3)}"]),
        ("this face", f"score {number(facts.get('face_score'), 3)}"),
        ("its blinks", blinks),
        ("its micro-expression irregularity", f"{number(facts.get('micro_irregularity'), 2)} (ordinary: 0.5)"),
        ("model", facts.get("model") or "–"),
    ]
    return card(f"Clip score {clip.score:.3f}", found, _said(clip, said))


def _said(clip: Clip, mine: tuple[Label, str] | None) -> Markup | None:
    if mine:
        return note(f"You said: {WORDS[mine[0]].lower()}. Another answer will count instead.", "done")
    if clip.label is None:
        return None
    when = f"{clip.reviewed_at:%Y-%m-%d %H:%M} UTC" if clip.reviewed_at else ""
    words = WORDS.get(clip.label, clip.label).lower()
    return el("blockquote", el("p", f"{clip.reviewer}, {when}: {words}"), el("p", clip.note) if clip.note else None)


def end_of_queue(desk: Desk, here: Place) -> Markup:
    """Why there is no clip to show: all are done, or nothing was flagged."""
    rows = desk.summary()
    total = rows[-1] if rows else {"videos": 0, "flagged": 0}
    found = [(str(row["status"]), count_of(row["videos"], "video")) for row in rows[:-1]]
    if here.queue.clips or here.queue.reviewed:
        left = f" {count_of(here.left, 'clip')} that you passed over wait still: go back to them." if here.left else ""
        return card("All flagged clips are through", [], note(f"Your reviews are in the results.{left}", "done"))
    if not total["videos"]:
        return card("Nothing here yet", [], note("The results hold no videos: reload when a scan has finished some."))
    if desk.untrained():
        return card("Nothing is flagged", found, note("An untrained model scored these videos: it flags none."))
    if all(row["status"] != "ok" for row in rows[:-1]):
        return card("No video could be judged", found, note("`deepsweep query failures` says why, video by video."))
    return card("Nothing is flagged", found, note("No clip reached the threshold of its scan."))
