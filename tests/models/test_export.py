"""`deepsweep export`: other runtimes score as PyTorch does, and a file that does not is not left behind."""

from __future__ import annotations

import builtins
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from models import quantize
from models.export import ExportError, read_facts, save_onnx
from models.prepared import MARGIN, TRACK, TRACKS, FaceTrack, encode_crop, pack_landmarks
from models.quantize import split_recordings
from models.registry import load_spec, save_model
from models.scorer import ClipScorer
from models.spec import Architecture
from scanner.errors import UserError
from scanner.export import export
from tests.tiny_model import SPEC, synthetic_clip

RECORDINGS = 10


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic clips in the form of prepared data: a real and a fake face in each recording."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = []
    for seed in range(RECORDINGS):
        clip = synthetic_clip(seed)
        for label, frames in (("real", clip.real), ("fake", clip.fake)):
            rows.append(_row(f"{label}-{seed}.mp4", label, f"recording-{seed}", frames))
    (folder / TRACKS).mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=TRACK), folder / TRACKS / "part.parquet")
    return folder


def _row(uri: str, label: str, group: str, frames: np.ndarray) -> dict[str, object]:
    side = frames.shape[1]
    edge = round(side * (MARGIN / SPEC.crop_margin - 1) / 2)
    wide = [cv2.copyMakeBorder(frame, edge, edge, edge, edge, cv2.BORDER_REPLICATE) for frame in frames]
    return {
        "schema_version": 1,
        "uri": uri,
        "kind": "video",
        "status": "ok",
        "label": label,
        "source": "synthetic",
        "group": group,
        "face_id": 0,
        "t": [i / SPEC.clip_fps for i in range(len(wide))],
        "crops": [encode_crop(frame) for frame in wide],
        "landmarks": pack_landmarks(np.full((len(wide), 478, 2), 0.5)),
    }


