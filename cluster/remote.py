"""A scan driven from a machine outside the cluster, through Ray Client (ray://HOST:PORT).

Ray Data streams its blocks by generators, which Ray Client does not pass on. So the driver runs on the head, and this
side shows what it prints.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any, TextIO

from cluster.connect import attach, disconnect
from cluster.entrypoint import check_reachable, scan_arguments
from cluster.nodes import HEAD
from cluster.versions import deepsweep_version
from scanner.config import ScanConfig
from scanner.errors import EXIT_INTERRUPTED, EXIT_PREFLIGHT, UserError

WAIT_S = 1.0  # the longest that the driver's answer takes; a request to stop waits behind it
SENDS = 1000  # lines at once


def scan_remotely(config: ScanConfig) -> int:
    """Run the scan on the cluster at config.address, show its output here, and return its exit code.

    Ctrl-C ends it there. Raises UserError where the cluster can't be reached or has other versions.
    """
    check_reachable(config)
    assert config.address is not None, "the caller has looked"
    attach(config.address)
    try:
        import ray
        from ray.exceptions import RayError

        driver = ray.remote(num_cpus=0, resources=HEAD)(Driver).remote()  # no spot instance ends there
        try:
            _check_version(ray.get(driver.version.remote()), config.address)
            ray.get(driver.start.remote(scan_arguments(config)))
            return _relay(driver)
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):  # the second one does not wait for the summary
                if ray.get(driver.interrupt.remote()):
                    _relay(driver)
            return EXIT_INTERRUPTED
        except (RayError, ConnectionError) as error:
            raise UserError(
                f"the connection to {config.address} broke off ({type(error).__name__}): what was finished is kept in"
                f" {config.out}; the same command goes on from there.",
                EXIT_PREFLIGHT,
            ) from None
    finally:
        disconnect()


def _check_version(theirs: str, address: str) -> None:
    if theirs != deepsweep_version():
        raise UserError(
            f"the cluster at {address} runs deepsweep {theirs}, and this machine {deepsweep_version()}:"
            " install the same on both.",
            EXIT_PREFLIGHT,
        )


def _relay(driver: Any) -> int:
    """Print what the driver says until it ends; its exit code."""
    import ray

    while True:
        lines, exit_code = ray.get(driver.heard.remote())
        for to_stderr, line in lines:
            (sys.stderr if to_stderr else sys.stdout).write(line)
        sys.stdout.flush()
        sys.stderr.flush()
        if exit_code is not None:
            return exit_code


class Driver:
    """Runs on the head: a scan as a child process, whose output waits here to be asked for."""

    def __init__(self) -> None:
        self._lines: queue.Queue[tuple[bool, str]] = queue.Queue()
        self._readers: list[threading.Thread] = []
        self._process: subprocess.Popen[str] | None = None

    def version(self) -> str:
        return deepsweep_version()

    def start(self, arguments: list[str]) -> None:
        import ray

        # By its address: "auto" alone would choose among the clusters that this machine has nodes of.
        environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, "scan", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )
        streams = ((self._process.stdout, False), (self._process.stderr, True))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in streams]
        for reader in self._readers:
            reader.start()

    def heard(self) -> tuple[list[tuple[bool, str]], int | None]:
        """(lines since the last call, each with whether it went to stderr; the exit code once all was heard)."""
        lines: list[tuple[bool, str]] = []
        deadline = time.monotonic() + WAIT_S
        while len(lines) < SENDS:
            with contextlib.suppress(queue.Empty):
                lines.append(self._lines.get(timeout=max(0.0, min(0.1, deadline - time.monotonic()))))
                continue
            if lines or time.monotonic() >= deadline or not self._reading():
                break
        over = not self._reading() and self._lines.empty()
        return lines, self._process.wait() if over and self._process else None

    def interrupt(self) -> bool:
        """Ask the scan to close its books, as Ctrl-C does, which processes of Ray ignore. Whether there is one."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
        return self._process is not None

    def _reading(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    def _read(self, stream: TextIO, to_stderr: bool) -> None:
        for line in stream:
            self._lines.put((to_stderr, line))


#: The child ends with its parent: where the client goes away, Ray ends the actor, and no scan shall be left behind.
_MAIN = """
import ctypes, signal
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
from scanner.cli import main
main(prog_name="deepsweep")
"""
