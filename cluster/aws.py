"""The `ray up` file of a cluster on AWS."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from cluster import nodes
from cluster.settings import ClusterSettings
from cluster.versions import deepsweep_version, ray_version
from cluster.yamltext import yaml_text
from scanner.errors import UserError

SSH_USER = "ubuntu"
TOKEN_FILE = "~/.ray/auth_token"  # where Ray looks for it, here and there
FOLDER = "~/deepsweep"  # on the nodes: what they install
ENVIRONMENT_FOLDER = "~/deepsweep-venv"
HEAD, CPU, GPU = "head", "cpu", "gpu"
SPOT_FIRST = 1  # the autoscaler takes the type with the highest priority that was not refused lately

HEADER = """\
# A Ray cluster for deepsweep {version}, written by `deepsweep cluster up`. Change it as you like: the next
# `deepsweep cluster up` uses this file as it is. `ray up`, `ray attach`, `ray dashboard` and `ray down` read it too.
"""


def cluster_file(settings: ClusterSettings) -> str:
    """The text of the YAML file. Raises UserError where a setting is missing."""
    return HEADER.format(version=deepsweep_version()) + yaml_text([ray_up_config(settings)])


def ray_up_config(settings: ClusterSettings) -> dict[str, Any]:
    """What `ray up` is to make: a head on demand, workers from none to their most, each with its fallback."""
    region = settings.region or _profile_region()
    if settings.ami is None:
        raise UserError(
            "--ami is missing: the machine image of the nodes, Ubuntu 22.04 with NVIDIA's driver"
            " (docs/cluster.md has the command that finds it)."
        )
    return {
        "cluster_name": settings.name,
        # Ray knows no limit of a kind together with its fallback: cores beyond those of cpu_workers would come on
        # demand, in the place of a GPU. Twice the number would let none wait, and cost twice what was allowed.
        "max_workers": settings.cpu_workers + settings.gpu_workers,
        "idle_timeout_minutes": settings.idle_minutes,
        "provider": {
            "type": "aws",
            "region": region,
            "cache_stopped_nodes": False,  # a stopped node still costs its disk
        },
        "auth": {"ssh_user": SSH_USER},
        "head_node_type": HEAD,
        "available_node_types": _node_types(settings),
        **_software(settings),
        "head_start_ray_commands": ["ray stop", _ray_start(_HEAD_OPTIONS)],
        "worker_start_ray_commands": ["ray stop", _ray_start(_WORKER_OPTIONS)],
    }


_HEAD_OPTIONS = (
    f"--head --port={nodes.GCS_PORT} --dashboard-host=127.0.0.1 --dashboard-port={nodes.DASHBOARD_PORT}"
    f" --autoscaling-config=~/ray_bootstrap_config.yaml {nodes.options(nodes.HEAD_PARAMETERS)}"
)
_WORKER_OPTIONS = f"--address=$RAY_HEAD_IP:{nodes.GCS_PORT} {nodes.options(nodes.WORKER_PARAMETERS)}"


def _ray_start(options: str) -> str:
    environment = " ".join(f"{name}={value}" for name, value in nodes.ENVIRONMENT.items())
    return f"ulimit -n 65536; {environment} ray start {options}"


def _node_types(settings: ClusterSettings) -> dict[str, Any]:
    types: dict[str, Any] = {
        HEAD: {
            "resources": {"CPU": 0, "GPU": 0},
            "max_workers": 0,
            "node_config": _instance(settings, settings.head_type, settings.head_profile),
        }
    }
    for kind, instance_type, most in (
        (CPU, settings.cpu_type, settings.cpu_workers),
        (GPU, settings.gpu_type, settings.gpu_workers),
    ):
        # Without "resources" Ray asks AWS what the instance type has.
        worker = {"min_workers": 0, "max_workers": most, "resources": {}}
        instance = _instance(settings, instance_type, settings.worker_profile)
        if most and settings.spot:
            spot = {"InstanceMarketOptions": {"MarketType": "spot"}}
            types[f"{kind}-spot"] = {**worker, "priority": SPOT_FIRST, "node_config": {**instance, **spot}}
        if most:
            types[f"{kind}-on-demand"] = {**worker, "priority": 0, "node_config": instance}
    return types


def _instance(settings: ClusterSettings, instance_type: str, profile: str) -> dict[str, Any]:
    """What EC2 is asked for; boto3's names."""
    disk = {"VolumeSize": settings.disk_gb, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    instance: dict[str, Any] = {
        "InstanceType": instance_type,
        "ImageId": settings.ami,
        "IamInstanceProfile": {"Name": profile},
        # Only requests with a session token, so that no URL in an archive can talk a node out of its role. Two hops:
        # a container is one further away.
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
    }
    if settings.subnet:
        instance["SubnetIds"] = list(settings.subnet)
    if settings.security_group:
        instance["SecurityGroupIds"] = list(settings.security_group)
    return instance


def _software(settings: ClusterSettings) -> dict[str, Any]:
    """How deepsweep comes onto the nodes: in a container, or into a virtual environment."""
    token = {TOKEN_FILE: TOKEN_FILE}
    if settings.image is not None:
        if settings.wheel is not None:
            raise UserError("--image and --wheel exclude each other: the image holds deepsweep already.")
        container = {
            "image": settings.image,
            "container_name": "deepsweep",
            "pull_before_run": True,
            "run_options": ["--ulimit nofile=65536:65536"],
        }
        return {"docker": container, "file_mounts": token}
    if settings.wheel is None:
        raise UserError(
            "say what the nodes run: --wheel, which `pip wheel --no-deps -w dist .` makes of the source, or --image."
        )
    wheel, constraints = Path(settings.wheel).name, Path(settings.constraints).name
    check_wheel(wheel)
    return {
        "file_mounts": {
            **token,
            f"{FOLDER}/{wheel}": settings.wheel,
            f"{FOLDER}/{constraints}": settings.constraints,
        },
        "setup_commands": install_commands(wheel, constraints),
        "head_setup_commands": ["deepsweep doctor"],
    }


def install_commands(wheel: str, constraints: str) -> list[str]:
    """Shell commands of a node: deepsweep and Ray in the versions of the constraints, first on its PATH."""
    python = f"{ENVIRONMENT_FOLDER}/bin/python"
    pip = f"{python} -m pip install --quiet --disable-pip-version-check -c {FOLDER}/{shlex.quote(constraints)}"
    path = f'export PATH="$HOME/{ENVIRONMENT_FOLDER.removeprefix("~/")}/bin:$PATH"'
    return [
        f"test -x {python} || (sudo apt-get update -qq && sudo apt-get install -y -qq python3-venv"
        f" && python3 -m venv {ENVIRONMENT_FOLDER})",
        f"{pip} {FOLDER}/{shlex.quote(wheel)} ray=={ray_version()}",
        # Two packages own the folder cv2; the one that needs no libGL must be the last one installed.
        f"{pip} --force-reinstall --no-deps opencv-python-headless",
        f"grep -qxF {shlex.quote(path)} ~/.bashrc || echo {shlex.quote(path)} >> ~/.bashrc",
    ]


def check_wheel(name: str) -> None:
    """Refuse a wheel of another deepsweep than the one that launches: the two must understand each other."""
    expected = deepsweep_version()
    if not (name.startswith(f"deepsweep-{expected}-") and name.endswith(".whl")):
        raise UserError(f"{name} is not a wheel of deepsweep {expected}, which runs here: build it from this version.")


def _profile_region() -> str:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        region = boto3.Session().region_name
    except BotoCoreError as error:  # a profile that is not there
        raise UserError(f"your AWS settings can't be used: {error}.") from None
    if not region:
        raise UserError("no AWS region is set: give --region, or set AWS_DEFAULT_REGION.")
    return region
