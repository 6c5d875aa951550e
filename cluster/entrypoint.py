"""A scan as the command that a cluster runs: its arguments, checked here and quoted for a shell there."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from models.registry import built_in
from scanner.config import ScanConfig, load_config_file, spelling
from scanner.errors import UserError
from scanner.uris import is_s3


@dataclass(frozen=True)
class Workers:
    """What a scan waits for before it starts. More may come later, less may have to do."""

    cpus: int = 2  # a scan needs no less
    gpus: int = 0
    timeout_minutes: float = 15.0  # a spot request that is granted takes a few minutes, setting the node up some more


def scan_config(context: click.Context, arguments: Sequence[str]) -> ScanConfig:
    """The arguments as `deepsweep scan` reads them, checked as it checks them, with deepsweep.toml behind them."""
    root = context.find_root().command
    assert isinstance(root, click.Group), "this is a command of deepsweep"
    scan = root.get_command(context, "scan")
    assert scan is not None
    with scan.make_context("deepsweep scan", list(arguments)) as parsed:
        options = dict(parsed.params)
    config_file = options.pop("config_file")
    given = {name: value for name, value in options.items() if value not in (None, ())}
    return ScanConfig(**(load_config_file(config_file) | given))


def scan_command(config: ScanConfig) -> str:
    """`deepsweep scan` for the head of a cluster, as a shell command. Raises UserError for what it can't reach."""
    check_reachable(config)
    return shlex.join(["deepsweep", "scan", *scan_arguments(config)])


def job_command(config: ScanConfig, workers: Workers) -> str:
    """The command of a job: wait for the workers, then scan."""
    wait = ["deepsweep", "cluster", "wait", "--cpus", str(workers.cpus), "--gpus", str(workers.gpus)]
    wait += ["--timeout", f"{workers.timeout_minutes:g}"]
    return f"{shlex.join(wait)} && {scan_command(config)}"


def scan_arguments(config: ScanConfig) -> list[str]:
    """The command line that gives this config on a node of the cluster; `--address auto`, whatever it was."""
    arguments = ["--address", "auto"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default or not field.metadata["on_command_line"] or field.name == "address":
            continue
        name = f"--{spelling(field)}"
        if isinstance(value, bool):
            arguments.append(name)
        else:
            # One word with "=": a value may begin with a hyphen.
            arguments += [f"{name}={item}" for item in (value if isinstance(value, tuple) else (value,))]
    return [*arguments, "--", *config.sources]


def check_reachable(config: ScanConfig) -> None:
    """Refuse paths that mean another place on every node. Raises UserError with the fix."""
    if not config.sources:
        raise UserError("say what to scan, after --: s3://bucket/prefix, or a folder that every node mounts.")
    for source in config.sources:
        _check_place(source, "the source")
    _check_place(config.out, "--out")
    if config.model not in built_in():
        _check_place(config.model, "--model")


def _check_place(place: str, what: str) -> None:
    if not (is_s3(place) or place.startswith("file://") or Path(place).is_absolute()):
        raise UserError(
            f"{what} {place} is relative, and so another place on every node:"
            " give s3://bucket/prefix, or the absolute path of a folder that every node mounts."
        )


def submit_command(config: ScanConfig, workers: Workers) -> str:
    """The command that submits this scan from inside the cluster's network, and waits for its end."""
    check_reachable(config)
    submit = ["deepsweep", "cluster", "submit", "--follow", "--cpus", str(workers.cpus), "--gpus", str(workers.gpus)]
    return shlex.join([*submit, "--", *scan_arguments(config)])
