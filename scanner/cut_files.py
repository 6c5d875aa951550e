"""Files that are cut: a video fetched, its stretches cut by a child that may be killed, each with its sidecar.

The sidecar comes last: a file that has one is finished, and its sidecar says what was asked for.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanner.config import ScanConfig
from scanner.cutting import Cut, cut
from scanner.decode import DecodeError
from scanner.errors import UserError
from scanner.guard import Guard, GuardFailure
from scanner.names import login_name
from scanner.results import Status
from scanner.scratch import FetchError, Scratch, sweep
from scanner.storage import READ, S3_ERRORS, WRITE, get_bytes, head_object, put_bytes, s3_client, s3_problem
from scanner.stretches import Stretch, clip_name, json_safe
from scanner.uris import foreign_scheme, is_s3, join, local_path, redacted, split_s3

SIDECAR_VERSION = 1
SUFFIXES = (".mp4", ".mkv")
DEADLINE_S = 120.0  # for one stretch, and more for what takes longer:
DEADLINE_PER_SECOND = 20.0  # of the stretch: 4K through libx264 on a core that others share
DEADLINE_PER_SECOND_BEFORE = 0.5  # a video with one keyframe is decoded from its start
MOST_PATIENCE_S = 24 * 3600.0
SLOWEST_DISK = 20e6  # bytes a second: a file without an index is read whole


class WriteError(Exception):
    """A file could not be put where it belongs; `str(error)` says why."""


@dataclass(frozen=True)
class Order:
    """What holds for all stretches. content_tags: of the videos when they were scanned, by URI."""

    out: str
    pad: float  # seconds
    reencode: bool
    content_tags: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of a stretch: a finished file and its sidecar, or a sentence on why there is none."""

    stretch: Stretch
    sidecar: Mapping[str, Any] | None = None
    error: str | None = None
    kept: bool = False  # finished by an earlier run


