"""What a model says about itself: the contents of model.json, and the checks a stranger's file must pass."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
UNTRAINED = "untrained"
#: Networks that a model may have, and the side in pixels of the crops that each was published with or is trained on
#: here. meso4 is a small detector of 2018, to compare with.
BACKBONES = {"mobilenet_v2_ibn": 192, "mobilenet_v2": 192, "meso4": 256}
INPUT_SIZES = 32, 512  # px: the least and the most
DEFAULT_BACKBONE = next(iter(BACKBONES))  # of a new training
FUSION_TERMS = ("intercept", "cnn_top", "cnn_mean", "blink", "micro")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelError(ValueError):
    """A model that cannot be used. `str(error)` is one sentence for people."""


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the shapes of a network's weights."""

    backbone: str = DEFAULT_BACKBONE  # one of BACKBONES
    width_mult: float = 1.0
    lstm_hidden: int = 128
    lstm_layers: int = 1


@dataclass(frozen=True)
class WeightsFile:
    """A safetensors file beside model.json, and the SHA-256 (hex) of its bytes."""

    file: str
    sha256: str


@dataclass(frozen=True)
class ModelSpec:
    """A model as the rest of deepsweep sees it: what it wants to be fed, and what its scores mean.

    A crop is a square of `crop_margin` times the landmarks' box, resized to `input_size` pixels; a clip is up to
    `clip_frames` of them, `clip_fps` per second, and at least `min_clip_frames`. Pixels are RGB, scaled to 0..1,
    then normalised with `mean` and `std`.
    """

    name: str
    trained: bool
    architecture: Architecture = Architecture()
    input_size: int = BACKBONES[DEFAULT_BACKBONE]  # pixels, width and height
    crop_margin: float = 1.4
    clip_frames: int = 16
    clip_fps: float = 5.0
    min_clip_frames: int = 8
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # with mean 0.5: RGB / 127.5 - 1
    fusion: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(FUSION_TERMS, 0.0))
    thresholds: Mapping[str, float] = field(default_factory=lambda: {"fake": 0.5, "real": 0.5})
    weights: WeightsFile | None = None
    seed: int | None = None  # without weights: what the network is initialised from
    digest: str = ""  # identifies what produces scores; empty until the model lies in a folder
    directory: Path | None = None  # None: a built-in model, found wherever this package is installed

    @property
    def label(self) -> str:
        """What results call this model. An untrained one has no other name, so that nobody mistakes noise."""
        return self.name if self.trained else UNTRAINED


def parse_spec(text: str | bytes) -> ModelSpec:
    """The model that the text of a model.json describes; `digest` and `directory` are left for the caller.

    Every key is required, none may be added, and each number has a range that no honest model leaves.
    Raises ModelError with one sentence.
    """
    top = _Object(_strict_json(text), "")
    _require(top.integer("format", 1, 10**6) == FORMAT, f'"format" must be {FORMAT}: another version wrote it')
    arch = top.object("architecture")
    architecture = Architecture(
        backbone=arch.text("backbone", re.compile("|".join(BACKBONES)), "one of " + ", ".join(BACKBONES)),
        width_mult=arch.number("width_mult", 0.1, 2.0),
        lstm_hidden=arch.integer("lstm_hidden", 1, 1024),
        lstm_layers=arch.integer("lstm_layers", 1, 4),
    )
    arch.done()
    fusion = top.object("fusion")
    thresholds = top.object("thresholds")
    weights = top.object("weights", optional=True)
    spec = ModelSpec(
        name=top.text("name", _NAME, "up to 64 letters, digits, dots, dashes and underscores"),
        trained=top.flag("trained"),
        architecture=architecture,
        input_size=top.integer("input_size", *INPUT_SIZES),
        crop_margin=top.number("crop_margin", 1.0, 4.0),
        clip_frames=top.integer("clip_frames", 1, 128),
        clip_fps=top.number("clip_fps", 0.1, 60.0),
        min_clip_frames=top.integer("min_clip_frames", 1, 128),
        mean=top.triple("mean", -10.0, 10.0),
        std=top.triple("std", 1e-3, 10.0),
        fusion={term: fusion.number(term, -1e3, 1e3) for term in FUSION_TERMS},
        thresholds={key: thresholds.number(key, 0.0, 1.0) for key in ("fake", "real")},
        weights=None
        if weights is None
        else WeightsFile(
            file=weights.text("file", _FILE_NAME, "the plain name of a .safetensors file"),
            sha256=weights.text("sha256", _SHA256, "64 lower-case hexadecimal digits"),
        ),
        seed=top.integer("seed", 0, 2**32 - 1, optional=True),
    )
    for part in (fusion, thresholds, weights, top):
        if part is not None:
            part.done()
    check_spec(spec)
    return spec


