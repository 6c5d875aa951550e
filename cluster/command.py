"""`deepsweep cluster`: parse, call, print."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.entrypoint import Workers, job_command, scan_config
from cluster.launch_command import down, up
from cluster.nodes import DASHBOARD
from scanner.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PREFLIGHT, UserError

if TYPE_CHECKING:
    from cluster.jobs import Job, Jobs

COMMAND_WIDTH = 60


@click.group("cluster")
def cluster() -> None:
    """Launch a Ray cluster on AWS or Kubernetes, and scan with it.

    \b
    On AWS, with workers that come when there is work and go when there is none:
      deepsweep cluster up --ami ami-0abc --wheel dist/deepsweep-0.1.0-py3-none-any.whl
      ray dashboard deepsweep-cluster.yaml          (keep it running beside the rest)
      deepsweep cluster submit --cpus 128 --gpus 1 -- s3://archive --out s3://archive-results
      deepsweep cluster status
      deepsweep cluster down
    On Kubernetes, with the KubeRay operator:
      deepsweep cluster up --kubernetes --image registry/deepsweep:0.1.0-cuda
    """


_dashboard = click.option(
    "--dashboard",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    help=f"The cluster's dashboard  [default: {DASHBOARD}]",
)


@cluster.command()
@click.argument("scan_arguments", nargs=-1, required=True, metavar="-- SCAN ARGUMENTS...")
@_dashboard
@click.option("--cpus", type=click.IntRange(min=2), help=f"Cores to wait for  [default: {Workers.cpus}]")
@click.option("--gpus", type=click.IntRange(min=0), help=f"GPUs to wait for  [default: {Workers.gpus}]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="MINUTES",
    help=f"Longest wait  [default: {Workers.timeout_minutes:g}]",
)
@click.option("--env", "names", multiple=True, metavar="NAME", help="Pass this variable of yours on; repeatable.")
@click.option(
    "--wheel", type=click.Path(exists=True, dir_okay=False), help="Scan with this deepsweep, not the installed."
)
@click.option("--follow", is_flag=True, help="Show what the scan prints, and exit as it does.")
@click.pass_context
def submit(
    context: click.Context,
    scan_arguments: tuple[str, ...],
    dashboard: str | None,
    names: tuple[str, ...],
    wheel: str | None,
    follow: bool,
    **workers: float | None,
) -> None:
    """Scan on the cluster, and come back at once.

    SCAN ARGUMENTS are those of `deepsweep scan`, after --; deepsweep.toml counts too. Sources, --out and --model must
    mean the same on every node: S3, or a folder that all of them mount. The nodes' own role reads S3: no variable and
    no credential of this machine goes along unless --env names it, and who reaches the dashboard can read those.

    \b
    A bucket, by 128 cores and two GPUs once they are there:
      deepsweep cluster submit --cpus 128 --gpus 2 -- s3://archive --out s3://archive-results
    Stop it (what is finished is kept):
      ray job stop JOB
    """
    config = scan_config(context, scan_arguments)
    asked: dict[str, Any] = {"timeout_minutes" if k == "timeout" else k: v for k, v in workers.items() if v is not None}
    command = job_command(config, Workers(**asked))
    env = _named_variables(names)
    with _unpacked(wheel) as packages:
        jobs = _jobs(dashboard)
        jobs.check_versions(brings_deepsweep=wheel is not None)
        job = jobs.submit(command, env, packages)
    click.echo(f"Submitted {job}. It goes on without this machine.")
    if follow:
        sys.exit(_follow(jobs, job))
    click.echo(f"  deepsweep cluster status {job}\n  deepsweep cluster logs {job} --follow")


@cluster.command()
@click.argument("job", required=False)
@_dashboard
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(job: str | None, dashboard: str | None, as_json: bool) -> None:
    """Show the cluster's nodes, what of them is in use, and the scans that were submitted; or one JOB."""
    from cluster.overview import overview

    jobs = _jobs(dashboard)
    if job is not None:
        found = jobs.job(job)
        click.echo(json.dumps(dataclasses.asdict(found)) if as_json else _details(found))
        return
    facts = overview(jobs)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(facts) | {"jobs": [dataclasses.asdict(j) for j in jobs.list()]}))
        return
    click.echo(f"Ray {facts.ray_version} at {jobs.dashboard}, {len(facts.nodes)} nodes")
    for node in facts.nodes:
        gpus = f", {node.gpus:g} GPUs" if node.gpus else ""
        click.echo(f"  {node.role:<6}  {node.address:<15}  {node.cpus:g} CPUs{gpus}, {node.memory / 2**30:.0f} GiB")
    click.echo("".join(c if c.isprintable() or c == "\n" else "?" for c in facts.report.rstrip()))
    found = jobs.list()
    click.echo("No scan was submitted yet." if not found else "")
    for entry in found:
        click.echo(f"{entry.id}  {_when(entry):<28}  {entry.state:<26}  {_scan_part(entry.command)}")


