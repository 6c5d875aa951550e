"""The Kubernetes manifests of a cluster, for the KubeRay operator."""

from __future__ import annotations

import json
from typing import Any

from cluster import nodes
from cluster.settings import ClusterSettings
from cluster.versions import deepsweep_version, ray_version
from cluster.yamltext import yaml_text
from scanner.errors import EXIT_SOME_FAILED, UserError

USER = 1000  # of the image
LABEL = "app.kubernetes.io/part-of"
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}  # as its Helm chart labels it
TOKEN_KEY = "auth_token"  # in the secret that the operator makes for a cluster with a token
SCRATCH = "50Gi"  # downloads (--scratch-size), Ray's logs, and what the object store spills
HEAD_CORES, HEAD_MEMORY = 2, "8Gi"
SECONDS_PER_MINUTE = 60
GPU = "nvidia.com/gpu"
RAY_JOB = "rayjob.ray.io"
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}  # of ClusterSettings' memory


def manifests(settings: ClusterSettings, entrypoint: str | None = None) -> list[dict[str, Any]]:
    """What to give to `kubectl apply`.

    entrypoint: a scan as a shell command. With it, the cluster is made for this scan and goes afterwards (RayJob);
    with settings.nightly too, the cluster stays, without workers, and the scan comes again and again.
    Raises UserError where a setting is missing.
    """
    if settings.image is None:
        raise UserError("--image is missing: the container image of the nodes, built from Dockerfile.")
    if settings.nightly is not None and entrypoint is None:
        raise UserError("--nightly repeats a scan: say which, after --.")
    common = [_namespace(settings), _service_account(settings), _network_policy(settings)]
    if entrypoint is None:
        return [*common, _ray_cluster(settings)]
    if settings.nightly is None:
        return [*common, _ray_job(settings, entrypoint)]
    return [*common, _ray_cluster(settings), _cron_job(settings, entrypoint)]


def manifest_text(settings: ClusterSettings, entrypoint: str | None = None) -> str:
    """The manifests as one YAML stream."""
    return yaml_text(manifests(settings, entrypoint))


def deletions(settings: ClusterSettings) -> list[str]:
    """What `kubectl delete` takes away again; the namespace stays, for others may be in it."""
    name = settings.name
    kinds = ("cronjob.batch", RAY_JOB, "raycluster.ray.io", "networkpolicy.networking.k8s.io")
    return [*(f"{kind}/{name}" for kind in kinds), f"serviceaccount/{settings.service_account}"]


def head_service(settings: ClusterSettings) -> str:
    """The service that the operator makes for the head of a RayCluster."""
    return f"{settings.name}-head-svc"


def _metadata(settings: ClusterSettings, name: str) -> dict[str, Any]:
    labels = {LABEL: settings.name, "app.kubernetes.io/version": deepsweep_version()}
    return {"name": name, "namespace": settings.namespace, "labels": labels}


def _namespace(settings: ClusterSettings) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": settings.namespace}}


def _service_account(settings: ClusterSettings) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(settings, settings.service_account),
    }


def _network_policy(settings: ClusterSettings) -> dict[str, Any]:
    """Only pods of this cluster and the operator reach its pods: whoever reaches Ray can run code."""
    own = {"podSelector": {"matchLabels": {LABEL: settings.name}}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(settings, settings.name),
        "spec": {**own, "policyTypes": ["Ingress"], "ingress": [{"from": [own, operator]}]},
    }


def _ray_cluster(settings: ClusterSettings) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(settings, settings.name),
        "spec": _cluster_spec(settings),
    }


def _ray_job(settings: ClusterSettings, entrypoint: str) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(settings, settings.name),
        "spec": {
            "entrypoint": _forgiving(entrypoint),
            # The operator hands the command over as it is; a submitter pod would quote it anew.
            "submissionMode": "HTTPMode",
            "metadata": {"deepsweep": deepsweep_version()},
            "shutdownAfterJobFinishes": True,
            "backoffLimit": 0,  # the same scan again goes on where this one ended; that is the user's to decide
            "rayClusterSpec": _cluster_spec(settings),
        },
    }


def _cron_job(settings: ClusterSettings, entrypoint: str) -> dict[str, Any]:
    """Submits the scan to the standing cluster, and waits for it, so that the next night does not overlap."""
    container = {
        "name": "submit",
        "image": settings.image,
        "command": ["/bin/bash", "-c", _forgiving(entrypoint)],
        "env": [
            *({"name": name, "value": value} for name, value in nodes.ENVIRONMENT.items()),
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": settings.name, "key": TOKEN_KEY}}},
            {
                "name": "RAY_API_SERVER_ADDRESS",
                "value": f"http://{head_service(settings)}:{nodes.DASHBOARD_PORT}",
            },
        ],
        "resources": _resources("500m", "1Gi"),
        "securityContext": _CONTAINER_SECURITY,
    }
    pod = {**_pod(settings, container), "restartPolicy": "Never", "automountServiceAccountToken": False}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _metadata(settings, settings.name),
        "spec": {
            "schedule": settings.nightly,
            "timeZone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 0,
                    "template": {"metadata": {"labels": {LABEL: settings.name}}, "spec": pod},
                }
            },
        },
    }


