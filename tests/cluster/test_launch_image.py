"""The Dockerfile: no daemon builds it here, so its instructions are read, and what is plain shell in them is run."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster.kubernetes import USER

ROOT = Path(__file__).parents[2]
TARGETS = ("cpu", "cuda")
Instruction = tuple[str, str]  # (name in capitals, the rest)


def instructions() -> list[Instruction]:
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line)]


def stages() -> dict[str, list[Instruction]]:
    """Each stage's instructions, those of the stage it starts from first."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            found[name] = list(found.get(image, []))
        elif name:
            found[name].append((word, rest))
    return found


def of(target: str, word: str) -> list[str]:
    return [rest for name, rest in stages()[target] if name == word]


def test_images_come_from_pinned_ones_and_nothing_is_fetched_by_address():
    arguments = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    images = [rest.split(" AS ")[0] for word, rest in instructions() if word == "FROM"]
    for image in images:
        name, _, tag = image.replace("${PYTHON}", arguments["PYTHON"]).partition(":")
        assert image in stages() or (tag and "latest" not in tag), name
    python = ".".join(arguments["PYTHON"].split(".")[:2])
    assert f"Python {python}," in (ROOT / "constraints.txt").read_text().splitlines()[0], "the versions that are tested"
    assert "ADD" not in {word for word, _ in instructions()}
    assert "://" not in str(instructions()), "no address is built in"


@pytest.mark.parametrize("target", TARGETS)
def test_a_node_is_no_root_and_says_when_it_is_ill(target):
    assert of(target, "USER")[-1] == f"{USER}:{USER}", "by number: Kubernetes can't look a name up"
    assert f"--uid {USER} " in str(of(target, "RUN"))
    names = [word for word, _ in stages()[target]]
    assert "RUN" not in names[names.index("USER") :], "nothing changes the image after that"
    (check,) = of(target, "HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["deepsweep", "doctor"]
    assert "HOME=/home/deepsweep" in str(of(target, "ENV")), "`ray up` looks for it"
    assert not of(target, "EXPOSE") and not of(target, "ENTRYPOINT"), "KubeRay brings its own command"


@pytest.mark.parametrize("target", TARGETS)
def test_everything_is_installed_in_the_versions_that_are_tested(target):
    installs = [
        shlex.split(part) for run in of(target, "RUN") for part in re.split(r"&&|;", run) if "pip install" in part
    ]
    for words in installs:
        assert words[words.index("-c") + 1].endswith("/constraints.txt"), words
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    headless = ["--force-reinstall", "--no-deps", "opencv-python-headless"]
    assert installs[-1][-3:] == headless and " ".join(headless) in makefile, "the cv2 without libGL comes last"
    assert "libgl" not in str(of(target, "RUN")).lower()
    assert not any(word in str(of(target, "CMD")) for word in ("pip", "wget", "curl")), "no downloads at run time"


def test_the_targets_differ_in_torch_only():
    common = [run for run in of("cpu", "RUN") if run in of("cuda", "RUN")]
    (extra,) = [run for run in of("cpu", "RUN") if run not in common]
    assert common == of("cuda", "RUN") and "torch" in extra
    assert "NVIDIA_VISIBLE_DEVICES" in str(of("cuda", "ENV")) and "NVIDIA" not in str(of("cpu", "ENV"))


def test_its_shell_is_shell(tmp_path):
    for run in {run for target in stages() for run in of(target, "RUN")}:
        subprocess.run(["bash", "-n", "-c", run], check=True)
    (extra,) = [run for run in of("cpu", "RUN") if "CPU_TORCH_INDEX" in run]
    quiet = subprocess.run(["bash", "-c", extra], env={"CPU_TORCH_INDEX": ""}, check=False)
    assert quiet.returncode == 0, "without an index the step does nothing"


def test_the_build_context_makes_the_whole_wheel(tmp_path):
    context = tmp_path / "context"
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and _sent(name):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_bytes(path.read_bytes())
    assert not (context / "tests").exists() and not (context / ".git").exists()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, context], check=True)
    (wheel,) = tmp_path.glob("deepsweep-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"cluster/kubernetes.py", "models/weights/sweep4/model.safetensors", "queries/sql/views.sql"} <= names


def _sent(name: str) -> bool:
    """Whether .dockerignore lets a file into the build: the last rule that matches it or a folder above it counts."""
    kept = True
    folders = [name, *(parent.as_posix() for parent in Path(name).parents if parent.as_posix() != ".")]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.removeprefix("!").strip()
        if not rule or rule.startswith("#"):
            continue
        if any(_matches(folder, rule) for folder in folders):
            kept = line.startswith("!")
    return kept


def _matches(name: str, rule: str) -> bool:
    if rule.startswith("**/"):
        return fnmatch.fnmatchcase(Path(name).name, rule.removeprefix("**/"))
    return "/" not in name and fnmatch.fnmatchcase(name, rule)
