"""Fitting the network: its convolutions and frame head on single frames, its clip head on sequences of features."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from models.folding import fold_batch_norms, unfold_batch_norms
from models.network import ClipNet
from models.training.sampling import Sampler
from models.training.speed import half_precision, keep_freed_memory, multiplies_bfloat16, spare_strided

#: Frames that pass forward and back together on a CPU: few enough that a layer's maps stay in its cache, many enough
#: for its matrices. With 192 px two cores of an AMD EPYC (Zen 3) train 35 frames a second in passes of 8 and 27 in
#: passes of 32; two of an Intel Xeon with AMX 77 in passes of 8, 86 of 16, 90 of 32; two of an AMD EPYC (Zen 5), whose
#: AVX-512 multiplies bfloat16, 173, 189 and 191 (133, 131 and 129 in float32).
CPU_PASS = 16 if multiplies_bfloat16() else 8
WARM_UP_STEPS = 100
EMA_DECAY = 0.998  # about the last 500 steps
CLIP_NORM = 1.0
LABEL_SMOOTHING = 0.03
WORKERS = os.cpu_count() or 1  # processes that draw and degrade clips
WORTH_WORKERS = 200  # pairs: fewer are drawn sooner than a worker has started


@dataclass(frozen=True)
class Fit:
    """How long and how fast to train. A step is one batch of `pairs` genuine and `pairs` manipulated clips."""

    steps: int
    pairs: int = 16
    learning_rate: float = 2e-4  # at twice that most channels of the last layers die, and never fire again
    head_rate: float = 1e-3
    weight_decay: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """What a step gave."""

    step: int
    loss: float
    accuracy: float
    learning_rate: float


class _Pairs(Dataset):
    def __init__(self, sampler: Sampler, first: int, count: int) -> None:
        self.sampler, self.first, self.count = sampler, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        real, fake = self.sampler.pair(self.first + index)
        return np.stack([real.frames, fake.frames]), np.stack([real.touched, fake.touched])


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    # Training's threads wait for each other at every layer: a worker that takes one of their cores slows both, so
    # workers draw ahead only while training has nothing to do (17 to 35 frames a second on two cores).
    os.nice(19)


def batches(sampler: Sampler, pairs: int, first: int, count: int) -> Iterator[tuple[Any, Any]]:
    """Pairs [first, first + count) in batches: (2 pairs, T, S, S, 3) uint8 and (2 pairs, T) bool tensors."""
    workers = WORKERS if count >= WORTH_WORKERS else 0
    loader = DataLoader(
        _Pairs(sampler, first, count),
        batch_size=pairs,
        num_workers=workers,
        worker_init_fn=_one_thread,
        multiprocessing_context="spawn" if workers else None,  # a fork of a process with torch's threads can hang
        prefetch_factor=6 if workers else None,
    )
    for frames, touched in loader:
        yield frames.flatten(0, 1), touched.flatten(0, 1)


def normalise(frames: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(N, S, S, 3) uint8 to (N, 3, S, S) float32, channels last in memory."""
    scale = torch.tensor(std, device=frames.device).mul(255).reciprocal().view(1, 3, 1, 1)
    shift = torch.tensor(mean, device=frames.device).mul(255).view(1, 3, 1, 1)
    return frames.permute(0, 3, 1, 2).float().sub_(shift).mul_(scale)


