"""Scans as jobs of a Ray cluster: submitted, found again, followed, through the dashboard's job server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.connect import TOKEN_HINT, show_token
from cluster.nodes import DASHBOARD
from cluster.versions import deepsweep_version, ray_version
from scanner import errors
from scanner.errors import EXIT_PREFLIGHT, UserError, first_line

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

METADATA_KEY = "deepsweep"  # in a job's metadata: it is ours, and of which version
PROBE_TIMEOUT_S = 180.0  # for `deepsweep --version` on the head: a cold start of Python from a network disk
OUTAGE_S = 180.0  # `kubectl port-forward` to be started again, a laptop's network to come back
POLL_S = 0.5
FAR_PAST = 0

#: What a scan's exit code says of a job. Ray calls everything but 0 FAILED.
OUTCOMES = {
    errors.EXIT_OK: "done",
    errors.EXIT_FLAGGED: "done, clips flagged",
    errors.EXIT_SOME_FAILED: "done, some videos failed",
    errors.EXIT_USAGE: "failed: usage",
    errors.EXIT_PREFLIGHT: "failed: cluster or resources",
    errors.EXIT_NOTHING_TO_SCAN: "nothing to scan",
    errors.EXIT_INTERRUPTED: "interrupted",
}


@dataclass(frozen=True)
class Job:
    """One scan on the cluster. started, ended: seconds since 1970, None where it hasn't."""

    id: str
    state: str
    started: float | None
    ended: float | None
    command: str
    exit_code: int | None
    over: bool


class Unreachable(UserError):
    """No dashboard answers."""


class Jobs:
    """The job server of one cluster.

    Every method raises UserError (exit code 4) where the cluster does not answer, wants another token, or has no
    such job.
    """

    def __init__(self, dashboard: str = DASHBOARD) -> None:
        self.dashboard = dashboard
        self._client = _connect(dashboard)

    def submit(self, command: str, env: Mapping[str, str], packages: Sequence[Path] = ()) -> str:
        """Start a job and return its id at once.

        command: for the shell of the head. env: variables of its processes everywhere. packages: folders of Python
        packages that its processes import before installed ones.
        """
        runtime_env: dict[str, Any] = {}
        if env:
            runtime_env["env_vars"] = dict(env)
        if packages:
            runtime_env["py_modules"] = [str(path) for path in packages]
        return self._call(
            lambda: self._client.submit_job(
                entrypoint=command,
                submission_id=new_job_id(),
                runtime_env=runtime_env,
                metadata={METADATA_KEY: deepsweep_version()},
            )
        )

    def check_versions(self, *, brings_deepsweep: bool = False) -> None:
        """Refuse a cluster with another Ray or deepsweep than the ones here. Raises UserError with the fix."""
        theirs = self.get("/api/version")["ray_version"]
        if theirs != ray_version():
            raise UserError(
                f"the cluster runs Ray {theirs} and this machine {ray_version()}: install the same here"
                f" (pip install 'ray[default]=={theirs}'), or launch the cluster anew.",
                EXIT_PREFLIGHT,
            )
        if brings_deepsweep:
            return
        theirs = self._installed_deepsweep()
        if theirs != deepsweep_version():
            found = "has no deepsweep" if theirs is None else f"runs deepsweep {theirs}"
            raise UserError(
                f"the cluster's head {found}, and this machine {deepsweep_version()}: launch the cluster anew,"
                " or bring yours along with --wheel.",
                EXIT_PREFLIGHT,
            )

    def list(self) -> list[Job]:
        """The scans that were ever submitted to this cluster, latest first."""
        found = [_job(details) for details in self._call(self._client.list_jobs) if _is_ours(details)]
        return sorted(found, key=lambda job: job.started or FAR_PAST, reverse=True)

    def job(self, job_id: str) -> Job:
        return _job(self._call(lambda: self._client.get_job_info(job_id), job_id))

    def logs(self, job_id: str) -> str:
        """All that the job has printed so far."""
        return self._call(lambda: self._client.get_job_logs(job_id), job_id)

    def follow(self, job_id: str) -> Job:
        """Print what a job prints until it is over; the job as it ended.

        A connection that breaks, or that something between here and the cluster ends, is taken up where it was. Raises
        UserError where the cluster has not answered for OUTAGE_S.
        """
        from aiohttp import ClientError

        shown = 0  # characters

        async def tail() -> None:
            nonlocal shown
            seen = 0  # each connection begins with the first line
            async for text in self._client.tail_job_logs(job_id):
                seen += len(text)
                if seen > shown:
                    print(text[shown - seen :], end="", flush=True)
                    shown = seen

        job = self.job(job_id)  # no such job: before a connection that says so badly
        while True:
            # RuntimeError: Ray's word for a connection that broke.
            with contextlib.suppress(OSError, ClientError, RuntimeError):
                asyncio.run(tail())
            if job.over:  # before the last connection, so that it brought everything
                return job
            time.sleep(POLL_S)
            job = self._job_after_outage(job_id)

    def get(self, path: str) -> Any:
        """The dashboard's JSON answer."""
        # Ray's own request carries the token, and turns a wrong one into an exception that says so.
        return self._call(lambda: self._client._do_request("GET", path).json())

    def _job_after_outage(self, job_id: str) -> Job:
        """The job; a dashboard that is away for less than OUTAGE_S is waited for."""
        deadline = time.monotonic() + OUTAGE_S
        while True:
            try:
                return self.job(job_id)
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_S)

    def _wait(self, job_id: str, timeout_s: float = PROBE_TIMEOUT_S) -> Job:
        deadline = time.monotonic() + timeout_s
        while not (job := self.job(job_id)).over:
            if time.monotonic() > deadline:
                raise UserError(
                    f"job {job_id} has not ended after {timeout_s:.0f} s: the head is overloaded, or its set-up hangs;"
                    f" `deepsweep cluster logs {job_id}` shows what it printed.",
                    EXIT_PREFLIGHT,
                )
            time.sleep(POLL_S)
        return job

    def _installed_deepsweep(self) -> str | None:
        """The version of deepsweep on the head, where jobs run; asked by a job, for Ray has no other way."""
        probe = self._call(lambda: self._client.submit_job(entrypoint="deepsweep --version"))
        self._wait(probe)
        match = re.search(r"^deepsweep, version (\S+)$", self.logs(probe), re.MULTILINE)
        self._call(lambda: self._client.delete_job(probe))
        return match and match[1]

    def _call(self, ask: Callable[[], Any], job_id: str = "") -> Any:
        """ask(), with what goes wrong as one sentence."""
        from ray.exceptions import AuthenticationError

        try:
            return ask()
        except AuthenticationError:
            raise _unauthorized(self.dashboard) from None
        except OSError as error:  # requests' and aiohttp's errors of connection
            raise _unreachable(self.dashboard, error) from None
        except RuntimeError as error:
            if job_id and "does not exist" in str(error):
                raise UserError(
                    f"there is no job {job_id} on this cluster: `deepsweep cluster status` lists them.", EXIT_PREFLIGHT
                ) from None
            raise UserError(f"the cluster at {self.dashboard} refused: {first_line(error)}", EXIT_PREFLIGHT) from None


