"""What a process and everything it started use: read from /proc, so Linux only."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process at one moment."""

    pid: int
    parent: int
    command: str
    resident: int  # bytes; what it shares with others is counted in each
    private: int  # bytes of its own heap and stacks: without code, and without Ray's shared object store
    cpu_s: float


def family(root: int) -> list[Process]:
    """The process `root` and all its descendants that are alive, parents before children."""
    parents = {pid: stat for pid in _pids() if (stat := _stat(pid)) is not None}
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in parents.items():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [root] if root in parents else []
    while queue:
        pid = queue.pop(0)
        queue += children.get(pid, [])
        parent, cpu_s = parents[pid]
        with contextlib.suppress(OSError, ValueError):
            resident, shared = (int(n) * PAGE for n in Path(f"/proc/{pid}/statm").read_text().split()[1:3])
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found.append(Process(pid, parent, words, resident, resident - shared, cpu_s))
    return found


def end(processes: list[Process], grace_s: float = 10.0) -> None:
    """Ask these processes to end, and kill those that have not after `grace_s`."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, how)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and any(_stat(p.pid) for p in processes):
            time.sleep(0.1)


@dataclass
class Watch:
    """Samples a process family every `every_s` from a thread of its own; use as a context manager."""

    root: int
    every_s: float = 1.0
    samples: list[tuple[float, list[Process]]] = field(default_factory=list)  # (seconds since the start, family)

    def __enter__(self) -> Watch:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def cpu_s(self, until: float = math.inf) -> float:
        """Seconds of CPU that the family has used up to a moment, each process as last seen by then."""
        return sum({p.pid: p.cpu_s for t, family in self.samples if t <= until for p in family}.values())

    def everyone(self) -> list[Process]:
        """All that were ever seen."""
        return list({p.pid: p for _, family in self.samples for p in family}.values())

    def _sample(self) -> None:
        began = time.monotonic()
        while True:
            self.samples.append((time.monotonic() - began, family(self.root)))
            if self._stop.wait(self.every_s):
                return


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> tuple[int, float] | None:
    """(parent, CPU seconds) of a process; None if there is none, or it is only waiting to be collected."""
    try:
        # The command, in parentheses, may hold spaces and parentheses of its own.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else (int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS)
