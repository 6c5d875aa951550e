"""Finding, verifying, loading and saving models: a folder with model.json and safetensors weights."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.spec import (
    Architecture,
    ModelError,
    ModelSpec,
    WeightsFile,
    canonical_json,
    check_spec,
    parse_spec,
    spec_json,
)

if TYPE_CHECKING:  # torch takes seconds to import, and `deepsweep --help` must not wait for it
    import torch

    from models.network import ClipNet

__all__ = [
    "DEFAULT_MODEL",
    "Architecture",
    "ModelError",
    "ModelSpec",
    "built_in",
    "load_features",
    "load_network",
    "load_spec",
    "read_weights",
    "save_model",
]

DEFAULT_MODEL = "sweep4"

WEIGHTS = Path(__file__).parent / "weights"
SPEC_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
MAX_SPEC_BYTES = 64 * 2**10
MAX_WEIGHTS_BYTES = 256 * 2**20  # MobileNetV2 at twice its width in float32 is 100 MB


def built_in() -> tuple[str, ...]:
    """Names of the models that are installed with deepsweep."""
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob(f"*/{SPEC_FILE}")))


def load_spec(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """The model of a built-in name, or of a folder; its weights are read and verified, but not loaded.

    Raises ModelError where model.json or the weights are missing, malformed, too large or don't match.
    """
    name = os.fspath(name_or_path)
    directory = None if name in built_in() else Path(name).absolute()  # workers have another working directory
    folder = directory or WEIGHTS / name
    if not (name and folder.is_dir()):
        raise ModelError(
            f"There is no model {name!r}: give a folder that holds {SPEC_FILE}, "
            f"or one of the built-in models ({', '.join(built_in())})."
        )
    path = folder / SPEC_FILE
    text = _read_limited(path, MAX_SPEC_BYTES)
    try:
        spec = replace(parse_spec(text), directory=directory)
    except ModelError as error:
        raise ModelError(f"{path} is not a usable model: {error}.") from None
    digest = hashlib.sha256(canonical_json(text) + b"\0")
    digest.update(read_weights(spec) or b"")
    return replace(spec, digest=digest.hexdigest())


def read_weights(spec: ModelSpec) -> bytes | None:
    """The bytes of the model's safetensors file once their digest and form are verified; None if it has none."""
    if spec.weights is None:
        return None
    import safetensors

    path = (spec.directory or WEIGHTS / spec.name) / spec.weights.file
    data = _read_limited(path, MAX_WEIGHTS_BYTES)
    if hashlib.sha256(data).hexdigest() != spec.weights.sha256:
        raise ModelError(
            f"{path} is not the file that {SPEC_FILE} was made for (its SHA-256 differs): copy the model again."
        )
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file ({error}).") from None
    return data


def load_network(spec: ModelSpec) -> ClipNet:
    """The network of `spec`, float32, on the CPU, in eval mode. Raises ModelError where the weights don't fit it.

    Without weights it is initialised from the seed, the same on every machine.
    """
    import torch

    from models.network import ClipNet

    check_spec(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed or 0)
        network = ClipNet(spec.architecture).eval()
    data = read_weights(spec)
    if data is not None:
        _fill(network, data, f"The weights of model {spec.name!r}")
    return network


def load_features(spec: ModelSpec, path: str | os.PathLike[str]) -> ClipNet:
    """A network of `spec` whose convolutions come from a file of `features.*` tensors, of the names that ClipNet has.

    The heads are initialised from the seed; a file without the instance norm of a mobilenet_v2_ibn will do for one.
    Raises ModelError where the file does not hold these convolutions.
    """
    import safetensors.torch
    import torch

    from models.backbone import STYLE, adopt_style

    network = load_network(spec)
    try:
        loaded = safetensors.torch.load(_read_limited(Path(path), MAX_WEIGHTS_BYTES))
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file ({error}).") from None
    wanted = {k: v for k, v in _state(network).items() if k.startswith("features.")}
    styled = [k for k in wanted if STYLE in k]
    if plain := bool(styled) and not any(k in loaded for k in styled):
        wanted = {k: v for k, v in wanted.items() if k not in styled}
    wrong = [
        k
        for k in wanted
        if k not in loaded or loaded[k].shape != wanted[k].shape or not torch.isfinite(loaded[k]).all()
    ]
    if wrong:
        raise ModelError(f"{path} does not hold the convolutions of a {spec.architecture.backbone}: see {wrong[0]}.")
    network.load_state_dict({k: loaded[k].float() for k in wanted}, strict=False)
    if plain:
        adopt_style(network.features)
    return network


def save_model(directory: str | os.PathLike[str], network: ClipNet, spec: ModelSpec) -> ModelSpec:
    """Write model.safetensors (float16) and model.json to `directory`, and return the spec as load_spec reads it.

    `weights`, `seed`, `digest` and `directory` of `spec` are filled in here. Each file is replaced in one step, the
    weights first: a reader that comes between the two finds a digest that doesn't match, never a mixed model.
    """
    import safetensors.torch
    import torch

    if network.architecture != spec.architecture:
        raise ModelError(f"The network is a {network.architecture}, but the spec says {spec.architecture}.")
    half = {key: value.detach().cpu().to(torch.float16).contiguous() for key, value in _state(network).items()}
    for key, value in half.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"{key} holds numbers that float16 cannot: the network was not saved.")
    data = safetensors.torch.save(half)
    saved = replace(spec, weights=WeightsFile(WEIGHTS_FILE, hashlib.sha256(data).hexdigest()), seed=None)
    text = spec_json(saved)
    parse_spec(text)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _write_atomically(folder / WEIGHTS_FILE, data)
    _write_atomically(folder / SPEC_FILE, text.encode())
    return load_spec(folder.absolute())


def _state(network: ClipNet) -> dict[str, torch.Tensor]:
    # num_batches_tracked only matters to batch norms without momentum, which this network has none of
    return {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def _fill(network: ClipNet, data: bytes, subject: str) -> None:
    import safetensors.torch
    import torch

    loaded = safetensors.torch.load(data)
    wanted = _state(network)
    if missing := sorted(wanted.keys() - loaded.keys()):
        raise ModelError(f"{subject} lack {missing[0]} ({len(missing)} tensors are missing).")
    if surplus := sorted(loaded.keys() - wanted.keys()):
        raise ModelError(f"{subject} hold {surplus[0][:80]!r}, which its architecture has no place for.")
    for key, value in loaded.items():
        if value.shape != wanted[key].shape:
            raise ModelError(f"{subject}: {key} is {list(value.shape)}, not {list(wanted[key].shape)}.")
        if value.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ModelError(f"{subject}: {key} is {value.dtype}, not float16, bfloat16 or float32.")
        if not torch.isfinite(value).all() or (key.endswith("running_var") and (value < 0).any()):
            raise ModelError(f"{subject}: {key} holds numbers that no training gives (infinite, NaN or negative).")
    network.load_state_dict({key: value.float() for key, value in loaded.items()}, strict=False)


def _read_limited(path: Path, limit: int) -> bytes:
    """Bytes of a regular file, of `limit` at most: opening a pipe would wait for ever, a device never ends."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(f"{path} is not a file.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ModelError(f"{path} could not be read: {error.strerror}.") from None
    if len(data) > limit:
        raise ModelError(f"{path} is larger than the {limit} bytes that a model may have.")
    return data


def _write_atomically(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's 0600 would hide the model from a cluster's other users
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
