"""Prepared training data on disk: one Parquet row per face track, with its crops, landmarks and label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from models.baseline import Container

#: Side of a stored crop in longer sides of the landmarks' box. Wider than any network's input, so that training can
#: move, turn and scale the face, and blend beyond its outline.
MARGIN = 2.0
MAX_SIDE = 320  # px; a smaller face keeps its own size, because enlarging it would only invent pixels
CROP_FPS = 5.0  # crops per second of video
JPEG_QUALITY = 95
LANDMARKS = 478

#: One row per face track, or one without crops for a file that gave none: `status` and `error` then say why.
TRACK = pa.schema(
    [
        pa.field("schema_version", pa.int16(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("content_tag", pa.string()),
        pa.field("kind", pa.string(), nullable=False),  # video or image
        pa.field("status", pa.string(), nullable=False),  # as in results: ok, no_face, decode_error...
        pa.field("error", pa.string()),
        pa.field("label", pa.string(), nullable=False),  # real or fake
        pa.field("method", pa.string()),  # how it was manipulated; NULL for real ones
        pa.field("source", pa.string(), nullable=False),  # where it comes from: never split between parts
        pa.field("group", pa.string(), nullable=False),  # the recording or person: never split either
        pa.field("face_id", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("codec", pa.string()),
        pa.field("duration_s", pa.float64()),
        pa.field("blink_score", pa.float32()),  # 0..1, NULL where blinks cannot be judged
        pa.field("micro_irregularity", pa.float32()),  # 0..1, likewise
        pa.field("t", pa.list_(pa.float64())),  # seconds of the video, one per crop
        pa.field("crops", pa.list_(pa.binary())),  # JPEG, square, MARGIN times the landmarks' box
        pa.field("landmarks", pa.binary()),  # float16 (crops, 478, 2): x, y as fractions of the crop
    ]
)
SCHEMA_VERSION = 1
CONTAINER = tuple(f.name for f in fields(Container))  # columns of TRACK that are facts of the file
TRACKS = "tracks"  # folder of the Parquet parts inside PREP


class PrepError(ValueError):
    """Prepared data that cannot be used. `str(error)` is one sentence for people."""


@dataclass(frozen=True)
class FaceTrack:
    """The crops of one face, still compressed."""

    uri: str
    kind: str
    label: str
    method: str | None
    source: str
    group: str
    face_id: int
    t: np.ndarray  # (crops,) float64
    jpegs: list[bytes]
    landmarks: np.ndarray  # (crops, 478, 2) float16, fractions of the crop
    blink_score: float | None = None
    micro_irregularity: float | None = None
    container: Container = field(default_factory=Container)

    @property
    def fake(self) -> bool:
        """Whether the face was manipulated."""
        return self.label == "fake"

    def frames(self, start: int, stop: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Crops [start, stop) as (side, side, 3) uint8 RGB each, and their landmarks (n, 478, 2) float32 fractions."""
        return [decode_crop(data) for data in self.jpegs[start:stop]], self.landmarks[start:stop].astype(np.float32)


def encode_crop(rgb: np.ndarray) -> bytes:
    """(side, side, 3) uint8 RGB as JPEG, without chroma subsampling: blending traces live in the colours too."""
    settings = [
        cv2.IMWRITE_JPEG_QUALITY,
        JPEG_QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return cv2.imencode(".jpg", rgb[:, :, ::-1], settings)[1].tobytes()


def decode_crop(data: bytes) -> np.ndarray:
    """The (side, side, 3) uint8 RGB picture of a stored crop. Raises PrepError where it is none."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None or picture.shape[0] != picture.shape[1] or picture.shape[0] > MAX_SIDE:
        raise PrepError("A stored crop is not a square JPEG: prepare the data again.")
    return np.ascontiguousarray(picture[:, :, ::-1])


def pack_landmarks(landmarks: np.ndarray) -> bytes:
    """(crops, 478, 2) fractions of the crop, as the column holds them."""
    return np.ascontiguousarray(landmarks, dtype="<f2").tobytes()


def read_tracks(folder: str | Path) -> list[FaceTrack]:
    """All usable face tracks of prepared data, in a fixed order.

    Raises PrepError where there are none, or where a row does not hold what its columns promise.
    """
    parts = Path(folder) / TRACKS
    if not parts.is_dir() or not any(parts.glob("*.parquet")):
        raise PrepError(f"{folder} holds no prepared data: make it with `deepsweep prepare DATA --out {folder}`.")
    try:
        tracks = [_track(row) for row in _rows(parts)]
    except (pa.ArrowException, OSError) as error:
        raise PrepError(f"{folder} could not be read: {str(error).splitlines()[0]}.") from None
    if not tracks:
        raise PrepError(f"No face was found in what {folder} was prepared from.")
    return sorted(tracks, key=lambda track: (track.uri, track.face_id))


def _rows(parts: Path) -> Iterator[dict[str, Any]]:
    usable = (ds.field("status") == "ok") & (ds.field("schema_version") == SCHEMA_VERSION)
    columns = ["uri", "kind", "label", "method", "source", "group", "face_id", "t", "crops", "landmarks"]
    columns += ["blink_score", "micro_irregularity", *CONTAINER]
    scanner = ds.dataset(str(parts), format="parquet", schema=TRACK).scanner(columns=columns, filter=usable)
    for batch in scanner.to_batches():
        yield from batch.to_pylist()


def _track(row: dict[str, Any]) -> FaceTrack:
    count = len(row["crops"])
    if len(row["landmarks"]) != count * LANDMARKS * 2 * 2 or len(row["t"]) != count or not count:
        raise PrepError(f"{row['uri']}: crops and landmarks do not belong together: prepare the data again.")
    if row["label"] not in ("real", "fake"):
        raise PrepError(f"{row['uri']}: the label must be real or fake, not {row['label'][:20]!r}.")
    return FaceTrack(
        uri=row["uri"],
        kind=row["kind"],
        label=row["label"],
        method=row["method"],
        source=row["source"],
        group=row["group"],
        face_id=row["face_id"],
        t=np.array(row["t"]),
        jpegs=row["crops"],
        landmarks=np.frombuffer(row["landmarks"], "<f2").reshape(count, LANDMARKS, 2),
        blink_score=row["blink_score"],
        micro_irregularity=row["micro_irregularity"],
        container=Container(**{name: row[name] for name in CONTAINER}),
    )