@pytest.fixture(scope="module")
def exported(tiny_folder: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that one export went to, int8 kept whatever it costs, and what was printed."""
    out = tmp_path_factory.mktemp("exported") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "MAX_AUC_LOSS", 1.0)
        printed = run("--model", tiny_folder, "--out", out, "--calibrate", prepared)
    return out, printed


def run(*arguments: object) -> str:
    return CliRunner().invoke(export, [str(a) for a in arguments], catch_exceptions=False).output


def clips_of(count: int, steps: int) -> np.ndarray:
    """Real and fake ones in turn, from before the first frame where `steps` is more than a clip has."""
    pairs = [synthetic_clip(50 + seed) for seed in range(count)]
    clips = [(pair.fake if i % 2 else pair.real) for i, pair in enumerate(pairs)]
    return np.stack([clip[np.arange(steps) % len(clip)] for clip in clips])


def scored(file: Path, clips: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs = ["clip_probabilities", "frame_probabilities"]
    return session.run(outputs, {"frames": clips, "lengths": np.array(lengths, np.int64)})


@pytest.mark.parametrize(
    ("steps", "lengths"), [(8, [8]), (1, [1, 1]), (5, [5, 1, 3]), (12, [12, 4, 9, 1, 12, 7]), (8, [3, 3])]
)
def test_onnx_runtime_scores_as_pytorch_does(exported, tiny_scorer: ClipScorer, steps: int, lengths: list[int]):
    clips = clips_of(len(lengths), steps)
    for wanted, found in zip(
        tiny_scorer.score(clips, np.array(lengths)), scored(exported[0] / "model.onnx", clips, lengths), strict=True
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=0, equal_nan=True)


def test_padding_changes_nothing(exported):
    clips, lengths = clips_of(2, 8), [5, 8]
    noisy = clips.copy()
    noisy[0, 5:] = np.random.default_rng(0).integers(0, 256, noisy[0, 5:].shape)
    for one, other in zip(*(scored(exported[0] / "model.onnx", c, lengths) for c in (clips, noisy)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, equal_nan=True)


def test_both_files_say_what_they_are(exported, tiny_folder: Path):
    spec = load_spec(tiny_folder)
    for name in ("model.onnx", "model.int8.onnx"):
        facts = read_facts(exported[0] / name)
        assert facts == {
            "model": spec.name,
            "digest": spec.digest,
            "input_size": spec.input_size,
            "crop_margin": spec.crop_margin,
            "clip_fps": spec.clip_fps,
            "clip_frames": spec.clip_frames,
            "min_clip_frames": spec.min_clip_frames,
            "fusion": dict(spec.fusion),
            "thresholds": dict(spec.thresholds),
        }


def test_the_open_dimensions_have_names_and_no_path_is_left_inside(exported):
    model = onnx.load(str(exported[0] / "model.onnx"))
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "frames": ["clips", "frames", 96, 96, 3],
        "lengths": ["clips"],
        "frame_probabilities": ["clips", "frames"],
        "clip_probabilities": ["clips"],
    }
    data = model.SerializeToString()
    assert b".py" not in data and str(Path.cwd()).encode() not in data


def test_the_example_of_the_readme_runs(exported, monkeypatch: pytest.MonkeyPatch):
    (code,) = re.findall(r"```python\n(.*?)```", (exported[0] / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(exported[0])
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    assert names["frame_probabilities"].shape == (1, 8) and names["clip_probabilities"].shape == (1,)


def test_the_figures_of_the_checks_are_printed(exported):
    out, printed = exported
    assert printed.startswith(f"{out / 'model.onnx'} (")
    differences = [float(d) for d in re.findall(r"N = \d+, T = \d+: (\S+)", printed)]
    assert len(differences) == 5 and max(differences) < 1e-3
    last = printed.splitlines()[-1]
    assert last.startswith(f"{out / 'model.int8.onnx'} (")
    assert f"({8 * RECORDINGS} frames of {RECORDINGS} faces that calibration did not see)" in last
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "model.int8.onnx",
        "model.onnx",
    ]  # no remains of writing


def test_int8_is_smaller_and_still_scores(exported, tiny_scorer: ClipScorer):
    out, _ = exported
    small, large = ((out / name).stat().st_size for name in ("model.int8.onnx", "model.onnx"))
    assert small < 0.6 * large
    filters = [
        i for i in onnx.load(str(out / "model.int8.onnx")).graph.initializer if len(i.dims) == 4 and i.dims[0] > 1
    ]
    assert {i.data_type for i in filters} == {onnx.TensorProto.INT8}
    clips, lengths = clips_of(8, 8), [8] * 8
    _, wanted = tiny_scorer.score(clips, np.array(lengths))
    _, found = scored(out / "model.int8.onnx", clips, lengths)
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.8


def test_int8_that_loses_too_much_is_not_kept(exported, tiny_folder, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "MAX_AUC_LOSS", -1.0)
    (tmp_path / "model.int8.onnx").write_bytes(b"of an earlier export")
    result = quantize.quantize(load_spec(tiny_folder), exported[0] / "model.onnx", prepared, tmp_path)
    assert not result.kept and result.auc_float > 0.7
    assert not any(tmp_path.iterdir())


def test_a_graph_that_scores_otherwise_is_not_written(exported, tiny_folder: Path, tmp_path: Path):
    model = onnx.load(str(exported[0] / "model.onnx"))
    bias = next(i for i in model.graph.initializer if i.name.endswith("frame_head.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 20, bias.name))
    with pytest.raises(ExportError, match=r"away from PyTorch in ONNX Runtime \(0\.001 is allowed\)"):
        save_onnx(model, load_spec(tiny_folder), tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_another_backbone_with_two_lstm_layers(tmp_path: Path):
    import torch

    from models.network import ClipNet

    architecture = Architecture(backbone="meso4", lstm_hidden=24, lstm_layers=2)
    torch.manual_seed(0)
    save_model(
        tmp_path / "model", ClipNet(architecture).eval(), replace(SPEC, architecture=architecture, input_size=256)
    )
    assert "N = 2, T = 12: " in run("--model", tmp_path / "model", "--out", tmp_path / "out")


def test_an_untrained_model_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="untrained"):
        run("--model", "untrained", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_with_the_fix(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without_onnx(name: str, *rest, **more):
        if name.partition(".")[0] == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'")
        return real(name, *rest, **more)

    monkeypatch.delitem(__import__("sys").modules, "onnx")
    monkeypatch.setattr("importlib.import_module", without_onnx)
    with pytest.raises(UserError, match=r"No module named 'onnx'\): pip install deepsweep\[export\]"):
        run("--model", tiny_folder, "--out", tmp_path / "out")


def test_data_that_was_not_prepared_is_a_sentence(exported, tiny_folder: Path, tmp_path: Path):
    from models.prepared import PrepError

    with pytest.raises(PrepError, match="deepsweep prepare"):
        quantize.quantize(load_spec(tiny_folder), exported[0] / "model.onnx", tmp_path, tmp_path)


# --- halves -------------------------------------------------------------------------------------------------------


def track(index: int, label: str, group: str) -> FaceTrack:
    return FaceTrack(f"{index}.mp4", "video", label, None, "s", group, 0, np.zeros(1), [b""], np.zeros((1, 478, 2)))


@given(st.lists(st.tuples(st.sampled_from(["real", "fake"]), st.sampled_from("abcdef")), max_size=30))
def test_no_recording_is_in_both_halves(drawn: list[tuple[str, str]]):
    tracks = [track(i, label, group) for i, (label, group) in enumerate(drawn)]
    try:
        calibration, evaluation = split_recordings(tracks)
    except ExportError:
        groups_of = {label: {t.group for t in tracks if t.label == label} for label in ("real", "fake")}
        assert not all(groups_of.values()) or len(groups_of["real"] | groups_of["fake"]) <= 3
        return
    assert sorted(t.uri for t in (*calibration, *evaluation)) == sorted(t.uri for t in tracks)
    assert not {t.group for t in calibration} & {t.group for t in evaluation}
    assert calibration and {t.label for t in evaluation} == {"real", "fake"}
