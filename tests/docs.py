"""Writes docs/commands.md from the commands' own help: `make docs`; with --print, only shows it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from scanner.cli import COMMANDS, main

TARGET = Path(__file__).parents[1] / "docs" / "commands.md"
WIDTH = 100

HEADER = """# Commands

Written by `make docs` from the commands themselves.
"""


def commands_page() -> str:
    """The page: `--help` of deepsweep and of each command."""
    settings = main.context_settings | {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(main, info_name="deepsweep", **settings)
    parts = [HEADER, _block("deepsweep", main.get_help(context))]
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None, name
        inner = click.Context(command, info_name=name, parent=context, terminal_width=WIDTH, max_content_width=WIDTH)
        parts.append(_block(f"deepsweep {name}", command.get_help(inner)))
    return "\n".join(parts)


def _block(title: str, text: str) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join([f"## `{title}`", "", "```text", *lines, "```", ""])


if __name__ == "__main__":
    if "--print" in sys.argv:
        print(commands_page(), end="")
    else:
        TARGET.write_text(commands_page(), encoding="utf-8")
