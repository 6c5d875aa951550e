"""A trained model as ONNX, checked against PyTorch, with what another runtime must know to feed it."""

from __future__ import annotations

import contextlib
import importlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from models.folding import fold_batch_norms
from models.golden import golden_clip
from models.network import ClipNet
from models.registry import load_network
from models.scorer import ClipScorer
from models.spec import ModelError, ModelSpec

if TYPE_CHECKING:
    from onnx import ModelProto

ONNX_FILE = "model.onnx"
README_FILE = "README.md"
OPSET = 18  # what torch's exporter writes without conversion; ONNX Runtime since 1.14 (2023) reads it
TOLERANCE = 1e-3  # of a probability, between ONNX Runtime and PyTorch
INPUTS = ("frames", "lengths")
OUTPUTS = ("frame_probabilities", "clip_probabilities")
_PREFIX = "deepsweep."  # of the keys in metadata_props


class ExportError(ModelError):
    """A model that was not exported. `str(error)` is one sentence for people."""


@dataclass(frozen=True)
class Comparison:
    """How far ONNX Runtime's probabilities are from PyTorch's, for one shape of input."""

    clips: int
    frames: int
    difference: float


def export_onnx(spec: ModelSpec, out: Path) -> list[Comparison]:
    """Write model.onnx and README.md to `out`, and return what the comparison with PyTorch gave.

    The graph takes what a camera or a decoder gives; scaling and normalisation happen inside it:
      frames               (N, T, S, S, 3) uint8 RGB: N clips of up to T face crops, S the model's input size
      lengths              (N,) int64, 1..T: frames from there on are padding, of any content
      frame_probabilities  (N, T) float32, NaN beyond a clip's length
      clip_probabilities   (N,) float32
    N and T may differ from call to call. Its metadata_props hold what else there is to know (see `model_facts`).

    model.onnx appears in one step, once its probabilities are within TOLERANCE of ClipScorer's.
    Raises ExportError for an untrained model, where a package is missing, and where the two don't agree.
    """
    if not spec.trained:
        raise ExportError(f"Model {spec.name!r} is untrained: its scores mean nothing, so it is not exported.")
    require("onnx", "onnxruntime", "onnxscript")
    comparisons = save_onnx(_to_onnx(spec), spec, out / ONNX_FILE)
    put(out / README_FILE, readme(spec).encode())
    return comparisons


def save_onnx(model: ModelProto, spec: ModelSpec, path: Path) -> list[Comparison]:
    """Write the graph of `spec` with its facts, if it gives the probabilities that PyTorch does; else ExportError."""
    set_facts(model, spec)
    data = model.SerializeToString()
    comparisons = compare(data, spec)
    worst = max(comparisons, key=lambda comparison: comparison.difference)
    if not worst.difference <= TOLERANCE:
        raise ExportError(
            f"Model {spec.name!r} was not exported: {worst.clips} clips of {worst.frames} frames score "
            f"{worst.difference:.2g} away from PyTorch in ONNX Runtime ({TOLERANCE:g} is allowed)."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, data)
    return comparisons


def require(*packages: str) -> None:
    """Raises ExportError with the fix where one of the packages cannot be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(
                f"ONNX needs packages that are missing ({error}): pip install deepsweep[export]"
            ) from None


def put(path: Path, data: bytes) -> None:
    """Write a file in one step."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


# --- the graph ----------------------------------------------------------------------------------------------------


