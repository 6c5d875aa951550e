"""The record of a run while it goes on: rewritten now and then, so that others see that it lives, and how far it is."""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

from scanner.errors import UserError
from scanner.progress import Progress
from scanner.results import write_run

BEAT_S = 30.0  # on S3 a beat is one small PUT: 1,200 in ten hours


class Heartbeat:
    """Keeps runs/<run_id>.json up to date until the block ends; where an error ends it, the record says which.

    record: the run's, as its owner goes on to fill it in.
    """

    def __init__(self, results: str, record: dict[str, Any], progress: Progress, every_s: float = BEAT_S) -> None:
        self._results, self._record, self._progress, self._every_s = results, record, progress, every_s
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write the record for the first time, and from now on. Raises UserError where that fails."""
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._thread.start()

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is None:
            return  # the run never began
        self._thread.join()
        if error is not None:
            why = str(error) or type(error).__name__
            end = {"finished_at": datetime.now(timezone.utc).isoformat(), "broke_off": why}
            with contextlib.suppress(UserError):
                self._write(**end)

    def _beat(self) -> None:
        while not self._stop.wait(self._every_s):
            # A beat that can't be written is missed; what the scan itself can't write ends it.
            with contextlib.suppress(UserError):
                self._write()

    def _write(self, **more: Any) -> None:
        elapsed = time.monotonic() - self._began
        now = datetime.now(timezone.utc).isoformat()
        write_run(self._results, {**self._record, **self._progress.facts(elapsed), "alive_at": now, **more})
