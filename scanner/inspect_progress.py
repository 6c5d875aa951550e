"""How far a guarded child is with its work, told while its parent waits for it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from scanner.guard import Guard

Progress = Callable[[str, float], None]  # what is being done ("Scoring faces"), and the share of all that is done

_SHARE = struct.Struct("d")

T = TypeVar("T")


class Meter:
    """A share from 0 to 1 in a file of eight bytes. Picklable: a child's copy writes, the parent's reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self(0.0)

    def __call__(self, share: float) -> None:
        """Set the share. A progress bar is not worth a failed analysis, so an error of the disk is passed over."""
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(handle, _SHARE.pack(share), 0)
            finally:
                os.close(handle)
        except OSError:
            return

    def read(self) -> float:
        try:
            return _SHARE.unpack(self.path.read_bytes())[0]
        except (OSError, struct.error):
            return 0.0


class WatchedGuard(Guard):
    """A guard that looks up while it waits, and whose children keep to themselves what MediaPipe notes on stderr.

    on_wait: called now and then in the thread that waits; what it raises ends the waiting, and `close` the work.
    """

    def __init__(self, on_wait: Callable[[], object], preload: tuple[str, ...], memory_limit: int) -> None:
        super().__init__(preload, memory_limit)
        self._look_up = on_wait

    def run(self, function: Callable[..., Any], *args: Any, deadline_s: float) -> Any:
        return super().run(_quietly, function, *args, deadline_s=deadline_s)

    def _on_wait(self) -> None:
        self._look_up()


def _quietly(function: Callable[..., T], *args: Any) -> T:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # C++ libraries write there, past sys.stderr
    os.close(nowhere)
    return function(*args)
