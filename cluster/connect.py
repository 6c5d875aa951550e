"""Connecting to Ray, and refusing to start where a scan could not be placed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.growth import rooms_at_most
from cluster.nodes import OBJECT_STORE_BYTES
from cluster.plan import MIN_CPUS, Room
from scanner.errors import EXIT_PREFLIGHT, UserError, first_line

STORE_PER_CORE = 128 << 20  # crops of four spans with one face: one in the making, one waiting, two being scored
OBJECT_STORE_SHARE = 0.5  # of what the shared-memory file system has free: beyond it Ray falls back to the disk
CONNECT_TIMEOUT_S = 10.0
CLIENT_ATTEMPTS = 3
MIN_OBJECT_STORE = 80 << 20  # Ray accepts no less
TOKEN_HINT = "If it asks for a token, put the cluster's into ~/.ray/auth_token or RAY_AUTH_TOKEN."


@dataclass(frozen=True)
class Resources:
    """What a connected cluster has."""

    cpus: float
    gpus: float
    nodes: int
    local: bool  # Ray was started here, for this scan
    rooms: tuple[Room, ...] = ()  # what is free, node by node
    grown: tuple[Room, ...] = ()  # the workers of a cluster that grows, once all are there that may come


def connect(address: str | None, gpus: float | None) -> Resources:
    """Start Ray on this machine, or connect to a cluster, and check that a scan fits.

    gpus: at most so many are used, below 1 that share of one; None for all that are wholly free.
    Raises UserError (exit code 4) with the fix.
    """
    if address is None:
        resources_here(gpus)  # Ray believes in as many GPUs as it is told of
    attach(address, gpus)
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    found = float(free.get("GPU", 0))
    cpus, wanted = float(free.get("CPU", 0)), float(int(found)) if gpus is None else min(found, gpus)
    grown = () if address is None else rooms_at_most()
    resources = Resources(cpus, wanted, nodes, address is None, _rooms(), grown)
    try:
        _check(resources, gpus, found, float(total.get("CPU", 0)))
    except UserError:
        disconnect()
        raise
    return resources


def resources_here(gpus: float | None) -> Resources:
    """What a Ray that is started on this machine would have. Raises UserError (exit code 4) where no scan fits."""
    cpus, found = float(_cpus_here()), float(_gpus_here())
    wanted = found if gpus is None else min(found, gpus)
    resources = Resources(cpus, wanted, 1, True, (Room("this machine", cpus, found, memory_here()),))
    _check(resources, gpus, found, cpus)
    return resources


def _cpus_here() -> int:
    return max(2, os.cpu_count() or 2)  # on one core two share it; a scan needs both kinds of actors


def _gpus_here() -> int:
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch  # takes seconds, so only where there may be one

    return torch.cuda.device_count()


def memory_here() -> float:
    """Bytes that a Ray started here would count on for its processes."""
    from ray._private.utils import estimate_available_memory

    return float(max(0, estimate_available_memory() - object_store_bytes()))


def _rooms() -> tuple[Room, ...]:
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    nodes = [(node["NodeManagerAddress"], free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]
    return tuple(
        Room(address, float(has.get("CPU", 0)), float(has.get("GPU", 0)), float(has.get("memory", math.inf)))
        for address, has in nodes
    )


def attach(address: str | None, gpus: float | None = None) -> None:
    """Start Ray on this machine, or connect to a cluster, whatever it has. Raises UserError (exit code 4)."""
    _hush()
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        _check_answers(address)
        if _wants_token(address):
            show_token()
    else:
        options |= {
            "num_gpus": None if gpus is None else math.ceil(gpus),
            "num_cpus": _cpus_here(),
            "include_dashboard": False,
            "object_store_memory": object_store_bytes(),
        }
    try:
        with _without_stderr(), _keeping_sigterm():
            # "local": without an address Ray would join whatever cluster was last started on this machine.
            _patiently(lambda: ray.init(address=address or "local", namespace="deepsweep", **options))
        _mute_nodes()
    except Exception as error:  # a node that starts too slowly is a bare Exception to Ray
        where = "Ray could not be started here" if address is None else f"no Ray cluster answers at {address}"
        token = "" if address is None else f" {TOKEN_HINT}"
        if (versions := _other_versions(error)) is not None:
            raise UserError(f"the cluster at {address} {versions}", EXIT_PREFLIGHT) from None
        raise UserError(f"{where}: {first_line(error)}.{token}", EXIT_PREFLIGHT) from None


def _patiently(start: Callable[[], object]) -> None:
    """Start, once more where a busy head took longer than Ray allows to start a server for this ray:// client."""
    for attempts_left in reversed(range(CLIENT_ATTEMPTS)):
        try:
            start()
            return
        except ConnectionAbortedError as error:
            if "Initialization failure" not in str(error) or not attempts_left:
                raise