class _Graph(nn.Module):
    """From crops to probabilities, as ClipScorer computes them."""

    def __init__(self, network: ClipNet, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("mean", torch.tensor(spec.mean).mul(255.0).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(spec.std).mul(255.0).reciprocal().view(1, 3, 1, 1))

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
        pooled = self.network.pool(self.network.features((pixels - self.mean) * self.scale))
        frame_logits, clip_logits = self.network.heads(pooled.unflatten(0, frames.shape[:2]), lengths)
        real = torch.arange(frames.shape[1]) < lengths[:, None]
        return torch.where(real, frame_logits.sigmoid(), torch.nan), clip_logits.sigmoid()


class _OnnxLstm(nn.Module):
    """An nn.LSTM as ONNX's own operator. torch.export would unroll it, for one number of frames."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.hidden = lstm.hidden_size
        self.layers = lstm.num_layers
        for layer in range(lstm.num_layers):
            w, r, b_w, b_r = (
                _gates_reordered(getattr(lstm, f"{name}_l{layer}").detach())
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            for name, value in (("w", w), ("r", r), ("b", torch.cat([b_w, b_r]))):
                self.register_buffer(f"{name}{layer}", value[None])  # in front: ONNX's directions

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(N, T, C) to (N, T, hidden), and None where nn.LSTM gives its last state."""
        sequence = inputs.transpose(0, 1)
        for layer in range(self.layers):
            w, r, b = (getattr(self, f"{name}{layer}") for name in ("w", "r", "b"))
            outputs = _lstm_operator(sequence, w, r, b, self.hidden)
            sequence = outputs.squeeze(1)
        return sequence.transpose(0, 1), None


@torch.compiler.allow_in_graph
def _lstm_operator(
    sequence: torch.Tensor, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor, hidden: int
) -> torch.Tensor:
    """ONNX's LSTM, to be exported and not to be run: (T, N, C) to (T, 1, N, hidden)."""
    steps, clips = sequence.shape[:2]
    return torch.onnx.ops.symbolic(
        "LSTM",
        (sequence, w, r, b),
        {"hidden_size": hidden},
        dtype=torch.float32,
        shape=(steps, 1, clips, hidden),
        version=OPSET,
    )


def _gates_reordered(parameter: torch.Tensor) -> torch.Tensor:
    """From PyTorch's input, forget, cell, output to ONNX's input, output, forget, cell."""
    enter, forget, cell, leave = parameter.chunk(4)
    return torch.cat([enter, leave, forget, cell])


def _to_onnx(spec: ModelSpec) -> ModelProto:
    """The graph with N and T open."""
    network = fold_batch_norms(load_network(spec)).requires_grad_(False)
    network.lstm = _OnnxLstm(network.lstm)  # pyright: ignore[reportAttributeAccessIssue]  called like nn.LSTM
    # Any sizes but 0 and 1, which torch.export takes for constants.
    inputs = torch.zeros(2, 3, spec.input_size, spec.input_size, 3, dtype=torch.uint8), torch.tensor([3, 2])
    clips, steps = torch.export.Dim("clips"), torch.export.Dim("steps")
    with _quiet():
        captured = torch.export.export(
            _Graph(network, spec).eval(),
            inputs,
            dynamic_shapes=({0: clips, 1: steps}, {0: clips}),
            strict=True,  # which follows len() of a tensor; the other mode takes it for a constant
        )
        program = torch.onnx.export(
            captured, dynamo=True, opset_version=OPSET, input_names=INPUTS, output_names=OUTPUTS, verbose=False
        )
    assert program is not None
    return _tidied(program.model_proto)


def _tidied(model: ModelProto) -> ModelProto:
    """Without the exporter's notes, which name source files, and with names for the two open dimensions."""
    graph = model.graph
    graph.ClearField("value_info")
    for part in (graph, *graph.node, *graph.input, *graph.output):
        part.ClearField("metadata_props")
    clips, steps = (dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim[:2])
    names = {clips: "clips", steps: "frames"}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = names[dim.dim_param]
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own use of torch, which nobody who exports a model can change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- what goes with it --------------------------------------------------------------------------------------------


def model_facts(spec: ModelSpec) -> dict[str, Any]:
    """What a user of the graph needs beside it; the words are those of model.json."""
    return {
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


def set_facts(model: ModelProto, spec: ModelSpec) -> None:
    """Put `model_facts` into metadata_props, as JSON under deepsweep.<key>, in place of what is there."""
    model.ClearField("metadata_props")
    for key, value in model_facts(spec).items():
        model.metadata_props.add(key=f"{_PREFIX}{key}", value=json.dumps(value))


def read_facts(path: Path) -> dict[str, Any]:
    """The `model_facts` of an exported file."""
    import onnx

    model = onnx.load(str(path))
    return {p.key.removeprefix(_PREFIX): json.loads(p.value) for p in model.metadata_props if p.key.startswith(_PREFIX)}


def readme(spec: ModelSpec) -> str:
    """How to feed the exported files."""
    size, steps = spec.input_size, spec.clip_frames
    facts = "\n".join(f"| `{key}` | `{json.dumps(value)}` |" for key, value in model_facts(spec).items())
    return f"""# {spec.name}, exported by deepsweep

`{ONNX_FILE}` scores clips of face crops; `model.int8.onnx`, where there is one, does the same for CPU and mobile.

| | shape | |
| --- | --- | --- |
| in `frames` | (N, T, {size}, {size}, 3) uint8 | RGB crops as they are: the graph scales and normalises |
| in `lengths` | (N,) int64 | frames of each clip, 1 to T; the rest of it is padding |
| out `frame_probabilities` | (N, T) float32 | that a frame was manipulated; NaN in the padding |
| out `clip_probabilities` | (N,) float32 | that a clip was manipulated |

N and T are free. The model was made for clips of {spec.min_clip_frames} to {steps} crops of one face,
{spec.clip_fps:g} per second. A crop is a square around the middle of the box of MediaPipe's 478 landmarks, its side
{spec.crop_margin:g} times the box's longer side, resized to {size} px (by area where that makes it smaller, else
bilinear).

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{ONNX_FILE}")
frames = np.zeros((1, {steps}, {size}, {size}, 3), np.uint8)  # one clip: put {steps} RGB face crops here
lengths = np.array([{steps}], np.int64)
frame_probabilities, clip_probabilities = session.run(None, {{"frames": frames, "lengths": lengths}})
```

The thresholds are for the score of a face, not for a clip's probability. It is the logistic function of `intercept`
plus the weighted sum of `cnn_top` (mean log odds of its three highest clips), `cnn_mean` (mean log odds of all),
`blink` and `micro` (0 where unknown); deepsweep computes it in `scanner/fusion.py`.

| in metadata_props, under `{_PREFIX}` | |
| --- | --- |
{facts}
"""


# --- the check ----------------------------------------------------------------------------------------------------


def compare(data: bytes, spec: ModelSpec) -> list[Comparison]:
    """Probabilities of a serialised model by ONNX Runtime against ClipScorer's, on drawn clips of several shapes."""
    session = open_session(data)
    scorer = ClipScorer(spec, device="cpu")
    steps = spec.clip_frames
    shapes = dict.fromkeys([(1, steps), (1, 1), (3, max(2, steps // 2)), (5, 3), (2, steps + 4)])
    return [Comparison(*shape, _difference(session, scorer, *shape)) for shape in shapes]


def open_session(model: bytes | Path) -> Any:
    """An ONNX Runtime session on the CPU, for a serialised model or a file of one."""
    import onnxruntime

    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


def _difference(session: Any, scorer: ClipScorer, clips: int, frames: int) -> float:
    """Largest of all probabilities; infinite where one of the two has none. Lengths are ragged."""
    pictures = np.stack([golden_clip(seed, scorer.spec.input_size, frames) for seed in range(clips)])
    lengths = np.array([max(1, frames - i) for i in range(clips)], np.int64)
    wanted = scorer.score(pictures, lengths)[::-1]
    found = session.run(list(OUTPUTS), dict(zip(INPUTS, (pictures, lengths), strict=True)))
    worst = 0.0
    for ours, theirs in zip(wanted, found, strict=True):
        if ours.shape != theirs.shape or (np.isnan(ours) != np.isnan(theirs)).any():
            return float("inf")
        worst = max(worst, float(np.nanmax(np.abs(ours - theirs))))
    return worst
