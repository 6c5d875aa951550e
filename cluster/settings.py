"""What a cluster is made of: every option of `deepsweep cluster up`, with its default, for AWS and for Kubernetes."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from scanner.errors import UserError

AWS, KUBERNETES = "aws", "kubernetes"


def setting(
    default: Any,
    help: str,
    *,
    of: str | None = None,
    metavar: str | None = None,
    low: float | None = None,
    pattern: str | None = None,
) -> Any:
    """A field of ClusterSettings. of: the only platform that knows it; pattern: what its text must match whole."""
    facts = {"help": help, "of": of, "metavar": metavar, "low": low, "pattern": pattern}
    return dataclasses.field(default=default, metadata=facts)


_NAME = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"  # a Kubernetes label, short enough for Ray's suffixes
_QUANTITY = r"[1-9][0-9]*(Mi|Gi|Ti)"
_PAIR = r"[A-Za-z0-9./_-]+=[A-Za-z0-9._-]*"


@dataclass(frozen=True)
class ClusterSettings:
    """A head that decodes nothing, workers that decode, workers that score; both kinds come and go with the work.

    Fields in the order in which `--help` shows them. Raises UserError for a value that can't be.
    """

    name: str = setting("deepsweep", "Name of the cluster.", metavar="NAME", pattern=_NAME)
    cpu_workers: int = setting(8, "Most workers without a GPU, which decode.", low=0)
    gpu_workers: int = setting(1, "Most workers with a GPU, which score.", low=0)
    idle_minutes: float = setting(10.0, "Minutes without work after which a worker is given back.", low=1)
    image: str | None = setting(
        None, "Container image of the nodes (see Dockerfile); on AWS instead of --wheel.", metavar="IMAGE"
    )
    region: str | None = setting(None, "Region [default: that of your AWS profile].", of=AWS, metavar="REGION")
    ami: str | None = setting(
        None,
        "Machine image of the nodes: Ubuntu 22.04 with NVIDIA's driver.",
        of=AWS,
        metavar="AMI",
        pattern=r"ami-[0-9a-f]+",
    )
    head_type: str = setting("m6i.xlarge", "Instance type of the head.", of=AWS, metavar="TYPE")
    cpu_type: str = setting("m6i.4xlarge", "Instance type of the workers that decode.", of=AWS, metavar="TYPE")
    gpu_type: str = setting("g5.xlarge", "Instance type of the workers that score.", of=AWS, metavar="TYPE")
    spot: bool = setting(True, "Take spot instances first, on-demand ones where there are none.", of=AWS)
    disk_gb: int = setting(150, "Disk of each node in GB: system, libraries, videos in work.", of=AWS, low=40)
    head_profile: str = setting("deepsweep-head", "Instance profile of the head.", of=AWS, metavar="NAME")
    worker_profile: str = setting("deepsweep-worker", "Instance profile of the workers.", of=AWS, metavar="NAME")
    subnet: tuple[str, ...] = setting(
        (), "Subnet of the nodes; repeatable [default: the default VPC's].", of=AWS, metavar="ID"
    )
    security_group: tuple[str, ...] = setting(
        (), "Security group of the nodes; repeatable [default: one that lets SSH in].", of=AWS, metavar="ID"
    )
    wheel: str | None = setting(None, "deepsweep's wheel, which the nodes install.", of=AWS, metavar="FILE")
    constraints: str = setting("constraints.txt", "Versions that the nodes install.", of=AWS, metavar="FILE")
    namespace: str = setting("deepsweep", "Namespace of everything.", of=KUBERNETES, metavar="NAME", pattern=_NAME)
    service_account: str = setting(
        "deepsweep", "Service account, which brings access to S3.", of=KUBERNETES, metavar="NAME", pattern=_NAME
    )
    cpu_cores: int = setting(8, "Cores of a worker that decodes.", of=KUBERNETES, low=2)
    cpu_memory: str = setting(
        "24Gi", "Memory of a worker that decodes.", of=KUBERNETES, metavar="SIZE", pattern=_QUANTITY
    )
    gpu_cores: int = setting(4, "Cores of a worker that scores.", of=KUBERNETES, low=1)
    gpu_memory: str = setting(
        "16Gi", "Memory of a worker that scores.", of=KUBERNETES, metavar="SIZE", pattern=_QUANTITY
    )
    gpu_selector: tuple[str, ...] = setting(
        (), "Label of the nodes with GPUs; repeatable.", of=KUBERNETES, metavar="KEY=VALUE", pattern=_PAIR
    )
    nightly: str | None = setting(
        None, "Repeat the scan at this cron time, in UTC.", of=KUBERNETES, metavar="CRON", pattern=r"(\S+\s+){4}\S+"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.cpu_workers + self.gpu_workers == 0:
            raise UserError("a cluster needs workers: give --cpu-workers or --gpu-workers.")


def spelling(field: dataclasses.Field) -> str:
    """The option's name on the command line."""
    return field.name.replace("_", "-")


def _check(field: dataclasses.Field, value: Any) -> None:
    low, pattern = field.metadata["low"], field.metadata["pattern"]
    if low is not None and value < low:
        raise UserError(f"--{spelling(field)} must be at least {low:g}, not {value}.")
    for text in value if isinstance(value, tuple) else (value,):
        if pattern is not None and text is not None and not re.fullmatch(pattern, text):
            raise UserError(f"--{spelling(field)}: {text!r} is not {_described(field)}.")


def _described(field: dataclasses.Field) -> str:
    return {
        _NAME: "a name of small letters, digits and hyphens",
        _QUANTITY: "a size such as 16Gi",
        _PAIR: "KEY=VALUE",
    }.get(field.metadata["pattern"], f"a {field.metadata['metavar']}")
