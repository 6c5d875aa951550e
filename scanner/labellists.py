"""Lists of labelled files, read as a stranger's word: manifest.csv and DFDC's metadata.json."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from scanner.errors import UserError

MAX_METADATA_BYTES = 256 << 20  # all of DFDC's, in one file, would take 20 MB
MAX_LINE = 1 << 20  # characters; a longer "line" is no list of files, and must not fill the memory
MAX_PATH = 4096  # characters, as Linux has it
MAX_WORD = 200  # characters of a method, source or group


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a manifest, values stripped; every row has the columns file and label.

    The delimiter may be a comma, a semicolon or a tab. Raises UserError, with the line where one is wrong.
    """
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline(MAX_LINE)
            delimiter = next((sign for sign in ",;\t" if {"file", "label"} <= set(_columns(header, sign))), None)
            if delimiter is None:
                raise UserError(f"{path} needs the columns file and label in its first line.")
            names = _columns(header, delimiter)
            if len(set(names)) < len(names):
                raise UserError(f"{path}: two columns have the same name.")
            rows = csv.reader(iter(lambda: file.readline(MAX_LINE), ""), delimiter=delimiter, strict=True)
            for values in rows:
                line = rows.line_num + 1  # the header was read before
                if values and len(values) != len(names):
                    raise UserError(
                        f"{path.name}, line {line}: {len(values)} values for {len(names)} columns."
                        " Quote values that hold the delimiter."
                    )
                if values:
                    yield line, dict(zip(names, map(str.strip, values), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is not CSV after line {line}: {error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8. Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}.") from None


def _columns(header: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises UserError for anything else."""
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise UserError(f"{path} is over {MAX_METADATA_BYTES >> 20} MB: that is no list of videos.")
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON.") from None
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must map names of files to their labels.")
    return value


def inner_path(text: str, where: str) -> str:
    """A path from a list, normalised, as it may be joined to its folder. Raises UserError for one that leaves it."""
    if not text or "\0" in text or len(text) > MAX_PATH:
        raise UserError(f"{where}: `file` is empty, too long, or holds a NUL character.")
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(f"{where}: {text[:200]!r} leaves the folder. Name files relative to it, without `..`.")
    return str(path)


def stays_inside(root: Path, parent: str) -> bool:
    """Whether root/parent, with every link on the way followed, is still below root."""
    # os.path: Path.resolve raises on a circle of links.
    home, there = os.path.realpath(root), os.path.realpath(root / parent)
    return there == home or there.startswith(home.rstrip("/") + "/")


def is_plain_name(name: object) -> bool:
    """Whether this is the name of a file, and not a path or a trick."""
    if not isinstance(name, str) or not 0 < len(name) <= 255:
        return False
    return name.isprintable() and "/" not in name and name not in (".", "..")


def word(text: str, column: str, where: str) -> str:
    """A method, source or group as it may be stored and shown. Raises UserError for what steers a terminal."""
    if len(text) > MAX_WORD or not text.isprintable():
        raise UserError(f"{where}: `{column}` holds control characters or more than {MAX_WORD} characters.")
    return text
