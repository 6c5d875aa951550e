"""The `ray up` file: what Ray's own schema and its AWS provider make of it, against EC2 and IAM over real HTTP."""

from __future__ import annotations

import copy
import shlex
from math import isfinite
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from cluster.aws import cluster_file, install_commands, ray_up_config
from cluster.growth import rooms_of
from cluster.settings import ClusterSettings
from cluster.versions import deepsweep_version, ray_version
from scanner.cli import main
from scanner.errors import UserError
from tests.s3 import use_endpoint

REGION = "eu-central-1"
AMI = "ami-0abc1234"
WHEEL = f"dist/deepsweep-{deepsweep_version()}-py3-none-any.whl"


def settings(**more: Any) -> ClusterSettings:
    software = {} if "image" in more else {"wheel": WHEEL}
    return ClusterSettings(**{"region": REGION, "ami": AMI, **software, **more})


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The config with Ray's defaults, after Ray's own validation."""
    filled = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return filled


@examples(max_examples=30)
@given(
    name=st.from_regex(r"[a-z][a-z0-9]{0,10}", fullmatch=True),
    cpu_workers=st.integers(0, 500),
    gpu_workers=st.integers(1, 100),
    spot=st.booleans(),
    image=st.none() | st.just("me/deepsweep:0.1.0"),
    disk_gb=st.integers(40, 10_000),
    subnet=st.lists(st.just("subnet-1"), max_size=2).map(tuple),
)
def test_ray_accepts_every_combination_of_settings(image, **values):
    chosen = settings(**values, **({"image": image} if image else {}))
    filled = checked(yaml.safe_load(cluster_file(chosen)))
    assert filled["max_workers"] == chosen.cpu_workers + chosen.gpu_workers
    workers = {name: kind for name, kind in filled["available_node_types"].items() if name != "head"}
    assert all(kind["min_workers"] == 0 for kind in workers.values()), "autoscaling from none"
    assert any("on-demand" in name for name in workers)


def test_spot_comes_first_and_on_demand_is_its_fallback():
    types = ray_up_config(settings())["available_node_types"]
    for kind in ("cpu", "gpu"):
        spot, fallback = types[f"{kind}-spot"], types[f"{kind}-on-demand"]
        assert spot["priority"] > fallback["priority"]
        assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
        assert spot["node_config"] == fallback["node_config"]
    assert not [name for name in ray_up_config(settings(spot=False))["available_node_types"] if "spot" in name]


def test_nothing_listens_for_strangers_and_no_key_is_in_the_file():
    text = cluster_file(settings())
    config = yaml.safe_load(text)
    (head,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    options = shlex.split(head.partition("ray start")[2])
    assert "--dashboard-host=127.0.0.1" in options
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in config["worker_start_ray_commands"][-1]
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["IamInstanceProfile"]["Name"].startswith("deepsweep-")
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert kind["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
    assert "AKIA" not in text and "secret" not in text.lower()


def test_ray_starts_the_head_and_workers_of_this_file_on_ec2(s3_endpoint, monkeypatch, tmp_path):
    use_endpoint(monkeypatch, s3_endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps the SSH key that it has EC2 make in ~/.ssh
    boto3.client("iam").create_instance_profile(InstanceProfileName="deepsweep-head")
    boto3.client("iam").create_instance_profile(InstanceProfileName="deepsweep-worker")

    config = AWSNodeProvider.fillout_available_node_types_resources(checked(ray_up_config(settings())))
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["cpu-spot"]["resources"]["CPU"] == 16 and types["gpu-spot"]["resources"]["GPU"] == 1

    grown = rooms_of(config)
    assert [(room.cpus, room.gpus) for room in grown] == [(4, 1), *[(16, 0)] * 8], "scans know what may come"
    assert all(isfinite(room.memory) for room in grown)

    ready = bootstrap_aws(config)
    assert (tmp_path / ".ssh").is_dir()
    provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
    for name in ("head", "cpu-spot", "gpu-on-demand"):
        node = ready["available_node_types"][name]["node_config"]
        provider.create_node(node, {TAG_RAY_USER_NODE_TYPE: name, TAG_RAY_NODE_KIND: "worker"}, 1)
    instances = [
        instance
        for reservation in boto3.client("ec2", region_name=REGION).describe_instances()["Reservations"]
        for instance in reservation["Instances"]
    ]
    assert sorted(instance["InstanceType"] for instance in instances) == ["g5.xlarge", "m6i.4xlarge", "m6i.xlarge"]
    assert [i["InstanceType"] for i in instances if i.get("InstanceLifecycle") == "spot"] == ["m6i.4xlarge"]


def test_a_scan_that_is_stopped_has_time_to_close_its_books():
    (*_, head) = ray_up_config(settings())["head_start_ray_commands"]
    assert "RAY_JOB_STOP_WAIT_TIME_S=120 " in head, "Ray kills it after 3 seconds otherwise"


def test_nodes_install_this_version_under_its_constraints():
    config = ray_up_config(settings(constraints="some where/constraints.txt"))
    assert config["file_mounts"]["~/deepsweep/constraints.txt"] == "some where/constraints.txt"
    (install,) = (line for line in config["setup_commands"] if ".whl" in line)
    assert f"ray=={ray_version()}" in install and "-c ~/deepsweep/constraints.txt" in install
    assert "opencv-python-headless" in config["setup_commands"][-2], "the cv2 without libGL comes last"
    assert config["head_setup_commands"] == ["deepsweep doctor"]
    assert "wheel" not in str(ray_up_config(settings(image="me/deepsweep:0.1.0"))["file_mounts"])


@given(st.text(min_size=1, max_size=20).filter(lambda name: "\0" not in name and "\n" not in name))
def test_a_file_name_is_one_word_to_the_nodes_shell(name):
    (install, *_) = (line for line in install_commands("deepsweep.whl", name) if ".whl" in line)
    words = shlex.split(install)
    assert words[words.index("-c") + 1] == f"~/deepsweep/{name}"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ami": None}, "--ami is missing"),
        ({"wheel": None}, "say what the nodes run"),
        ({"wheel": "dist/deepsweep-9.9.9-py3-none-any.whl"}, f"not a wheel of deepsweep {deepsweep_version()}"),
        ({"wheel": WHEEL, "image": "me/deepsweep:0.1.0"}, "exclude each other"),
        ({"cpu_workers": 0, "gpu_workers": 0}, "needs workers"),
        ({"disk_gb": 1}, "--disk-gb must be at least 40"),
        ({"name": "Deep Sweep"}, "--name"),
        ({"ami": "ubuntu"}, "--ami"),
    ],
)
def test_what_can_not_be_launched_is_said_in_a_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ray_up_config(settings(**options))


def test_print_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        main, ["cluster", "up", "--print", "--ami", AMI, "--region", REGION, "--image", "me/deepsweep:0.1.0"]
    )
    assert done.exit_code == 0, done.output
    checked(yaml.safe_load(done.stdout))
    assert list(tmp_path.iterdir()) == []


def test_without_credentials_up_says_how_to_log_in(tmp_path, monkeypatch):
    _without_aws(monkeypatch, tmp_path)
    arguments = ["cluster", "up", "--yes", "--ami", AMI, "--region", REGION, "--image", "me/deepsweep:0.1.0"]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, "no AWS credentials are found" in done.stderr) == (4, True), done.output
    assert Path("deepsweep-cluster.yaml").exists(), "the file is there for the next try"
    again = CliRunner().invoke(main, [*arguments, "--cpu-workers", "3"])
    assert (again.exit_code, "is there and says otherwise" in again.stderr) == (2, True), again.output
    down = CliRunner().invoke(main, ["cluster", "down", "--yes"])
    assert (down.exit_code, "no AWS credentials are found" in down.stderr) == (4, True), down.output


def test_without_a_region_up_asks_for_one(tmp_path, monkeypatch):
    _without_aws(monkeypatch, tmp_path)
    done = CliRunner().invoke(main, ["cluster", "up", "--print", "--ami", AMI, "--image", "me/deepsweep:0.1.0"])
    assert (done.exit_code, "no AWS region is set" in done.stderr) == (2, True), done.output


def test_an_option_of_the_other_platform_is_refused():
    done = CliRunner().invoke(main, ["cluster", "up", "--kubernetes", "--ami", AMI])
    assert (done.exit_code, "--ami means nothing with --kubernetes" in done.stderr) == (2, True), done.output
    done = CliRunner().invoke(main, ["cluster", "up", "--namespace", "sweep"])
    assert (done.exit_code, "--namespace means nothing without --kubernetes" in done.stderr) == (2, True), done.output


def test_down_names_the_file_that_it_misses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["cluster", "down"])
    assert (done.exit_code, "deepsweep-cluster.yaml is not there" in done.stderr) == (2, True), done.output


def _without_aws(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A machine on which nobody has logged in to AWS, and that is no instance of it."""
    monkeypatch.chdir(folder)
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
