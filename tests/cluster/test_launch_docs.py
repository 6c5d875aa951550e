"""docs/cluster.md: deepsweep takes every command line in it; docs/operations.md: its CronJob is one, and ends well."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import click
import pytest
import yaml

from scanner.cli import main
from tests.cluster.crd import check

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "cluster.md").read_text(encoding="utf-8")


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


#: A scan that takes until it is stopped, or ends at once like one of such videos.
SCAN = """#!/bin/sh
[ "$CODE" ] && exit "$CODE"
trap 'touch "$0.stopped"; exit 130' TERM
touch "$0.started"
while :; do sleep 0.05; done
"""


def nightly(folder: Path, **extra: str) -> subprocess.Popen[bytes]:
    """What the container of operations.md's CronJob runs, with a deepsweep that lies in this folder."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "operations.md").read_text(encoding="utf-8"), re.DOTALL)
    document = yaml.safe_load(block)
    check(document)
    (container,) = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    program = folder / "deepsweep"
    program.write_text(SCAN)
    program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen([*container["command"], *container["args"]], env={"PATH": path, **extra})


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (3, 0), (4, 1)])
def test_failed_videos_are_no_failed_night(code, seen, tmp_path):
    assert nightly(tmp_path, CODE=str(code)).wait(30) == seen


def test_a_pod_that_is_stopped_lets_its_scan_close_its_books(tmp_path):
    """SIGTERM goes to the shell alone, as Kubernetes sends it."""
    night = nightly(tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "deepsweep.started").exists():
        assert time.monotonic() < deadline and night.poll() is None
        time.sleep(0.02)
    night.send_signal(signal.SIGTERM)
    assert night.wait(30) == 130 and (tmp_path / "deepsweep.stopped").exists()
