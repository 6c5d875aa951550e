"""One portrait as training data: stills and short videos of a face that moves, with its real landmarks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.prepared import MARGIN, SCHEMA_VERSION, TRACK, TRACKS, FaceTrack, encode_crop, pack_landmarks, read_tracks
from models.training.fakes import Face
from scanner.faces import crop_square, square_around
from scanner.tracking import FaceTracker
from tests.zoo_face import portrait

SIDE = 160  # px of a stored crop


@pytest.fixture(scope="session")
def crop() -> tuple[np.ndarray, np.ndarray]:
    """The portrait's face as stored: (160, 160, 3) uint8 RGB, and its landmarks (478, 2) as fractions."""
    rgb = portrait()
    ((track, box),) = FaceTracker().update(0.0, rgb)
    square = square_around(box, MARGIN)
    fractions = (track.landmarks[0][:, :2] - np.round(square[:2])) / round(float(square[2]))
    return crop_square(rgb, box, MARGIN, SIDE), fractions.astype(np.float32)


@pytest.fixture
def face(crop) -> Face:
    """A clip of 6 frames in which the portrait drifts to the right."""
    rgb, landmarks = crop
    frames, points = [], []
    for step in range(6):
        move = np.array([[1, 0, 1.5 * step], [0, 1, 0]], np.float32)
        frames.append(cv2.warpAffine(rgb, move, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE))
        points.append(landmarks * SIDE + np.array([1.5 * step, 0]))
    return Face(np.stack(frames), np.stack(points).astype(np.float32))


def write_prep(folder: Path, crop, videos: int = 6, stills: int = 4, crops: int = 16) -> Path:
    """Prepared data of one portrait under many names: half of the videos are labelled fakes with a green mouth."""
    rgb, landmarks = crop
    rows = []
    for number in range(videos + stills):
        video, fake = number < videos, number < videos and number % 2 == 1
        shade = np.clip(rgb * (0.8 + 0.05 * number), 0, 255).astype(np.uint8)
        if fake:
            shade[90:120, 60:100] = (0, 200, 0)
        count = crops if video else 1
        rows.append(
            {
                "schema_version": SCHEMA_VERSION,
                "uri": f"{'videos' if video else 'stills'}/{number}",
                "kind": "video" if video else "image",
                "status": "ok",
                "label": "fake" if fake else "real",
                "method": "faceswap" if fake else None,
                "source": f"source{number % 3 if video else 'stills'}",
                "group": f"group{number}",
                "face_id": 0,
                "t": [i / 5 for i in range(count)],
                "crops": [encode_crop(np.roll(shade, i, axis=1)) for i in range(count)],
                "landmarks": pack_landmarks(np.repeat(landmarks[None], count, axis=0)),
                "blink_score": 0.5 if fake else None,
            }
        )
    (folder / TRACKS).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=TRACK), folder / TRACKS / "part-0.parquet")
    return folder


@pytest.fixture
def prep(tmp_path: Path, crop) -> Path:
    """A folder as `deepsweep prepare` leaves it."""
    return write_prep(tmp_path / "prep", crop)


@pytest.fixture
def tracks(prep: Path) -> list[FaceTrack]:
    """The face tracks of `prep`."""
    return read_tracks(prep)
