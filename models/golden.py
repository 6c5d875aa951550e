"""The golden self-test: pictures drawn in whole numbers, and the scores that a model gave them when it was made."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.registry import WEIGHTS
from models.spec import ModelError, ModelSpec

if TYPE_CHECKING:  # torch takes seconds to import
    from models.scorer import ClipScorer

GOLDEN_FILE = "golden.json"
TOLERANCE = 1e-3  # of a probability: float32 on another CPU moves it by 1e-6, a changed operator by far more
FORMAT = 1
FRAMES = 8
LENGTHS = (8, 6)  # of the two clips: one is padded, as the tail of a track is
CANDIDATES = 24  # drawn clips that the two are chosen from
_MAX_BYTES = 64 * 2**10
_UNIT = 1024  # half a picture's side: shapes are laid out in this unit, whatever the size
_GRID = 6  # cells of the smooth shading
_MADE_WITH = ("torch", "numpy")  # what a shift of scores would come from


@dataclass(frozen=True)
class GoldenResult:
    """How far the scores of the stored clips are from the stored ones, and what those were made with."""

    max_difference: float  # of a probability; infinite where a score is missing
    passed: bool
    made_with: dict[str, str]  # package → version


# --- inputs -------------------------------------------------------------------------------------------------------


def golden_clip(seed: int, size: int, frames: int = FRAMES) -> np.ndarray:
    """A drawn face before a shaded background, moving a little: (frames, size, size, 3) uint8 RGB.

    All arithmetic is in whole numbers, so that every machine and every version of every library draws the same. Skin,
    light, sharpness, noise and place depend on the seed, and half of the seeds recolour a part of the face.
    """
    pick = _Picker(seed)
    y, x = np.meshgrid(_axis(size), _axis(size), indexing="ij")
    skin = np.array([red := pick(110, 245), green := red * pick(58, 84) // 100, green * pick(66, 94) // 100])
    centre, radii = (pick(-120, 120), pick(-120, 120)), (pick(440, 620), pick(600, 800))
    speed = (pick(-12, 12), pick(-12, 12))
    soft, noise = pick(2, 24), pick(0, 14)
    patch = (pick(-250, 250), pick(-350, 350)) if pick(0, 1) else None
    tint = np.array([pick(-45, 45) for _ in range(3)])
    background = _smooth(pick, size, 20, 215)[..., :1] + _smooth(pick, size, 0, 40)
    light = _smooth(pick, size, 170, 256)[..., :1]
    clip = np.empty((frames, size, size, 3), np.uint8)
    for step in range(frames):
        cx, cy = centre[0] + speed[0] * step, centre[1] + speed[1] * step
        face = [
            (cx, cy, *radii, skin),
            (cx - 190, cy - 150, 110, 55, np.array([235, 232, 228])),
            (cx + 190, cy - 150, 110, 55, np.array([235, 232, 228])),
            (cx - 190, cy - 150, 48, 48, skin // 5),
            (cx + 190, cy - 150, 48, 48, skin // 5),
            (cx - 190, cy - 260, 150, 30, skin // 3),
            (cx + 190, cy - 260, 150, 30, skin // 3),
            (cx, cy + 60, 60, 130, np.minimum(skin + 18, 255)),
            (cx, cy + 330, 190, 70, np.array([skin[0], skin[1] // 2, skin[2] // 2])),
        ]
        picture = background
        for left, top, width, height, colour in face:
            picture = _blend(picture, colour, _ellipse(x, y, (left, top), (width, height), soft))
        if patch is not None:
            shown = picture + tint * (1 + step % 2)
            picture = _blend(picture, shown, _ellipse(x, y, (cx + patch[0], cy + patch[1]), (260, 220), 4))
        grain = (_hash(seed * 1000 + step + 1, picture.size) >> np.uint64(56)).astype(np.int64).reshape(picture.shape)
        picture = picture * light // 256 + (grain - 128) * noise // 128
        clip[step] = np.clip(picture, 0, 255)
    return clip


class _Picker:
    """Whole numbers that follow from a seed: `pick(low, high)`, both ends included."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0

    def __call__(self, low: int, high: int) -> int:
        self._count += 1
        return low + int(_hash(self._seed * 1_000_003 + self._count, 1)[0] >> np.uint64(11)) % (high - low + 1)


def _hash(seed: int, count: int) -> np.ndarray:
    """(count,) uint64: SplitMix64 (Steele, Lea & Flood 2014) of a counter that starts from the seed."""
    start = (seed * 0x9E3779B97F4A7C15) % 2**64
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _axis(size: int) -> np.ndarray:
    """(size,) int64: middles of the pixels, from -_UNIT to _UNIT."""
    return (2 * np.arange(size, dtype=np.int64) + 1 - size) * _UNIT // size


def _ellipse(x: np.ndarray, y: np.ndarray, centre: tuple[int, int], radii: tuple[int, int], soft: int) -> np.ndarray:
    """Coverage (size, size, 1) int64, 0 to 256, falling from 1 to 0 around the edge; a larger `soft` is sharper."""
    a, b = radii
    distance = 256 * ((x - centre[0]) ** 2 * b**2 + (y - centre[1]) ** 2 * a**2) // (a**2 * b**2)
    return np.clip((256 - distance) * soft + 128, 0, 256)[..., None]


