"""A real Ray cluster on this machine that starts its workers when they are asked for, as one in the cloud does."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray._private.ray_constants import RESOURCES_ENVIRONMENT_VARIABLE
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from cluster import nodes
from tests import processes

ROOT = Path(__file__).parents[2]
HEAD_TYPE = "ray.head.default"
START_TIMEOUT_S = 90
STORE_BYTES = str(200 << 20)
WORKER_BYTES = 8 << 30  # as Ray counts memory; two analysers fit


@dataclass(frozen=True)
class Head:
    """address: HOST:PORT. dashboard: URL. client: ray://'s port. environment: what a process needs to be let in."""

    address: str
    dashboard: str
    client: int
    environment: dict[str, str]


class Provider(FakeMultiNodeProvider):
    """Ray's own takes a node's memory for a resource of ours, and fails: here it comes with the environment."""

    def _create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        others = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, others, labels)


@contextlib.contextmanager
def autoscaling_cluster(worker_cpus: int, workers: int = 1) -> Iterator[Head]:
    """A head without CPUs, and an autoscaler that may start so many workers with worker_cpus each.

    The head is started with the parameters of deepsweep's own clusters, on free ports, and ends with all it started.
    """
    gcs, dashboard, client, agent, runtime_env = _free_ports(5)
    folder = Path(tempfile.mkdtemp(prefix="ds-"))  # short: it holds sockets, whose paths have 107 bytes at most
    environment = nodes.ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(16)}
    config = folder / "autoscaler.json"
    address = f"{_own_address()}:{gcs}"
    config.write_text(json.dumps(_autoscaler(address, worker_cpus, workers)))
    parameters = nodes.HEAD_PARAMETERS | {
        "port": str(gcs),
        "dashboard-host": "127.0.0.1",
        "dashboard-port": str(dashboard),
        "ray-client-server-port": str(client),
        "dashboard-agent-listen-port": str(agent),
        "runtime-env-agent-port": str(runtime_env),
        "object-store-memory": STORE_BYTES,
        "min-worker-port": "0",
        "max-worker-port": "0",
        "temp-dir": str(folder / "ray"),
        "autoscaling-config": str(config),
    }
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("ray"),
            "start",
            "--head",
            "--block",
            *nodes.options(parameters).split(),
        ],
        # A job finds `deepsweep` on the head's PATH.
        env={**os.environ, **environment, **_as_fake_cloud(), "PATH": _path(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for_head(url, environment["RAY_AUTH_TOKEN"], process)
        yield Head(address, url, client, environment)
    finally:
        processes.end(processes.family(process.pid))
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _autoscaler(gcs_address: str, worker_cpus: int, workers: int) -> dict:
    """An autoscaler's config, for the node provider that Ray has for trying things out on one machine."""
    return {
        "cluster_name": "deepsweep-test",
        "max_workers": workers,
        "idle_timeout_minutes": 30,
        "upscaling_speed": 1,
        "provider": {
            # Not "fake_multinode": its defaults are not in the wheel.
            "type": "external",
            "module": f"{__name__}.{Provider.__name__}",
            "gcs_address": gcs_address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "auth": {},
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {
                    "CPU": worker_cpus,
                    "memory": WORKER_BYTES,
                    "object_store_memory": int(STORE_BYTES),
                },
                "node_config": {},
                "min_workers": 0,
                "max_workers": workers,
            },
        },
    }


def _as_fake_cloud() -> dict[str, str]:
    """Variables under which Ray's head takes itself for the instance of that provider."""
    return {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
        RESOURCES_ENVIRONMENT_VARIABLE: json.dumps({"memory": WORKER_BYTES}),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }


def _path() -> str:
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _own_address() -> str:
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def _wait_for_head(url: str, token: str, process: subprocess.Popen) -> None:
    """Until the dashboard lists the head: it answers some seconds before it knows of any node."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{url}/api/v0/nodes?detail=1", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), opener.open(request, timeout=5) as answer:
            if b"ALIVE" in answer.read():
                return
        time.sleep(0.2)
    raise AssertionError(f"Ray did not start at {url}")
