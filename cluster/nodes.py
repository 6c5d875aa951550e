"""How Ray is started on a cluster's nodes: what AWS and Kubernetes have in common."""

from __future__ import annotations

OBJECT_STORE_BYTES = 2 << 30  # crops in flight: a dozen spans with several faces each; Ray's default is 30 % of memory
GCS_PORT = 6379
CLIENT_PORT = 10001
DASHBOARD_PORT = 8265
DASHBOARD = f"http://127.0.0.1:{DASHBOARD_PORT}"  # after `ray dashboard` or `kubectl port-forward`
#: Fixed, because Ray's client server asks the agent at the port it was told, and fails where that is "any".
RUNTIME_ENV_PORT = 52366

#: The environment of every process of Ray: nobody without the token may run code on the cluster.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Seconds from `ray job stop` to SIGKILL. Ray's 3 don't do for a scan that closes its books: it waits for what is
    # being written, and rewrites its record, with all the retries of S3.
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
}

HEAD = {"node:__internal_head__": 0.001}  # Ray's own mark of the head, as what a task or an actor wants of its node
#: On the head, where no file there says it: what the autoscaler may start, as `ray up` files tell it, in JSON.
MOST_NODES = "DEEPSWEEP_MOST_NODES"

#: The head keeps the cluster together and runs the scan's driver, so no actor may crowd it out.
HEAD_PARAMETERS = {
    "num-cpus": "0",
    "num-gpus": "0",
    "object-store-memory": str(OBJECT_STORE_BYTES),
    "runtime-env-agent-port": str(RUNTIME_ENV_PORT),
}
WORKER_PARAMETERS = {"object-store-memory": str(OBJECT_STORE_BYTES)}


def options(parameters: dict[str, str]) -> str:
    """Parameters of `ray start` as its command line has them."""
    return " ".join(f"--{name}={value}" for name, value in parameters.items())