def _blend(under: np.ndarray, over: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    return (under * (256 - coverage) + over * coverage) // 256


def _smooth(pick: _Picker, size: int, low: int, high: int) -> np.ndarray:
    """(size, size, 3) int64 from low to high: random values on a coarse grid, with straight lines between them."""
    cells = np.array([pick(low, high) for _ in range((_GRID + 1) ** 2 * 3)]).reshape(_GRID + 1, _GRID + 1, 3)
    position = np.arange(size, dtype=np.int64) * _GRID * 256 // size
    cell, part = position >> 8, position & 255
    rows = cells[cell] * (256 - part)[:, None, None] + cells[cell + 1] * part[:, None, None]
    columns = rows[:, cell] * (256 - part)[:, None] + rows[:, cell + 1] * part[:, None]
    return columns >> 16


# --- expected scores ----------------------------------------------------------------------------------------------


def write_golden(spec: ModelSpec) -> Path:
    """Store what a trained model answers, as golden.json beside its model.json; returns its path.

    It depends on the weights and on how crops are normalised, not on fusion and thresholds. The clips are those of
    CANDIDATES that the model is least sure of: where it is sure, its scores would hide a shift.
    Raises ModelError for an untrained model, or for one whose weights do not load.
    """
    from models.scorer import ClipScorer

    if not spec.trained:
        raise ModelError(f"Model {spec.name!r} is untrained: there are no scores to store.")
    scorer = ClipScorer(spec, device="cpu")
    seeds = sorted(range(CANDIDATES), key=lambda seed: _sureness(scorer, seed))[: len(LENGTHS)]
    clips, lengths = _inputs(seeds, spec.input_size)
    clip_scores, frame_scores = scorer.score(clips, lengths)
    content = {
        "format": FORMAT,
        "inputs": {"seeds": seeds, "lengths": list(LENGTHS), "sha256": hashlib.sha256(clips.tobytes()).hexdigest()},
        "clips": [round(float(score), 7) for score in clip_scores],
        "frames": [
            [round(float(score), 7) for score in scores[:length]]
            for scores, length in zip(frame_scores, LENGTHS, strict=True)
        ],
        "made_with": {name: metadata.version(name) for name in _MADE_WITH},
    }
    path = _path(spec)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def check_golden(spec: ModelSpec, device: str = "cpu") -> GoldenResult:
    """Score the stored clips again and compare with the stored scores.

    Raises ModelError where the model has no golden.json, or one that cannot be used.
    """
    from models.scorer import ClipScorer

    stored = _read(spec)
    clips, lengths = _inputs(stored.seeds, spec.input_size, stored.lengths)
    if hashlib.sha256(clips.tobytes()).hexdigest() != stored.sha256:
        raise ModelError(f"{_path(spec)} was made for other pictures than this version of deepsweep draws.")
    clip_scores, frame_scores = ClipScorer(spec, device=device).score(clips, lengths)
    found = [*clip_scores, *(score for row, n in zip(frame_scores, lengths, strict=True) for score in row[:n])]
    difference = float(np.abs(np.array(found, np.float64) - np.array(stored.scores)).max())
    return GoldenResult(difference, difference <= TOLERANCE, stored.made_with)


def _sureness(scorer: ClipScorer, seed: int) -> float:
    """-1 for a clip whose every score is one half, 0 where all are 0 or 1."""
    clips, lengths = _inputs([seed], scorer.spec.input_size, [FRAMES])
    clip_scores, frame_scores = scorer.score(clips, lengths)
    unsure = 2 * (clip_scores * (1 - clip_scores)).mean() + 2 * (frame_scores * (1 - frame_scores)).mean()
    return -float(unsure)


def _inputs(seeds: list[int], size: int, lengths: Any = LENGTHS) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([golden_clip(seed, size) for seed in seeds]), np.array(lengths)


@dataclass(frozen=True)
class _Stored:
    seeds: list[int]
    lengths: list[int]
    sha256: str
    scores: list[float]  # of the clips, then of their frames
    made_with: dict[str, str]


def _path(spec: ModelSpec) -> Path:
    return (spec.directory or WEIGHTS / spec.name) / GOLDEN_FILE


def _read(spec: ModelSpec) -> _Stored:
    path = _path(spec)
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
        inputs = content["inputs"]
        stored = _Stored(
            seeds=[int(seed) for seed in inputs["seeds"]],
            lengths=[int(length) for length in inputs["lengths"]],
            sha256=inputs["sha256"],
            scores=[*map(float, content["clips"]), *(float(score) for row in content["frames"] for score in row)],
            made_with={str(name): str(version) for name, version in content["made_with"].items()},
        )
        usable = (
            content["format"] == FORMAT
            and 1 <= len(stored.seeds) == len(stored.lengths) <= CANDIDATES
            and all(1 <= length <= FRAMES for length in stored.lengths)
            and len(stored.scores) == len(stored.seeds) + sum(stored.lengths)
            and all(map(math.isfinite, stored.scores))
        )
    except FileNotFoundError:
        raise ModelError(f"Model {spec.name!r} has no {GOLDEN_FILE} to compare its scores with.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise ModelError(f"{path} is not a usable golden file: copy the model again.")
    return stored
