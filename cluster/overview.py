"""What a running cluster consists of, as its dashboard tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.jobs import Jobs

MOST_NODES = 10_000  # as many as the dashboard lists at once


@dataclass(frozen=True)
class Node:
    """One machine. memory: bytes that Ray gives to tasks and actors."""

    role: str  # "head" or "worker"
    address: str
    cpus: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class Overview:
    """A cluster at one moment. report: what `ray status` says: nodes that are starting or failed, what is in use."""

    ray_version: str
    nodes: list[Node]
    report: str


def overview(jobs: Jobs) -> Overview:
    """Ask the dashboard. Raises UserError where it does not answer."""
    listed = jobs.get(f"/api/v0/nodes?detail=1&limit={MOST_NODES}")["data"]["result"]["result"]
    alive = [_node(node) for node in listed if node["state"] == "ALIVE"]
    return Overview(
        ray_version=jobs.get("/api/version")["ray_version"],
        nodes=sorted(alive, key=lambda node: (node.role, node.address)),
        report=jobs.get("/api/cluster_status?format=1")["data"].get("clusterStatus") or "",
    )


def _node(node: Mapping[str, Any]) -> Node:
    resources = node["resources_total"]
    return Node(
        role="head" if node["is_head_node"] else "worker",
        address=node["node_ip"],
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory=resources.get("memory", 0.0),
    )