def _wants_token(address: str) -> bool:
    """Whether the cluster lets in nobody without a token; True where that can't be told.

    A driver that names a token asks one of those who call it, too. The nodes of a cluster without any have none to
    show, and so the driver's actors would be taken for abandoned, and end at once.
    """
    if ":" not in address:  # "auto": Ray looks after that itself
        return False
    try:
        import grpc
    except ImportError:
        return True
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            return getattr(error, "code", lambda: None)() is not grpc.StatusCode.UNIMPLEMENTED
        return False


def show_token() -> None:
    """Let this process name Ray's token (~/.ray/auth_token, RAY_AUTH_TOKEN) to clusters, where there is one.

    By itself Ray 2.60 does so only under RAY_AUTH_MODE=token, or for a cluster that it found on this machine.
    """
    with contextlib.suppress(ImportError):
        from ray._private.authentication import authentication_token_setup as setup

        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


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


def _check(resources: Resources, wanted_gpus: float | None, found_gpus: float, all_cpus: float) -> None:
    if resources.cpus < MIN_CPUS:
        if resources.grown:
            mend = "its workers come when they are called, which `deepsweep cluster submit --cpus N -- ...` does"
        elif all_cpus >= MIN_CPUS:
            mend = "it is busy: wait for what it runs"
        else:
            mend = "add a node, or start Ray with --num-cpus=2"
        raise UserError(
            f"the cluster has {resources.cpus:g} of {all_cpus:g} CPUs free, and a scan needs 2: {mend}.", EXIT_PREFLIGHT
        )
    if wanted_gpus and wanted_gpus > 1 and wanted_gpus != int(wanted_gpus):
        raise UserError(f"--gpus {wanted_gpus:g} is neither whole nor a share of one GPU: write 2, or 0.5.")
    if wanted_gpus and found_gpus < wanted_gpus:
        raise UserError(
            f"--gpus {wanted_gpus:g} was asked for, but Ray sees {found_gpus:g}: lower it, or check nvidia-smi"
            " and CUDA_VISIBLE_DEVICES.",
            EXIT_PREFLIGHT,
        )


def object_store_bytes() -> int:
    """Room for blocks that a Ray started here is given."""
    room = max(OBJECT_STORE_BYTES, _cpus_here() * STORE_PER_CORE)
    with contextlib.suppress(OSError):
        room = min(room, int(shutil.disk_usage("/dev/shm").free * OBJECT_STORE_SHARE))
    return max(MIN_OBJECT_STORE, room)


def _hush() -> None:
    """Ray's own talk goes to its log files: what the user reads is ours."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ parts write to the driver's stderr
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")  # its import sets the level of its loggers anew
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _mute_nodes() -> None:
    """Keep from stdout, where events go, what Ray prints there of lost workers and nodes: it has no switch."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


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


@contextlib.contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Take SIGTERM back from Ray, whose start makes it end the driver without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _other_versions(error: BaseException) -> str | None:
    """What Ray says of a cluster with other versions than this process, as one sentence; None for other errors."""
    found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
    if "mismatch" not in str(error).lower() or len(found) != 2:
        return None
    (ray, python), (here_ray, here_python) = found
    return (
        f"runs Ray {ray} on Python {python}, and this process Ray {here_ray} on Python {here_python}:"
        f" install the same here (pip install 'ray[default]=={ray}'), or start the cluster with these."
    )