def check_spec(spec: ModelSpec) -> None:
    """Raises ModelError where the fields of `spec` contradict each other."""
    _require(spec.min_clip_frames <= spec.clip_frames, '"min_clip_frames" must not exceed "clip_frames"')
    _require(spec.thresholds["real"] <= spec.thresholds["fake"], 'threshold "real" must not exceed "fake"')
    _require((spec.weights is None) != (spec.seed is None), 'give either "weights" or "seed", the other as null')
    _require(spec.weights is not None or not spec.trained, 'a model that is "trained" needs "weights"')
    _require(not (spec.trained and spec.name == UNTRAINED), f'a trained model must not be called "{UNTRAINED}"')


def spec_json(spec: ModelSpec) -> str:
    """The text of the model.json from which parse_spec makes `spec` again."""
    arch = spec.architecture
    content = {
        "format": FORMAT,
        "name": spec.name,
        "trained": spec.trained,
        "architecture": {
            "backbone": arch.backbone,
            "width_mult": arch.width_mult,
            "lstm_hidden": arch.lstm_hidden,
            "lstm_layers": arch.lstm_layers,
        },
        "input_size": spec.input_size,
        "crop_margin": spec.crop_margin,
        "clip_frames": spec.clip_frames,
        "clip_fps": spec.clip_fps,
        "min_clip_frames": spec.min_clip_frames,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "fusion": dict(spec.fusion),
        "thresholds": dict(spec.thresholds),
        "weights": None if spec.weights is None else {"file": spec.weights.file, "sha256": spec.weights.sha256},
        "seed": spec.seed,
    }
    return json.dumps(content, indent=2) + "\n"


def canonical_json(text: str | bytes) -> bytes:
    """The same content always gives the same bytes, however it was spaced or ordered."""
    return json.dumps(_strict_json(text), sort_keys=True, separators=(",", ":")).encode()


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ModelError(sentence)


def _strict_json(text: str | bytes) -> Any:
    def no_constant(name: str) -> None:
        raise ModelError(f"{name} is not a number that a model may hold")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        _require(len(result) == len(pairs), "a key occurs twice")
        return result

    try:
        return json.loads(text, parse_constant=no_constant, object_pairs_hook=no_duplicates)
    except ModelError:
        raise
    except (ValueError, RecursionError) as error:  # bad syntax, bad UTF-8, 5,000 digits, 100,000 brackets
        raise ModelError(f"this is not JSON ({error})") from None


class _Object:
    """A JSON object that is taken apart key by key; done() objects to whatever is left over."""

    def __init__(self, content: Any, path: str) -> None:
        where = f'"{path.rstrip(".")}"' if path else "the file"
        _require(isinstance(content, dict), f"{where} must hold a JSON object")
        self._left = dict(content)
        self._path = path

    def _take(self, key: str) -> Any:
        _require(key in self._left, f'"{self._path}{key}" is missing')
        return self._left.pop(key)

    def done(self) -> None:
        if self._left:
            raise ModelError(f'"{self._path}{str(next(iter(self._left)))[:40]}" is not a key of model.json')

    def object(self, key: str, optional: bool = False) -> Any:
        value = self._take(key)
        return None if optional and value is None else _Object(value, f"{self._path}{key}.")

    def flag(self, key: str) -> bool:
        value = self._take(key)
        _require(isinstance(value, bool), f'"{self._path}{key}" must be true or false')
        return value

    def text(self, key: str, pattern: re.Pattern[str], meaning: str) -> str:
        value = self._take(key)
        fits = isinstance(value, str) and pattern.fullmatch(value) is not None
        _require(fits, f'"{self._path}{key}" must be {meaning}')
        return value

    def integer(self, key: str, low: int, high: int, optional: bool = False) -> Any:
        value = self._take(key)
        if optional and value is None:
            return None
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        _require(fits, f'"{self._path}{key}" must be a whole number from {low} to {high}')
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self._take(key)
        _require(_is_number(value, low, high), f'"{self._path}{key}" must be a number from {low:g} to {high:g}')
        return float(value)

    def triple(self, key: str, low: float, high: float) -> tuple[float, float, float]:
        value = self._take(key)
        fits = isinstance(value, list) and len(value) == 3 and all(_is_number(v, low, high) for v in value)
        _require(fits, f'"{self._path}{key}" must be three numbers from {low:g} to {high:g}')
        return float(value[0]), float(value[1]), float(value[2])


def _is_number(value: Any, low: float, high: float) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and low <= value <= high and math.isfinite(value)
