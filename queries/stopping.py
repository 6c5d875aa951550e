"""Ctrl-C while DuckDB works."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

EVERY_S = 0.02
_QUESTION = b"\0"  # no signal has this number


@contextmanager
def stoppable(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Ctrl-C ends what the connection works on inside, which raises KeyboardInterrupt or DuckDB's InterruptException.

    Python's handler of the signal waits until DuckDB returns, and DuckDB looks for signals in most of what it does, but
    not in all: one in thirty went unheard, and the question ran on. Does nothing outside the main thread, which alone
    gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    listener = _listener()
    listener.watch(connection)
    before = signal.set_wakeup_fd(listener.told.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:  # may itself be left half-way by the signal's KeyboardInterrupt: watch() copes with that
        listener.forget()
        signal.set_wakeup_fd(before)


class _Listener:
    """A thread that is told of signals at once, and interrupts the connection that is watched until it is forgotten.

    Until then, because DuckDB forgets an interrupt that comes before it begins. It lives as long as the process, since
    the signal may come while anything is taken down.
    """

    def __init__(self) -> None:
        self.told, self._listening = socket.socketpair()
        self.told.setblocking(False)  # as signal.set_wakeup_fd wants it
        self._lock, self._up_to_date = threading.Lock(), threading.Event()
        self._watched: duckdb.DuckDBPyConnection | None = None
        self._interrupted = False
        threading.Thread(target=self._listen, name="ctrl-c", daemon=True).start()

    def watch(self, connection: duckdb.DuckDBPyConnection) -> None:
        """From now on a Ctrl-C is for this connection."""
        import duckdb

        self.forget()
        self._up_to_date.clear()
        self.told.send(_QUESTION)  # once it is read, nothing is left of signals for an earlier question
        self._up_to_date.wait()
        if self._interrupted:  # the last one may have come after the question that it was for, and would end this one
            self._interrupted = False
            with suppress(duckdb.InterruptException):
                connection.execute("SELECT 1").fetchall()
        self._watched = connection

    def forget(self) -> None:
        """A Ctrl-C is not for DuckDB any more."""
        with self._lock:
            self._watched = None

    def _listen(self) -> None:
        while got := self._listening.recv(1):
            if got == _QUESTION:
                self._up_to_date.set()
            while got[0] == signal.SIGINT and self._interrupt():
                time.sleep(EVERY_S)

    def _interrupt(self) -> bool:
        """Whether there was something to interrupt."""
        with self._lock:
            if self._watched is None:
                return False
            self._interrupted = True
            self._watched.interrupt()
            return True


@cache
def _listener() -> _Listener:
    return _Listener()
