"""Every option of `scan`: default, range and words, for --help, deepsweep.toml and the run's record."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.registry import DEFAULT_MODEL
from scanner.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FILE = "deepsweep.toml"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str | int) -> int:
    """Bytes of "500MB", "20 GB", "1.5g" or a plain number; units are powers of 1024."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)i?b?\s*", str(text).lower())
    if not match:
        raise ValueError(f"{text!r} is not a size: write 500MB or 20GB")
    return int(float(match[1]) * _UNITS[match[2]])


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    size: bool = False,
    metavar: str | None = None,
    on_command_line: bool = True,
    scores: bool = False,
) -> Any:
    """A field of ScanConfig. scores: whether another value gives other scores, and so a new scan."""
    facts = {
        "help": help,
        "low": low,
        "high": high,
        "size": size,
        "metavar": metavar,
        "on_command_line": on_command_line,
        "scores": scores,
    }
    if isinstance(default, (list, tuple)):
        return dataclasses.field(default=tuple(default), metadata=facts)
    return dataclasses.field(default=default, metadata=facts)


@dataclass(frozen=True)
class ScanConfig:
    """The settings of one scan. Fields in the order in which `--help` shows them."""

    sources: tuple[str, ...] = option((), "What to scan.", on_command_line=False)
    out: str = option("results", "Folder or s3:// prefix that results are appended to.", metavar="RESULTS")
    include: tuple[str, ...] = option((), "Only videos that match this pattern; repeatable.", metavar="GLOB")
    exclude: tuple[str, ...] = option((), "Leave out what matches this pattern; repeatable.", metavar="GLOB")
    limit: int | None = option(None, "Stop after so many videos that need scanning.", low=1)
    model: str = option(DEFAULT_MODEL, "Built-in model, or a folder with a model.json.", metavar="NAME|DIR")
    threshold: float | None = option(
        None, "Score from which a clip is flagged [default: the model's own].", low=0, high=1
    )
    fps: float = option(15.0, "Frames looked at per second; blinks need 10.", low=1, high=60, scores=True)
    clip_frames: int | None = option(
        None, "Face crops per clip [default: the model's own].", low=2, high=128, scores=True
    )
    span_seconds: float = option(
        60.0, "Length of the pieces that long videos are cut into.", low=5, high=300, scores=True
    )
    thumbnails: int = option(3, "Pictures kept of each span's most suspicious clips.", low=0, high=50)
    max_video_size: int = option(parse_size("50GB"), "Larger files become too_large.", size=True)
    max_video_seconds: float = option(86400.0, "Longer videos become too_large.", low=1)
    span_timeout: float = option(600.0, "Seconds after which a span's analysis is killed: timeout.", low=1, high=86400)
    memory_limit: int = option(parse_size("2GB"), "Memory at which a span's analysis is killed: too_large.", size=True)
    scratch: str | None = option(None, "Folder for downloads [default: a temporary folder of the node].", metavar="DIR")
    scratch_size: int = option(parse_size("20GB"), "Room for downloads on each node.", size=True)
    address: str | None = option(
        None, "Ray cluster: auto, HOST:PORT or ray://HOST:PORT [default: start Ray here].", metavar="ADDRESS"
    )
    gpus: float | None = option(None, "GPUs to use, or a share of one: 0.5 [default: all that are free].", low=0)
    stall_minutes: float | None = option(
        None,
        "Stop if nothing moves for so long [default: 32, 92 in large scans; more with --span-timeout and downloads].",
        low=0.1,
    )
    retry_failed: bool = option(False, "Scan videos again that failed before.")
    rescan: bool = option(False, "Scan everything again, also what is done.")
    fail_on_flag: bool = option(False, "Exit with 1 if a clip was flagged.")
    dry_run: bool = option(False, "Only say what would be scanned, and how long it may take.")
    price_per_hour: float | None = option(
        None, "With --dry-run: what an hour of this cluster costs, in any currency.", low=0, metavar="PRICE"
    )
    webhook: str | None = option(None, "POST the summary as JSON to this URL at the end.", metavar="URL")
    quiet: bool = option(False, "Print nothing but errors.")
    json: bool = option(False, "Print events as JSON, one a line, instead of text.")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    def digest(self, clip_frames: int) -> str:
        """Identifies the settings that change scores: results under another digest are not these results."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["scores"]}
        values["clip_frames"] = clip_frames
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """The settings as a run's JSON keeps them. A webhook's URL may carry a secret and stays out."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "webhook"}


def spelling(field: dataclasses.Field) -> str:
    """The option's name on the command line and in deepsweep.toml: max_video_size is max-video-size."""
    return field.name.replace("_", "-")


def value_type(field: dataclasses.Field) -> type:
    """The plain type of a field's value: that of its items for a repeatable option."""
    hint = typing.get_type_hints(ScanConfig)[field.name]
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint


def _check(field: dataclasses.Field, value: Any) -> None:
    facts = field.metadata
    if value is None or isinstance(value, (bool, str, tuple)):
        return
    low, high = facts["low"], facts["high"]
    if facts["size"]:
        low = 1
    if not (low is None or value >= low) or not (high is None or value <= high):
        allowed = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
        raise UserError(f"--{spelling(field)} must be {allowed}, not {value}.")


def load_config_file(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Settings from a TOML file's [scan] table; of ./deepsweep.toml where there is one and no path is given.

    Raises UserError for a file that can't be read, an unknown key, or a value of the wrong type.
    """
    where = Path(path) if path is not None else Path(CONFIG_FILE)
    if path is None and not where.exists():
        return {}
    try:
        document = tomllib.loads(where.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where} could not be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not valid TOML: {error}.") from None
    table = document.pop("scan", {})
    if not isinstance(table, dict):
        raise UserError(f"{where}: [scan] must be a table.")
    if document:
        raise UserError(f"{where}: settings go under [scan]; nothing reads {', '.join(document)}.")
    return _typed(table, where)


def _typed(table: Mapping[str, Any], where: Path) -> dict[str, Any]:
    fields = {spelling(f): f for f in dataclasses.fields(ScanConfig)}
    values = {}
    for key, value in table.items():
        field = fields.get(key.replace("_", "-"))
        if field is None:
            known = ", ".join(sorted(fields))
            raise UserError(f"{where}: there is no setting {key!r}. Known ones: {known}.")
        try:
            values[field.name] = _coerce(field, value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {key}: {error}.") from None
    return values


def _coerce(field: dataclasses.Field, value: Any) -> Any:
    if field.metadata["size"]:
        return parse_size(value)
    kind = value_type(field)
    if isinstance(field.default, tuple):
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise TypeError("expected a list of texts")
        return tuple(items)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"expected {kind.__name__}, not {value!r}")
    return value
