"""`deepsweep doctor`: what of this machine, or of a cluster's nodes, would stop or spoil a scan, and the fix."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from cluster.connect import attach, disconnect
from cluster.preflight import (
    Node,
    NodeFacts,
    memory_problems,
    missing_codecs,
    missing_codecs_problem,
    node_facts,
    on_every_node,
    other_versions,
    own_versions,
    size,
    this_machine,
)
from scanner.errors import EXIT_OK, EXIT_PREFLIGHT

MIN_SCRATCH_BYTES = 5 << 30
MIN_MEMORY_BYTES = 4 << 30
ANSWER_S = 300.0  # for all checks on one node; they take some 20 s on an idle one


@dataclass(frozen=True)
class Finding:
    """One check: what it looked at, whether that is fine, and what to do if not. A warning stops no scan."""

    name: str
    ok: bool
    text: str
    warning: bool = False


def run_checks(*, as_json: bool, address: str | None = None) -> int:
    """Run all checks, here or on every node of a cluster, and print them; the exit code says whether a scan can run.

    Raises UserError where no cluster answers at the address.
    """
    by_node = {this_machine().name: examine_here()} if address is None else examine_cluster(address)
    if as_json:
        named = [(name, finding) for name, findings in by_node.items() for finding in findings]
        print(json.dumps([({"node": name} if address else {}) | vars(finding) for name, finding in named], indent=1))
    else:
        for name, findings in by_node.items():
            if address is not None:
                print(name)
            for finding in findings:
                mark = "ok  " if finding.ok else "warn" if finding.warning else "FAIL"
                print(f"{mark}  {finding.name}: {finding.text}")
    return EXIT_OK if all(f.ok or f.warning for findings in by_node.values() for f in findings) else EXIT_PREFLIGHT


def examine_here() -> list[Finding]:
    """All checks of this machine."""
    findings, facts = examine()
    return [*findings, *_as_a_node(this_machine(), facts)]


def examine_cluster(address: str) -> dict[str, list[Finding]]:
    """All checks of each node of a cluster, by the node's name; the nodes work side by side."""
    attach(address)
    try:
        answers = on_every_node(examine, timeout_s=ANSWER_S)
    finally:
        disconnect()
    by_node = {}
    for answer in answers:
        if answer.value is None:
            by_node[answer.node.name] = [Finding("deepsweep", False, f"does not run there: {answer.failure}")]
        else:
            findings, facts = answer.value
            by_node[answer.node.name] = [*findings, *_as_a_node(answer.node, facts)]
    return by_node


def examine() -> tuple[list[Finding], NodeFacts]:
    """On the machine itself: its checks, and what whoever asks compares with the other nodes."""
    return [_guarded(check) for check in CHECKS], node_facts(None)


def _as_a_node(node: Node, facts: NodeFacts) -> list[Finding]:
    """What can only be judged beside the process that asks, and with what Ray has of the node."""
    here = own_versions()
    other = other_versions(facts.versions, here)
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    store = memory_problems(node.object_store_bytes, facts.shared_memory) if node.works else []
    shared = "none" if facts.shared_memory is None else size(facts.shared_memory)
    return [
        Finding("versions", not other, "; ".join(other) or versions),
        Finding("shared memory", not store, "; ".join(store) or shared),
    ]


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a broken installation fails in any way it likes, and saying so is the point
        return Finding(check.__name__.strip("_").replace("_", " "), False, f"{type(error).__name__}: {error}")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return Finding("python", ok, version if ok else f"{version}: deepsweep needs 3.10 to 3.12")


def _libraries() -> Finding:
    names = ("numpy", "pyarrow", "duckdb", "decord", "av", "mediapipe", "ray", "torch", "safetensors")
    for name in names:
        importlib.import_module(name)
    return Finding("libraries", True, ", ".join(f"{n} {metadata.version(n)}" for n in names))


def _codecs() -> Finding:
    missing = missing_codecs()
    return Finding("codecs", not missing, missing_codecs_problem(missing) if missing else "all can be decoded")


def _one_cv2() -> Finding:
    """Two packages install the same `cv2` folder: of different versions they make a mix that crashes."""
    versions = {}
    for name in ("opencv-contrib-python", "opencv-python-headless", "opencv-python"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    try:
        import cv2
    except ImportError as error:  # libGL.so.1: cannot open shared object file
        wanted = versions.get("opencv-contrib-python", "4.11.0.86")
        return Finding("one cv2", False, f"{error}: mend it with pip install {_reinstall(wanted)}")
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    if len(set(versions.values())) > 1 or "opencv-python-headless" not in versions:
        wanted = versions.get("opencv-contrib-python", cv2.__version__)
        return Finding("one cv2", False, f"{found}: mend it with pip install {_reinstall(wanted)}")
    if not re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
        wanted = versions["opencv-python-headless"]
        text = f"the one with windows was installed last; it needs libGL. pip install {_reinstall(wanted)}"
        return Finding("one cv2", False, text, warning=True)
    return Finding("one cv2", True, found)


def _reinstall(version: str) -> str:
    return f"--force-reinstall --no-deps opencv-python-headless=={version}"


def _model() -> Finding:
    from models.registry import DEFAULT_MODEL, load_network, load_spec

    spec = load_spec(DEFAULT_MODEL)
    load_network(spec)
    text = f"{spec.label}, digest {spec.digest[:12]}"
    return Finding("model", spec.trained, text if spec.trained else f"{text}: gives no verdicts", not spec.trained)


def _golden_scores() -> Finding:
    """Another version of a library can shift scores without a word."""
    from models.golden import TOLERANCE, check_golden
    from models.registry import DEFAULT_MODEL, load_spec

    spec = load_spec(DEFAULT_MODEL)
    if not spec.trained:
        return Finding("golden scores", True, "an untrained model has none")
    result = check_golden(spec)
    if result.passed:
        return Finding("golden scores", True, f"{spec.name} scores as it did (within {result.max_difference:.1e})")
    wanted = {name: version.partition("+")[0] for name, version in result.made_with.items()}
    other = [f"{n}=={v}" for n, v in wanted.items() if metadata.version(n).partition("+")[0] != v]
    mend = f"mend it with pip install {' '.join(other)}" if other else "install deepsweep again"
    text = f"{spec.name} scores {result.max_difference:.2g} off what it did ({TOLERANCE:g} is allowed): {mend}"
    return Finding("golden scores", False, text)


def _child_process() -> Finding:
    from scanner.guard import Guard

    guard = Guard(preload=("scanner.analysis",))
    try:
        guard.run(os.getpid, deadline_s=60)
    finally:
        guard.close()
    return Finding("child process", True, "starts and answers")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", True, "none: clips are scored on the CPU")
    return Finding("gpu", True, ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / 2**30:.1f} GiB"
    enough = total >= MIN_MEMORY_BYTES
    return Finding("memory", enough, text if enough else f"{text}: a scan needs 4", warning=True)


def _scratch() -> Finding:
    where = tempfile.gettempdir()
    free = shutil.disk_usage(where).free
    text = f"{free / 2**30:.1f} GiB free in {where}"
    enough = free >= MIN_SCRATCH_BYTES
    return Finding("scratch", enough, text if enough else f"{text}: choose another --scratch for S3", warning=True)


CHECKS = (
    _python,
    _libraries,
    _codecs,
    _one_cv2,
    _model,
    _golden_scores,
    _child_process,
    _gpu,
    _memory,
    _scratch,
)
