"""From one labelled file to rows of prepared data: its faces as the scan sees them, cropped wider for training."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models.prepared import CROP_FPS, MARGIN, MAX_SIDE, SCHEMA_VERSION, encode_crop, pack_landmarks
from scanner.analysis import measure
from scanner.decode import (
    ANALYSIS_LONG_SIDE,
    MAX_PIXELS,
    DecodeError,
    Reading,
    VideoInfo,
    analysis_size,
    probe,
    read_frames,
)
from scanner.errors import UserError
from scanner.faces import crop_square, square_around
from scanner.guard import Guard, GuardFailure
from scanner.labels import Labelled
from scanner.results import Status
from scanner.second_opinion import with_second_opinion
from scanner.thinning import grid_slot
from scanner.tracking import FaceTracker, Track

LOOK_FPS = 15.0  # frames looked at per second, as the scan's default: tracks are those that it would follow
MIN_CROPS = 4  # of a track: 0.8 s of a face; what is seen for less teaches no motion and is often no face
MAX_IMAGE_BYTES = 256 << 20  # a picture of MAX_PIXELS without compression
VIDEO_DEADLINE_S = 600.0  # as the scan gives a span
IMAGE_DEADLINE_S = 60.0
PRELOAD = ("scanner.extract", "mediapipe")  # for the child that runs extract_video and extract_image


@dataclass(frozen=True)
class File:
    """A labelled file as it lies there now, or the reason why it can't be read."""

    item: Labelled
    content_tag: str  # "{size}-{mtime_ns}", as in a scan; "" when missing
    size_bytes: int | None
    error: str | None = None


@dataclass(frozen=True)
class FaceCrops:
    """The crops of one face track, compressed."""

    face_id: int
    t: list[float]  # seconds of the video
    jpegs: list[bytes]
    landmarks: bytes  # as models.prepared.pack_landmarks gives them
    blink_score: float | None = None
    micro_irregularity: float | None = None


@dataclass(frozen=True)
class Faces:
    """What was found in a file."""

    width: int
    height: int
    info: VideoInfo | None  # None for a picture
    seen: int  # face tracks, too short ones among them
    tracks: list[FaceCrops]


def file_rows(file: File, guard: Guard, max_seconds: float) -> list[dict[str, Any]]:
    """Rows of models.prepared.TRACK of a file: one per face track, or one that says why there is none.

    guard: a child with PRELOAD. Whatever goes wrong with the file becomes a status.
    """
    if file.error is not None:
        return [_row(file, Status.MISSING, file.error)]
    try:
        faces = _faces(file.item, guard, max_seconds)
    except (DecodeError, GuardFailure) as failure:
        return [_row(file, failure.status, str(failure))]
    except FileNotFoundError:
        return [_row(file, Status.MISSING, "it was there when the data were listed, and is gone")]
    except PermissionError as error:
        return [_row(file, Status.MISSING, f"could not be read: {error.strerror}")]
    except UserError:  # of this machine, not of the file
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        return [_row(file, Status.DECODE_ERROR, f"{type(error).__name__}: {text[0] if text else 'no message'}"[:500])]
    if not faces.tracks:
        return [_row(file, Status.TOO_SHORT if faces.seen else Status.NO_FACE, None, faces)]
    return [_row(file, Status.OK, None, faces, track) for track in faces.tracks]


def _faces(item: Labelled, guard: Guard, max_seconds: float) -> Faces:
    if item.kind == "image":
        return guard.run(extract_image, item.path, deadline_s=IMAGE_DEADLINE_S)
    return with_second_opinion(
        lambda decoder: guard.run(extract_video, item.path, max_seconds, decoder, deadline_s=VIDEO_DEADLINE_S)
    )


def _row(
    file: File, status: Status, error: str | None, faces: Faces | None = None, track: FaceCrops | None = None
) -> dict[str, Any]:
    item, info = file.item, faces.info if faces else None
    return {
        "schema_version": SCHEMA_VERSION,
        "uri": item.uri,
        "content_tag": file.content_tag,
        "kind": item.kind,
        "status": status.value,
        "error": error,
        "label": item.label,
        "method": item.method,
        "source": item.source,
        "group": item.group,
        "face_id": track.face_id if track else None,
        "size_bytes": file.size_bytes,
        "width": faces.width if faces else None,
        "height": faces.height if faces else None,
        "fps": info.fps if info else None,
        "codec": info.codec if info else None,
        "duration_s": info.duration_s if info else None,
        "blink_score": track.blink_score if track else None,
        "micro_irregularity": track.micro_irregularity if track else None,
        "t": track.t if track else [],
        "crops": track.jpegs if track else [],
        "landmarks": track.landmarks if track else b"",
    }


