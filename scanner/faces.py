"""Geometry of faces: boxes, crops, head pose and cuts, as pure functions over arrays."""

from __future__ import annotations

import cv2
import numpy as np

# FaceMesh indices (478 landmarks: 468 of the face, 10 of the irises); left and right are the person's own.
RIGHT_EYE_OUTER, LEFT_EYE_OUTER = 33, 263
FOREHEAD, CHIN = 10, 152

CUT_CORRELATION = 0.5  # thumbnails of neighbouring frames correlate above 0.9 unless the shot changes
CUT_DIFFERENCE = 12.0  # mean grey levels out of 255: a dark scene's noise decorrelates without a cut
THUMBNAIL_GRID = (18, 32)


def landmark_box(landmarks: np.ndarray) -> np.ndarray:
    """Box around landmarks: (..., points, 2 or 3) px -> (..., 4) float32 x, y, w, h."""
    low, high = landmarks[..., :2].min(axis=-2), landmarks[..., :2].max(axis=-2)
    return np.concatenate([low, high - low], axis=-1).astype(np.float32)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (x, y, w, h)."""
    low = np.maximum(a[:2], b[:2])
    high = np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    union = float(a[2] * a[3] + b[2] * b[3]) - shared
    return shared / union if union > 0 else 0.0


def square_around(box: np.ndarray, scale: float) -> np.ndarray:
    """The square with the box's centre and `scale` times its longer side: (4,) float32 x, y, w, h."""
    side = float(max(box[2], box[3])) * scale
    centre = box[:2] + box[2:] / 2
    return np.array([centre[0] - side / 2, centre[1] - side / 2, side, side], dtype=np.float32)


def crop_square(rgb: np.ndarray, box: np.ndarray, scale: float, size: int) -> np.ndarray:
    """Cut the square around a box out of a frame, with the frame's edge repeated where it sticks out.

    rgb: (height, width, 3) uint8; box: (4,) px x, y, w, h. Returns (size, size, 3) uint8. Raises ValueError
    for a square that lies outside the frame.
    """
    x, y, side, _ = square_around(box, scale)
    x0, y0 = round(float(x)), round(float(y))
    side = max(2, round(float(side)))
    height, width = rgb.shape[:2]
    left, top = max(0, -x0), max(0, -y0)
    right, bottom = max(0, x0 + side - width), max(0, y0 + side - height)
    if max(left, right, top, bottom) >= side:
        raise ValueError("the box lies outside the frame")
    inside = rgb[y0 + top : y0 + side - bottom, x0 + left : x0 + side - right]
    if left or top or right or bottom:
        inside = cv2.copyMakeBorder(inside, top, bottom, left, right, cv2.BORDER_REPLICATE)
    # Averaging over the area keeps a large face from aliasing; for a small one it would be blocky.
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(inside, (size, size), interpolation=method)


def fractions(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes in px -> boxes as fractions of the frame: (..., 4) float32."""
    return (boxes / np.array([width, height, width, height])).astype(np.float32)


def head_pose(landmarks: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll of the head in degrees, zero when it looks straight into the camera.

    landmarks: (frames, 478, 3) px, z on the scale of x as FaceMesh gives it. The head's axes are taken
    from the face itself: across the outer eye corners, and from chin to forehead made perpendicular to it.
    Returns (frames, 3) float32: yaw > 0 turns to the person's left, pitch > 0 looks down, roll > 0 leans
    clockwise in the picture. NaN is passed through.
    """
    across = landmarks[:, LEFT_EYE_OUTER] - landmarks[:, RIGHT_EYE_OUTER]
    across = across / np.linalg.norm(across, axis=1, keepdims=True)
    upright = landmarks[:, CHIN] - landmarks[:, FOREHEAD]
    upright = upright - (upright * across).sum(axis=1, keepdims=True) * across
    upright = upright / np.linalg.norm(upright, axis=1, keepdims=True)
    yaw = np.arctan2(across[:, 2], np.hypot(across[:, 0], across[:, 1]))
    pitch = np.arctan2(upright[:, 2], np.hypot(upright[:, 0], upright[:, 1]))
    roll = np.arctan2(across[:, 1], across[:, 0])
    return np.degrees(np.stack([yaw, pitch, roll], axis=1)).astype(np.float32)


def thumbnail(rgb: np.ndarray) -> np.ndarray:
    """A few grey pixels of a frame, enough to tell a cut: (18, 32) float32."""
    rows = np.linspace(0, rgb.shape[0] - 1, THUMBNAIL_GRID[0]).astype(int)
    columns = np.linspace(0, rgb.shape[1] - 1, THUMBNAIL_GRID[1]).astype(int)
    return rgb[np.ix_(rows, columns)].mean(axis=2, dtype=np.float32)


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the shot changes between two thumbnails: they differ, and their patterns are unrelated.

    A flash or a fade changes brightness but not the pattern, and is no cut.
    """
    if float(np.abs(before - after).mean()) < CUT_DIFFERENCE:
        return False
    a, b = before - before.mean(), after - after.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return norm == 0 or float((a * b).sum()) / norm < CUT_CORRELATION
