"""The exported model in int8, for CPU and mobile, kept only if it tells fakes from reals as well as before."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.export import INPUTS, ExportError, open_session, put, require, set_facts
from models.metrics import auc
from models.prepared import MARGIN, FaceTrack, read_tracks
from models.spec import ModelSpec
from models.training.sampling import Geometry, whole_track

INT8_FILE = "model.int8.onnx"
MAX_AUC_LOSS = 0.01
CALIBRATION_TRACKS = 64  # ranges settle long before: a thousand crops of 64 people
EVALUATED_TRACKS = 256  # about two minutes of a core for both models at 192 px


@dataclass(frozen=True)
class Quantized:
    """What int8 costs, on faces that calibration did not see."""

    auc_float: float  # of frames
    auc_int8: float
    tracks: int
    frames: int
    kept: bool

    @property
    def loss(self) -> float:
        return self.auc_float - self.auc_int8


def quantize(spec: ModelSpec, model: Path, prepared: Path, out: Path) -> Quantized:
    """Write model.int8.onnx, made from the exported `model`, to the folder `out` if its frame AUC falls by less than
    MAX_AUC_LOSS; else leave none there.

    prepared: what `deepsweep prepare` wrote. One half of its recordings sets the ranges of activations, the other
    half is scored by both models. Weights are int8 per output channel, activations uint8 per tensor; the heads and
    the LSTM, a hundredth of the work, stay float32.
    Raises PrepError or ExportError where the data do not serve.
    """
    require("onnx", "onnxruntime")
    if spec.crop_margin > MARGIN:
        raise ExportError(
            f"Prepared crops are {MARGIN:g} times the face box, but {spec.name!r} wants {spec.crop_margin:g}."
        )
    (out / INT8_FILE).unlink(missing_ok=True)
    seen, unseen = split_recordings(read_tracks(prepared))
    with tempfile.TemporaryDirectory() as scratch:
        candidate = Path(scratch) / INT8_FILE
        data = _to_int8(model, candidate, spec, _chosen(seen, CALIBRATION_TRACKS))
    judged = _chosen(unseen, EVALUATED_TRACKS)
    float_auc, frames = _frame_auc(open_session(model), spec, judged)
    int8_auc, _ = _frame_auc(open_session(data), spec, judged)
    kept = float_auc - int8_auc < MAX_AUC_LOSS
    if kept:
        put(out / INT8_FILE, data)
    return Quantized(float_auc, int8_auc, len(judged), frames, kept)


def split_recordings(tracks: Sequence[FaceTrack]) -> tuple[list[FaceTrack], list[FaceTrack]]:
    """Tracks to calibrate with and tracks to evaluate on, no recording in both: (calibration, evaluation).

    Recordings that hold reals, fakes or both are halved separately, so that either half has of each what there is.
    Raises ExportError where that leaves one half without a label, or without anything.
    """
    labels: dict[str, set[str]] = {}
    for track in tracks:
        labels.setdefault(track.group, set()).add(track.label)
    by_kind: dict[tuple[str, ...], list[str]] = {}
    for group in sorted(labels, key=_hashed):
        by_kind.setdefault(tuple(sorted(labels[group])), []).append(group)
    evaluated = {group for groups in by_kind.values() for group in groups[::2]}
    calibration = [track for track in tracks if track.group not in evaluated]
    evaluation = [track for track in tracks if track.group in evaluated]
    if not calibration or len({track.label for track in evaluation}) < 2:
        raise ExportError("int8 needs prepared data of several recordings, with real and fake faces among them.")
    return calibration, evaluation


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _chosen(tracks: Sequence[FaceTrack], limit: int) -> list[FaceTrack]:
    """At most `limit` of the tracks, always the same ones, half of them fakes where there are as many."""
    order = sorted(tracks, key=lambda track: _hashed(f"{track.uri}\0{track.face_id}"))
    fakes, reals = ([track for track in order if track.fake == fake] for fake in (True, False))
    taken = fakes[: max(limit // 2, limit - len(reals))]
    return taken + reals[: limit - len(taken)]


def _feeds(spec: ModelSpec, tracks: Sequence[FaceTrack]) -> Iterator[dict[str, np.ndarray]]:
    """The middle clip of each track as the graph wants it, one clip at a time."""
    for track in tracks:
        start = max(0, (len(track.jpegs) - spec.clip_frames) // 2)
        part = slice(start, start + spec.clip_frames)
        middle = replace(track, t=track.t[part], jpegs=track.jpegs[part], landmarks=track.landmarks[part])
        clip = whole_track(middle, Geometry(spec.input_size, spec.crop_margin))
        yield dict(zip(INPUTS, (clip[None], np.array([len(clip)], np.int64)), strict=True))


def _frame_auc(session: Any, spec: ModelSpec, tracks: Sequence[FaceTrack]) -> tuple[float, int]:
    """AUC of frames, each with its track's label, and how many there were."""
    scores, fake = [], []
    for track, feed in zip(tracks, _feeds(spec, tracks), strict=True):
        (frames,) = session.run(["frame_probabilities"], feed)
        scores.append(frames[0])
        fake.append(np.full(len(frames[0]), track.fake))
    return float(auc(np.concatenate(fake), np.concatenate(scores))), sum(map(len, scores))


def _to_int8(model: Path, target: Path, spec: ModelSpec, tracks: Sequence[FaceTrack]) -> bytes:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = _feeds(spec, tracks)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        # x86 without VNNI adds products in 16 bits, which 7-bit weights cannot overflow: log odds were off by 0.5 in
        # place of 2.0 there
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
    )
    quantized = onnx.load(str(target))
    set_facts(quantized, spec)
    return quantized.SerializeToString()
