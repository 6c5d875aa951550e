"""A child process that may hang, crash or eat memory; its parent sees an answer or a status."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from scanner.errors import EXIT_PREFLIGHT, UserError
from scanner.results import Status

MEMORY_LIMIT = 3 << 30  # bytes of resident memory, of what is no scan: encoding 4K takes 1.6 GiB
ADDRESS_SPACE_HEADROOM = 8 << 30  # above what imports map: thread stacks and caches map more than they touch
MEMORY_CHECK_S = 0.1
EXIT_OVER_MEMORY = 86  # the child's exit code when it gives up its own memory; not used by any signal
DOCTOR = "`deepsweep doctor` tells what is missing there"
POLL_S = 0.1
RECYCLE_AFTER = 100  # tasks: decoders leak a little with every file
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class GuardFailure(Exception):
    """The child did not answer: TIMEOUT, CRASHED or TOO_LARGE, and why."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class NoChild(UserError):
    """No child can work here, which says nothing of the video that it should have worked on."""

    def __init__(self, why: str, exit_code: int = EXIT_PREFLIGHT) -> None:
        super().__init__(why, exit_code)


class Guard:
    """Runs functions one at a time in a child process that is killed at a deadline or a memory limit.

    preload: modules that children find imported already (a fork server imports them once), so that a
    replacement for a killed child is there in milliseconds. Start-up never counts against a deadline.
    memory_limit: bytes, where the command has an option for it; else MEMORY_LIMIT.
    """

    def __init__(
        self, preload: tuple[str, ...] = (), memory_limit: int | None = None, recycle: int = RECYCLE_AFTER
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        _forget_main_module()
        self._limit_name = "the limit" if memory_limit is None else "--memory-limit"
        self._memory_limit = MEMORY_LIMIT if memory_limit is None else memory_limit
        self._new_pool = functools.partial(
            ProcessPool,
            max_workers=1,
            max_tasks=recycle,
            context=context,
            initializer=_confine,
            initargs=(os.getpid(), self._memory_limit),
        )
        self._pool = self._new_pool()

    def run(self, function: Callable[..., Any], *args: Any, deadline_s: float) -> Any:
        """Call `function(*args)` in the child and return its answer; its own exceptions pass through.

        Raises GuardFailure when the child passes the deadline, dies, or needs too much memory, and NoChild when
        none can be started or a library is missing.
        """
        for _ in range(2):
            future = self._begin(function, args)
            if future is not None and self._ended(future, deadline_s):
                break
            # A child that died while it had nothing to do: pebble gives the whole pool up then.
            self.close()
            self._pool = self._new_pool()
        else:
            raise NoChild(f"a process to work in dies as soon as it is started on {socket.gethostname()}: {DOCTOR}")
        try:
            return future.result()
        except ImportError as error:
            raise NoChild(f"{error}, on {socket.gethostname()}: {DOCTOR}") from None
        except MemoryError:
            raise GuardFailure(Status.TOO_LARGE, self._over_memory()) from None
        except ProcessExpired as death:
            if death.exitcode == EXIT_OVER_MEMORY:
                raise GuardFailure(Status.TOO_LARGE, self._over_memory()) from None
            raise GuardFailure(Status.CRASHED, f"the process died ({_cause(death.exitcode)})") from None

    def _begin(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Future | None:
        with contextlib.suppress(RuntimeError):  # the pool broke earlier
            return self._pool.schedule(function, args=args)
        return None

    def _ended(self, future: Future, deadline_s: float) -> bool:
        """Wait for the child; whether it is its answer, or its death, that came, and not the pool's end.

        The deadline is kept here, since pebble's own goes by a clock that can be set. It begins with the work.
        """
        begun: float | None = None
        while not wait([future], POLL_S).done:
            self._on_wait()
            if begun is None:
                begun = time.monotonic() if future.running() else None
            elif time.monotonic() - begun > deadline_s:
                future.cancel()  # which kills the child
                raise GuardFailure(Status.TIMEOUT, f"no answer within {deadline_s:.0f} s; the process was killed")
            if not self._pool.active:
                return False
        return not isinstance(future.exception(), BrokenProcessPool)

    def _on_wait(self) -> None:
        """Called every POLL_S while a child is waited for; what it raises ends the waiting."""

    def warm_up(self) -> None:
        """Start the child now, in the background, instead of with the first task."""
        self._pool.schedule(os.getpid)

    def close(self) -> None:
        """End the child, also in the middle of a task."""
        self._pool.stop()
        self._pool.join(timeout=10)

    def _over_memory(self) -> str:
        return f"needs more memory than {self._limit_name} ({self._memory_limit / 2**30:.1f} GiB)"


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _forget_main_module() -> None:
    # A new child imports the parent's main script again: in a Ray worker that is Ray's own, 150 MB and
    # a second for nothing. What children run comes from importable modules only.
    main = sys.modules.get("__main__")
    if main is not None and getattr(main, "__spec__", None) is None:
        with contextlib.suppress(AttributeError):
            del main.__file__


def _confine(parent: int, memory_limit: int) -> None:
    """In the child: die with the parent, and never outgrow the memory limit."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C goes to every process of the terminal: the parent decides when a child ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent, memory_limit), daemon=True).start()
    mapped, _ = _memory()
    if mapped:
        # For what the watch can't see in time: one huge request, or growth while the GIL is held.
        limit = mapped + memory_limit + ADDRESS_SPACE_HEADROOM
        _, allowed = resource.getrlimit(resource.RLIMIT_AS)
        if allowed == resource.RLIM_INFINITY or limit < allowed:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(parent: int, memory_limit: int) -> None:
    # The fork server, not the guard's process, is the child's parent, so the guard's end shows only here.
    pause = threading.Event()
    while not pause.wait(MEMORY_CHECK_S):
        if _memory()[1] > memory_limit:
            os._exit(EXIT_OVER_MEMORY)
        if not _alive(parent):
            os._exit(0)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _memory() -> tuple[int, int]:
    """(mapped, resident) bytes of this process; zeros where the system does not tell."""
    try:
        mapped, resident = Path("/proc/self/statm").read_text().split()[:2]
    except OSError:
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return int(mapped) * page, int(resident) * page
