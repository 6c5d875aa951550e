"""The wheel: everything deepsweep needs at run time is inside, and works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.zoo import ARCHIVE

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Folder with the built wheel installed, without its dependencies: those of this environment serve."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools leaves build/ behind, and would pack what an older build left there.
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", ":!tests", ":!docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), tracked):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("deepsweep-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert not [name for name in names if name.startswith("tests")]
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run(installed: Path, cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, installed / "bin" / "deepsweep", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_wheel_scans_and_answers_outside_the_checkout(installed, tmp_path):
    video = ARCHIVE / "formats" / "vp9.webm"
    scan = run(installed, tmp_path, "scan", video, "--out", "results")
    assert scan.returncode == 0, scan.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import scanner, queries, models, cluster; print(scanner.__file__, models.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(path.startswith(str(installed)) for path in where.split())
    query = run(installed, tmp_path, "query", "summary", "--results", "results", "--format", "csv")
    assert query.returncode == 0 and "ok" in query.stdout, query.stderr


def test_its_doctor_finds_the_model(installed, tmp_path):
    doctor = run(installed, tmp_path, "doctor", "--json")
    assert '"name": "model"' in doctor.stdout, doctor.stderr
