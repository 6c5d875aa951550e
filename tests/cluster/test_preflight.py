"""Preflight: what a node lacks is said with its fix before anything starts, on pure facts and on a real cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster

from cluster.preflight import (
    DECODERS,
    MIN_OBJECT_STORE_BYTES,
    Answer,
    Needs,
    Node,
    NodeFacts,
    free_bytes,
    missing_codecs,
    node_facts,
    own_versions,
    problems,
    size,
)
from scanner.errors import EXIT_PREFLIGHT
from tests.scans import ROOT, deepsweep
from tests.zoo import ARCHIVE

pytestmark = pytest.mark.ray

GIB = 1 << 30
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # the cluster wants none, and this machine may have one from another
HERE = {"Python": "3.11.7", "Ray": "2.60.0", "deepsweep": "0.1.0"}
FIT = NodeFacts(HERE, None, (), scratch_free=100 * GIB, shared_memory=8 * GIB)
NEEDS = Needs("/scratch", 20 * GIB)


def node(name: str = "node 10.0.0.1", **values) -> Node:
    return replace(Node("id", name, works=True, object_store_bytes=2 * GIB), **values)


def found(*answers: Answer, needs: Needs = NEEDS) -> list[str]:
    return problems(answers, needs, HERE)


def test_a_node_that_has_everything_is_let_through():
    assert found(Answer(node(), FIT)) == []


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"versions": HERE | {"Ray": "2.61.0"}}, "Ray 2.61.0 there, and 2.60.0 here; install the same on every node"),
        ({"versions": HERE | {"deepsweep": "0.2.0"}}, "deepsweep 0.2.0 there, and 0.1.0 here"),
        ({"versions": HERE | {"Python": "3.10.2"}}, "Python 3.10.2 there, and 3.11.7 here"),
        ({"versions": {}}, "deepsweep missing there"),
        ({"missing_codecs": ("h264", "av1")}, "PyAV can't decode h264, av1"),
        ({"unloadable": "OSError: libGL.so.1"}, "can't be scanned there (OSError: libGL.so.1)"),
        ({"scratch_free": 3 * GIB}, "3.0 GiB are free for downloads in /scratch, and --scratch-size promises 20.0 GiB"),
        ({"scratch_free": None}, "nothing can be written to /scratch"),
        ({"shared_memory": 64 << 20}, "/dev/shm has 64 MiB, so that Ray's object store would lie on the disk"),
    ],
)
def test_what_is_wrong_is_said_with_the_node_and_the_fix(facts, sentence):
    said = found(Answer(node(), replace(FIT, **facts)))
    assert any(one.startswith("node 10.0.0.1: ") and sentence in one and one.endswith(".") for one in said), said


def test_a_node_that_does_not_answer_or_has_no_deepsweep_is_a_problem():
    said = found(Answer(node(), None, "ModuleNotFoundError: No module named 'cluster'"))
    assert said == [
        "node 10.0.0.1: deepsweep does not run there (ModuleNotFoundError: No module named 'cluster');"
        " install deepsweep 0.1.0 on every node."
    ]


def test_a_small_object_store_is_refused():
    (said,) = found(Answer(node(object_store_bytes=80 << 20), FIT))
    assert "Ray's object store has 80 MiB" in said and size(MIN_OBJECT_STORE_BYTES) in said


def test_scratch_counts_only_where_something_is_downloaded():
    assert found(Answer(node(), replace(FIT, scratch_free=None)), needs=Needs(None, 0)) == []


def test_a_head_that_holds_no_actors_needs_the_versions_only():
    head = Answer(node(works=False, object_store_bytes=0), replace(FIT, missing_codecs=("h264",), scratch_free=0))
    assert found(head) == []
    assert found(replace(head, value=replace(FIT, versions={**HERE, "Ray": "1.0"}))) != []


@given(st.integers(1, 40))
def test_nodes_with_the_same_problem_share_a_sentence(count):
    answers = [Answer(node(f"node {n}"), replace(FIT, missing_codecs=("vp9",))) for n in range(count)]
    (said,) = found(*answers)
    assert said.startswith("node 0") and ("more: " in said) == (count > 5)


# --- this machine ---------------------------------------------------------------------------------------


def test_this_machine_decodes_everything(tmp_path):
    facts = node_facts(str(tmp_path / "not" / "there" / "yet"))
    assert facts.missing_codecs == missing_codecs() == () and facts.unloadable is None
    assert facts.scratch_free == pytest.approx(free_bytes(tmp_path), rel=0.01)
    assert facts.versions == own_versions()


def test_a_codec_that_ffmpeg_was_built_without_is_missing(monkeypatch):
    monkeypatch.setitem(DECODERS, "h264", ("h264-that-nobody-has",))
    assert missing_codecs() == ("h264",)


@pytest.mark.parametrize(("module", "said"), [("mediapipe", "mediapipe not installed"), ("decord", "decord")])
def test_a_library_that_is_not_there_is_named_before_the_first_video(monkeypatch, module, said):
    monkeypatch.setitem(sys.modules, module, None)
    facts = node_facts(None)
    assert facts.unloadable and said in facts.unloadable
    (sentence,) = problems([Answer(node(), facts)], Needs(None, 0), own_versions())
    assert "can't be scanned there" in sentence and "deepsweep doctor" in sentence


def test_where_nothing_can_be_written_there_is_no_room(tmp_path):
    (tmp_path / "file").write_text("")
    assert free_bytes(tmp_path / "file" / "below") is None
    assert free_bytes(Path("/proc/none")) in (None, 0)


# --- a real cluster whose second node has another deepsweep ---------------------------------------------


#: Loaded by every Python process of that node.
OTHER_VERSION = """
from importlib import metadata
installed = metadata.version
metadata.version = lambda name: "9.9.9" if name == "deepsweep" else installed(name)
"""


@pytest.fixture(scope="module")
def mixed_address(tmp_path_factory) -> Iterator[str]:
    other = tmp_path_factory.mktemp("other")
    (other / "sitecustomize.py").write_text(OTHER_VERSION)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{other}:{ROOT}"})
    yield cluster.address
    cluster.shutdown()


def test_a_scan_on_nodes_with_other_versions_is_refused_before_anything_starts(mixed_address, tmp_path):
    done = deepsweep("scan", ARCHIVE / "talks", "--out", tmp_path, "--address", mixed_address, **NO_TOKEN)
    assert done.returncode == EXIT_PREFLIGHT, done.stderr
    assert "deepsweep 9.9.9 there, and " in done.stderr and "install the same on every node" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.json")), "no run was begun"


def test_doctor_runs_its_checks_on_every_node(mixed_address):
    done = deepsweep("doctor", "--address", mixed_address, "--json", **NO_TOKEN)
    assert done.returncode == EXIT_PREFLIGHT, done.stderr
    by_node: dict[str, dict[str, dict]] = {}
    for check in json.loads(done.stdout):
        by_node.setdefault(check["node"], {})[check["name"]] = check
    assert len(by_node) == 2
    for checks in by_node.values():
        assert {
            "python",
            "libraries",
            "codecs",
            "one cv2",
            "child process",
            "versions",
            "shared memory",
        } <= checks.keys()
        assert all(check["ok"] or check["warning"] for name, check in checks.items() if name != "versions"), checks
    assert sorted(checks["versions"]["ok"] for checks in by_node.values()) == [False, True]
