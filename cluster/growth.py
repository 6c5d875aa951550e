"""What an autoscaling cluster may become: asked of its head, where the autoscaler is."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.nodes import HEAD, MOST_NODES
from cluster.plan import Room

ANSWER_S = 60.0  # for a process on the head to start and to look


def rooms_at_most() -> tuple[Room, ...]:
    """The nodes of the connected cluster once its autoscaler has started all it may; none where there is none."""
    import ray
    from ray.exceptions import RayError

    address = ray.get_runtime_context().gcs_address
    limits = ray.remote(num_cpus=0, resources=HEAD, max_retries=0)(limits_here).remote(address)
    # A head that says nothing, or nothing that makes sense, keeps pools as they are: that is slow, and not wrong.
    try:
        return rooms_of(ray.get(limits, timeout=ANSWER_S))
    except (RayError, AttributeError, KeyError, TypeError, ValueError):
        return ()


def limits_here(gcs_address: str) -> dict[str, Any]:
    """What the autoscaler of the cluster at gcs_address may start, as a `ray up` file tells it; {} where there is none.

    Runs on the head. Ray itself writes it nowhere that others read: on machines the autoscaler's process has it in a
    file that its command line names, on Kubernetes our manifests put it into the environment.
    """
    if given := os.environ.get(MOST_NODES):
        return json.loads(given)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            words = process.read_bytes().decode(errors="replace").split("\0")
            files = [word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")]
            if files and f"--gcs-address={gcs_address}" in words:
                return yaml.safe_load(Path(files[0]).expanduser().read_bytes())
    return {}


def rooms_of(limits: Mapping[str, Any]) -> tuple[Room, ...]:
    """The workers that these limits allow, those with GPUs first. Memory that they don't tell has no limit.

    Kinds with the same resources share what is allowed to one: they are spot instances and their fallback.
    """
    most = limits.get("max_workers", 0)
    counts: dict[Room, int] = {}
    for name, kind in limits.get("available_node_types", {}).items():
        has = kind.get("resources", {})
        room = Room("", float(has.get("CPU", 0)), float(has.get("GPU", 0)), float(has.get("memory", math.inf)))
        if room.cpus and name != limits.get("head_node_type"):
            counts[room] = max(counts.get(room, 0), kind.get("max_workers", most))
    rooms = (room for room in sorted(counts, key=lambda room: -room.gpus) for _ in range(min(counts[room], most)))
    return tuple(itertools.islice(rooms, most))
