"""Bringing one face onto another's landmarks: a piecewise affine warp over a coarse mesh of the face."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from models.training.masks import BROWS, EYES, LIPS, NOSE, OVAL

_FRAME = 8  # points along the picture's border that stay where they are
MESH = tuple(dict.fromkeys((*OVAL[::2], *BROWS[::2], *EYES[::4], *NOSE[::3], *LIPS[::3])))


def mesh_points(landmarks: np.ndarray, size: int) -> np.ndarray:
    """The mesh's corners for a face in a (size, size) picture: (478, 2) px -> (n, 2) float32, the border's included."""
    edge = np.array([(0, 0), (0.5, 0), (1, 0), (1, 0.5), (1, 1), (0.5, 1), (0, 1), (0, 0.5)]) * (size - 1)
    inside = np.clip(landmarks[list(MESH)], 1, size - 2)
    return np.concatenate([inside, edge]).astype(np.float32)


def warp(image: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Move the face with landmarks `source` to where landmarks `target` are.

    image: (size, size, 3) uint8; source, target: (478, 2) px. Returns (size, size, 3) uint8; the picture's border
    stays in place, as behind a talking head that was animated from one photograph.
    """
    size = len(image)
    to = mesh_points(target, size)
    start = mesh_points(source, size)
    triangles = _triangles(to, size)
    # The displacement is linear on each triangle: drawn as a coarse field and enlarged, it costs a tenth of warping
    # every triangle by itself, and its bends are softer than a mesh's, as a generator's are.
    coarse = max(32, size // 3)
    field = _field(triangles, to, start, size, coarse)
    field = cv2.resize(field, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.remap(image, field[..., 0], field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _triangles(points: np.ndarray, size: int) -> np.ndarray:
    """Delaunay triangulation of (n, 2) points: (m, 3) indices."""
    subdivision = cv2.Subdiv2D((0, 0, size, size))
    index: dict[tuple[float, float], int] = {}
    for i, (x, y) in enumerate(points):
        key = (round(float(x), 2), round(float(y), 2))
        if key not in index:
            index[key] = i
            subdivision.insert(key)
    corners = np.asarray(subdivision.getTriangleList()).reshape(-1, 3, 2)
    found = []
    for triangle in corners:
        numbers = [index.get((round(float(x), 2), round(float(y), 2))) for x, y in triangle]
        if None not in numbers:
            found.append(numbers)
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _field(triangles, to: np.ndarray, start: np.ndarray, size: int, coarse: int) -> np.ndarray:
    """For each pixel of a (coarse, coarse) grid where in the source it comes from: (coarse, coarse, 2) float32."""
    steps, grid = _grid(coarse, size)
    field = grid.copy()
    a, b, c = to[triangles[:, 0]], to[triangles[:, 1]], to[triangles[:, 2]]
    determinant = (b[:, 1] - c[:, 1]) * (a[:, 0] - c[:, 0]) + (c[:, 0] - b[:, 0]) * (a[:, 1] - c[:, 1])
    corners = np.stack([a, b, c])
    first = np.searchsorted(steps, corners.min(axis=0) - 1e-3)
    last = np.searchsorted(steps, corners.max(axis=0) + 1e-3, side="right")
    for i in np.nonzero(np.abs(determinant) > 1e-3)[0]:
        box = slice(first[i, 1], last[i, 1]), slice(first[i, 0], last[i, 0])
        p = grid[box] - c[i]
        u = ((b[i, 1] - c[i, 1]) * p[..., 0] + (c[i, 0] - b[i, 0]) * p[..., 1]) / determinant[i]
        v = ((c[i, 1] - a[i, 1]) * p[..., 0] + (a[i, 0] - c[i, 0]) * p[..., 1]) / determinant[i]
        w = 1 - u - v
        inside = (u >= -1e-3) & (v >= -1e-3) & (w >= -1e-3)
        weights = np.stack([u, v, w], axis=-1)[inside]
        field[box][inside] = weights @ start[triangles[i]]
    return field


@functools.cache
def _grid(coarse: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the grid along one side, (coarse,), and of its points, (coarse, coarse, 2), float32 px."""
    # pixel centres, as cv2.resize places them
    steps = ((np.arange(coarse) + 0.5) * size / coarse - 0.5).astype(np.float32)
    return steps, np.stack(np.meshgrid(steps, steps), axis=-1)
