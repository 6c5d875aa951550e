"""The golden self-test: it passes where scores are what they were, and says so where they are not."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import registry
from models.golden import GOLDEN_FILE, TOLERANCE, check_golden, golden_clip, write_golden
from models.registry import built_in, load_network, load_spec, save_model
from models.spec import ModelError, ModelSpec
from scanner import doctor
from scanner.doctor import run_checks
from scanner.errors import EXIT_OK, EXIT_PREFLIGHT

NAME = "golden-test-model"


@pytest.fixture(scope="module")
def golden(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model with its golden.json."""
    folder = tmp_path_factory.mktemp("golden")
    save_model(folder, load_network(load_spec(tiny_folder)), replace(load_spec(tiny_folder), name=NAME))
    assert write_golden(load_spec(folder)) == folder / GOLDEN_FILE
    return folder


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / NAME))


def edit(folder: Path, **changes: object) -> None:
    path = folder / GOLDEN_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shift_one_weight(folder: Path) -> ModelSpec:
    """The model with one bias of its frame head a little higher."""
    spec = load_spec(folder)
    network = load_network(spec)
    with torch.no_grad():
        network.frame_head.bias += 0.05
    return save_model(folder, network, spec)


@pytest.mark.parametrize("name", [name for name in built_in() if load_spec(name).trained])
def test_built_in_models_score_as_they_did(name: str):
    result = check_golden(load_spec(name))
    assert result.passed, result


def test_an_unchanged_model_passes(golden: Path):
    result = check_golden(load_spec(golden))
    assert result.passed and result.max_difference < 1e-5
    assert result.made_with["torch"] == torch.__version__


def test_one_weight_that_is_a_little_off_fails(copy: Path):
    result = check_golden(shift_one_weight(copy))
    assert not result.passed and TOLERANCE < result.max_difference < 0.1


def test_new_thresholds_need_no_new_golden_file(copy: Path):
    spec = load_spec(copy)
    saved = save_model(copy, load_network(spec), replace(spec, thresholds={"fake": 0.9, "real": 0.1}))
    assert saved.digest != spec.digest and check_golden(saved).passed


def test_its_clips_are_not_ones_that_the_model_is_sure_of(golden: Path):
    stored = json.loads((golden / GOLDEN_FILE).read_text())
    scores = np.concatenate([stored["clips"], *stored["frames"]])
    assert ((scores > 0.01) & (scores < 0.99)).mean() > 0.5


def test_an_untrained_model_has_no_scores_to_store():
    with pytest.raises(ModelError, match="untrained"):
        write_golden(load_spec("untrained"))


def test_a_model_without_the_file_says_so(copy: Path):
    (copy / GOLDEN_FILE).unlink()
    with pytest.raises(ModelError, match=r"has no golden\.json"):
        check_golden(load_spec(copy))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"clips": [0.5]},
        {"clips": [0.5, None]},
        {"frames": None},
        {"inputs": {"seeds": [0, 1], "lengths": [8, 9], "sha256": ""}},
        {"inputs": {"seeds": list(range(10**4)), "lengths": [8] * 10**4, "sha256": ""}},
        {"made_with": []},
    ],
)
def test_a_file_of_another_form_is_refused(copy: Path, changes: dict[str, object]):
    edit(copy, **changes)
    with pytest.raises(ModelError, match="not a usable golden file"):
        check_golden(load_spec(copy))


def test_a_file_made_for_other_pictures_is_refused(copy: Path):
    edit(copy, inputs={"seeds": [0, 1], "lengths": [8, 6], "sha256": "0" * 64})
    with pytest.raises(ModelError, match="other pictures"):
        check_golden(load_spec(copy))


def test_clips_are_drawn_the_same_everywhere():
    digests = [hashlib.sha256(golden_clip(seed, size).tobytes()).hexdigest()[:16] for seed, size in ((0, 96), (7, 192))]
    assert digests == ["f4251d32d043508a", "a0aea4d2fd0f9e9c"]


@given(seed=st.integers(0, 2**40), size=st.integers(32, 80), frames=st.integers(1, 3))
def test_any_clip_is_a_picture(seed: int, size: int, frames: int):
    clip = golden_clip(seed, size, frames)
    assert clip.shape == (frames, size, size, 3) and clip.dtype == np.uint8
    assert 20 < clip.mean() < 235 and clip.std() > 8


# --- deepsweep doctor ---------------------------------------------------------------------------------------------


@pytest.fixture
def as_default(monkeypatch: pytest.MonkeyPatch, copy: Path):
    """The model as the built-in default, as if it had been installed with deepsweep."""
    monkeypatch.setattr(registry, "WEIGHTS", copy.parent)
    monkeypatch.setattr("models.golden.WEIGHTS", copy.parent)
    monkeypatch.setattr(registry, "DEFAULT_MODEL", NAME)
    monkeypatch.setattr(doctor, "CHECKS", (doctor._golden_scores,))
    return copy


def first_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[0]


def test_doctor_has_nothing_to_compare_for_an_untrained_model(monkeypatch, capsys):
    monkeypatch.setattr(registry, "DEFAULT_MODEL", "untrained")
    monkeypatch.setattr(doctor, "CHECKS", (doctor._golden_scores,))
    assert run_checks(as_json=False) == EXIT_OK
    assert first_line(capsys) == "ok    golden scores: an untrained model has none"


def test_doctor_compares_the_scores_of_the_default_model(as_default: Path, capsys):
    assert run_checks(as_json=False) == EXIT_OK
    assert first_line(capsys).startswith(f"ok    golden scores: {NAME} scores as it did (within ")


def test_doctor_names_the_versions_that_scores_were_made_with(as_default: Path, capsys):
    edit(as_default, made_with={"torch": "2.5.1+cpu", "numpy": np.__version__})
    shift_one_weight(as_default)
    assert run_checks(as_json=False) == EXIT_PREFLIGHT
    line = first_line(capsys)
    assert line.startswith("FAIL  golden scores: ")
    assert line.endswith(": mend it with pip install torch==2.5.1")


def test_doctor_says_what_to_do_where_versions_are_the_same(as_default: Path, capsys):
    shift_one_weight(as_default)
    assert run_checks(as_json=False) == EXIT_PREFLIGHT
    assert first_line(capsys).endswith(": install deepsweep again")
