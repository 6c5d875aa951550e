"""Models from strangers: what is accepted, what is refused and how, and that a digest tells models apart."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.network import ClipNet
from models.registry import (
    DEFAULT_MODEL,
    WEIGHTS,
    ModelError,
    built_in,
    load_features,
    load_network,
    load_spec,
    read_weights,
    save_model,
)
from models.spec import Architecture, ModelSpec, parse_spec, spec_json

SMALL = Architecture(width_mult=0.25, lstm_hidden=8)
SPEC = ModelSpec(name="small", trained=True, architecture=SMALL, input_size=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_model(tmp_path / "model", ClipNet(SMALL), SPEC)
    return tmp_path / "model"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_weights(folder: Path, data: bytes) -> None:
    """Other weights under a digest that is right for them: what a stranger with a text editor can do."""
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, weights={"file": "model.safetensors", "sha256": hashlib.sha256(data).hexdigest()})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_the_default_model_is_installed_trained_and_small():
    assert DEFAULT_MODEL in built_in()
    spec = load_spec(DEFAULT_MODEL)
    assert (spec.label, spec.trained, spec.directory) == (DEFAULT_MODEL, True, None)
    assert len(read_weights(spec) or b"") < 10 * 2**20
    assert (WEIGHTS / DEFAULT_MODEL / "CARD.md").is_file()


def test_the_untrained_model_says_so():
    spec = load_spec("untrained")
    assert (spec.label, spec.trained, spec.weights, spec.directory) == ("untrained", False, None, None)


def test_an_untrained_model_is_called_untrained_whatever_its_name(folder: Path):
    edit(folder, trained=False, name="state-of-the-art")
    assert load_spec(folder).label == "untrained"


def test_the_untrained_network_is_the_same_every_time_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = (load_network(load_spec("untrained")).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_reading_a_spec_does_not_import_torch(folder: Path):
    code = (
        "import sys; from models.registry import load_spec; load_spec('untrained'); load_spec(sys.argv[1]);"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=root, timeout=60, check=False)
    assert done.returncode == 0


def test_a_saved_model_comes_back(folder: Path):
    network = ClipNet(SMALL).eval()
    with torch.no_grad():
        network.frame_head.weight.fill_(0.25)
    saved = save_model(folder, network, SPEC)
    assert load_spec(folder) == saved
    assert pickle.loads(pickle.dumps(saved)) == saved  # Ray sends specs to its actors
    loaded = load_network(saved)
    assert not loaded.training
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[key], rtol=1e-3, atol=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_a_network_is_not_saved_under_another_architecture(tmp_path: Path):
    with pytest.raises(ModelError, match="width_mult"):
        save_model(tmp_path, ClipNet(SMALL), replace(SPEC, architecture=Architecture()))


def test_the_digest_changes_with_the_settings_and_with_the_weights_but_not_with_spacing(folder: Path):
    before = load_spec(folder).digest
    edit(folder)
    assert load_spec(folder).digest == before
    edit(folder, clip_fps=6.0)
    edited = load_spec(folder).digest
    weights = tensors(folder)
    weights["clip_head.bias"] += 1
    replace_weights(folder, safetensors.torch.save(weights))
    assert len({before, edited, load_spec(folder).digest}) == 3


def test_a_flipped_byte_is_noticed(folder: Path):
    path = folder / "model.safetensors"
    spec = load_spec(folder)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    for use in (lambda: load_spec(folder), lambda: load_network(spec)):
        with pytest.raises(ModelError, match="SHA-256 differs"):
            use()


def a_pickle(weights: dict[str, torch.Tensor]) -> bytes:
    return pickle.dumps({key: value.numpy() for key, value in weights.items()})


def truncated(weights: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save(weights)[:-1000]


@pytest.mark.parametrize("make", [a_pickle, truncated, lambda weights: b"", lambda weights: b"\xff" * 64])
def test_what_is_not_safetensors_is_refused_before_anything_is_loaded(folder: Path, make: Callable[..., bytes]):
    replace_weights(folder, make(tensors(folder)))
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_spec(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("clip_head.bias"), "lack clip_head.bias"),
        (lambda w: w.update(surprise=torch.zeros(2)), "surprise"),
        (lambda w: w.update({"clip_head.bias": torch.zeros(2)}), r"clip_head.bias is \[2\], not \[1\]"),
        (lambda w: w.update({"clip_head.bias": torch.tensor([1])}), "int64"),
        (lambda w: w.update({"clip_head.bias": torch.tensor([torch.nan])}), "clip_head.bias holds numbers"),
        (lambda w: w["features.0.1.running_var"].sub_(1e3), "running_var holds numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, change: Callable[[dict], Any], complaint: str):
    weights = tensors(folder)
    change(weights)
    replace_weights(folder, safetensors.torch.save(weights))
    spec = load_spec(folder)
    with pytest.raises(ModelError, match=complaint):
        load_network(spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_size": 100_000},
        {"input_size": 192.0},
        {"input_size": True},
        {"clip_frames": 10**9},
        {"clip_frames": 10**400},
        {"min_clip_frames": 17},
        {"min_clip_frames": 0},
        {"clip_fps": 0},
        {"clip_fps": float("nan")},
        {"crop_margin": float("inf")},
        {"crop_margin": "1.4"},
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, 0.5, None]},
        {"std": [0.5, 0.5, 0.0]},
        {"name": "../untrained"},
        {"name": "<script>"},
        {"name": "untrained"},
        {"name": ""},
        {"trained": "true"},
        {"format": 2},
        {"surprise": 1},
        {"weights": None},
        {"weights": None, "seed": 0},
        {"seed": 0},
        {"weights": {"file": "../model/model.safetensors", "sha256": "0" * 64}},
        {"weights": {"file": "/etc/passwd", "sha256": "0" * 64}},
        {"weights": {"file": "weights.pt", "sha256": "0" * 64}},
        {"weights": {"file": "missing.safetensors", "sha256": "0" * 64}},
        {"weights": {"file": "model.safetensors", "sha256": "none"}},
        {"weights": {"file": "model.safetensors"}},
        {"architecture": {"backbone": "os.system", "width_mult": 1, "lstm_hidden": 8, "lstm_layers": 1}},
        {"architecture": {"backbone": "mobilenet_v2", "width_mult": 99, "lstm_hidden": 8, "lstm_layers": 1}},
        {"architecture": {"backbone": "mobilenet_v2"}},
        {"architecture": []},
        {"fusion": {}},
        {"thresholds": {"fake": 0.2, "real": 0.8}},
        {"thresholds": {"fake": 1.5, "real": 0.8}},
    ],
    ids=str,
)
def test_a_hostile_model_json_is_refused_in_one_sentence(folder: Path, changes: dict[str, Any]):
    edit(folder, **changes)
    with pytest.raises(ModelError) as caught:
        load_spec(folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe\xfd",
        b"[" * 60_000,
        b'{"format": 1' + b"0" * 6000 + b"}",
        b'{"format": 1, "format": 1}',
        b" " * 70_000,
    ],
    ids=lambda text: str(text[:20]),
)
def test_what_is_not_a_json_object_is_refused(folder: Path, text: bytes):
    (folder / "model.json").write_bytes(text)
    with pytest.raises(ModelError):
        load_spec(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted(json.loads(spec_json(SPEC)))


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), JSON, max_size=3))
def test_any_model_json_is_either_refused_or_sane(changes: dict[str, Any]):
    text = json.dumps({**json.loads(spec_json(load_spec("untrained"))), **changes})
    try:
        spec = parse_spec(text)
    except ModelError:
        return
    assert 1 <= spec.min_clip_frames <= spec.clip_frames <= 128
    assert 32 <= spec.input_size <= 512
    assert np.isfinite([*spec.mean, *spec.std, *spec.fusion.values(), spec.crop_margin, spec.clip_fps]).all()
    assert parse_spec(spec_json(spec)) == spec


@pytest.mark.parametrize("name", ["no-such-model", "../untrained", "", "untrained/model.json"])
def test_an_unknown_model_is_answered_with_the_known_ones(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="untrained"):
        load_spec(name)


def test_a_pipe_in_place_of_model_json_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "model.json")
    with pytest.raises(ModelError, match="not a file"):
        load_spec(tmp_path)


def test_convolutions_without_instance_norms_start_a_network_with_them(tmp_path: Path):
    plain = ClipNet(replace(SMALL, backbone="mobilenet_v2")).features.state_dict(prefix="features.")
    path = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(plain, path)
    spec = ModelSpec("x", trained=False, architecture=replace(SMALL, backbone="mobilenet_v2_ibn"), seed=0)
    network = load_features(spec, path)
    state = network.features.state_dict(prefix="features.")
    assert all(torch.equal(state[key], value) for key, value in plain.items())
    style = [key for key in state if key not in plain]
    assert style and not any(torch.equal(state[key], torch.ones_like(state[key])) for key in style)

    safetensors.torch.save_file(state, path)
    again = load_features(spec, path).features.state_dict(prefix="features.")
    assert all(torch.equal(again[key], value) for key, value in state.items())
    safetensors.torch.save_file({key: value for key, value in state.items() if key != style[0]}, path)
    with pytest.raises(ModelError, match="convolutions of a mobilenet_v2_ibn"):
        load_features(spec, path)
