"""The fields of Kubernetes objects that deepsweep's manifests and pages use, as JSON schemas that allow no others.

Written after KubeRay's Go types and CRDs of 1.6 (ray-operator/apis/ray/v1: raycluster_types.go, rayjob_types.go;
authOptions since 1.5.1) and Kubernetes' API of 1.30 (core/v1, batch/v1, networking.k8s.io/v1). An API server prunes or
refuses unknown fields, so a misspelt one must fail here.
"""

from __future__ import annotations

import functools
from typing import Any

import jsonschema

TEXT = {"type": "string"}
BOOL = {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
INT32 = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
COUNT = {**INT32, "minimum": 0}
#: metadata.name of what becomes a DNS label.
LABEL = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
#: k8s.io/apimachinery resource.Quantity.
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"}


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def items(schema: dict[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": least}


METADATA = fields(("name",), name=LABEL, namespace=LABEL, labels=TEXTS)
RESOURCES = fields(
    requests={"type": "object", "additionalProperties": QUANTITY},
    limits={"type": "object", "additionalProperties": QUANTITY},
)
SECCOMP = fields(("type",), type={"enum": ["RuntimeDefault", "Localhost", "Unconfined"]})
CONTAINER_SECURITY = fields(allowPrivilegeEscalation=BOOL, capabilities=fields(drop=items(TEXT), add=items(TEXT)))
ENVIRONMENT = items(
    fields(
        ("name",),
        name=TEXT,
        value=TEXT,
        valueFrom=fields(secretKeyRef=fields(("name", "key"), name=TEXT, key=TEXT)),
    )
)
CONTAINER = fields(
    ("name", "image"),
    name=LABEL,
    image=TEXT,
    command=items(TEXT),
    args=items(TEXT),
    env=ENVIRONMENT,
    envFrom=items(fields(secretRef=fields(("name",), name=LABEL))),
    volumeMounts=items(fields(("name", "mountPath"), name=LABEL, mountPath=TEXT)),
    ports=items(fields(("containerPort",), name=LABEL, containerPort={**COUNT, "maximum": 65535})),
    resources=RESOURCES,
    securityContext=CONTAINER_SECURITY,
)
POD = fields(
    ("containers",),
    serviceAccountName=LABEL,
    automountServiceAccountToken=BOOL,
    restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
    nodeSelector=TEXTS,
    tolerations=items(
        fields(
            key=TEXT,
            operator={"enum": ["Exists", "Equal"]},
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        )
    ),
    securityContext=fields(runAsNonRoot=BOOL, runAsUser=COUNT, runAsGroup=COUNT, fsGroup=COUNT, seccompProfile=SECCOMP),
    containers=items(CONTAINER, least=1),
    terminationGracePeriodSeconds=COUNT,
    volumes=items(fields(("name",), name=LABEL, emptyDir=fields(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY))),
)
TEMPLATE = fields(("spec",), metadata=fields(labels=TEXTS), spec=POD)

RAY_CLUSTER = fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=BOOL,
    autoscalerOptions=fields(
        version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=INT32, securityContext=CONTAINER_SECURITY
    ),
    headGroupSpec=fields(
        ("rayStartParams", "template"),
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        enableIngress=BOOL,
        rayStartParams=TEXTS,
        template=TEMPLATE,
    ),
    workerGroupSpecs=items(
        fields(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=LABEL,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
RAY_JOB = fields(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    metadata=TEXTS,
    shutdownAfterJobFinishes=BOOL,
    backoffLimit=COUNT,
    rayClusterSpec=RAY_CLUSTER,
)
CRON_JOB = fields(
    ("schedule", "jobTemplate"),
    schedule=TEXT,
    timeZone=TEXT,
    concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]},
    jobTemplate=fields(("spec",), spec=fields(("template",), backoffLimit=COUNT, template=TEMPLATE)),
)
SELECTOR = fields(matchLabels=TEXTS)
NETWORK_POLICY = fields(
    ("podSelector",),
    podSelector=SELECTOR,
    policyTypes=items({"enum": ["Ingress", "Egress"]}),
    ingress=items(fields(**{"from": items(fields(podSelector=SELECTOR, namespaceSelector=SELECTOR))})),
)

_SPECS: dict[tuple[str, str], dict[str, Any] | None] = {
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("batch/v1", "CronJob"): CRON_JOB,
    ("networking.k8s.io/v1", "NetworkPolicy"): NETWORK_POLICY,
    ("v1", "ServiceAccount"): None,
    ("v1", "Namespace"): None,
}


@functools.cache
def _validator(version: str, kind: str) -> jsonschema.Draft202012Validator:
    """The validator of a whole manifest. KeyError for a kind that nobody expects."""
    spec = _SPECS[version, kind]
    head = {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": METADATA}
    schema = fields((*head, "spec"), **head, spec=spec) if spec else fields(tuple(head), **head)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def check(document: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError for a manifest that its schema does not allow."""
    _validator(document["apiVersion"], document["kind"]).validate(document)
