"""Micro-expressions: how the face itself moves once the head's motion is taken out, and how irregularly."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from scanner.faces import LEFT_EYE_OUTER, RIGHT_EYE_OUTER

#: Landmarks that bone carries and no expression moves: bridge of the nose, eye corners, forehead, temples.
RIGID = (168, 6, 197, 195, 33, 133, 362, 263, 10, 67, 297, 109, 338, 127, 356)

#: FaceMesh indices per region: (the person's right side, left side), in mirrored order.
REGIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "brows": ((46, 53, 52, 65, 55, 70, 63, 105, 66, 107), (276, 283, 282, 295, 285, 300, 293, 334, 296, 336)),
    "eyes": ((159, 158, 160, 145, 153, 144), (386, 385, 387, 374, 380, 373)),
    "cheeks": ((50, 101, 118, 117, 123, 187, 205), (280, 330, 347, 346, 352, 411, 425)),
    "mouth": ((61, 39, 37, 84, 181, 91, 78), (291, 269, 267, 314, 405, 321, 308)),
}

GRID_FPS = 15.0  # signals are put on this grid before derivatives are taken
MIN_SECONDS = 3.0  # below that a spectrum has less than a dozen lines
MAX_GAP_S = 0.25  # samples further apart are not interpolated across
FAST_HZ = 4.0  # facial muscles move landmarks below 3 to 4 Hz, lids apart; jitter has no such limit
STILL = 0.02  # eye distances a second: slower motion than that is measurement noise; a frozen picture has none

# What each part measured on 143 faces of genuine footage, 3 to 10 s each: (median, 1.4826 MAD). A part
# becomes a logistic of its distance from the median in spreads, so that 0.5 is ordinary. Measured again by
# `python -m tests.bench micro FOLDER`.
NORMAL = {
    "jerk": (2.616, 0.061),
    "fast_share": (0.422, 0.096),
    "asymmetry": (0.232, 0.108),
    "decoupling": (0.476, 0.100),
}


@dataclass(frozen=True)
class Motion:
    """Facial motion of one track. `irregularity` and `parts` are None and empty when too little was seen."""

    speed: np.ndarray  # (frames,) float32: mean over regions, eye distances a second, NaN at gaps
    regions: np.ndarray  # (frames, len(REGIONS)) float32: the same of each region alone
    irregularity: float | None  # 0 smooth and coordinated .. 1 erratic; genuine footage centres on 0.5
    parts: dict[str, float]  # the measurements behind it, as in NORMAL


def remove_head_motion(landmarks: np.ndarray) -> np.ndarray:
    """Express landmarks in the head's own frame, in units of the distance between the outer eye corners.

    landmarks: (frames, 478, 3) px. Each frame is laid onto the track's median face by the rotation, scale
    and shift that fit its RIGID landmarks best (orthogonal Procrustes in space; Kabsch 1976, Umeyama
    1991). Returns (frames, 478, 3) float32.
    """
    rigid = landmarks[:, RIGID].astype(np.float64)
    centre = rigid.mean(axis=1, keepdims=True)
    centred = rigid - centre
    size = np.sqrt((centred**2).sum(axis=(1, 2), keepdims=True))
    shapes = centred / size
    reference = _align(shapes, np.median(shapes, axis=0))[1]
    rotation, _ = _align(shapes, reference)
    aligned = np.einsum("fij,fpj->fpi", rotation, (landmarks - centre) / size)
    eyes = np.median(np.linalg.norm(aligned[:, LEFT_EYE_OUTER] - aligned[:, RIGHT_EYE_OUTER], axis=1))
    return (aligned / eyes).astype(np.float32)


def _align(shapes: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (frames, 3, 3) that lay each (points, 3) shape onto the reference, and the new median."""
    u, _, vt = np.linalg.svd(np.einsum("pi,fpj->fij", reference, shapes))
    flip = np.linalg.det(u @ vt)
    u[:, :, -1] *= flip[:, None]  # a rotation, never a reflection
    rotation = u @ vt
    return rotation, np.median(np.einsum("fij,fpj->fpi", rotation, shapes), axis=0)