# --- in the child -----------------------------------------------------------------------------------------


def extract_video(path: str, max_seconds: float, decoder: str) -> Faces:
    """The face tracks of a video's first max_seconds, each with at least MIN_CROPS crops.

    decoder: "pyav", or "decord", which may raise DecordGaveUp. Raises DecodeError.
    """
    info = probe(Path(path))
    tracker = _tracker()
    tracker.finish()  # a file that broke off may have left its faces behind
    crops: dict[int, list[tuple[float, bytes, np.ndarray]]] = {}
    last_slot = None
    for t, rgb in read_frames(Path(path), info, 0.0, max_seconds, LOOK_FPS, decoder, Reading()):
        seen = tracker.update(t, rgb)
        slot = grid_slot(t, CROP_FPS)
        if slot != last_slot:
            last_slot = slot
            for track, box in seen:
                with contextlib.suppress(ValueError):  # landmarks of a leaving face can lie outside the frame
                    crops.setdefault(id(track), []).append((t, *crop_face(rgb, box, track.landmarks[-1])))
    tracks = tracker.finish()  # held, so that no two of them have one id
    kept = [(number, track, crops.get(id(track), [])) for number, track in enumerate(tracks)]
    size = analysis_size(info)
    found = [_face_crops(number, track, taken, size) for number, track, taken in kept if len(taken) >= MIN_CROPS]
    return Faces(info.width, info.height, info, len(tracks), found)


def extract_image(path: str) -> Faces:
    """The largest face of a picture, as a track of one crop. Raises DecodeError."""
    rgb = read_image(Path(path))
    height, width = rgb.shape[:2]
    scale = ANALYSIS_LONG_SIDE / max(width, height)
    if scale < 1:  # as the frames of a video are cut
        size = max(2, round(width * scale)), max(2, round(height * scale))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    tracker = _tracker()
    tracker.finish()  # a file that broke off may have left its faces behind
    tracks = []
    for track, box in tracker.update(0.0, rgb)[:1]:  # the first is the largest
        with contextlib.suppress(ValueError):
            jpeg, landmarks = crop_face(rgb, box, track.landmarks[-1])
            tracks.append(FaceCrops(0, [0.0], [jpeg], pack_landmarks(landmarks[None])))
    return Faces(width, height, None, len(tracker.finish()), tracks)


def read_image(path: Path) -> np.ndarray:
    """A picture as (height, width, 3) uint8 RGB, upright as its EXIF says. Raises DecodeError."""
    size = path.stat().st_size
    if size == 0:
        raise DecodeError("the file is empty (0 bytes)")
    if size > MAX_IMAGE_BYTES:
        raise DecodeError(f"{size:,} bytes are over the limit of a picture ({MAX_IMAGE_BYTES:,})", Status.TOO_LARGE)
    try:
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DecodeError(f"OpenCV refused the picture: {error.err}") from None
    if picture is None:
        raise DecodeError("damaged, or not a picture that can be read")
    height, width = picture.shape[:2]
    if height * width > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels are over the limit of {MAX_PIXELS:,}", Status.TOO_LARGE)
    return np.ascontiguousarray(picture[:, :, ::-1])


def crop_face(rgb: np.ndarray, box: np.ndarray, landmarks: np.ndarray) -> tuple[bytes, np.ndarray]:
    """A face as training stores it: the JPEG of its square, and its landmarks as fractions of that.

    rgb: (height, width, 3) uint8; box: (4,) px; landmarks: (478, 2 or 3) px. Returns landmarks (478, 2).
    Raises ValueError where the square lies outside the frame.
    """
    x, y, side = (round(float(v)) for v in square_around(box, MARGIN)[:3])  # the pixels that crop_square takes
    side = max(2, side)
    jpeg = encode_crop(crop_square(rgb, box, MARGIN, min(MAX_SIDE, side)))
    return jpeg, (landmarks[:, :2] - np.array([x, y])) / side


@functools.cache
def _tracker() -> FaceTracker:
    return FaceTracker()


def _face_crops(
    number: int, track: Track, taken: list[tuple[float, bytes, np.ndarray]], size: tuple[int, int]
) -> FaceCrops:
    t, jpegs, landmarks = zip(*taken, strict=True)
    signals = measure(track, [], size, 0)
    packed = pack_landmarks(np.stack(landmarks))
    return FaceCrops(number, list(t), list(jpegs), packed, signals.blinks.score, signals.irregularity)
