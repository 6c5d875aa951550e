"""The Kubernetes manifests: the schemas of their kinds, and what an operator of a cluster wants to find in them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.entrypoint import Workers, job_command
from cluster.growth import limits_here, rooms_of
from cluster.kubernetes import manifests
from cluster.nodes import MOST_NODES
from cluster.plan import Room
from cluster.settings import ClusterSettings
from cluster.versions import ray_version
from scanner.cli import main
from scanner.config import ScanConfig
from scanner.errors import UserError
from tests.cluster.crd import check

IMAGE = "me/deepsweep:0.1.0-cuda"
SCAN = ("--", "s3://archive/it's here", "--out", "s3://results", "--exclude", "*$HOME*")


def up(*arguments: str, image: str = IMAGE) -> list[dict[str, Any]]:
    """The manifests that `cluster up --kubernetes --print` prints, each valid."""
    done = CliRunner().invoke(main, ["cluster", "up", "--kubernetes", "--print", "--image", image, *arguments])
    assert done.exit_code == 0, done.output
    return valid(list(yaml.safe_load_all(done.stdout)))


def valid(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for document in documents:
        check(document)
    return documents


def only(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


@settings(max_examples=30)
@given(
    name=st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
    namespace=st.sampled_from(["sweep", "a-b"]),
    cpu_workers=st.integers(0, 500),
    gpu_workers=st.integers(1, 100),
    idle_minutes=st.floats(1, 600),
    cpu_memory=st.sampled_from(["900Mi", "1Ti"]),
    gpu_selector=st.lists(st.just("cloud.example/gpu=a10"), max_size=1).map(tuple),
    nightly=st.none() | st.just("0 20 * * *"),
    entrypoint=st.text(max_size=30),
)
def test_every_combination_of_settings_fits_the_schemas(entrypoint, nightly, **values):
    settings = ClusterSettings(image=IMAGE, nightly=nightly, **values)
    valid(manifests(settings, entrypoint))
    valid(manifests(ClusterSettings(image=IMAGE, **values)))


def test_a_schema_refuses_a_field_that_is_not_there():
    (*_, document) = up()
    document["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError):
        valid([document])


def test_a_cluster_scales_from_no_worker_and_decodes_nothing_on_its_head():
    spec = only(up("--cpu-workers", "20", "--gpu-selector", "gpu=a10"), "RayCluster")["spec"]
    assert spec["rayVersion"] == ray_version() and spec["enableInTreeAutoscaling"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    cpu, gpu = spec["workerGroupSpecs"]
    assert (cpu["minReplicas"], cpu["maxReplicas"]) == (0, 20)
    assert "nvidia.com/gpu" not in str(cpu)
    pod = gpu["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"gpu": "a10"} and pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_a_scan_that_is_stopped_has_time_to_close_its_books():
    head = only(up(*SCAN), "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "120"} in _environment(head)


def test_a_scan_on_the_head_is_told_what_may_come(monkeypatch):
    spec = only(up("--cpu-workers", "2", "--cpu-memory", "900Mi"), "RayCluster")["spec"]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    (told,) = (entry["value"] for entry in head["env"] if entry["name"] == MOST_NODES)
    monkeypatch.setenv(MOST_NODES, told)
    assert rooms_of(limits_here("10.0.0.1:6379")) == (
        Room("", 4, 1, 16 << 30),
        *[Room("", 8, 0, 900 << 20)] * 2,
    )
    assert MOST_NODES not in str(spec["workerGroupSpecs"])


def test_pods_are_as_weak_as_they_can_be_and_strangers_are_kept_out():
    documents = up("--nightly", "0 20 * * *", *SCAN)
    cluster, cron = only(documents, "RayCluster")["spec"], only(documents, "CronJob")["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    templates.append(cron["jobTemplate"]["spec"]["template"])
    policy = only(documents, "NetworkPolicy")["spec"]
    for template in templates:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        assert all(not c["securityContext"]["allowPrivilegeEscalation"] for c in pod["containers"])
        assert pod["serviceAccountName"] == "deepsweep"
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    names = [entry["name"] for document in documents for entry in _environment(document)]
    assert not [name for name in names if name.startswith("AWS_")], "access is the service account's"


def test_a_job_scans_with_the_users_own_arguments_and_goes_afterwards():
    spec = only(up(*SCAN), "RayJob")["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] == 0
    scan = spec["entrypoint"].partition("&& ")[2].partition(" || ")[0]
    words = shlex.split(scan)
    assert words[:2] == ["deepsweep", "scan"] and words[-2:] == ["--", "s3://archive/it's here"]
    assert "--exclude=*$HOME*" in words and "--out=s3://results" in words
    assert words[words.index("--address") + 1] == "auto"


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (3, 0), (4, 1), (5, 1)])
def test_failed_videos_are_no_failed_job(code, seen, tmp_path):
    """The entrypoint, run by a real shell, with a deepsweep that ends like a scan of such videos."""
    entrypoint = only(up(*SCAN), "RayJob")["spec"]["entrypoint"]
    program = tmp_path / "deepsweep"
    program.write_text(f'#!/bin/sh\n[ "$1" = cluster ] || exit {code}\n')
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert subprocess.run(entrypoint, shell=True, env={"PATH": path}, check=False).returncode == seen


def test_every_night_the_same_scan_is_submitted_to_the_cluster_that_stays():
    documents = up("--nightly", "0 20 * * *", "--name", "archive", "--cpu-workers", "4", *SCAN)
    spec = only(documents, "CronJob")["spec"]
    assert (spec["schedule"], spec["concurrencyPolicy"]) == ("0 20 * * *", "Forbid")
    (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    words = shlex.split(container["command"][-1].partition(" || ")[0])
    assert words[:4] == ["deepsweep", "cluster", "submit", "--follow"]
    assert words[words.index("--cpus") + 1] == str(4 * 8 + 4), "all cores that the cluster may have"
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["RAY_API_SERVER_ADDRESS"]["value"] == "http://archive-head-svc:8265"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "archive"


@given(
    exclude=st.lists(st.text(min_size=1, max_size=12), max_size=3).map(tuple),
    source=st.text(max_size=12).map("s3://archive/".__add__),
    rescan=st.booleans(),
    threshold=st.none() | st.floats(0, 1),
)
def test_a_scan_survives_the_way_through_a_shell(exclude, source, rescan, threshold):
    """What the cluster's `deepsweep scan` parses is the config that was given here."""
    config = ScanConfig(
        sources=(source,), out="s3://r", exclude=exclude, rescan=rescan, threshold=threshold, max_video_size=12345
    )
    words = shlex.split(job_command(config, Workers()).partition("&& ")[2])
    parsed = _scan_command().make_context("scan", words[2:]).params
    given = {name: value for name, value in parsed.items() if value not in (None, ()) and name != "config_file"}
    assert given.pop("address") == "auto"
    assert ScanConfig(**given) == config


