"""What lands in RESULTS: the statuses, the Parquet schema of a span, and the parts they are written to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.storage import LIST, S3_ERRORS, WRITE, get_bytes, list_results, put_bytes, s3_problem
from scanner.uris import join


class Status(str, Enum):
    """How a span (and so a video) ended. Only OK carries scores."""

    OK = "ok"
    NO_FACE = "no_face"  # decoded, but no face was found
    TOO_SHORT = "too_short"  # a face, but never long enough for a clip
    UNSUPPORTED = "unsupported"  # not a video: text, audio only, an unknown container
    DECODE_ERROR = "decode_error"  # a video, but no frame of it could be read
    TIMEOUT = "timeout"  # decoding or analysis passed its deadline and was killed
    CRASHED = "crashed"  # the child process that analysed it died
    TOO_LARGE = "too_large"  # over a limit on bytes, seconds, pixels or memory
    MISSING = "missing"  # could not be fetched: gone, or access denied
    MODEL_ERROR = "model_error"  # faces were found, but scoring them failed


#: Statuses that say something went wrong, as `failures` lists them and `--retry-failed` retries them.
#: NO_FACE and TOO_SHORT are findings about the video, not failures.
FAILED = frozenset(
    {
        Status.UNSUPPORTED,
        Status.DECODE_ERROR,
        Status.TIMEOUT,
        Status.CRASHED,
        Status.TOO_LARGE,
        Status.MISSING,
        Status.MODEL_ERROR,
    }
)

SCHEMA_VERSION = 1

_MOMENT = "%Y%m%d-%H%M%S-%f"  # of a run's start, in its run_id

GENERATION = "compaction.json"  # in RESULTS; see `generation`

#: How long a write to RESULTS is repeated while S3 throttles or does not answer, beyond the client's own minute: an
#: outage of minutes shall not end a night. Less than what the watchdog grants a task beside its work (SLACK_S).
WRITE_PATIENCE_S = 600.0
WRITE_PAUSES_S = (2.0, 30.0)  # the first pause, doubled from then on, and the longest
_BUSY = {429, 500, 502, 503, 504}  # HTTP; not 507, a full disk

_BOX = [("x", pa.float32()), ("y", pa.float32()), ("w", pa.float32()), ("h", pa.float32())]

#: One sampled moment of a face.
SIGNAL = pa.struct(
    [
        ("t", pa.float32()),
        ("ear", pa.float32()),  # of both eyes, or of the nearer one on a turned head
        ("ear_left", pa.float32()),
        ("ear_right", pa.float32()),
        ("motion", pa.float32()),  # of the face, the head's taken out: eye distances a second
        ("yaw", pa.float32()),  # degrees
        ("pitch", pa.float32()),
        ("roll", pa.float32()),
    ]
)
FACE = pa.struct(
    [
        ("face_id", pa.string()),  # "<span index>-<track>", unique within a video
        ("t_start", pa.float64()),
        ("t_end", pa.float64()),
        ("face_s", pa.float64()),  # seconds with landmarks
        ("score", pa.float64()),
        ("cnn_score", pa.float64()),
        ("blink_count", pa.int32()),
        ("blink_rate", pa.float64()),  # per minute
        ("blink_score", pa.float64()),
        ("blink_s", pa.float64()),  # seconds in which blinks could be seen
        ("blink_t", pa.list_(pa.float32())),  # moment of each blink
        ("blink_d", pa.list_(pa.float32())),  # duration of each blink, seconds
        ("micro_irregularity", pa.float64()),
        *_BOX,  # median box
        ("signals", pa.list_(SIGNAL)),
    ]
)
CLIP = pa.struct(
    [
        ("face_id", pa.string()),
        ("t_start", pa.float64()),
        ("t_end", pa.float64()),
        ("score", pa.float64()),
        ("cnn_score", pa.float64()),
        ("flagged", pa.bool_()),
        *_BOX,
    ]
)
FRAME = pa.struct(
    [
        ("face_id", pa.string()),
        ("t", pa.float64()),
        ("score", pa.float64()),
        ("ear", pa.float32()),
        ("blink", pa.bool_()),
        *_BOX,
    ]
)
THUMBNAIL = pa.struct(
    [
        ("face_id", pa.string()),
        ("t", pa.float64()),
        ("score", pa.float64()),
        ("image", pa.binary()),  # JPEG of the face crop
        (
            "heatmap",
            pa.binary(),
        ),  # JPEG of it under its Grad-CAM; NULL from an untrained model
    ]
)

#: One row per span. Times in seconds of the video, boxes as fractions of the frame.
SPAN = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("run_id", pa.string()),
        ("scanned_at", pa.timestamp("us", tz="UTC")),
        ("uri", pa.string()),
        ("content_tag", pa.string()),
        ("size_bytes", pa.int64()),
        ("span_index", pa.int32()),
        ("span_count", pa.int32()),
        ("t_start", pa.float64()),
        ("t_end", pa.float64()),
        ("duration_s", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("codec", pa.string()),
        ("decoder", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("lost_s", pa.float64()),  # seconds that no decoder could read
        ("analyzed_s", pa.float64()),
        ("face_s", pa.float64()),  # seconds with at least one face
        ("n_faces", pa.int32()),  # most faces seen at one moment
        ("score", pa.float64()),
        ("verdict", pa.string()),
        ("cnn_score", pa.float64()),
        ("blink_count", pa.int32()),
        ("blink_s", pa.float64()),
        ("blink_rate", pa.float64()),
        ("blink_score", pa.float64()),
        ("micro_irregularity", pa.float64()),
        ("model", pa.string()),
        ("model_digest", pa.string()),
        ("settings_digest", pa.string()),
        ("threshold", pa.float64()),  # a clip is flagged at or above this score
        ("worker_s", pa.float64()),  # seconds spent on this span: fetch, analysis, scoring
        ("faces", pa.list_(FACE)),
        ("clips", pa.list_(CLIP)),
        ("frames", pa.list_(FRAME)),
        ("thumbnails", pa.list_(THUMBNAIL)),
    ]
)


def part_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows of SPAN as one Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=SPAN), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def part_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """A name made from the spans inside, so that a repeated write replaces the first one."""
    keys = sorted(f"{row['uri']}\0{row['content_tag']}\0{row['span_index']}" for row in rows)
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return f"part-{digest[:24]}.parquet"


def write_part(results: str, run_id: str, rows: Sequence[Mapping[str, Any]], patience_s: float = 0.0) -> None:
    """Add spans to RESULTS: whole or not at all. Raises UserError (exit code 4) where that is impossible.

    patience_s: how long it is tried again while S3 throttles or does not answer.
    """
    _put(results, f"spans/run_id={run_id}/{part_name(rows)}", part_bytes(rows), patience_s)


def write_run(results: str, run: Mapping[str, Any], patience_s: float = 0.0) -> None:
    """Write or replace the record of a run, runs/<run_id>.json. Raises UserError as write_part does."""
    data = json.dumps(run, indent=1, default=str, sort_keys=True, ensure_ascii=False)
    # A path that is not UTF-8 holds halves of surrogate pairs: DuckDB refuses all records for one of them.
    data = re.sub("[\ud800-\udfff]", lambda half: rf"\\u{ord(half[0]):04x}", data)
    _put(results, f"runs/{run['run_id']}.json", data.encode(), patience_s)


def _put(results: str, name: str, data: bytes, patience_s: float) -> None:
    deadline, wait = time.monotonic() + patience_s, WRITE_PAUSES_S[0]
    while True:
        try:
            put_bytes(join(results, name), data)
            return
        except S3_ERRORS as error:  # some of which are OSErrors too
            pause = wait * random.uniform(0.5, 1)  # so that the writers of a night don't knock in step
            if not _may_pass(error) or time.monotonic() + pause >= deadline:
                raise UserError(s3_problem(error, results, WRITE), EXIT_PREFLIGHT) from None
        except OSError as error:
            what = f"{results} can't be written to any more: {error.strerror}. Make room or mend it."
            raise UserError(what, EXIT_PREFLIGHT) from None
        time.sleep(pause)
        wait = min(2 * wait, WRITE_PAUSES_S[1])


def _may_pass(error: BaseException) -> bool:
    """Whether S3 is only busy or out of reach; what it refuses it will refuse again."""
    if isinstance(error, ClientError):
        return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _BUSY
    return isinstance(error, ConnectionError | HTTPClientError)


def generation(results: str) -> bytes:
    """Which generation of files RESULTS hold: another value once a compaction may have removed some.

    Listing is no snapshot, on S3 or in a folder. Whoever reads the same generation before and after a listing
    knows that no removal began in between, and so that every row is in a file that was listed.
    """
    try:
        return get_bytes(join(results, GENERATION))
    except FileNotFoundError:
        return b""


def new_generation(results: str) -> None:
    """Tell readers that files are about to go; what replaces them must be there already."""
    record = {"generation": uuid.uuid4().hex, "at": datetime.now(timezone.utc).isoformat()}
    put_bytes(join(results, GENERATION), json.dumps(record).encode())


def latest_run(results: str) -> str:
    """The last run_id of RESULTS; "" where nothing was scanned yet. Raises UserError where they can't be listed."""
    runs = listed(results, "runs/", ".json")
    return max((run.rpartition("/")[2].removesuffix(".json") for run in runs), default="")


def listed(results: str, prefix: str, suffix: str) -> list[str]:
    """As list_results, but raises UserError (exit code 4), with the fix, where S3 fails."""
    try:
        return list_results(results, prefix, suffix)
    except S3_ERRORS as error:
        raise UserError(s3_problem(error, results, LIST), EXIT_PREFLIGHT) from None


def new_run_id(after: str = "") -> str:
    """Sorts by time, and behind the run `after`; the random end keeps two runs of one microsecond apart."""
    moment = datetime.now(timezone.utc)
    with contextlib.suppress(ValueError):  # a name that somebody else gave
        # Of two runs the views believe the later one, also where the clock was put back in between.
        latest = datetime.strptime(after.rpartition("-")[0], _MOMENT).replace(tzinfo=timezone.utc)
        moment = max(moment, latest + timedelta(microseconds=1))
    return f"{moment:{_MOMENT}}-{secrets.token_hex(2)}"
