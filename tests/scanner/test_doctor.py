"""`deepsweep doctor`: what is wrong is named with its fix, and the exit code says whether a scan can run."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
from click.testing import CliRunner

from cluster import preflight
from scanner import doctor
from scanner.cli import main
from scanner.doctor import CHECKS, run_checks
from scanner.errors import EXIT_OK, EXIT_PREFLIGHT

BESIDE = ("versions", "shared memory")  # what is judged of every node beside the checks that run on it


def test_this_machine_is_fit_for_a_scan():
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == EXIT_OK, result.output
    lines = result.output.splitlines()
    assert len(lines) == len(CHECKS) + len(BESIDE)
    assert all(line.startswith(("ok  ", "warn")) for line in lines)
    for name in (
        "python",
        "libraries",
        "codecs",
        "one cv2",
        "model",
        "child process",
        "gpu",
        "memory",
        "scratch",
        *BESIDE,
    ):
        assert any(line[6:].startswith(f"{name}: ") for line in lines), name


def one_check(monkeypatch, capsys, check) -> tuple[int, str]:
    monkeypatch.setattr(doctor, "CHECKS", (check,))
    code = run_checks(as_json=False)
    return code, capsys.readouterr().out.splitlines()[0]


@pytest.fixture
def installed(monkeypatch):
    """installed(name=version): what pip would say is installed of the packages that bring `cv2`; None: nothing."""

    def pretend(**versions: str | None) -> None:
        real = metadata.version
        names = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            if name not in names:
                return real(name)
            if names[name] is None:
                raise metadata.PackageNotFoundError(name)
            return str(names[name])

        monkeypatch.setattr(metadata, "version", version)

    return pretend


@pytest.mark.parametrize(
    ("versions", "wanted"),
    [
        ({"opencv_contrib_python": "4.11.0.86", "opencv_python_headless": "4.12.0.88"}, "4.11.0.86"),
        ({"opencv_contrib_python": "4.11.0.86", "opencv_python_headless": None}, "4.11.0.86"),
        (
            {
                "opencv_contrib_python": "4.11.0.86",
                "opencv_python_headless": "4.11.0.86",
                "opencv_python": "4.10.0.84",
            },
            "4.11.0.86",
        ),
    ],
)
def test_a_mix_of_two_cv2_is_named_with_the_command_that_mends_it(monkeypatch, capsys, installed, versions, wanted):
    installed(**versions)
    code, text = one_check(monkeypatch, capsys, doctor._one_cv2)
    assert code == EXIT_PREFLIGHT
    assert text.startswith("FAIL  one cv2: ")
    assert text.rstrip().endswith(f"pip install --force-reinstall --no-deps opencv-python-headless=={wanted}")
    assert all(version in text for version in versions.values() if version)


def test_two_packages_of_one_version_stop_nothing(monkeypatch, capsys, installed):
    installed(opencv_contrib_python="4.11.0.86", opencv_python_headless="4.11.0.86", opencv_python=None)
    code, text = one_check(monkeypatch, capsys, doctor._one_cv2)
    assert code == EXIT_OK
    # which of the two was installed last, this machine decides
    assert text.startswith("ok    one cv2: ") or "the one with windows was installed last" in text


def test_a_library_that_cannot_be_imported_is_a_finding_not_a_traceback(monkeypatch, capsys):
    def libraries():
        raise ImportError("libGL.so.1: cannot open shared object file")

    code, text = one_check(monkeypatch, capsys, libraries)
    assert code == EXIT_PREFLIGHT
    assert text == "FAIL  libraries: ImportError: libGL.so.1: cannot open shared object file"


def test_warnings_stop_nothing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "MIN_MEMORY_BYTES", 1 << 60)
    code, text = one_check(monkeypatch, capsys, doctor._memory)
    assert code == EXIT_OK and text.startswith("warn  memory: ")


def test_checks_as_json(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (doctor._python, doctor._memory))
    assert run_checks(as_json=True) == EXIT_OK
    found = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in found] == ["python", "memory", *BESIDE]
    assert all(check.keys() == {"name", "ok", "text", "warning"} for check in found)


def test_a_codec_that_is_missing_is_named_with_the_command_that_mends_it(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "missing_codecs", lambda: ("hevc",))
    code, text = one_check(monkeypatch, capsys, doctor._codecs)
    assert code == EXIT_PREFLIGHT
    assert text.startswith("FAIL  codecs: PyAV can't decode hevc") and "pip install" in text


def test_shared_memory_that_ray_does_not_fit_into_stops_a_scan(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", ())
    monkeypatch.setattr(preflight, "shared_memory", lambda: 64 << 20)
    assert run_checks(as_json=False) == EXIT_PREFLIGHT
    assert "FAIL  shared memory: /dev/shm has 64 MiB" in capsys.readouterr().out


def test_without_ray_the_doctor_says_so(monkeypatch, capsys, installed):
    installed(ray=None)
    code, text = one_check(monkeypatch, capsys, doctor._libraries)
    assert code == EXIT_PREFLIGHT and text.startswith("FAIL  libraries: PackageNotFoundError")


def test_an_address_where_no_cluster_answers_is_one_sentence():
    result = CliRunner().invoke(main, ["doctor", "--address", "127.0.0.1:1"])
    assert result.exit_code == EXIT_PREFLIGHT and "no Ray cluster answers at 127.0.0.1:1" in result.output
