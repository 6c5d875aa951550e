"""The watchdog of a scan: when nothing moves any more it says what everything waits for, and ends the scan."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

from scanner.config import ScanConfig
from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.scratch import SLOWEST_DOWNLOAD

POLL_S = 5.0
GRACE_S = 120.0  # to close the books and to end Ray, once interrupted
LOOK_S = 15.0  # for anything that may hang as well: asking Ray, writing to a pipe that nobody reads
INTERRUPT = signal.SIGUSR2  # not SIGINT, which a job in a shell's background ignores, nor SIGTERM, which Ray takes

ANALYSES_PER_SPAN = 2  # with PyAV, then with decord; each may take --span-timeout
#: An actor's start on a new node, or a request to S3 with all its retries: eight, of up to a minute each.
SLACK_S = 720.0

T = TypeVar("T")


class Stalled(KeyboardInterrupt):
    """Raised in the main thread, wherever it is: nothing has moved for too long. `diagnosis`: why, in sentences."""

    def __init__(self, diagnosis: list[str]) -> None:
        super().__init__(" ".join(diagnosis))
        self.diagnosis = diagnosis


def patience_s(config: ScanConfig, downloads: Sequence[int]) -> float:
    """Seconds of silence that are still normal: `--stall-minutes`, or longer than any one task may take.

    downloads: as many of the archive's largest as a task has spans, in bytes; 0 for what is local. These are fetched
    and analysed one after another before anyone hears of them.
    """
    if config.stall_minutes is not None:
        return config.stall_minutes * 60
    return len(downloads) * ANALYSES_PER_SPAN * config.span_timeout + sum(downloads) / SLOWEST_DOWNLOAD + SLACK_S


class Watchdog:
    """Watches its block from a thread of its own; use as a context manager, in the main thread.

    patience_s: seconds without a change that are still normal, asked again and again. pulse: anything that compares
    unequal once something has moved; it must not wait, and what it raises is no change. diagnose: what everything
    waits for, in sentences; it may hang.

    After too long a silence the sentences go to stderr, and `Stalled` is raised in the block. If the block has not
    ended `grace_s` later, because the interrupt did not get through or Ray hangs as well, the process ends at once
    with exit code 4. Only a main thread that hangs in foreign code while it holds the GIL escapes.

    A `Stalled` that leaves the block becomes a UserError with exit code 4.
    """

    def __init__(
        self,
        patience_s: Callable[[], float],
        pulse: Callable[[], Any],
        diagnose: Callable[[], list[str]],
        *,
        poll_s: float = POLL_S,
        grace_s: float = GRACE_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._patience_s, self._pulse, self._diagnose = patience_s, pulse, diagnose
        self._poll_s, self._grace_s, self._look_s = poll_s, grace_s, look_s
        self._diagnosis: list[str] = []
        self._over = threading.Event()
        self._ending = threading.Lock()  # held while one of the two sides declares the end
        self._main = threading.main_thread()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._before = signal.signal(INTERRUPT, self._interrupted)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._close()
        except Stalled:  # the block ended in the very moment in which it was given up
            self._close()
        if isinstance(error, Stalled):
            raise UserError(" ".join(error.diagnosis), EXIT_PREFLIGHT) from None

    def _close(self) -> None:
        with self._ending:
            self._over.set()
        signal.signal(INTERRUPT, self._before)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        raise Stalled(self._diagnosis)

    # --- in the watching thread ---

    def _watch(self) -> None:
        silence = self._wait_for_silence()
        if silence is None:
            return
        diagnosis = [f"Nothing has moved for {minutes(silence)}."]
        diagnosis += bounded(self._diagnose, self._look_s) or ["Ray does not answer when asked what it waits for."]
        with self._ending:
            if self._over.is_set():
                return
            self._diagnosis = diagnosis
            self._say(diagnosis)
            signal.pthread_kill(self._main.ident or 0, INTERRUPT)
        if not self._over.wait(self._grace_s):
            self._say([f"It could not be stopped cleanly within {minutes(self._grace_s)} either: ended at once."])
            os._exit(EXIT_PREFLIGHT)

    def _wait_for_silence(self) -> float | None:
        """Seconds of silence once they are too many; None when the block has ended."""
        pulse, silence, looked = self._look(None), 0.0, time.monotonic()
        while not self._over.wait(self._poll_s):
            now = time.monotonic()
            # A process that was stopped for hours (Ctrl-Z) has not been silent for hours.
            silence += min(now - looked, 2 * self._poll_s)
            looked, before, pulse = now, pulse, self._look(pulse)
            if pulse != before:
                silence = 0.0
            elif silence >= self._patience_s():
                return silence
        return None

    def _look(self, before: Any) -> Any:
        """The pulse. One that can't be felt has not changed: an error here must not end the watch without a word."""
        try:
            return self._pulse()
        except Exception:  # it looks into Ray Data's insides
            return before

    def _say(self, sentences: list[str]) -> None:
        text = "".join(f"deepsweep: {sentence}\n" for sentence in sentences).encode("utf-8", "backslashreplace")
        bounded(lambda: os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text), self._look_s)


def bounded(function: Callable[[], T], seconds: float) -> T | None:
    """The function's answer, or None if it raises or has none after so many seconds; it may then hang for ever."""
    answers: list[T] = []

    def ask() -> None:
        try:
            answers.append(function())
        except Exception:  # whoever asks has a sentence for that
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def minutes(seconds: float) -> str:
    """A length of time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"
