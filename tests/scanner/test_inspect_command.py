"""`deepsweep inspect` as typed: the card, the files, exit codes, and names that would steer a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import pytest
from click.testing import CliRunner, Result

from scanner.cli import main
from scanner.errors import EXIT_FLAGGED, EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE
from tests.scanner.signals import zoo_path
from tests.scans import command, environment


def inspect(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """An inspection with everything there is, of a model that finds what it looks for, and what it printed."""
    out = tmp_path_factory.mktemp("evidence") / "talk.inspect"
    done = inspect(zoo_path("real_blinks.mp4"), "--out", out, "--overlay", "--threshold", "0.05", "--fail-on-flag")
    return done, out


def test_the_card_says_what_was_found_and_where(evidence: tuple[Result, Path]):
    done, out = evidence
    assert done.exit_code == EXIT_FLAGGED, done.output
    verdict = json.loads((out / "verdict.json").read_text())
    for words in (
        *("real_blinks.mp4", "FAKE", f"score {verdict['score']:.3f}", "fake from 0.050"),
        *("6, 30 a minute (people: 17 ± 10, Bentivoglio et al. 1997)", "moments that matter", "flagged"),
        *(f"irregularity {verdict['micro_irregularity']:.2f}", "1 at once, seen for 12.0 s of 12.0 s"),
    ):
        assert words in done.stdout, words
    assert done.stderr == ""  # no bar, and nothing of what libraries say, where stderr is no terminal


def test_a_terminal_shows_how_far_it_is_and_then_only_the_card(tmp_path: Path):
    shown, terminal = pty.openpty()
    process = subprocess.Popen(
        command("inspect", zoo_path("short.mp4")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=tmp_path,
        env=environment() | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    said = bytearray()
    with contextlib.suppress(OSError):  # which the end of a terminal is
        while chunk := os.read(shown, 4096):
            said += chunk
    os.close(shown)
    out, _ = process.communicate()
    assert process.returncode == EXIT_OK, said.decode()
    for words in ("Loading the model", "Following faces", "%"):
        assert words in said.decode(), said.decode()
    assert b"NOT JUDGED (too_short)" in out


def test_the_folder_holds_verdict_plots_pictures_and_the_video(evidence: tuple[Result, Path]):
    done, out = evidence
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert [name for name in names if "/" not in name] == [
        *("ear.png", "motion.png", "overlay.mp4", "score.png", "verdict.json")
    ]
    pictures = [name for name in names if name.startswith("gradcam/")]
    assert len(pictures) == 6 and sum(name.endswith("s_heat.jpg") for name in pictures) == 3
    assert all((out / name).read_bytes()[:3] == b"\xff\xd8\xff" for name in pictures)
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in names if name.endswith(".png"))
    with av.open(str(out / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 300
    assert "ear.png, score.png, motion.png, gradcam/ (6 pictures)" in done.stdout.replace("overlay.mp4, ", "")


def test_the_same_again_replaces_what_was_there(tmp_path: Path):
    out = tmp_path / "out"
    stale = out / "gradcam" / "01_face-9-9_1.00s_heat.jpg"
    stale.parent.mkdir(parents=True)
    for file in (stale, out / "score.png", out / "overlay.mp4", out / "verdict.json"):
        file.write_text("{}")
    done = inspect(zoo_path("no_face.mp4"), "--out", out, "--quiet")
    assert (done.exit_code, done.output) == (EXIT_OK, "")
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["verdict.json"]
    assert json.loads((out / "verdict.json").read_text())["status"] == "no_face"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("no_face.mp4", EXIT_OK, ("NOT JUDGED (no_face): no face in it", "may be very small")),
        ("short.mp4", EXIT_OK, ("NOT JUDGED (too_short)", "--clip-frames")),
        ("audio_only.mp4", EXIT_SOME_FAILED, ("NOT JUDGED (unsupported)", "there is no video stream in it")),
        ("empty.mp4", EXIT_SOME_FAILED, ("NOT JUDGED (decode_error)", "the file is empty (0 bytes)", "fetch it again")),
    ],
)
def test_a_video_that_was_not_judged_says_why_and_what_to_do(name: str, code: int, words: tuple[str, ...], tmp_path):
    done = inspect(zoo_path(name), "--out", tmp_path / "out")
    assert done.exit_code == code
    assert all(text in done.stdout for text in words), done.stdout


def test_an_overlay_of_what_can_t_be_read_is_a_sentence(tmp_path: Path):
    done = inspect(zoo_path("text.mp4"), "--out", tmp_path / "out", "--overlay")
    assert done.exit_code == EXIT_SOME_FAILED
    assert "no overlay video: the video could not be read (unsupported)" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["verdict.json"]


def test_json_is_the_verdict_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = inspect(zoo_path("short.mp4"), "--json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "short.inspect" / "verdict.json").read_text())


def test_names_don_t_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    hostile = tmp_path / "\x1b[2J\u202egpj [bold red]x.mp4"
    shutil.copy(zoo_path("no_face.mp4"), hostile)
    done = inspect(hostile.name)
    assert done.exit_code == EXIT_OK
    assert "\x1b" not in done.output and "\u202e" not in done.output
    assert r"\x1b[2J\u202egpj [bold red]x.mp4" in done.stdout
    assert (tmp_path / "_[2J_gpj [bold red]x.inspect" / "verdict.json").exists()


def test_settings_come_from_the_file_that_a_scan_reads_and_the_command_line_wins(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deepsweep.toml").write_text('[scan]\nfps = 10\nclip-frames = 4\nout = "/nowhere"\naddress = "auto"\n')
    done = inspect(zoo_path("short.mp4"), "--json", "--clip-frames", "6")
    settings: dict[str, Any] = json.loads(done.stdout)["settings"]
    assert settings == {"fps": 10.0, "clip_frames": 6, "span_seconds": 60.0}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tests",), "is a folder: name one video of it"),
        (("gone.mp4",), "does not exist"),
        (("tests/archive/broken/text.mp4", "--out", "LICENSE"), "LICENSE is a file"),
        (("tests/archive/broken/text.mp4", "--out", "tests"), "holds other files"),
        (("tests/archive/broken/text.mp4", "--fps", "0"), "--fps must be from 1 to 60"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    done = inspect(*arguments)
    assert done.exit_code == EXIT_USAGE
    assert sentence in done.stderr and done.stderr.count("\n") == 1