def _scan_command():
    import click

    scan = main.get_command(click.Context(main), "scan")
    assert scan is not None
    return scan


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--image is missing"),
        (("--image", IMAGE, "--nightly", "0 20 * * *"), "say which, after --"),
        (("--image", IMAGE, "--nightly", "tonight", *SCAN), "--nightly: 'tonight' is not a CRON"),
        (("--image", IMAGE, "--cpu-memory", "much"), "--cpu-memory: 'much' is not a size such as 16Gi"),
        (("--image", IMAGE, "--", "archive", "--out", "s3://r"), "the source archive is relative"),
    ],
)
def test_what_can_not_be_applied_is_said_in_a_sentence(arguments, sentence):
    done = CliRunner().invoke(main, ["cluster", "up", "--kubernetes", "--print", *arguments])
    assert (done.exit_code, sentence in done.stderr) == (2, True), done.output


def test_settings_of_the_config_file_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("deepsweep.toml").write_text("[scan]\nout = 's3://results'\nmax-video-size = '2GB'\n")
    spec = only(up("--", "s3://archive"), "RayJob")["spec"]
    assert f"--max-video-size={2 << 30}" in spec["entrypoint"] and "--out=s3://results" in spec["entrypoint"]


def test_without_kubectl_the_way_out_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments in (["up", "--image", IMAGE], ["down"]):
        done = CliRunner().invoke(main, ["cluster", *arguments, "--kubernetes", "--yes"])
        assert (done.exit_code, "`kubectl` is not installed" in done.stderr) == (4, True), done.output


KUBECTL = """#!/bin/sh
echo "$1 $2" >> "$0.calls"
case $1 in get) printf '%s' "$FOUND";; apply) cat > /dev/null;; esac
"""


@pytest.mark.parametrize(
    ("found", "calls"),
    [
        ("", ["get", "apply"]),
        ("deepsweep Complete", ["get", "delete", "apply"]),
        ("deepsweep Failed", ["get", "delete", "apply"]),
        ("deepsweep Running", ["get"]),
        ("deepsweep ", ["get"]),  # made a moment ago
    ],
)
def test_the_same_scan_again_takes_the_place_of_one_that_has_ended(found, calls, monkeypatch, tmp_path):
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("FOUND", found)
    done = CliRunner().invoke(main, ["cluster", "up", "--kubernetes", "--yes", "--image", IMAGE, *SCAN])
    assert [line.split()[0] for line in (tmp_path / "kubectl.calls").read_text().splitlines()] == calls
    assert done.exit_code == (0 if "apply" in calls else 4), done.output
    assert ("has not ended: wait for it" in done.stderr) == ("apply" not in calls)
    if "delete" in calls:
        assert "delete rayjob.ray.io/deepsweep" in (tmp_path / "kubectl.calls").read_text()


def test_a_cluster_that_stays_is_applied_as_it_is(monkeypatch, tmp_path):
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    done = CliRunner().invoke(main, ["cluster", "up", "--kubernetes", "--yes", "--image", IMAGE])
    assert (done.exit_code, (tmp_path / "kubectl.calls").read_text()) == (0, "apply -f\n"), done.output


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_a_cluster_that_does_not_answer_is_kubectls_to_explain(tmp_path, monkeypatch):
    config = tmp_path / "config"
    server = {"name": "gone", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "gone", "context": {"cluster": "gone", "user": "gone"}}
    document = {"apiVersion": "v1", "kind": "Config", "clusters": [server], "contexts": [context], "users": []}
    config.write_text(yaml.safe_dump({**document, "current-context": "gone"}))
    monkeypatch.setenv("KUBECONFIG", str(config))
    done = CliRunner().invoke(main, ["cluster", "down", "--kubernetes", "--yes"])
    assert (done.exit_code, "`kubectl delete` failed" in done.stderr) == (4, True), done.output


def test_down_asks_first():
    done = CliRunner().invoke(main, ["cluster", "down", "--kubernetes"], input="n\n")
    assert done.exit_code == 1 and "Delete cluster deepsweep in namespace deepsweep?" in done.output


def test_what_a_cluster_needs_is_checked_where_it_is_made():
    with pytest.raises(UserError, match="--image is missing"):
        manifests(ClusterSettings())


def _environment(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every variable of every container in a manifest."""
    if isinstance(document, dict):
        own = document["env"] if isinstance(document.get("env"), list) else []
        return own + [entry for value in document.values() for entry in _environment(value)]
    return [entry for value in document for entry in _environment(value)] if isinstance(document, list) else []
