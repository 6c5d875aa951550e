"""What several commands over RESULTS take in the same words: `--results`, `--queries`, and `-p key=value`."""

from __future__ import annotations

from pathlib import Path

import click

from queries.text import escape_controls
from scanner.errors import UserError

results_option = click.option(
    "--results",
    envvar="DEEPSWEEP_RESULTS",
    default="results",
    show_default=True,
    show_envvar=True,
    help="What `scan --out` wrote to: a folder or s3://bucket/prefix.",
)

queries_option = click.option(
    "--queries",
    "folders",
    type=click.Path(path_type=Path),
    metavar="DIR",
    multiple=True,
    envvar="DEEPSWEEP_QUERIES",
    show_envvar=True,
    help="A folder of your own .sql files, asked by name like the others; repeatable.",
)


def split_param(text: str) -> tuple[str, str]:
    """key=value in two. Raises UserError where it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"-p takes key=value, not {escape_controls(text)!r}.")
    return key, value
