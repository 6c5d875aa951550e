"""What every node must have before a scan starts: the same versions, codecs, scratch space, shared memory."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from cluster.connect import Resources, connect, disconnect, object_store_bytes
from cluster.plan import Plan, plan_for
from cluster.versions import deepsweep_version, ray_version
from scanner.errors import EXIT_PREFLIGHT, UserError

ANSWER_S = 60.0  # for a node's worker to start and to look; it takes a second or two
MIN_OBJECT_STORE_BYTES = 128 << 20  # crops of two minutes with six faces, and of the spans behind them on disk
SHARED_MEMORY = "/dev/shm"
SHOWN_NODES = 5  # in a message
#: FFmpeg's decoders of what archives hold. Its own av1 needs a GPU that can, and says nothing where there is none.
DECODERS = {
    **{name: (name,) for name in ("h264", "hevc", "mpeg4", "mpeg2video", "mjpeg", "vp8", "vp9")},
    "av1": ("libdav1d", "libaom-av1"),
}
STAGE_LIBRARIES = ("mediapipe", "cv2", "torch")  # only looked for: loading them takes seconds, and a stage says why
GIB = 1 << 30

T = TypeVar("T")


@dataclass(frozen=True)
class Needs:
    """What a scan wants of a node. scratch: the folder for downloads, or None where nothing is downloaded.

    memory: bytes that each video in analysis may take.
    """

    scratch: str | None
    scratch_bytes: int
    memory: int = 0


@dataclass(frozen=True)
class Node:
    """A node of the cluster. name: its address, with Ray's id where several share it. works: it can hold actors."""

    id: str
    name: str
    works: bool
    object_store_bytes: int


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself."""

    versions: dict[str, str]
    unloadable: str | None  # why a library can't be loaded
    missing_codecs: tuple[str, ...]
    scratch_free: int | None  # bytes; None: not asked, or nothing can be written there
    shared_memory: int | None  # bytes, used or not; None where there is none


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a node answered, or why it didn't."""

    node: Node
    value: T | None
    failure: str | None = None


def ready(address: str | None, gpus: float | None, needs: Needs) -> tuple[Resources, Plan]:
    """Connect to Ray, or start it here, once everything is fit for a scan; what there is, and the actors for it.

    Raises UserError (exit code 4) with what is wrong and the fix.
    """
    if address is None:
        check_here(needs)
    resources = connect(address, gpus)
    try:
        if not resources.local:
            _refuse(on_every_node(node_facts, needs.scratch, timeout_s=ANSWER_S), needs)
        most_gpus = math.inf if gpus is None else gpus
        return resources, plan_for(resources.rooms, resources.gpus, needs.memory, resources.grown, most_gpus)
    except UserError:
        disconnect()
        raise


def check_here(needs: Needs) -> None:
    """Look at this machine, before Ray is started on it. Raises UserError (exit code 4)."""
    _refuse([Answer(this_machine(), node_facts(needs.scratch))], needs)


def _refuse(answers: Sequence[Answer[NodeFacts]], needs: Needs) -> None:
    if found := problems(answers, needs, own_versions()):
        raise UserError(" ".join(found), EXIT_PREFLIGHT)


def problems(answers: Sequence[Answer[NodeFacts]], needs: Needs, here: dict[str, str]) -> list[str]:
    """Sentences on what would stop or spoil a scan, each with its fix and the nodes that it holds for."""
    nodes: dict[str, list[str]] = {}
    for answer in answers:
        for problem in _problems(answer, needs, here):
            nodes.setdefault(problem, []).append(answer.node.name)
    return [f"{_named(names)}: {problem}." for problem, names in nodes.items()]


def _problems(answer: Answer[NodeFacts], needs: Needs, here: dict[str, str]) -> list[str]:
    facts, node = answer.value, answer.node
    if facts is None:
        return [f"deepsweep does not run there ({answer.failure}); install deepsweep {here['deepsweep']} on every node"]
    found = other_versions(facts.versions, here)
    if not node.works:
        return found
    if facts.unloadable is not None:
        found.append(f"videos can't be scanned there ({facts.unloadable}); `deepsweep doctor` names the fix")
    elif facts.missing_codecs:
        found.append(missing_codecs_problem(facts.missing_codecs))
    if needs.scratch is not None and facts.scratch_free is None:
        found.append(f"nothing can be written to {needs.scratch}, where downloads go; name another folder: --scratch")
    elif needs.scratch is not None and (facts.scratch_free or 0) < needs.scratch_bytes:
        found.append(
            f"{size(facts.scratch_free or 0)} are free for downloads in {needs.scratch}, and --scratch-size promises"
            f" {size(needs.scratch_bytes)}; lower it, or name another folder: --scratch"
        )
    return [*found, *memory_problems(node.object_store_bytes, facts.shared_memory)]


