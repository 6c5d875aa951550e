"""Settings: one list of options that --help, deepsweep.toml and the command line agree on, and what they refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from scanner.cli import scan
from scanner.config import CONFIG_FILE, ScanConfig, load_config_file, parse_size, spelling, value_type
from scanner.errors import EXIT_USAGE, UserError

FIELDS = dataclasses.fields(ScanConfig)
OPTIONS = [field for field in FIELDS if field.metadata["on_command_line"]]


def settings_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        ScanConfig(**load_config_file(path))
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


# --- one list of options --------------------------------------------------------------------------------


def test_every_option_is_in_the_help_with_its_words_and_default():
    text = " ".join(CliRunner().invoke(scan, ["--help"], terminal_width=200).output.split())
    for field in OPTIONS:
        assert f"--{spelling(field)}" in text
        assert " ".join(field.metadata["help"].split()) in text
        assert field.metadata["help"].endswith((".", "]"))
        if isinstance(field.default, float):
            assert f"[default: {field.default}]" in text
    assert "[default: 50GB]" in text


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_setting_may_stand_in_the_file_with_either_dash(tmp_path, field):
    kind = value_type(field)
    value: Any = {bool: True, str: "text", int: 7, float: 7.0}[kind]
    if field.name == "threshold":
        value = 0.25
    expected = (value,) if isinstance(field.default, tuple) else value
    written = {"True": "true"}.get(str(value), repr(value).replace("'", '"'))
    if isinstance(field.default, tuple):
        written = f"[{written}]"
    for key in (spelling(field), field.name):
        config = ScanConfig(**load_config_file(settings_file(tmp_path, f"[scan]\n{key} = {written}\n")))
        assert getattr(config, field.name) == expected


def test_values_keep_their_meaning(tmp_path):
    text = '[scan]\nfps = 12\nmax-video-size = "1.5GB"\ninclude = "*.mp4"\nscratch-size = 1000000\n'
    config = ScanConfig(**load_config_file(settings_file(tmp_path, text)))
    assert (config.fps, config.max_video_size, config.include) == (12.0, 3 << 29, ("*.mp4",))
    assert (config.scratch_size, isinstance(config.fps, float)) == (1_000_000, True)


def test_without_a_file_there_are_only_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config_file(None) == {}
    (tmp_path / CONFIG_FILE).write_text("[scan]\nfps = 20\n")
    assert load_config_file(None) == {"fps": 20.0}


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[scan]\nfsp = 5", "fsp"),
        ("[scan]\nfps = '15'", "fps: expected float"),
        ("[scan]\nfps = true", "fps: expected float"),
        ("[scan]\nlimit = 1.5", "limit: expected int"),
        ("[scan]\nlimit = true", "limit: expected int"),
        ("[scan]\nrescan = 1", "rescan: expected bool"),
        ("[scan]\nout = 5", "out: expected str"),
        ("[scan]\ninclude = [1]", "include: expected a list"),
        ("[scan]\nmax-video-size = '5 apples'", "max-video-size: '5 apples' is not a size"),
        ("[scan]\nmax-video-size = -5", "not a size"),
        ("[scan]\nfps = 0", "--fps must be from 1 to 60, not 0"),
        ("[scan]\nfps = nan", "--fps must be"),
        ("[scan]\nspan-seconds = 4", "--span-seconds must be from 5 to 300"),
        ("[scan]\nlimit = 0", "--limit must be at least 1, not 0"),
        ("[scan]\nmemory-limit = 0", "--memory-limit must be at least 1"),
        ("scan = 5", "must be a table"),
        ("[scan\nfps = 5", "not valid TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, said):
    path = settings_file(tmp_path, text)
    assert said in refused(path)


def test_an_unreadable_file_is_named(tmp_path):
    assert "gone.toml could not be read" in refused(tmp_path / "gone.toml")
    assert "could not be read" in refused(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"[scan]\nout = '\xfc'\n")
    assert "latin.toml could not be read" in refused(tmp_path / "latin.toml")


@given(st.sampled_from([f for f in OPTIONS if f.metadata["low"] is not None]), st.floats(-1e6, 1e6))
def test_ranges_hold_however_a_setting_arrives(field, value):
    low, high = field.metadata["low"], field.metadata["high"]
    number: Any = int(value) if value_type(field) is int else value
    if number >= low and (high is None or number <= high):
        assert getattr(ScanConfig(**{field.name: number}), field.name) == number
    else:
        with pytest.raises(UserError, match=f"--{spelling(field)} must be"):
            ScanConfig(**{field.name: number})


# --- sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1000", 1000),
        (0, 0),
        ("500MB", 500 << 20),
        ("20 GB", 20 << 30),
        ("1.5g", 3 << 29),
        ("2TiB", 2 << 40),
        ("8 k", 8192),
    ],
)
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MB", "-5", "5 apples", "1e9", "inf", "nan", "1,5GB", "9" * 400, True])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@given(st.integers(0, 1 << 20), st.sampled_from(["", "k", "M", "GB", "TiB"]))
def test_a_larger_number_is_a_larger_size(number, unit):
    assert parse_size(f"{number + 1}{unit}") > parse_size(f"{number}{unit}") >= number


# --- the digest -----------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "sources": ("a",), "out": "elsewhere", "include": ("*.mp4",), "exclude": ("*.mp4",), "limit": 3, "model": "m",
    "threshold": 0.9, "fps": 10.0, "clip_frames": 8, "span_seconds": 30.0, "thumbnails": 0, "max_video_size": 5,
    "max_video_seconds": 5.0, "span_timeout": 5.0, "memory_limit": 5, "scratch": "s", "scratch_size": 5,
    "address": "auto", "gpus": 1, "stall_minutes": 5.0, "retry_failed": True, "rescan": True, "fail_on_flag": True,
    "dry_run": True, "price_per_hour": 5.0, "webhook": "w", "quiet": True, "json": True,
}  # fmt: skip


def test_only_what_changes_scores_changes_the_digest():
    plain = ScanConfig().digest(16)
    changing = {name for name in OTHER if ScanConfig(**{name: OTHER[name]}).digest(16) != plain}
    assert OTHER.keys() == {field.name for field in FIELDS}
    assert changing == {"fps", "span_seconds"}
    assert ScanConfig().digest(8) != plain  # clips of another length, whether the model's own or asked for
    assert ScanConfig(clip_frames=16).digest(16) == plain


def test_the_record_keeps_the_settings_but_no_secret():
    config = ScanConfig(fps=10, webhook="https://example.org/?token=abc")
    assert config.record()["fps"] == 10
    assert "abc" not in str(config.record())


def test_settings_outside_the_table_are_named(tmp_path):
    assert "nothing reads fps" in refused(settings_file(tmp_path, "fps = 5\n[scan]\nlimit = 3\n"))