class Cutter:
    """Cuts stretches of one video after the other. Close it, or use it as a context manager."""

    def __init__(self, order: Order) -> None:
        self.order = order
        base = Path(tempfile.gettempdir()) / f"deepsweep-scratch-{login_name()}"  # as a scan's: it sweeps it, too
        sweep(base)
        self._scratch = Scratch(base / f"clips-{uuid.uuid4().hex}", ScanConfig.scratch_size, full_wait_s=0)
        self._at_hand: tuple[str, str] | None = None  # URI and content tag of the video fetched last
        self._guard = Guard(preload=("scanner.cutting",))

    def __enter__(self) -> Cutter:
        return self

    def __exit__(self, *_: object) -> None:
        self._guard.close()
        self._scratch.close()

    def cut_video(self, stretches: Sequence[Stretch]) -> Iterator[Outcome]:
        """Cut stretches that are all of one video. Never raises for what it meets.

        A video of a bucket is fetched once, and again only after another one: reviewers see its clips one by one.
        """
        uri = stretches[0].uri
        tag, size, gone = None, 0, ""
        try:
            tag, size = content(uri)
        except FetchError as error:
            gone = str(error)
        todo = []
        for stretch in stretches:
            sidecar = self._finished(stretch, tag)
            if sidecar:
                yield Outcome(stretch, sidecar, kept=True)
            else:
                todo.append(stretch)
        if tag is None:
            yield from (Outcome(stretch, error=gone) for stretch in todo)
        elif todo:
            yield from self._cut_all(todo, tag, size)

    def _cut_all(self, todo: Sequence[Stretch], tag: str, size: int) -> Iterator[Outcome]:
        uri, left = todo[0].uri, list(todo)
        if self._at_hand and self._at_hand != (uri, tag):
            self._scratch.release(*self._at_hand)
        self._at_hand = uri, tag
        try:
            with self._scratch.fetch(uri, tag, size) as path:
                while left:
                    outcome = self._cut(left[0], path, tag, size)
                    left.pop(0)
                    yield outcome
        except FetchError as error:
            yield from (Outcome(stretch, error=str(error)) for stretch in left)

    def _cut(self, stretch: Stretch, path: Path, tag: str, size: int) -> Outcome:
        order, name = self.order, clip_name(stretch)
        start, end = max(0.0, stretch.t_start - order.pad), stretch.t_end + order.pad
        deadline = DEADLINE_S + DEADLINE_PER_SECOND * (end - start)
        deadline = min(MOST_PATIENCE_S, deadline + DEADLINE_PER_SECOND_BEFORE * start + size / SLOWEST_DISK)
        try:
            with _work_file(order.out, name) as work:
                made = self._guard.run(cut, str(path), str(work), start, end, order.reencode, deadline_s=deadline)
                sidecar = self._sidecar(stretch, made, tag, work.stat().st_size)
                deliver(work, join(order.out, sidecar["file"]))
            write_text(join(order.out, name + ".json"), json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n")
        except (DecodeError, GuardFailure, WriteError) as error:
            return Outcome(stretch, error=str(error))
        except OSError as error:
            return Outcome(stretch, error=f"could not be written: {error.strerror}")
        except UserError:  # of this machine, not of the file
            raise
        except Exception as error:  # of a library that met a file nobody has thought of: the others go on
            return Outcome(stretch, error=f"could not be cut: {type(error).__name__}: {error}")
        for suffix in SUFFIXES:
            if name + suffix != sidecar["file"]:
                _remove(join(order.out, name + suffix))  # of an order that has been replaced by this one
        return Outcome(stretch, sidecar)

    # --- sidecars ---

    def _sidecar(self, stretch: Stretch, made: Cut, tag: str, size: int) -> dict[str, Any]:
        """Times in seconds of the video; file_t_start is the one that the file's own 0 is."""
        scanned = self.order.content_tags.get(stretch.uri)
        return {
            "sidecar_version": SIDECAR_VERSION,
            "file": clip_name(stretch) + made.suffix,
            "size_bytes": size,
            **self._request(stretch),
            "content_tag": tag,
            "changed_since_scan": None if scanned is None else scanned != tag,
            "file_t_start": round(made.t_start, 6),
            "file_t_end": round(made.t_end, 6),
            "method": made.method,
            "reason": made.reason,
            "rows": [json_safe({**row, "uri": redacted(row["uri"])}) for row in stretch.rows],
        }

    def _request(self, stretch: Stretch) -> dict[str, Any]:
        return {
            "uri": redacted(stretch.uri),
            "t_start": stretch.t_start,
            "t_end": stretch.t_end,
            "pad_s": self.order.pad,
            "reencode": self.order.reencode,
        }

    def _finished(self, stretch: Stretch, tag: str | None) -> dict[str, Any] | None:
        """The sidecar that an earlier run left of the same order, if its file is whole; tag: None for a lost video."""
        name = clip_name(stretch)
        try:
            sidecar = json.loads(get_bytes(join(self.order.out, name + ".json")))
            same = self._request(stretch).items() <= sidecar.items() and tag in (None, sidecar["content_tag"])
            if not same or sidecar["file"] not in [name + suffix for suffix in SUFFIXES]:
                return None
            return sidecar if content(join(self.order.out, sidecar["file"]))[1] == sidecar["size_bytes"] else None
        except (*S3_ERRORS, OSError, FetchError, KeyError, TypeError, AttributeError):
            return None  # there is none, or it is not one of ours: what can't be written will say so


# --- bytes ------------------------------------------------------------------------------------------------


def content(uri: str) -> tuple[str, int]:
    """(content tag, bytes) of a file as it is now. Raises FetchError."""
    if scheme := foreign_scheme(uri):
        raise FetchError(Status.MISSING, f"can't be read from {scheme}://")
    try:
        if is_s3(uri):
            head = head_object(uri)
            return head["ETag"].strip('"'), head["ContentLength"]
        info = local_path(uri).stat()
        return f"{info.st_size}-{info.st_mtime_ns}", info.st_size
    except S3_ERRORS as error:
        reason = s3_problem(error, redacted(uri), READ) if is_s3(uri) else "is not the name of a file"
        raise FetchError(Status.MISSING, reason) from None
    except OSError as error:
        raise FetchError(Status.MISSING, f"could not be read: {error.strerror}") from None


@contextmanager
def _work_file(out: str, name: str) -> Iterator[Path]:
    """Where the child writes: beside the target, so that a rename is all that is left, or on this machine."""
    hidden = f".{name[:80]}.{uuid.uuid4().hex}.part"
    if is_s3(out):
        with tempfile.TemporaryDirectory(prefix="deepsweep-clips-") as folder:
            yield Path(folder) / "clip"
        return
    work = local_path(out) / hidden
    try:
        yield work
    finally:
        work.unlink(missing_ok=True)


def deliver(work: Path, target: str) -> None:
    """Put a finished file in its place, whole or not at all. Raises WriteError."""
    try:
        if is_s3(target):
            bucket, key = split_s3(target)
            with work.open("rb") as file:
                s3_client().upload_fileobj(file, bucket, key)  # in parts, where it is large
            return
        with work.open("rb") as file:
            os.fsync(file.fileno())
        work.replace(local_path(target))
    except S3_ERRORS as error:
        raise WriteError(_write_problem(error, target)) from None
    except OSError as error:
        raise WriteError(f"{target} could not be written: {error.strerror}") from None


def write_text(target: str, text: str) -> None:
    """Write a text file, whole or not at all; one that says this already is left alone. Raises WriteError."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        with suppress(FileNotFoundError):
            if get_bytes(target) == data:
                return
        put_bytes(target, data)
    except S3_ERRORS as error:
        raise WriteError(_write_problem(error, target)) from None
    except OSError as error:
        raise WriteError(f"{target} could not be written: {error.strerror}") from None


def _write_problem(error: BaseException, target: str) -> str:
    return s3_problem(error, target, WRITE) if is_s3(target) else f"{target} is not the name of a file"


def _remove(target: str) -> None:
    with suppress(*S3_ERRORS, OSError):
        if is_s3(target):
            bucket, key = split_s3(target)
            s3_client().delete_object(Bucket=bucket, Key=key)
        else:
            local_path(target).unlink(missing_ok=True)