def analyze_motion(t: np.ndarray, landmarks: np.ndarray) -> Motion:
    """Facial motion and its irregularity.

    t: (frames,) seconds, ascending; landmarks: (frames, 478, 3) px.

    The irregularity is the mean of four parts, each set against genuine footage (see NORMAL):
    - jerk: log10 of the dimensionless jerk, rms(x''') / rms(x') in 1/s² on GRID_FPS (after Hogan &
      Sternad 2009, J. Motor Behavior 41): motion made of jumps instead of muscles;
    - fast_share: the part of the motion's power above FAST_HZ: flicker;
    - asymmetry: 1 - correlation of the left and right side's speeds within a region;
    - decoupling: 1 - mean correlation between the regions' speeds: a mouth that the cheeks don't follow.
    """
    if len(t) < 2:
        unknown = np.full((len(t), len(REGIONS)), np.nan, np.float32)
        return Motion(unknown[:, 0], unknown, None, {})
    steady = remove_head_motion(landmarks)
    speed, regions = _mean_speeds(t, steady)
    grids = [_on_grid(t[piece], steady[piece]) for piece in _pieces(t)]
    grids = [grid for grid in grids if len(grid) >= MIN_SECONDS * GRID_FPS]
    if not grids:
        return Motion(speed, regions, None, {})
    weights = np.array([len(grid) for grid in grids], dtype=float)
    measured = [_measure(grid) for grid in grids]
    parts = {name: float(np.average([m[name] for m in measured], weights=weights)) for name in NORMAL}
    return Motion(speed, regions, _irregularity(parts), parts)


def _irregularity(parts: dict[str, float]) -> float:
    scaled = [(parts[name] - median) / spread for name, (median, spread) in NORMAL.items()]
    return float(np.mean(1 / (1 + np.exp(-np.clip(scaled, -30, 30)))))


def _mean_speeds(t: np.ndarray, steady: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Speed of all points, (frames,) float32, and of the points of each region, (frames, regions) float32."""
    regions = [[*right, *left] for right, left in REGIONS.values()]
    steps = np.diff(t)
    points = [point for region in regions for point in region]
    moved = np.linalg.norm(np.diff(steady[:, points], axis=0), axis=2)
    bounds = np.cumsum([0, *map(len, regions)])
    means = np.stack([moved.mean(axis=1)] + [moved[:, a:b].mean(axis=1) for a, b in itertools.pairwise(bounds)], axis=1)
    speeds = np.where(steps[:, None] <= MAX_GAP_S, means / np.maximum(steps, 1e-6)[:, None], np.nan)
    known = np.concatenate([np.full((1, speeds.shape[1]), np.nan), speeds]).astype(np.float32)
    return known[:, 0], known[:, 1:]


def _pieces(t: np.ndarray) -> list[slice]:
    """Stretches without a gap."""
    cuts = np.flatnonzero(np.diff(t) > MAX_GAP_S) + 1
    bounds = [0, *cuts.tolist(), len(t)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds) if b - a >= 2]


def _on_grid(t: np.ndarray, steady: np.ndarray) -> np.ndarray:
    """Linear interpolation of (frames, 478, 3) onto GRID_FPS: (samples, 478, 3)."""
    grid = np.arange(t[0], t[-1], 1 / GRID_FPS)
    after = np.clip(np.searchsorted(t, grid, side="right"), 1, len(t) - 1)
    weight = ((grid - t[after - 1]) / (t[after] - t[after - 1]))[:, None, None]
    return steady[after - 1] * (1 - weight) + steady[after] * weight


def _measure(grid: np.ndarray) -> dict[str, float]:
    speeds, jerks, shares, asymmetries = [], [], [], []
    for right, left in REGIONS.values():
        position = grid[:, (*right, *left)].reshape(len(grid), -1)
        velocity = np.diff(position, axis=0) * GRID_FPS
        jerk = np.diff(position, n=3, axis=0) * GRID_FPS**3
        jerks.append(np.log10((_rms(jerk) + STILL) / (_rms(velocity) + STILL)))
        shares.append(_fast_share(velocity))
        sides = [_speed(grid[:, side]) for side in (right, left)]
        asymmetries.append(1 - _correlation(*sides))
        speeds.append(sides[0] + sides[1])
    pairs = [_correlation(a, b) for i, a in enumerate(speeds) for b in speeds[i + 1 :]]
    return {
        "jerk": float(np.mean(jerks)),
        "fast_share": float(np.mean(shares)),
        "asymmetry": float(np.mean(asymmetries)),
        "decoupling": 1 - float(np.mean(pairs)),
    }


def _speed(positions: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.diff(positions, axis=0), axis=2).mean(axis=1)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _fast_share(velocity: np.ndarray) -> float:
    """Share of the power above FAST_HZ: (samples, signals) -> 0..1."""
    window = np.hanning(len(velocity))[:, None]
    power = np.abs(np.fft.rfft((velocity - velocity.mean(axis=0)) * window, axis=0)) ** 2
    total = float(power.sum())
    fast = np.fft.rfftfreq(len(velocity), 1 / GRID_FPS) > FAST_HZ
    return float(power[fast].sum()) / total if total > 0 else 0.0


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norm if norm > 0 else 0.0