def new_job_id() -> str:
    """Sorts by time and says whose it is; Ray takes an id once."""
    return f"deepsweep-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def state_of(status: str, exit_code: int | None) -> str:
    """Ray's status of a job in words: what the scan's exit code means, where it has one."""
    if status in ("SUCCEEDED", "FAILED") and exit_code is not None:
        return OUTCOMES.get(exit_code, f"failed with exit code {exit_code}")
    return {"SUCCEEDED": "done"}.get(status, status.lower())


def without_webhook(command: str) -> str:
    """A scan's command as it may be shown: the URL of its webhook may carry a secret."""
    return re.sub(r"--webhook[= ].*?(?='?\s'?--|$)", "--webhook=…", command, flags=re.DOTALL)


def _job(details: JobDetails) -> Job:
    return Job(
        id=details.submission_id or details.job_id or "",
        state=state_of(details.status.value, details.driver_exit_code),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        command=without_webhook(details.entrypoint),
        exit_code=details.driver_exit_code,
        over=details.status.is_terminal(),
    )


def _is_ours(details: JobDetails) -> bool:
    return METADATA_KEY in (details.metadata or {})


def _connect(dashboard: str) -> JobSubmissionClient:
    # Either would override the address that is given here.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.job.sdk"):  # what the user reads is ours
            logging.getLogger(name).setLevel(logging.ERROR)
        show_token()
        return JobSubmissionClient(dashboard)
    except AuthenticationError:
        raise _unauthorized(dashboard) from None
    except (OSError, ValueError) as error:
        raise _unreachable(dashboard, error) from None
    except (ImportError, RuntimeError) as error:  # RuntimeError: Ray without its dashboard's libraries
        raise UserError(
            f"Ray's job client can't be used here ({first_line(error)}): pip install 'ray[default]=={ray_version()}'.",
            EXIT_PREFLIGHT,
        ) from None


def _unreachable(dashboard: str, error: Exception) -> Unreachable:
    return Unreachable(
        f"no Ray dashboard answers at {dashboard} ({first_line(error)}): keep `ray dashboard deepsweep-cluster.yaml`"
        " or `kubectl port-forward` running beside this, or give --dashboard.",
        EXIT_PREFLIGHT,
    )


def _unauthorized(dashboard: str) -> UserError:
    return UserError(f"the cluster at {dashboard} does not accept this machine's token. {TOKEN_HINT}", EXIT_PREFLIGHT)
