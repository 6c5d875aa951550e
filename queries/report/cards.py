"""The model behind the scores, as its folder describes it: thresholds, fusion, and its figures where it has some."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_JSON_BYTES = 256 * 2**10
_MAX_WEIGHTS_BYTES = 256 * 2**20
_MAX_FIGURES = 60
_MAX_BINS = 20
_MAX_TEXT = 200  # characters of a name or value
_MAX_COUNT = 10**12  # of videos
_MAX_DEPTH = 5
_ESTIMATE = {"value", "low", "high"}  # a figure and its interval

#: Figures that everybody must see, by their name in figures.json. They are of whole videos.
_HEADLINE = {"auc": "AUC", "ece": "calibration error (ECE)", "fpr": "false-positive rate of ‘fake’"}


@dataclass(frozen=True)
class Bin:
    """Videos whose score lies from low to high, and the share of them that is fake."""

    low: float
    high: float
    count: int
    fakes: float


@dataclass(frozen=True)
class ModelCard:
    """What model.json and figures.json say. headline, figures: (name, value) as text, those to see first, and all.

    measured_on: (reals, fakes) where it is told. reliability: by score, empty where it is not told.
    """

    trained: bool
    thresholds: dict[str, float]
    fusion: dict[str, float]
    figures: list[tuple[str, str]]
    headline: list[tuple[str, str]]
    measured_on: tuple[int, int] | None
    reliability: list[Bin]


def find_card(model: str, digest: str | None, settings: Iterable[str] = ()) -> ModelCard | str:
    """The card of the model whose digest the results name, or one sentence on why there is none.

    settings: what `--model` was given in the runs. A folder of the right name but with another digest holds another
    model: its figures would be a false promise.
    """
    other = False
    for folder in _folders(model, settings):
        try:
            text = _read(folder / "model.json", _MAX_JSON_BYTES)
            content = json.loads(text)
            if model_digest(folder, content) != digest:
                other = True
                continue
            return ModelCard(
                trained=bool(content["trained"]),
                thresholds={k: float(v) for k, v in content["thresholds"].items()},
                fusion={k: float(v) for k, v in content["fusion"].items()},
                **_measured(folder, digest),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # not a model, or not readable here: the sentence below says so
    if other:
        return "The model of this name on this machine is another version: its card is not shown."
    return "This model is not on this machine: its thresholds and figures are not known here."


def model_digest(folder: Path, content: dict[str, Any]) -> str:
    """What results call model_digest: SHA-256 of the canonical model.json, a zero byte, and the weights."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\0")
    if content["weights"] is not None:
        name = content["weights"]["file"]
        if Path(name).name != name:
            raise ValueError("weights lie beside model.json")
        digest.update(_read(folder / name, _MAX_WEIGHTS_BYTES))
    return digest.hexdigest()


def figures_rows(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Figures as (name, value): objects become `outer, inner`, estimates `0.912 [0.871, 0.950]`; lists are left out."""
    if _is_estimate(content):
        low, high = content.get("low"), content.get("high")
        interval = "" if low is None or high is None else f" [{_value(low)}, {_value(high)}]"
        yield name, _value(content["value"]) + interval
    elif isinstance(content, dict) and depth < _MAX_DEPTH:
        for key, value in content.items():
            yield from figures_rows(value, (f"{name}, {key}" if name else str(key))[:_MAX_TEXT], depth + 1)
    elif content is None or isinstance(content, str | int | float):
        yield name, _value(content)


def _is_estimate(content: Any) -> bool:
    """Whether it is a figure and its interval; of a list in its place there is nothing to show."""
    if not (isinstance(content, dict) and "value" in content and content.keys() <= _ESTIMATE):
        return False
    return all(value is None or isinstance(value, int | float) for value in content.values())


def _measured(folder: Path, digest: str | None) -> dict[str, Any]:
    """What figures.json says, as the fields of a ModelCard: nothing where it is missing, or of another model."""
    try:
        content = json.loads(_read(folder / "figures.json", _MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("model_digest") not in (None, digest):
        content = {}
    videos = content.get("videos")
    videos = videos if isinstance(videos, dict) else {}
    counts = videos.get("reals"), videos.get("fakes")
    return {
        "figures": list(itertools.islice(figures_rows(content), _MAX_FIGURES)),
        "headline": [
            (words, shown)
            for name, words in _HEADLINE.items()
            if _is_estimate(videos.get(name))
            for _, shown in figures_rows(videos[name])
        ],
        "measured_on": counts if all(type(count) is int and 0 <= count < _MAX_COUNT for count in counts) else None,
        "reliability": _bins(content.get("reliability")),
    }


def _bins(content: Any) -> list[Bin]:
    """The bins of a reliability plot, in order; none where one of them can't be drawn."""
    if not isinstance(content, list) or len(content) > _MAX_BINS:
        return []
    try:
        bins = [Bin(float(one["low"]), float(one["high"]), int(one["count"]), float(one["fakes"])) for one in content]
    except (TypeError, ValueError, KeyError, OverflowError):
        return []
    edges = [edge for one in bins for edge in (one.low, one.high)]
    drawable = edges == sorted(edges) and all(
        0 <= one.low < one.high <= 1 and 0 <= one.fakes <= 1 and 0 < one.count < _MAX_COUNT for one in bins
    )
    return bins if drawable else []


def _folders(model: str, settings: Iterable[str]) -> Iterator[Path]:
    if _NAME.fullmatch(model):
        yield Path(str(resources.files("models") / "weights" / model))
    yield from (Path(setting) for setting in sorted(settings) if "/" in setting)


def _read(path: Path, limit: int) -> bytes:
    """A regular file of `limit` bytes at most. Raises OSError or ValueError."""
    if not path.is_file() or path.stat().st_size > limit:
        raise ValueError(f"{path} is not a file that a model may have")
    return path.read_bytes()


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)[:_MAX_TEXT]
