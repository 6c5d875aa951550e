"""Cutting a face's crops into clips for the network, and putting its answers back in place."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from models.clips import cut
from scanner.analysis import FaceSignals

THUMBNAIL_QUALITY = 85  # JPEG: a 192 px crop takes about 8 kB


@dataclass(frozen=True)
class ClipRef:
    """Crops [start, stop) of face number `face` of a span."""

    face: int
    start: int
    stop: int


@dataclass(frozen=True)
class Thumbnail:
    """A kept picture: crop number `crop` of face number `face`, as JPEG, and the same under its heatmap."""

    face: int
    crop: int
    clip: int  # number of the clip it stands for
    image: bytes
    heatmap: bytes | None


@dataclass(frozen=True)
class ClipScores:
    """The network's answers for one span."""

    clips: list[ClipRef]
    probabilities: np.ndarray  # (clips,) float32
    frames: list[np.ndarray]  # per clip: (stop - start,) float32
    thumbnails: list[Thumbnail]


def clips_of(faces: list[FaceSignals], clip_frames: int, min_clip_frames: int) -> list[ClipRef]:
    """All clips of a span's faces."""
    return [
        ClipRef(number, start, stop)
        for number, face in enumerate(faces)
        for start, stop in cut(len(face.crops), clip_frames, min_clip_frames)
    ]


def pad(pictures: list[np.ndarray], clip_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips of different lengths as one (clips, clip_frames, size, size, 3) uint8, and their lengths, int64."""
    lengths = np.array([len(p) for p in pictures], dtype=np.int64)
    padded = np.zeros((len(pictures), clip_frames, *pictures[0].shape[1:]), dtype=np.uint8)
    for row, picture in zip(padded, pictures, strict=True):
        row[: len(picture)] = picture
    return padded, lengths


def jpeg(rgb: np.ndarray) -> bytes:
    """Encode (height, width, 3) uint8 RGB."""
    _, data = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])
    return data.tobytes()
