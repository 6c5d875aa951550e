"""Pseudo-fakes: manipulated clips made from genuine ones, of the kinds that deepfake tools leave behind.

Everything works on clips: T frames of one face, (T, S, S, 3) uint8 RGB, with landmarks (T, 478, 2) float32 px. One draw
of mask and source transform holds for a whole clip and jitters a little from frame to frame: that flicker, and not
the single frame, is what the network's temporal head can learn from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from models.training.masks import deform, hull_mask, region_points, soften
from models.training.warp import warp

REGION_ODDS = {"face": 0.5, "inner": 0.2, "lower": 0.1, "mouth": 0.12, "eyes": 0.08}
ALPHAS = (0.5, 0.75, 1.0, 1.0, 1.0)  # blending ratios of Shiohara & Yamasaki 2022, less the faintest
PARTIAL_ODDS = 0.2  # of a manipulation that covers a part of the clip only
POISSON_ODDS = 0.25
GENERATOR_SIDES = (64, 96, 112, 128, 160)  # px: output sizes of common face generators, for the whole crop


@dataclass(frozen=True)
class Face:
    """A clip of one genuine face."""

    frames: np.ndarray  # (T, S, S, 3) uint8 RGB
    landmarks: np.ndarray  # (T, 478, 2) float32 px


@dataclass(frozen=True)
class Fake:
    """The manipulated clip, and which of its frames were touched."""

    frames: np.ndarray  # (T, S, S, 3) uint8 RGB
    touched: np.ndarray  # (T,) bool


def self_blend(face: Face, rng: np.random.Generator) -> Fake:
    """Self-blended images (Shiohara & Yamasaki, CVPR 2022): a face pasted onto itself, slightly altered and displaced.

    It holds what every swap leaves (a blending edge, two statistics in one face) and nothing of any one method.
    """
    change = source_transform(rng)
    altered = np.stack([change(frame) for frame in face.frames])
    source, target = (altered, face.frames) if rng.random() < 0.5 else (face.frames, altered)
    return _paste(face, source, target, _region(rng), rng, displaced=True)


def swap(face: Face, other: Face, rng: np.random.Generator) -> Fake:
    """Another person's face, warped onto this one's landmarks, matched in colour, and blended in.

    `other` must have as many frames; its expressions come along, as with landmark-based swaps.
    """
    region = "face" if rng.random() < 0.6 else "inner"
    source = np.empty_like(face.frames)
    side = _generator_side(rng, len(face.frames[0]))
    for i, frame in enumerate(other.frames):
        moved = warp(frame, other.landmarks[i], face.landmarks[i])
        source[i] = _resample(moved, side, interpolation=cv2.INTER_LINEAR) if side else moved
    if rng.random() < 0.8:
        inside = hull_mask(region_points(face.landmarks[0], region), len(face.frames[0])) > 0.5
        source = np.stack([match_colours(s, f, inside) for s, f in zip(source, face.frames, strict=True)])
    return _paste(face, source, face.frames, region, rng, displaced=False)


def lip_sync(face: Face, rng: np.random.Generator) -> Fake:
    """A mouth that belongs to another moment (or is only re-rendered), pasted in at a generator's resolution."""
    order = rng.permutation(len(face.frames)) if rng.random() < 0.7 else np.arange(len(face.frames))
    size = len(face.frames[0])
    region = "lower" if rng.random() < 0.6 else "mouth"
    side = int(rng.choice((48, 64, 96, 128)))
    change = source_transform(rng) if rng.random() < 0.5 else None
    source = np.empty_like(face.frames)
    for i, j in enumerate(order):
        mouth = warp(face.frames[j], face.landmarks[j], face.landmarks[i]) if i != j else face.frames[i]
        mouth = _resample(mouth, min(side, size - 8), cv2.INTER_LINEAR)
        source[i] = change(mouth) if change else mouth
    return _paste(face, source, face.frames, region, rng, displaced=len(face.frames) == 1)


def animate(face: Face, rng: np.random.Generator, driving: np.ndarray | None = None) -> Fake:
    """One photograph moved by landmarks, as talking-head generators do: texture sticks, teeth and lids are stretched.

    driving: (T, 478, 2) px, whose landmarks the face follows; without it, the clip's own. A single frame follows
    a random expression.
    """
    still = int(rng.integers(len(face.frames)))
    size = len(face.frames[0])
    side = _generator_side(rng, size) or size
    targets = face.landmarks if driving is None else _transfer(face.landmarks[still], driving)
    if len(targets) == 1 and driving is None:
        targets = targets + _random_motion(size, rng)
    frames = np.empty_like(face.frames)
    for i, target in enumerate(targets):
        moved = warp(face.frames[still], face.landmarks[still], target)
        frames[i] = _resample(moved, side, cv2.INTER_LANCZOS4)
    return Fake(_smooth_render(frames, rng), np.ones(len(frames), bool))


