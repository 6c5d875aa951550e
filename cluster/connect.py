"""Connecting to Ray, and refusing to start where a scan could not be placed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.plan import MIN_CPUS
from scanner.errors import EXIT_PREFLIGHT, UserError

OBJECT_STORE_BYTES = 2 << 30  # crops in flight: a dozen spans with several faces each; Ray's default is 30 % of memory
OBJECT_STORE_SHARE = 0.5  # of what the shared-memory file system has free: beyond it Ray falls back to the disk
CONNECT_TIMEOUT_S = 10.0
MIN_OBJECT_STORE = 80 << 20  # Ray accepts no less


@dataclass(frozen=True)
class Resources:
    """What a connected cluster has."""

    cpus: float
    gpus: float
    nodes: int
    local: bool  # Ray was started here, for this scan


def connect(address: str | None, gpus: int | None) -> Resources:
    """Start Ray on this machine, or connect to a cluster, and check that a scan fits.

    gpus: at most so many are used; None for all. Raises UserError (exit code 4) with the fix.
    """
    _hush()
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        _check_answers(address)
    else:
        options |= {
            "num_gpus": gpus,
            "num_cpus": max(2, os.cpu_count() or 2),  # on one core two share it; a scan needs both kinds of actors
            "include_dashboard": False,
            "object_store_memory": _object_store_bytes(),
        }
    try:
        with _without_stderr():
            # "local": without an address Ray would join whatever cluster was last started on this machine.
            ray.init(address=address or "local", namespace="deepsweep", **options)
    except Exception as error:  # a node that starts too slowly is a bare Exception to Ray
        where = "Ray could not be started here" if address is None else f"no Ray cluster answers at {address}"
        raise UserError(f"{where}: {_first_line(error)}", EXIT_PREFLIGHT) from None
    total, free = ray.cluster_resources(), ray.available_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    found = float(free.get("GPU", 0))
    cpus, wanted = float(free.get("CPU", 0)), found if gpus is None else min(found, gpus)
    resources = Resources(cpus, wanted, nodes, address is None)
    try:
        _check(resources, gpus, found, float(total.get("CPU", 0)))
    except UserError:
        disconnect()
        raise
    return resources


def disconnect() -> None:
    """Leave the cluster; a Ray that was started here ends with all its processes."""
    import ray

    # The actors of an interrupted scan are killed at work, which Ray reports as tasks to be retried.
    with _without_stderr(), contextlib.suppress(Exception):
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Knock at HOST:PORT: Ray itself would go on knocking for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # "auto" and the like: Ray looks for a running node on this machine
        return
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--address {address} is no address: write auto, HOST:PORT or ray://HOST:PORT.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {error.strerror or error}. Check the address, or start one there"
            " with `ray start --head`.",
            EXIT_PREFLIGHT,
        ) from None


def _check(resources: Resources, wanted_gpus: int | None, found_gpus: float, all_cpus: float) -> None:
    if resources.cpus < MIN_CPUS:
        mend = (
            "it is busy: wait for what it runs"
            if all_cpus >= MIN_CPUS
            else "add a node, or start Ray with --num-cpus=2"
        )
        raise UserError(
            f"the cluster has {resources.cpus:g} of {all_cpus:g} CPUs free, and a scan needs 2: {mend}.", EXIT_PREFLIGHT
        )
    if wanted_gpus and found_gpus < wanted_gpus:
        raise UserError(
            f"--gpus {wanted_gpus} was asked for, but Ray sees {found_gpus:g}: lower it, or check nvidia-smi"
            " and CUDA_VISIBLE_DEVICES.",
            EXIT_PREFLIGHT,
        )


def _object_store_bytes() -> int:
    room = OBJECT_STORE_BYTES
    with contextlib.suppress(OSError):
        room = min(room, int(shutil.disk_usage("/dev/shm").free * OBJECT_STORE_SHARE))
    return max(MIN_OBJECT_STORE, room)


def _hush() -> None:
    """Ray's own talk goes to its log files: what the user reads is ours."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ parts write to the driver's stderr
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Close file descriptor 2 to Ray's C++ parts, which announce their own log level on it."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