@cluster.command()
@click.argument("job", required=False)
@_dashboard
@click.option("--follow", is_flag=True, help="Go on until the scan ends, and exit as it does.")
def logs(job: str | None, dashboard: str | None, follow: bool) -> None:
    """Show what a scan has printed: JOB, or the latest one."""
    jobs = _jobs(dashboard)
    if job is None:
        found = jobs.list()
        if not found:
            raise UserError("no scan was submitted to this cluster yet.", EXIT_PREFLIGHT)
        job = found[0].id
    if follow:
        sys.exit(_follow(jobs, job))
    click.echo(jobs.logs(job), nl=False)


@cluster.command()
@click.option("--cpus", type=click.IntRange(min=2), required=True, help="Cores that must be free.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, help="GPUs that must be free.")
@click.option("--timeout", type=click.FloatRange(min=0), required=True, metavar="MINUTES", help="Longest wait.")
@click.option("--address", default="auto", show_default=True, metavar="ADDRESS", help="Ray cluster.")
def wait(cpus: int, gpus: int, timeout: float, address: str) -> None:
    """Call workers of an autoscaling cluster, and wait until they are there. `submit` puts this before the scan.

    After the timeout it goes on with what came; with nothing it exits with 4.
    """
    from cluster.workers import wait_for_workers

    found = wait_for_workers(Workers(cpus, gpus, timeout), address)
    short = "" if found == (cpus, gpus) else f", of {cpus} and {gpus} that were asked for: going on with those"
    click.echo(f"{found[0]} CPUs and {found[1]} GPUs are there{short}.")


cluster.add_command(up)
cluster.add_command(down)


# --- small helpers ----------------------------------------------------------------------------------------


def _jobs(dashboard: str | None) -> Jobs:
    from cluster.jobs import Jobs

    return Jobs(dashboard or DASHBOARD)


def _named_variables(names: Sequence[str]) -> dict[str, str]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(f"--env {missing[0]}: this variable is not set here.")
    return {name: os.environ[name] for name in names}


@contextmanager
def _unpacked(wheel: str | None) -> Iterator[list[Path]]:
    """The packages of a wheel as folders, which Ray hands to the nodes without installing anything there."""
    if wheel is None:
        yield []
        return
    import zipfile

    from cluster.aws import check_wheel

    check_wheel(Path(wheel).name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        except zipfile.BadZipFile:
            raise UserError(f"{wheel} is not a wheel.") from None
        yield sorted(path.parent for path in Path(folder).glob("*/__init__.py"))


def _follow(jobs: Jobs, job: str) -> int:
    try:
        ended = jobs.follow(job)
    except KeyboardInterrupt:
        click.echo(f"\ndeepsweep: {job} goes on without this machine.", err=True)
        return EXIT_INTERRUPTED
    click.echo(f"{job}: {ended.state}")
    if ended.exit_code is not None:
        return ended.exit_code
    return EXIT_OK if ended.state == "done" else EXIT_PREFLIGHT


def _details(job: Job) -> str:
    return "\n".join(
        [f"job      {job.id}", f"state    {job.state}", f"time     {_when(job)}", f"command  {job.command}"]
    )


def _when(job: Job) -> str:
    if job.started is None:
        return "not started"
    lasted = (job.ended or time.time()) - job.started
    return f"{datetime.fromtimestamp(job.started):%Y-%m-%d %H:%M}, {lasted / 60:.1f} min"


def _scan_part(command: str) -> str:
    """The scan of a job's command, on one short line."""
    text = "".join(c if c.isprintable() else "?" for c in command.rpartition("&& ")[2])
    return text if len(text) <= COMMAND_WIDTH else f"{text[: COMMAND_WIDTH - 1]}…"
