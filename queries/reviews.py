"""What people said of clips: the reviews in RESULTS, their Parquet schema, and the parts that they are appended in."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from queries.text import UNSAFE
from scanner.errors import UserError
from scanner.storage import S3_ERRORS, WRITE, is_s3, put_bytes, s3_problem
from scanner.uris import join

Label = Literal["confirmed", "false_alarm", "unsure"]
LABELS: tuple[Label, ...] = get_args(Label)

SCHEMA_VERSION = 1
MAX_NOTE = 4000  # characters; a note is read in a table
MAX_REVIEWER = 200

#: One row per review. A clip is named as the view `clips` names it, of the version of the video that was scanned.
REVIEW = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("uri", pa.string()),
        ("content_tag", pa.string()),
        ("face_id", pa.string()),
        ("t_start", pa.float64()),
        ("t_end", pa.float64()),
        ("label", pa.string()),
        ("note", pa.string()),
        ("reviewer", pa.string()),
        ("reviewed_at", pa.timestamp("us", tz="UTC")),
    ]
)


@dataclass(frozen=True)
class Review:
    """What somebody said of one clip. Raises UserError for what can't be kept.

    uri, content_tag, face_id, t_start, t_end: as the views have them, times in seconds of the video.
    reviewed_at: with a time zone.
    """

    uri: str
    content_tag: str | None
    face_id: str
    t_start: float
    t_end: float
    label: Label
    note: str
    reviewer: str
    reviewed_at: datetime

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise UserError(f"A review is one of {', '.join(LABELS)}, not {self.label!r}.")
        if not (math.isfinite(self.t_start) and math.isfinite(self.t_end)):
            raise UserError("A review needs the times of its clip.")
        if len(self.note) > MAX_NOTE:
            raise UserError(f"The note has {len(self.note):,} characters: {MAX_NOTE:,} are kept. Shorten it.")
        if not self.reviewer.strip() or len(self.reviewer) > MAX_REVIEWER or UNSAFE.search(self.reviewer):
            raise UserError(f"The reviewer needs a name of 1 to {MAX_REVIEWER} characters, none of them invisible.")


def append_reviews(results: str, reviews: Sequence[Review]) -> str:
    """Add reviews to RESULTS in a part of their own, whole or not at all; returns the part's path or URI.

    Nothing is read and nothing replaced, so any number of people may do this at once.
    Raises UserError where RESULTS can't be written.
    """
    rows = [{"schema_version": SCHEMA_VERSION, **asdict(review), "note": _storable(review.note)} for review in reviews]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=REVIEW), sink, compression="zstd")
    name = f"part-{datetime.now(timezone.utc):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(8)}.parquet"
    part = join(results, "reviews", name)
    try:
        put_bytes(part, sink.getvalue().to_pybytes())
    except S3_ERRORS as error:
        where = s3_problem(error, part, WRITE) if is_s3(part) else f"{part} is not the name of a file"
        raise UserError(f"The review was not kept: {where}") from None
    except OSError as error:
        raise UserError(f"The review was not kept: {part} could not be written: {error.strerror}.") from None
    return part


def _storable(text: str) -> str:
    """text without what UTF-8 can't hold: half of a surrogate pair, as a broken paste may bring it."""
    return text.encode("utf-8", "replace").decode("utf-8")
