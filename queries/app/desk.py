"""The reviewer's desk: the flagged clips of RESULTS that wait for a person, the evidence on each, and what is said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb

from queries.app.files import forget_oldest
from queries.catalog import open_catalog
from queries.report.data import MAX_PICTURE_BYTES, PICTURES
from queries.reviews import Label, Review, append_reviews
from queries.run import run_query, untrained_videos
from queries.text import one_sentence
from scanner.cut_files import Cutter, Order
from scanner.errors import UserError
from scanner.stretches import Stretch
from scanner.uris import redacted

Row = dict[str, Any]

MOST_CLIPS = 100_000  # of the queue: a year of one person's work
PAD_S = 1.0  # played before and after a clip, as `deepsweep clips` cuts it
KEPT_FILES = 8  # clips that were cut: those looked at last

_EVIDENCE = """
    SELECT
        v.uri, v.status, v.error, v.verdict, v.score, v.duration_s, v.model, v.scanned_at,
        f.blink_count, f.blink_rate, f.micro_irregularity, f.score AS face_score
    FROM videos AS v
    LEFT JOIN faces AS f ON f.uri = v.uri AND f.face_id = $face_id
    WHERE v.uri = $uri
"""
_PICTURES = f"""
    SELECT t, score, image, heatmap FROM thumbnails
    WHERE uri = $uri AND face_id = $face_id
        AND octet_length(image) <= {MAX_PICTURE_BYTES} AND coalesce(octet_length(heatmap), 0) <= {MAX_PICTURE_BYTES}
    ORDER BY NOT (t BETWEEN $t_start AND $t_end), score DESC NULLS LAST, t
    LIMIT {PICTURES}
"""
_SAID = """
    SELECT uri, content_tag, face_id, t_start, t_end, label, note FROM reviews WHERE reviewer = $reviewer
    ORDER BY reviewed_at
"""


@dataclass(frozen=True)
class Clip:
    """A flagged clip, and the latest that anybody said of it: a row of the query `reviewed`. Times in seconds."""

    uri: str
    content_tag: str | None
    face_id: str
    t_start: float
    t_end: float
    score: float
    flagged: bool
    label: str | None
    note: str | None
    reviewer: str | None
    reviewed_at: datetime | None

    @property
    def key(self) -> tuple[str, str | None, str, float, float]:
        """What makes it this clip and no other, as reviews name it."""
        return self.uri, self.content_tag, self.face_id, self.t_start, self.t_end


@dataclass(frozen=True)
class Queue:
    """The clips that one reviewer goes through, by score.

    said: what that reviewer has said of them before, by position: (label, note).
    reviewed: how many others that reviewer has done before.
    """

    clips: tuple[Clip, ...]
    reviewed: int
    said: dict[int, tuple[Label, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What is known of a clip: its video and face, and the pictures of that face, those of the clip first."""

    facts: Row
    pictures: list[Row]


@dataclass(frozen=True)
class Played:
    """A clip as a file that browsers play, or a sentence on why there is none. remark: what to know of the file."""

    path: Path | None
    remark: str


class Desk:
    """One reviewer's way through RESULTS. Usable from several threads; close it, or use it as a context manager.

    folder: for files of clips, the reviewer's own; whoever made it removes it.
    """

    def __init__(self, results: str, reviewer: str, folder: Path) -> None:
        self.results, self.reviewer, self.folder = results, reviewer, folder
        self._lock = threading.Lock()  # over the connection
        self._cutting = threading.Lock()
        self._connection = open_catalog(results)
        self._tags: dict[str, str] = {}
        self._cutter = Cutter(Order(str(folder), PAD_S, reencode=True, content_tags=self._tags))

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self._cutter.__exit__()
        self._connection.close()

    def load(self, reviewed_too: bool = False) -> Queue:
        """What waits now: RESULTS are opened anew. Raises UserError where they can't be read.

        reviewed_too: with the clips that this reviewer has done before, to look at again or to answer otherwise.
        """
        connection = open_catalog(self.results)
        with self._lock:
            self._connection.close()
            self._connection = connection
            answer = run_query(connection, "reviewed", {"limit": str(MOST_CLIPS)})
            rows = [row for batch in answer.batches for row in batch.to_pylist()]
            answers = connection.execute(_SAID, {"reviewer": self.reviewer}).fetchall()
        clips = [Clip(**row) for row in rows]
        self._tags.update({clip.uri: clip.content_tag for clip in clips if clip.content_tag})
        said: dict[Any, tuple[Label, str]] = {tuple(key): (label, note) for *key, label, note in answers}  # the latest
        if reviewed_too:
            mine = {i: said[clip.key] for i, clip in enumerate(clips) if clip.key in said}
            return Queue(tuple(clips), 0, mine)
        waiting = tuple(clip for clip in clips if clip.key not in said)
        return Queue(waiting, len(clips) - len(waiting))

    def summary(self) -> list[Row]:
        """Videos by status, as the query `summary` counts them; the last row counts all."""
        with self._lock:
            return [row for batch in run_query(self._connection, "summary").batches for row in batch.to_pylist()]

    def untrained(self) -> bool:
        """Whether a model that was never trained scored any video: its flags are left out."""
        with self._lock:
            return untrained_videos(self._connection)[0] > 0

    def videos(self, most: int) -> list[str]:
        """URIs of the videos with the highest scores, then the others."""
        sql = "SELECT uri FROM videos ORDER BY score DESC NULLS LAST, uri LIMIT $most"
        return [row["uri"] for row in self._rows(sql, {"most": most})]

    def evidence(self, clip: Clip) -> Evidence:
        """What RESULTS hold on a clip. Raises UserError where they can't be read."""
        who = {"uri": clip.uri, "face_id": clip.face_id}
        facts = self._rows(_EVIDENCE, who)
        pictures = self._rows(_PICTURES, who | {"t_start": clip.t_start, "t_end": clip.t_end})
        return Evidence(facts[0] if facts else {}, pictures)

    def play(self, clip: Clip, wanted: Callable[[], bool] = lambda: True) -> Played | None:
        """Cut a clip out of its video, H.264 and AAC. Never raises for what it meets in the archive.

        wanted: asked when its turn has come; None where it says no, as for a clip that was left meanwhile.
        """
        stretch = Stretch(clip.uri, clip.t_start, clip.t_end, ({"uri": clip.uri, "face_id": clip.face_id},))
        with self._cutting:
            if not wanted():
                return None
            forget_oldest(self.folder, 2 * KEPT_FILES)  # with the sidecar beside each
            (outcome,) = self._cutter.cut_video([stretch])
        if outcome.sidecar is None:
            reason = (outcome.error or "").removeprefix(f"{redacted(clip.uri)} ")
            return Played(None, f"The video can't be played: {reason}. The pictures below are from the scan.")
        remark = "The video has changed since it was scanned: this may not be what was judged."
        path = self.folder / outcome.sidecar["file"]
        return Played(path, remark if outcome.sidecar["changed_since_scan"] else "")

    def record(self, clip: Clip, label: Label, note: str) -> None:
        """Append a review. Raises UserError where it can't be kept."""
        now = datetime.now(timezone.utc)
        said = Review(*clip.key, label=label, note=note.strip(), reviewer=self.reviewer, reviewed_at=now)
        append_reviews(self.results, [said])

    def _rows(self, sql: str, params: Row) -> list[Row]:
        with self._lock:
            try:
                cursor = self._connection.execute(sql, params)
                names: Sequence[str] = [column[0] for column in cursor.description or ()]
                return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
            except duckdb.Error as error:
                raise UserError(f"{self.results} could not be read: {one_sentence(error)}") from None
