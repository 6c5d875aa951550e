"""Soft masks over a face, drawn from its landmarks: what a manipulation replaces, and how it fades out."""

from __future__ import annotations

import cv2
import numpy as np

# FaceMesh indices, in the order of their outlines.
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
        148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
EYES = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246,
        263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)  # fmt: skip
BROWS = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
NOSE = (168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 129, 358)
LOWER = (234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 4)

REGIONS = {
    "face": OVAL,
    "inner": (*BROWS, *EYES, *NOSE, *LIPS),
    "lower": LOWER,
    "mouth": LIPS,
    "eyes": (*BROWS, *EYES),
}


def region_points(landmarks: np.ndarray, region: str) -> np.ndarray:
    """The landmarks that span a region of REGIONS: (478, 2) px -> (n, 2) float32."""
    return landmarks[list(REGIONS[region])].astype(np.float32)


def hull_mask(points: np.ndarray, size: int) -> np.ndarray:
    """The convex hull of (n, 2) px points, filled: (size, size) float32 in 0..1."""
    mask = np.zeros((size, size), np.uint8)
    hull = cv2.convexHull(np.round(points).astype(np.int32))
    cv2.fillConvexPoly(mask, hull, (255,), lineType=cv2.LINE_AA)
    return mask.astype(np.float32) / 255


def deform(points: np.ndarray, grow: float, wobble: np.ndarray) -> np.ndarray:
    """Scale (n, 2) points about their middle by `grow`, and by (k,) `wobble` factors that vary with the direction.

    The factors are interpolated around the circle, so that a hull bulges and dents instead of fraying.
    """
    middle = points.mean(axis=0)
    arms = points - middle
    angle = np.arctan2(arms[:, 1], arms[:, 0])
    knots = np.linspace(-np.pi, np.pi, len(wobble) + 1)
    factor = np.interp(angle, knots, [*wobble, wobble[0]])
    return (middle + arms * (grow * factor)[:, None]).astype(np.float32)


def soften(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Fade a mask out inwards: blurred, and then zero where it was zero, so that nothing outside is touched.

    sigma: px. As in Shiohara & Yamasaki 2022, two passes: the first erodes, the second smooths the new edge.
    """
    if sigma < 0.3:
        return mask
    blurred = cv2.GaussianBlur(mask, (0, 0), sigma)
    eroded = np.where(blurred > 0.5, blurred, 0.0).astype(np.float32)
    soft = cv2.GaussianBlur(eroded, (0, 0), sigma * 0.7)
    peak = float(soft.max())
    return soft / peak if peak > 0 else soft
