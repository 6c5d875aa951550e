"""Starting and ending clusters with the tools that own them: `ray up`, `ray down`, `kubectl`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.aws import TOKEN_FILE
from cluster.kubernetes import RAY_JOB, deletions, manifest_text
from cluster.settings import ClusterSettings
from cluster.versions import ray_version
from scanner.errors import EXIT_PREFLIGHT, UserError

#: KubeRay's states of a RayJob that does nothing any more.
ENDED = ("Complete", "Failed", "ValidationFailed")


def up_aws(file: Path, *, yes: bool) -> None:
    """`ray up` with the cluster file, which asks before it starts anything unless `yes`."""
    _check_credentials()
    _make_token()
    _run([_ray(), "up", str(file), *(["--yes"] if yes else [])], "ray up")


def down_aws(file: Path, *, yes: bool) -> None:
    """`ray down`: ends all nodes of the cluster that the file describes."""
    if not file.exists():
        raise UserError(f"{file} is not there: it is the file that `deepsweep cluster up` wrote; name it with --file.")
    _check_credentials()
    _run([_ray(), "down", str(file), *(["--yes"] if yes else [])], "ray down")


def up_kubernetes(settings: ClusterSettings, entrypoint: str | None) -> None:
    """`kubectl apply` of the manifests; a scan that has ended makes room for the same one again."""
    if entrypoint is not None and settings.nightly is None:
        _clear_job(settings)
    _run([_kubectl(), "apply", "-f", "-"], "kubectl apply", manifest_text(settings, entrypoint))


def down_kubernetes(settings: ClusterSettings) -> None:
    """`kubectl delete` of what `up` may have made; RESULTS stay."""
    command = [_kubectl(), "delete", "--namespace", settings.namespace, "--ignore-not-found", *deletions(settings)]
    _run(command, "kubectl delete")


def _clear_job(settings: ClusterSettings) -> None:
    """Delete the RayJob of an earlier scan: one that has ended stays "unchanged" when applied again, and scans nothing.

    Raises UserError where it has not ended: its scan would end with it.
    """
    where, job = ["--namespace", settings.namespace, "--ignore-not-found"], f"{RAY_JOB}/{settings.name}"
    state = "--output=jsonpath={.metadata.name} {.status.jobDeploymentStatus}"
    found = _run([_kubectl(), "get", job, *where, state], "kubectl get", keep=True)
    if not found:
        return
    if found.partition(" ")[2] not in ENDED:
        raise UserError(
            f"the scan of cluster {settings.name} has not ended: wait for it (`kubectl get rayjob`), end it with"
            " `deepsweep cluster down --kubernetes`, or give this one another --name.",
            EXIT_PREFLIGHT,
        )
    _run([_kubectl(), "delete", job, *where], "kubectl delete")


def _check_credentials() -> None:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        credentials = boto3.Session().get_credentials()
    except BotoCoreError as error:  # a profile that is not there, a login that has expired
        raise UserError(f"your AWS credentials can't be used: {error}.", EXIT_PREFLIGHT) from None
    if credentials is None:
        raise UserError(
            "no AWS credentials are found: log in (`aws configure sso`, `aws sso login`) and set AWS_PROFILE.",
            EXIT_PREFLIGHT,
        )


def _make_token() -> None:
    """Have Ray make the token that the cluster will ask for, unless this machine has one already."""
    if Path(TOKEN_FILE).expanduser().exists():
        return
    # Its output is the token.
    done = subprocess.run([_ray(), "get-auth-token", "--generate"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"Ray could not write {TOKEN_FILE}: {done.stderr.strip().splitlines()[-1]}", EXIT_PREFLIGHT)


def _ray() -> str:
    """The `ray` that was installed with this Python, or the one on the PATH."""
    beside = Path(sys.executable).with_name("ray")
    found = str(beside) if beside.exists() else shutil.which("ray")
    if found is None:
        raise UserError(
            f"the command `ray` is not installed: pip install 'ray[default]=={ray_version()}'.", EXIT_PREFLIGHT
        )
    return found


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise UserError(
            "`kubectl` is not installed: install it, or take the manifests from --print to where it is.",
            EXIT_PREFLIGHT,
        )
    return found


def _run(command: Sequence[str], name: str, text: str | None = None, *, keep: bool = False) -> str:
    """Run a tool in the foreground; what it prints and asks is between it and the user.

    keep: return what it prints instead.
    """
    sys.stdout.flush()
    done = subprocess.run(command, input=text, text=True, check=False, stdout=subprocess.PIPE if keep else None)
    if done.returncode:
        raise UserError(f"`{name}` failed with exit code {done.returncode}: see above.", EXIT_PREFLIGHT)
    return done.stdout or ""