def other_versions(there: dict[str, str], here: dict[str, str]) -> list[str]:
    """A sentence's worth for each of `here` that is another one there."""
    return [
        f"{name} {there.get(name, 'missing')} there, and {version} here; install the same on every node"
        for name, version in here.items()
        if there.get(name) != version
    ]


def missing_codecs_problem(missing: Sequence[str]) -> str:
    """What is wrong where PyAV lacks codecs, and the fix."""
    return (
        f"PyAV can't decode {', '.join(missing)}: it was built against another FFmpeg;"
        " pip install --force-reinstall --no-deps --only-binary av av"
    )


def memory_problems(object_store: int, shared: int | None) -> list[str]:
    """A sentence's worth where Ray's object store is too small, or not in memory. Both in bytes."""
    wanted = max(object_store, 2 * MIN_OBJECT_STORE_BYTES)  # Ray gives its store at most half of what is free
    if shared is not None and shared < wanted:
        return [
            f"{SHARED_MEMORY} has {size(shared)}, so that Ray's object store would lie on the disk; give the container"
            f" more (docker run --shm-size={-(-wanted // GIB)}g), or start Ray with a smaller --object-store-memory"
        ]
    if object_store < MIN_OBJECT_STORE_BYTES:
        return [
            f"Ray's object store has {size(object_store)}, and a scan needs {size(MIN_OBJECT_STORE_BYTES)}; make room"
            f" in {SHARED_MEMORY}, or start Ray with a larger --object-store-memory"
        ]
    return []


# --- on the node itself -----------------------------------------------------------------------------------


def node_facts(scratch: str | None) -> NodeFacts:
    """What this machine has. scratch: the folder whose space is asked for; it need not exist yet."""
    missing: tuple[str, ...] = ()
    try:
        missing = missing_codecs()
    except Exception as error:  # a broken installation fails in any way it likes
        unloadable = f"{type(error).__name__}: {error}"
    else:
        absent = [name for name in STAGE_LIBRARIES if importlib.util.find_spec(name) is None]
        unloadable = f"{', '.join(absent)} not installed" if absent else None
    return NodeFacts(
        versions=own_versions(),
        unloadable=unloadable,
        missing_codecs=missing,
        scratch_free=None if scratch is None else free_bytes(Path(scratch)),
        shared_memory=shared_memory(),
    )


def this_machine() -> Node:
    """The node that this machine is once Ray is started here for a scan."""
    return Node("", "this machine", works=True, object_store_bytes=object_store_bytes())


def own_versions() -> dict[str, str]:
    """Versions that must be the same wherever parts of a scan run: they exchange pickles."""
    return {
        "Python": platform.python_version(),
        "Ray": _installed(ray_version),
        "deepsweep": _installed(deepsweep_version),
    }


def _installed(version: Callable[[], str]) -> str:
    try:
        return version()
    except metadata.PackageNotFoundError:
        return "missing"


def missing_codecs() -> tuple[str, ...]:
    """Codecs that can't be decoded here. Raises whatever loading the decoders raises."""
    importlib.import_module("decord")
    from av.codec import codecs_available

    return tuple(codec for codec, names in DECODERS.items() if not codecs_available.intersection(names))


def free_bytes(folder: Path) -> int | None:
    """Bytes that can still be written to a folder, or where it would be made; None where that is not allowed."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) else None
    except OSError:
        return None


def shared_memory() -> int | None:
    """Bytes of shared memory that this machine may use in all; None where it has none."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        return None


# --- the cluster ------------------------------------------------------------------------------------------


def alive_nodes() -> list[Node]:
    """The nodes of the connected cluster."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    return [
        Node(
            id=node["NodeID"],
            name=f"node {address}" + (f" ({node['NodeID'][:8]})" if addresses.count(address) > 1 else ""),
            works=node["Resources"].get("CPU", 0) > 0,
            object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
        )
        for node, address in zip(alive, addresses, strict=True)
    ]


def on_every_node(function: Callable[..., T], *args: Any, timeout_s: float) -> list[Answer[T]]:
    """Call `function(*args)` on each node of the connected cluster, all at once; it needs no free core.

    timeout_s: after which a node that has not answered has failed.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = alive_nodes()
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*args)
        for node in nodes
    ]
    ready, late = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    for reference in late:
        ray.cancel(reference, force=True)
    answers = []
    for node, reference in zip(nodes, asked, strict=True):
        if reference not in ready:
            answers.append(Answer(node, None, f"no answer within {timeout_s:.0f} s: it is overloaded, or cut off"))
            continue
        try:
            answers.append(Answer(node, ray.get(reference)))
        except Exception as error:  # what a node can't load it raises here, wrapped by Ray
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            answers.append(Answer(node, None, lines[-1] if lines else type(error).__name__))
    return answers


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NODES} more" if len(names) > SHOWN_NODES else ""
    return f"{', '.join(names[:SHOWN_NODES])}{more}"
