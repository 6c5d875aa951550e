"""What the documentation says is what the tool does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.plan import make_plan
from queries.run import query_names
from scanner.cli import COMMANDS, main
from scanner.dryrun import SECONDS_PER_ANALYZER_SECOND, START_S
from scanner.results import SPAN, Status
from tests.docs import TARGET

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_commands_page_is_up_to_date():
    # A process of its own: click keeps the help option that a command was first called with, so a test that called
    # a command without its group would change the page.
    page = subprocess.run([sys.executable, "-m", "tests.docs", "--print"], capture_output=True, text=True, check=True)
    assert TARGET.read_text(encoding="utf-8") == page.stdout, "run `make docs`"


def test_every_option_in_the_documentation_exists():
    runner = CliRunner()
    known = "".join(runner.invoke(main, [name, "--help"]).output for name in COMMANDS)
    known += (ROOT / "Makefile").read_text()
    for page in PAGES:
        for command in re.findall(r"^\s*(?:\$ )?deepsweep (?:scan|query|doctor) .*$", page.read_text(), re.MULTILINE):
            for option in re.findall(r"(?<=\s)--[a-z][a-z-]+", command):
                assert option in known, (page.name, command)


def test_a_dry_run_reckons_with_the_speed_that_the_readme_tells():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = r"A dry run reckons with ([\d.]+) seconds of video a second on two\s+cores and (\d+) s for starting"
    ((speed, start),) = re.findall(told, readme)
    assert pytest.approx(float(speed), rel=0.05) == make_plan(2, 0).analyzers * SECONDS_PER_ANALYZER_SECOND
    assert float(start) == START_S


def test_the_results_page_names_every_status_query_and_column():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name in [*(status.value for status in Status), *(query.name for query in query_names()), *SPAN.names]:
        assert f"`{name}`" in text, name


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page.name, link)
