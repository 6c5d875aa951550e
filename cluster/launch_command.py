"""`deepsweep cluster up` and `down`: parse, call, print."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from cluster.entrypoint import Workers, job_command, scan_config, submit_command
from cluster.nodes import DASHBOARD_PORT
from cluster.settings import AWS, KUBERNETES, ClusterSettings, spelling
from scanner.errors import UserError

CLUSTER_FILE = "deepsweep-cluster.yaml"


def _settings_options(command: Callable) -> Callable:
    """One option for each field of ClusterSettings."""
    hints = typing.get_type_hints(ClusterSettings)
    for field in reversed(dataclasses.fields(ClusterSettings)):
        facts, default = field.metadata, field.default
        names = f"--{spelling(field)}"
        of = {AWS: "AWS: ", KUBERNETES: "Kubernetes: ", None: ""}[facts["of"]]
        shown = "" if default in (None, ()) else f"  [default: {default}]"
        more: dict[str, Any] = {"type": hints[field.name], "metavar": facts["metavar"]}
        if isinstance(default, bool):
            names, more = f"{names}/--no-{spelling(field)}", {}
            shown = f"  [default: {spelling(field) if default else 'no-' + spelling(field)}]"
        elif isinstance(default, tuple):
            more = {"multiple": True, "metavar": facts["metavar"]}
        elif hints[field.name] not in (int, float):
            more["type"] = str
        # No default of its own: what was not given is known as that.
        option = click.option(names, field.name, default=None, help=f"{of}{facts['help']}{shown}", **more)
        command = option(command)
    return command


def _chosen(platform: str, options: dict[str, Any]) -> ClusterSettings:
    """The settings that were given. Raises UserError for one of the other platform."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    for field in dataclasses.fields(ClusterSettings):
        of = field.metadata["of"]
        if field.name in given and of not in (None, platform):
            where = "with --kubernetes" if platform == KUBERNETES else "without --kubernetes"
            raise UserError(f"--{spelling(field)} means nothing {where}.")
    return ClusterSettings(**given)


_kubernetes = click.option("--kubernetes", is_flag=True, help="On Kubernetes (KubeRay) instead of AWS.")
_file = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"AWS: the cluster's YAML file  [default: {CLUSTER_FILE}]",
)
_yes = click.option("--yes", is_flag=True, help="Don't ask.")


@click.command()
@click.argument("scan_arguments", nargs=-1, metavar="[-- SCAN ARGUMENTS...]")
@_kubernetes
@_file
@click.option("--print", "print_", is_flag=True, help="Print the YAML, and change nothing.")
@_yes
@_settings_options
@click.pass_context
def up(
    context: click.Context,
    scan_arguments: tuple[str, ...],
    kubernetes: bool,
    file: Path | None,
    print_: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Launch a cluster.

    On AWS this writes a YAML file for `ray up`, and runs it; a file that is there is used as it is. Only the head
    runs all the time: workers are started when a scan asks for them (`cluster submit --cpus --gpus`).

    On Kubernetes this applies a RayCluster; with the arguments of a scan a RayJob, which makes a cluster for that
    scan and takes it away afterwards; with --nightly too, a RayCluster and a CronJob.

    \b
    See what would be launched:
      deepsweep cluster up --ami ami-0abc --region eu-central-1 --image me/deepsweep:0.1.0 --print
    One scan on Kubernetes, and nothing left of it:
      deepsweep cluster up --kubernetes --image me/deepsweep:0.1.0 -- s3://archive --out s3://results
    Every night at eight:
      deepsweep cluster up --kubernetes --image me/deepsweep:0.1.0 --nightly '0 20 * * *' -- s3://archive --out s3://results
    """
    settings = _chosen(KUBERNETES if kubernetes else AWS, options)
    if kubernetes:
        _up_kubernetes(settings, _entrypoint(context, settings, scan_arguments), print_=print_, yes=yes)
    elif scan_arguments:
        raise UserError("on AWS the scan comes afterwards: `deepsweep cluster submit -- ...`.")
    else:
        given = any(value not in (None, ()) for value in options.values())
        _up_aws(settings, file or Path(CLUSTER_FILE), given=given, print_=print_, yes=yes)


def _up_aws(settings: ClusterSettings, file: Path, *, given: bool, print_: bool, yes: bool) -> None:
    from cluster.aws import cluster_file
    from cluster.launch import up_aws

    there = _read(file)
    text = there if there is not None and not given else cluster_file(settings)
    if print_:
        click.echo(text, nl=False)
        return
    if there is None:
        for path in filter(None, (settings.wheel, settings.wheel and settings.constraints)):
            if not Path(path).is_file():
                raise UserError(f"{path} is not there: the nodes install it.")
        file.write_text(text, encoding="utf-8")
    elif there != text:
        raise UserError(
            f"{file} is there and says otherwise: leave the options out to use it, or remove it to write it anew."
        )
    up_aws(file, yes=yes)
    click.echo(f"\nKeep this running in another terminal, and submit:\n  ray dashboard {file}")


def _up_kubernetes(settings: ClusterSettings, entrypoint: str | None, *, print_: bool, yes: bool) -> None:
    from cluster.kubernetes import head_service, manifest_text
    from cluster.launch import up_kubernetes

    if print_:
        click.echo(manifest_text(settings, entrypoint), nl=False)
        return
    manifest_text(settings, entrypoint)  # what is missing is said before anything is asked
    if not yes:
        click.confirm(f"Apply cluster {settings.name} to namespace {settings.namespace}?", abort=True)
    up_kubernetes(settings, entrypoint)
    if entrypoint is None:
        forward = f"kubectl port-forward --namespace {settings.namespace} service/{head_service(settings)}"
        click.echo(f"\nKeep this running in another terminal, and submit:\n  {forward} {DASHBOARD_PORT}")


def _entrypoint(context: click.Context, settings: ClusterSettings, arguments: Sequence[str]) -> str | None:
    """The shell command of a scan on Kubernetes; a night's scan is submitted to the cluster that stays."""
    if not arguments:
        return None
    config = scan_config(context, arguments)
    workers = Workers(
        cpus=settings.cpu_workers * settings.cpu_cores + settings.gpu_workers * settings.gpu_cores,
        gpus=settings.gpu_workers,
    )
    return (job_command if settings.nightly is None else submit_command)(config, workers)


@click.command()
@_kubernetes
@_file
@_yes
@click.option("--name", metavar="NAME", help="Kubernetes: name of the cluster.")
@click.option("--namespace", metavar="NAME", help="Kubernetes: its namespace.")
@click.option("--service-account", metavar="NAME", help="Kubernetes: its service account.")
def down(kubernetes: bool, file: Path | None, yes: bool, **options: str | None) -> None:
    """End the cluster and all its nodes. Scans that run on it end; RESULTS and what they hold stay."""
    from cluster.launch import down_aws, down_kubernetes

    if not kubernetes:
        for name, value in options.items():
            if value is not None:
                raise UserError(f"--{name.replace('_', '-')} means nothing without --kubernetes: a --file has it.")
        down_aws(file or Path(CLUSTER_FILE), yes=yes)
        return
    settings = _chosen(KUBERNETES, options)
    if not yes:
        click.confirm(f"Delete cluster {settings.name} in namespace {settings.namespace}?", abort=True)
    down_kubernetes(settings)


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} could not be read: {error}.") from None
