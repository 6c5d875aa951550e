"""The command line: help without heavy imports, typos with a hint, errors as one sentence with their exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from scanner import cli
from scanner.cli import COMMANDS, main
from scanner.errors import EXIT_INTERRUPTED, EXIT_PREFLIGHT, EXIT_USAGE, UserError

ROOT = Path(__file__).parents[2]
HEAVY = ("ray", "torch", "duckdb", "mediapipe", "cv2", "decord", "av", "pyarrow", "boto3", "numpy")


def deepsweep(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="deepsweep")


# --- help -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command):
    script = f"""
import json, sys
sys.argv = ["deepsweep", *{[command] if command else []}, "--help"]
from scanner.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted(set({HEAVY!r}) & set(sys.modules))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    text, last = done.stdout.rstrip().rsplit("\n", 1)
    code, loaded = json.loads(last)
    assert code == 0
    assert "Usage: deepsweep" in text and "--help" in text
    # the list of commands shows the first line of each one's help: of queries, too
    assert loaded == [], f"--help waits for {loaded}"


def test_help_lists_the_commands_and_says_what_to_type_first():
    text = deepsweep("--help").output
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "deepsweep scan /archive --out results" in text
    assert deepsweep("-h").output == text


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help_and_every_option_words(command):
    loaded = main.get_command(click.Context(main), command)
    assert loaded is not None and loaded.help
    for parameter in loaded.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command} {parameter.name}"


def test_the_version_is_told():
    result = deepsweep("--version")
    assert result.exit_code == 0 and "deepsweep, version" in result.output


# --- typos ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("scann",), "Did you mean scan?"),
        (("doktor",), "Did you mean doctor?"),
        (("xyz",), "There are: " + ", ".join(COMMANDS)),
        (("scan", "--fp", "10", "videos"), "--fps"),
        (("scan", "--trumbnails", "1", "videos"), "--thumbnails"),
        (("scan", "--fps", "fast", "videos"), "'fast' is not a valid float"),
        (("scan", "--max-video-size", "5 apples", "videos"), "'5 apples' is not a size: write 500MB or 20GB"),
        (("scan", "--max-video-size", "9" * 400, "videos"), "is not a size"),
        (("scan", "--fps", "0", "videos"), "--fps must be from 1 to 60"),
        (("scan", "--config", "gone.toml", "videos"), "gone.toml could not be read"),
        (("scan",), "Name what to scan"),
        (("doctor", "now"), "unexpected extra argument"),
    ],
)
def test_a_wrong_word_is_a_usage_error_with_a_hint(tmp_path, monkeypatch, arguments, hint):
    monkeypatch.chdir(tmp_path)
    result = deepsweep(*arguments)
    assert result.exit_code == EXIT_USAGE
    assert hint in result.output
    assert "Traceback" not in result.output


def test_a_source_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = deepsweep("scan", str(tmp_path / "gone"))
    assert result.exit_code == EXIT_USAGE
    assert result.stderr.startswith("deepsweep: ") and str(tmp_path / "gone") in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert list(tmp_path.iterdir()) == []  # nothing was begun


# --- settings -------------------------------------------------------------------------------------------


@pytest.fixture
def scanned(monkeypatch, tmp_path) -> list:
    """The settings that a scan would have run with."""
    import scanner.scan

    configs: list = []
    monkeypatch.setattr(scanner.scan, "scan", lambda config: configs.append(config) or 0)
    monkeypatch.chdir(tmp_path)
    return configs


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(scanned, tmp_path):
    (tmp_path / "deepsweep.toml").write_text(
        "[scan]\nfps = 20\nspan-seconds = 30\nsources = ['a', 'b']\nexclude = ['*.ts']\nrescan = true\n"
    )
    assert deepsweep("scan", "--fps", "10", "--exclude", "*.mp4", "--exclude", "*.avi").exit_code == 0
    assert deepsweep("scan", "c").exit_code == 0
    first, second = scanned
    assert (first.fps, first.span_seconds, first.thumbnails, first.rescan) == (10.0, 30.0, 3, True)
    assert (first.sources, first.exclude) == (("a", "b"), ("*.mp4", "*.avi"))
    assert (second.fps, second.sources, second.exclude) == (20.0, ("c",), ("*.ts",))


def test_another_file_may_be_named(scanned, tmp_path):
    (tmp_path / "deepsweep.toml").write_text("[scan]\nfps = 20\n")
    (tmp_path / "other.toml").write_text("[scan]\nlimit = 4\n")
    assert deepsweep("scan", "videos", "--config", "other.toml", "--max-video-size", "2GB").exit_code == 0
    assert (scanned[0].limit, scanned[0].fps, scanned[0].max_video_size) == (4, 15.0, 2 << 30)


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("There is no bucket.", EXIT_PREFLIGHT), EXIT_PREFLIGHT, "deepsweep: There is no bucket.\n"),
        (UserError("Name it."), EXIT_USAGE, "deepsweep: Name it.\n"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "deepsweep: interrupted\n"),
    ],
)
def test_errors_for_people_have_no_traceback(monkeypatch, error, code, said):
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli, "doctor", failing)
    result = deepsweep("doctor")
    assert (result.exit_code, result.stderr, result.stdout) == (code, said, "")


def test_an_error_for_people_survives_the_way_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(UserError("gone", EXIT_PREFLIGHT)))
    assert (str(error), error.exit_code) == ("gone", EXIT_PREFLIGHT)
