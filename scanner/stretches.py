"""Stretches of videos: from rows of a query to what is cut, the names of the files, and subtitles."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

from queries.text import escape_controls
from scanner.uris import is_s3, local_path, split_s3

STEM_BYTES = 80  # of a video's name in a file's: with times, face and hash below the 255 that file systems take
NAMED_FACES = 3

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Stretch:
    """A stretch of one video, in seconds of the video, and the rows of the query that it is made of."""

    uri: str
    t_start: float
    t_end: float
    rows: tuple[Row, ...]

    @property
    def faces(self) -> list[str]:
        """The faces that its rows name, sorted."""
        return sorted({str(row["face_id"]) for row in self.rows if row.get("face_id") is not None})


def stretch_of(row: Row) -> Stretch:
    """The stretch that a row of a query names. Raises ValueError, with a reason, for times that are none."""
    uri, start, end = row["uri"], row["t_start"], row["t_end"]
    if not uri:
        raise ValueError("uri is empty")
    if start is None or end is None or not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError("t_start or t_end is not a number")
    if end < start or end < 0:
        raise ValueError(f"it would end at {end:g} s, before its start at {max(0.0, start):g} s")
    return Stretch(uri, max(0.0, float(start)), float(end), (row,))


def merge(stretches: Sequence[Stretch], gap: float) -> list[Stretch]:
    """Make one of those of a video that overlap, touch or lie closer than `gap` seconds.

    The order is that of the first row of each: a query's most suspicious stays first.
    """
    rank = {id(row): number for number, row in enumerate(row for s in stretches for row in s.rows)}
    merged: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda s: (s.uri, s.t_start, s.t_end)):
        last = merged[-1] if merged and merged[-1].uri == stretch.uri else None
        distance = math.inf if last is None else stretch.t_start - last.t_end
        if last is not None and (distance <= 0 or distance < gap):
            merged[-1] = Stretch(last.uri, last.t_start, max(last.t_end, stretch.t_end), last.rows + stretch.rows)
        else:
            merged.append(stretch)
    return sorted(merged, key=lambda s: min(rank[id(row)] for row in s.rows))


# --- names ------------------------------------------------------------------------------------------------


def clip_name(stretch: Stretch) -> str:
    """Name of a stretch's file without its suffix: the video's name, times, faces, and a hash of the URI.

    The same stretch has the same name in every run; videos of one name in two folders do not collide.
    """
    faces = stretch.faces
    more = [f"{len(faces) - NAMED_FACES}more"] if len(faces) > NAMED_FACES else []
    who = "+".join([_safe(face, 16) for face in faces[:NAMED_FACES]] + more)
    times = f"{stretch.t_start:09.3f}-{stretch.t_end:09.3f}"
    return "_".join([_stem(stretch.uri), times, *([f"face{who}"] if who else []), _digest(stretch.uri)])


def subtitle_name(uri: str) -> str:
    """Name of a video's subtitles."""
    return f"{_stem(uri)}_{_digest(uri)}.srt"


def _stem(uri: str) -> str:
    path = split_s3(uri)[1] if is_s3(uri) else str(local_path(uri))
    return _safe(PurePosixPath(path).stem, STEM_BYTES)


def _digest(uri: str) -> str:
    return hashlib.sha256(uri.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _safe(name: str, most: int) -> str:
    """Letters, digits, ".", "-" and "_" of a name in at most so many bytes; never hidden, an option, or empty."""
    name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name)).strip("._-")
    return name.encode("utf-8", "replace")[:most].decode("utf-8", "ignore").rstrip("._-") or "video"


# --- what sidecars and subtitles hold ---------------------------------------------------------------------


def json_safe(value: Any) -> Any:
    """A value of a row as JSON can hold it: NaN becomes null, bytes base64, moments ISO 8601, durations seconds."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def subtitles(stretches: Iterable[Stretch], gap: float) -> str:
    """SubRip text for one video: a cue per face and stretch, at the times of the whole video."""
    by_face: dict[str, list[Stretch]] = {}
    for row in (row for stretch in stretches for row in stretch.rows):
        face = "" if row.get("face_id") is None else str(row["face_id"])
        by_face.setdefault(face, []).append(stretch_of(row))
    cues = [cue for alike in by_face.values() for cue in merge(alike, gap)]
    cues.sort(key=lambda cue: (cue.t_start, cue.faces))
    lines = [f"{n}\n{_clock(c.t_start)} --> {_clock(c.t_end)}\n{_cue_text(c)}\n" for n, c in enumerate(cues, 1)]
    return "\n".join(lines)


def _cue_text(cue: Stretch) -> str:
    scores = [row["score"] for row in cue.rows if isinstance(row.get("score"), float) and math.isfinite(row["score"])]
    said = [f"face {face}" for face in cue.faces] + ([f"score {max(scores):.2f}"] if scores else [])
    flags = [row.get("flagged") for row in cue.rows]
    if any(flag is True for flag in flags):
        said.insert(0, "flagged")
    elif all(flag is False for flag in flags):
        said.insert(0, "not flagged")
    # SubRip knows tags: a name with <b> in it shall show as it is. Of nothing, players show no cue.
    return escape_controls(" · ".join(said or ["stretch"])).replace("<", "‹").replace(">", "›")


def _clock(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{milliseconds:03}"
