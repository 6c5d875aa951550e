"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Callable, Collection
from typing import Any

import click

from queries.text import escape_controls
from scanner.config import ScanConfig, load_config_file, parse_size, spelling, value_type
from scanner.errors import EXIT_INTERRUPTED, EXIT_PREFLIGHT, UserError

#: Command → module:function. Loaded when asked for: `--help` must not wait for DuckDB.
COMMANDS = {
    "scan": "scanner.cli:scan",
    "query": "queries.command:query",
    "catalog": "queries.export_catalog:catalog",
    "report": "queries.report:report",
    "status": "scanner.status:status",
    "compact": "scanner.compact:compact",
    "clips": "scanner.cut_command:clips",
    "app": "queries.app:app",
    "inspect": "scanner.inspect_command:inspect",
    "prepare": "scanner.prepare:prepare",
    "train": "scanner.train:train",
    "evaluate": "scanner.evaluate:evaluate",
    "export": "scanner.export:export",
    "cluster": "cluster.command:cluster",
    "doctor": "scanner.cli:doctor",
}


class Commands(click.Group):
    """Loads commands when they are called, and turns errors that people can mend into a sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        return getattr(importlib.import_module(module), name)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]}?" if close else f" There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"deepsweep: {escape_controls(str(error))}", err=True)
            sys.exit(error.exit_code)
        except ImportError as error:
            fix = "`deepsweep doctor` names the fix."
            click.echo(f"deepsweep: a library can't be loaded ({escape_controls(str(error))}): {fix}", err=True)
            sys.exit(EXIT_PREFLIGHT)
        except KeyboardInterrupt:
            click.echo("deepsweep: interrupted", err=True)
            sys.exit(EXIT_INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="deepsweep")
def main() -> None:
    """Find deepfaked faces in video archives.

    \b
    Scan a folder overnight, ask in the morning:
      deepsweep scan /archive --out results
      deepsweep query flagged --results results
    """


class _Size(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _shown_size(count: int) -> str:
    return next((f"{count >> s}{u}" for s, u in ((30, "GB"), (20, "MB")) if count % (1 << s) == 0), str(count))


def _option(field: dataclasses.Field) -> Callable:
    """The click option of a setting. It has no default of its own, so that deepsweep.toml can stand behind it."""
    facts = field.metadata
    kind = value_type(field)
    default: Any = field.default
    help_text = facts["help"]
    flag = kind is bool
    if not flag and default not in (None, ()):
        shown = _shown_size(default) if facts["size"] else f"{default}"
        help_text += f"  [default: {shown}]"
    settings: dict[str, Any] = {"help": help_text, "default": None}
    if flag:
        settings |= {"is_flag": True}
    else:
        settings |= {"type": _Size() if facts["size"] else kind, "metavar": facts["metavar"]}
        if isinstance(default, tuple):
            settings |= {"multiple": True, "default": ()}
    return click.option(f"--{spelling(field)}", field.name, **settings)


def setting_options(names: Collection[str] | None = None) -> Callable[[Callable], Callable]:
    """Options for these settings of a scan, or for all that the command line takes; and --config, behind them."""

    def decorate(command: Callable) -> Callable:
        command = click.option(
            "--config",
            "config_file",
            metavar="FILE",
            help="Settings in a TOML file's [scan] table  [default: deepsweep.toml, where there is one]",
        )(command)
        for field in reversed(dataclasses.fields(ScanConfig)):
            if field.metadata["on_command_line"] and (names is None or field.name in names):
                command = _option(field)(command)
        return command

    return decorate


@click.command()
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@setting_options()
def scan(sources: tuple[str, ...], config_file: str | None, **options: Any) -> None:
    """Scan videos for deepfaked faces.

    SOURCE is a folder, a file, a glob, s3://bucket/prefix, or a manifest (.txt .csv .jsonl .parquet) that
    lists URIs. The same command again scans only what is new, changed or unfinished.

    \b
    A folder on this machine:
      deepsweep scan /archive/2024 --out results
    A bucket, results beside it, failures of last night once more:
      deepsweep scan s3://archive/2024 --out s3://archive-results --retry-failed
    What would be scanned, and how long it may take:
      deepsweep scan manifest.csv --out results --dry-run
    On a Ray cluster, all but the trailers:
      deepsweep scan s3://archive --out s3://results --address auto --exclude '*trailer*'

    \b
    Exit codes: 0 done, 1 flagged (with --fail-on-flag), 2 usage, 3 some videos failed,
    4 Ray or resources, 5 nothing to scan, 130 interrupted.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if sources:
        given["sources"] = sources
    config = ScanConfig(**(load_config_file(config_file) | given))
    from scanner.scan import scan as run_scan

    sys.exit(run_scan(config))


@click.command()
@click.option("--address", metavar="ADDRESS", help="Check every node of this Ray cluster instead: auto, HOST:PORT.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(address: str | None, as_json: bool) -> None:
    """Check this machine, or each node of a cluster: what is wrong with it for a scan, and the fix.

    Exits with 4 if something would stop a scan.
    """
    from scanner.doctor import run_checks

    sys.exit(run_checks(as_json=as_json, address=address))