def fit_frames(
    network: ClipNet,
    sampler: Sampler,
    fit: Fit,
    device: torch.device,
    on_step: Callable[[Progress], None],
    checkpoint: Path | None = None,
    validate: Callable[[ClipNet], float] | None = None,
    every: int = 200,
) -> ClipNet:
    """Train convolutions and frame head; returns the moving average of the weights, as a network in eval mode.

    validate: gives the AUC of a network on faces that are not trained on; every so many steps it judges the average,
    and the best one is returned. Without it the last one is.

    Batch norms keep their statistics and are folded away while training: half real, half fake batches of a few
    recordings have statistics of their own, which a scan never sees, and folded convolutions train 1.3 times faster.
    checkpoint: where the state is kept every so many steps; a training that finds it there goes on from it, drawing
    the pairs that it would have drawn.
    """
    keep_freed_memory()
    folded = fold_batch_norms(copy.deepcopy(network).eval())
    spare_strided(folded)
    folded = folded.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for block in list(folded.features)[: network.backbone.frozen]:
        block.requires_grad_(False)
    average = copy.deepcopy(folded)
    optimizer = _optimizer(folded, fit)
    best = _Best(copy.deepcopy(average))
    first = _restore(checkpoint, fit, folded, average, best, optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")  # pyright: ignore[reportPrivateImportUsage]
    stream = batches(sampler, fit.pairs, first * fit.pairs, (fit.steps - first) * fit.pairs)
    for step, (frames, touched) in enumerate(stream, start=first):
        torch.manual_seed(fit.seed + step)  # dropout too shall not depend on whether the training was interrupted
        rate = _schedule(step, fit.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        frames, touched = frames.flatten(0, 1), touched.flatten().float()
        size = len(frames) if device.type == "cuda" else CPU_PASS
        total, right = 0.0, 0
        for some, truth in zip(frames.split(size), touched.split(size), strict=True):
            truth = truth.to(device)
            pixels = normalise(some.to(device), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
            with half_precision(device):
                pooled = folded.pool(folded.features(pixels))
                logits = folded.frame_head(F.dropout(pooled, folded.dropout.p)).squeeze(-1).float()
            goal = truth * (1 - LABEL_SMOOTHING) + (1 - truth) * LABEL_SMOOTHING
            loss = F.binary_cross_entropy_with_logits(logits, goal, reduction="sum") / len(frames)
            scaler.scale(loss).backward()
            total += float(loss.detach())
            right += int(((logits > 0) == (truth > 0.5)).sum())
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(folded.parameters(), CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        _follow(average, folded, min(EMA_DECAY, (step + 1) / (step + 10)))
        on_step(Progress(step + 1, total, right / len(frames), rate))
        if (step + 1) % every == 0 or step + 1 == fit.steps:
            best.offer(average, validate(average) if validate else float(step))
            if checkpoint:
                _save(checkpoint, fit, step + 1, folded, average, best, optimizer)
    return unfold_batch_norms(best.network.cpu())


class _Best:
    """The average with the highest figure so far."""

    def __init__(self, network: ClipNet) -> None:
        self.network, self.figure = network, -math.inf

    def offer(self, network: ClipNet, figure: float) -> None:
        if figure > self.figure:
            self.figure = figure
            self.network.load_state_dict(network.state_dict())


def _optimizer(network: ClipNet, fit: Fit) -> torch.optim.AdamW:
    plain, decayed, head = [], [], []
    for name, value in network.named_parameters():
        if not value.requires_grad or name.startswith(("lstm", "clip_head")):
            continue
        (head if name.startswith("frame_head") else plain if value.ndim < 2 else decayed).append(value)
    groups = [
        {"params": decayed, "peak": fit.learning_rate, "weight_decay": fit.weight_decay},
        {"params": plain, "peak": fit.learning_rate, "weight_decay": 0.0},
        {"params": head, "peak": fit.head_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=fit.learning_rate)


def _schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear start, then a cosine down to 2 %."""
    warm_up = min(WARM_UP_STEPS, max(1, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@torch.no_grad()
def _follow(average: ClipNet, network: ClipNet, decay: float) -> None:
    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
        if fast.requires_grad:
            slow.lerp_(fast, 1 - decay)


def _save(path: Path, fit: Fit, step: int, network: ClipNet, average: ClipNet, best: _Best, optimizer) -> None:
    state = {
        "fit": asdict(fit),
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "best": best.network.state_dict(),
        "figure": best.figure,
        "optimizer": optimizer.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    torch.save(state, temporary)
    temporary.replace(path)


def _restore(path: Path | None, fit: Fit, network: ClipNet, average: ClipNet, best: _Best, optimizer) -> int:
    """The step to go on from: 0 without a checkpoint, or with one of another training."""
    if path is None or not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["fit"] != asdict(fit):
        return 0
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    best.network.load_state_dict(state["best"])
    best.figure = state["figure"]
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