def re_render(face: Face, rng: np.random.Generator) -> Fake:
    """The face as a decoder gives it back: fewer frequencies, edges kept, perhaps sharpened, inside a soft outline."""
    size = len(face.frames[0])
    side = _generator_side(rng, size) or round(size * 0.6)
    rendered = np.stack([_resample(frame, side, cv2.INTER_CUBIC) for frame in face.frames])
    rendered = _smooth_render(rendered, rng)
    if rng.random() < 0.4:
        return Fake(rendered, np.ones(len(rendered), bool))
    return _paste(face, rendered, face.frames, "face", rng, displaced=False, full=True)


# --- parts -----------------------------------------------------------------------------------------------------


def source_transform(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A change of colour, then of sharpness, drawn once and the same for every frame it is given."""
    shift = rng.uniform(-20, 20, 3) * (rng.random() < 0.6)
    hue, saturation, value = rng.uniform(-0.3, 0.3, 3) * (rng.random() < 0.5) * (30, 90, 60)
    gain = 1 + rng.uniform(-0.15, 0.15) * (rng.random() < 0.6)
    offset = rng.uniform(-20, 20) * (gain != 1)
    kind = rng.choice(("down", "sharpen", "blur", "jpeg", "frequency", "none"), p=(0.32, 0.2, 0.14, 0.12, 0.12, 0.1))
    scale, amount = rng.uniform(0.25, 0.7), rng.uniform(0.3, 1.2)
    quality, sigma = int(rng.integers(25, 70)), rng.uniform(0.5, 1.6)
    interpolation = int(rng.choice((cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST)))

    def change(frame: np.ndarray) -> np.ndarray:
        pixels = frame.astype(np.float32) * gain + offset + shift
        frame = np.clip(pixels, 0, 255).astype(np.uint8)
        if hue or saturation or value:
            hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV).astype(np.float32)
            hsv[..., 0] = (hsv[..., 0] + hue) % 180
            hsv[..., 1:] = np.clip(hsv[..., 1:] + (saturation, value), 0, 255)
            frame = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
        if kind == "down":
            return _resample(frame, max(16, round(len(frame) * scale)), interpolation)
        if kind == "sharpen":
            return _sharpen(frame, amount)
        if kind == "blur":
            return cv2.GaussianBlur(frame, (0, 0), sigma)
        if kind == "jpeg":
            return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
        if kind == "frequency":
            return _mask_frequencies(frame, 1 - scale * 0.8)
        return frame

    return change


def match_colours(source: np.ndarray, target: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Give `source` the mean and spread of `target` in Lab, measured where `inside` (Reinhard et al. 2001).

    Pictures (S, S, 3) uint8 RGB, inside (S, S) bool.
    """
    if inside.sum() < 16:
        return source
    a = cv2.cvtColor(source, cv2.COLOR_RGB2LAB).astype(np.float32)
    b = cv2.cvtColor(target, cv2.COLOR_RGB2LAB)[inside].astype(np.float32)
    spread = np.clip(b.std(axis=0) / (a[inside].std(axis=0) + 1e-3), 0.5, 2.0)
    moved = (a - a[inside].mean(axis=0)) * spread + b.mean(axis=0)
    return cv2.cvtColor(np.clip(moved, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)


def _region(rng: np.random.Generator) -> str:
    return str(rng.choice(list(REGION_ODDS), p=list(REGION_ODDS.values())))


def _paste(face: Face, source, target, region: str, rng: np.random.Generator, displaced: bool, full=False) -> Fake:
    """Blend `source` into `target` inside a region, with one mask shape for the clip and a little jitter in time."""
    count, size = len(face.frames), len(face.frames[0])
    grow = rng.uniform(0.88, 1.12)
    wobble = rng.uniform(0.9, 1.1, int(rng.integers(5, 10)))
    sigma = size * rng.uniform(0.005, 0.06)
    alpha = 1.0 if full else float(rng.choice(ALPHAS))
    poisson = not full and region in ("face", "inner") and rng.random() < POISSON_ODDS
    move = np.eye(2, 3, dtype=np.float32)
    if displaced:
        move = _affine(size, rng.uniform(-0.03, 0.03, 2), 1 + rng.uniform(-0.05, 0.05), rng.uniform(-2, 2))
    touched = _moments(count, rng)
    flicker = rng.normal(0, (0.004, 0.004, 0.02), (count, 3)) if count > 1 else np.zeros((1, 3))
    out = target.copy()
    for i in np.nonzero(touched)[0]:
        mask = soften(hull_mask(deform(region_points(face.landmarks[i], region), grow, wobble), size), sigma)
        matrix = move.copy()
        matrix[:, 2] += flicker[i, :2] * size
        picture = source[i]
        if displaced or count > 1:
            picture = cv2.warpAffine(picture, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
            mask = cv2.warpAffine(mask, matrix, (size, size))
        mask = np.clip(mask * alpha * (1 + flicker[i, 2]), 0, 1)
        out[i] = _poisson(picture, target[i], mask) if poisson else blend(picture, target[i], mask)
    # the frames that were left alone are the genuine ones, not `target`, which may be altered throughout
    out[~touched] = face.frames[~touched]
    return Fake(out, touched)


def blend(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """source where mask is 1, target where it is 0: (S, S, 3) uint8 twice and (S, S) float32."""
    m = mask[..., None]
    return np.round(source * m + target * (1 - m)).astype(np.uint8)


def _poisson(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gradient-domain blending (Pérez et al. 2003), mixed by the mask; plain where the mask leaves no inside."""
    hard = (mask > 0.3).astype(np.uint8) * 255
    hard[:2], hard[-2:], hard[:, :2], hard[:, -2:] = 0, 0, 0, 0  # seamlessClone needs a rim
    x, y, w, h = cv2.boundingRect(hard)
    if min(w, h) < 8:
        return blend(source, target, mask)
    cloned = cv2.seamlessClone(source, target, hard, (x + w // 2, y + h // 2), cv2.NORMAL_CLONE)
    return blend(cloned, target, np.maximum(mask, cv2.GaussianBlur(mask, (0, 0), 2)))


def _moments(count: int, rng: np.random.Generator) -> np.ndarray:
    """Which frames of a clip are manipulated: mostly all, sometimes one stretch of at least half."""
    touched = np.ones(count, bool)
    if count >= 4 and rng.random() < PARTIAL_ODDS:
        length = int(rng.integers(count // 2, count))
        start = int(rng.integers(0, count - length + 1))
        touched[:] = False
        touched[start : start + length] = True
    return touched


def _affine(size: int, shift: np.ndarray, scale: float, degrees: float) -> np.ndarray:
    middle = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, scale).astype(np.float32)
    matrix[:, 2] += shift * size
    return matrix


def _generator_side(rng: np.random.Generator, size: int) -> int | None:
    """Side in px at which a generator would have drawn this crop; None where it is larger than the crop."""
    side = int(rng.choice(GENERATOR_SIDES))
    return side if side < size - 8 else None


def _resample(frame: np.ndarray, side: int, interpolation: int) -> np.ndarray:
    """Shrink to (side, side) and enlarge again."""
    size = len(frame)
    small = cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (size, size), interpolation=interpolation)


def _sharpen(frame: np.ndarray, amount: float) -> np.ndarray:
    return cv2.addWeighted(frame, 1 + amount, cv2.GaussianBlur(frame, (0, 0), 1.5), -amount, 0)


def _smooth_render(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Skin without pores and edges that stay: what a decoder trained on mean errors draws."""
    strength, sharpen = rng.uniform(8, 30), rng.uniform(0, 0.8) * (rng.random() < 0.5)
    out = np.stack([cv2.bilateralFilter(frame, 5, strength, 3) for frame in frames])
    return np.stack([_sharpen(frame, sharpen) for frame in out]) if sharpen else out


def _mask_frequencies(frame: np.ndarray, keep: float) -> np.ndarray:
    """Remove the cosine coefficients beyond `keep` of the band, as block-free compression or a narrow decoder would."""
    even = frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]
    edge = max(4, round(len(even) * keep))
    out = np.empty_like(even)
    for channel in range(3):
        spectrum = cv2.dct(even[..., channel].astype(np.float32))
        spectrum[edge:] = 0
        spectrum[:, edge:] = 0
        out[..., channel] = np.clip(cv2.idct(spectrum), 0, 255)
    result = frame.copy()
    result[: len(even), : even.shape[1]] = out
    return result


def _transfer(still: np.ndarray, driving: np.ndarray) -> np.ndarray:
    """Landmarks of `still` with the motion of `driving` about its first frame: (T, 478, 2)."""
    scale = np.ptp(still[:, 1]) / max(1.0, float(np.ptp(driving[0][:, 1])))
    return (still + (driving - driving[0]) * scale).astype(np.float32)


def _random_motion(size: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth random displacement of the landmarks of one frame: (1, 478, 2) px."""
    shift = rng.normal(0, 0.012, 2) * size
    jitter = rng.normal(0, 0.006, (478, 2)) * size
    return (shift + jitter)[None].astype(np.float32)