def _forgiving(entrypoint: str) -> str:
    """A scan in which some videos failed is a scan that was done: Kubernetes shall not call it a failure."""
    return f"{entrypoint} || [ $? -eq {EXIT_SOME_FAILED} ]"


def _cluster_spec(settings: ClusterSettings) -> dict[str, Any]:
    groups = [
        _group(settings, "cpu", settings.cpu_workers, settings.cpu_cores, settings.cpu_memory, gpus=0),
        _group(settings, "gpu", settings.gpu_workers, settings.gpu_cores, settings.gpu_memory, gpus=1),
    ]
    head = _ray_container(settings, "head", _resources(HEAD_CORES, HEAD_MEMORY))
    head["env"].append({"name": nodes.MOST_NODES, "value": json.dumps(_limits(settings))})
    head["ports"] = [
        {"name": "gcs", "containerPort": nodes.GCS_PORT},
        {"name": "dashboard", "containerPort": nodes.DASHBOARD_PORT},
        {"name": "client", "containerPort": nodes.CLIENT_PORT},
    ]
    return {
        "rayVersion": ray_version(),
        "authOptions": {"mode": nodes.ENVIRONMENT["RAY_AUTH_MODE"]},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": round(settings.idle_minutes * SECONDS_PER_MINUTE),
            "securityContext": _CONTAINER_SECURITY,
        },
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "enableIngress": False,
            "rayStartParams": dict(nodes.HEAD_PARAMETERS),
            "template": _template(settings, _pod(settings, head)),
        },
        "workerGroupSpecs": [group for group in groups if group["maxReplicas"]],
    }


def _limits(settings: ClusterSettings) -> dict[str, Any]:
    """What the autoscaler may start, told to scans (`cluster.growth`): it is in a container of its own."""
    kinds = (
        ("cpu", settings.cpu_workers, settings.cpu_cores, settings.cpu_memory, {}),
        ("gpu", settings.gpu_workers, settings.gpu_cores, settings.gpu_memory, {"GPU": 1}),
    )
    return {
        "max_workers": settings.cpu_workers + settings.gpu_workers,
        "available_node_types": {
            name: {
                "max_workers": most,
                "resources": {"CPU": cores, "memory": int(memory[:-2]) * UNITS[memory[-2:]], **gpus},
            }
            for name, most, cores, memory, gpus in kinds
        },
    }


def _group(settings: ClusterSettings, name: str, most: int, cores: int, memory: str, gpus: int) -> dict[str, Any]:
    pod = _pod(settings, _ray_container(settings, "worker", _resources(cores, memory, gpus)))
    pod["automountServiceAccountToken"] = False  # only the head's autoscaler talks to Kubernetes
    if gpus:
        pod["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
        if settings.gpu_selector:
            pod["nodeSelector"] = dict(pair.split("=", 1) for pair in settings.gpu_selector)
    return {
        "groupName": name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": most,
        "rayStartParams": dict(nodes.WORKER_PARAMETERS),
        "template": _template(settings, pod),
    }


def _template(settings: ClusterSettings, pod: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"labels": {LABEL: settings.name}}, "spec": pod}


def _pod(settings: ClusterSettings, container: dict[str, Any]) -> dict[str, Any]:
    return {
        "serviceAccountName": settings.service_account,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }


_CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _ray_container(settings: ClusterSettings, role: str, resources: dict[str, Any]) -> dict[str, Any]:
    storage = {"ephemeral-storage": SCRATCH}
    return {
        "name": f"ray-{role}",
        "image": settings.image,
        # The operator adds RAY_AUTH_MODE and the token itself.
        "env": [{"name": name, "value": value} for name, value in nodes.ENVIRONMENT.items() if "AUTH" not in name],
        "resources": {kind: {**amounts, **storage} for kind, amounts in resources.items()},
        "securityContext": _CONTAINER_SECURITY,
    }


def _resources(cores: int | str, memory: str, gpus: int = 0) -> dict[str, Any]:
    """Requests that equal the limits: Ray takes the limits for what a node has."""
    amounts = {"cpu": str(cores), "memory": memory} | ({GPU: str(gpus)} if gpus else {})
    return {"requests": amounts, "limits": dict(amounts)}
