"""docs/cluster.md: every command line of deepsweep in it is one that deepsweep takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from scanner.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")


def command_lines() -> list[list[str]]:
    """The words of each `deepsweep ...` line in the page's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("deepsweep ")]


def test_the_page_shows_every_command_of_the_cluster():
    shown = {words[2] for words in command_lines() if words[1] == "cluster"}
    assert shown == {"up", "submit", "status", "logs", "down"}


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_a_command_line_of_the_page_is_taken(words):
    context, command, rest = click.Context(main, info_name="deepsweep"), main, words[1:]
    while isinstance(command, click.Group):
        command, rest = command.get_command(context, rest[0]), rest[1:]
        assert command is not None, words
    assert command.make_context(words[1], rest, parent=context).params
