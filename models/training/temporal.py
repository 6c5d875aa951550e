"""Fitting the clip head: an LSTM over features that the trained convolutions give, computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from models.folding import fold_batch_norms
from models.network import ClipNet
from models.training.fit import CPU_PASS, normalise

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
FEATURE_DROPOUT = 0.5  # a thousand clips, 1,280 features: without it the LSTM learns the clips by heart
BATCH = 32
EPOCHS = 8


@dataclass(frozen=True)
class Sequences:
    """Pooled features of clips, and which of their frames are manipulated."""

    features: torch.Tensor  # (N, T, C) float32
    touched: torch.Tensor  # (N, T) bool


def embed(network: ClipNet, clips: Iterable[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> Sequences:
    """Pass clips through the convolutions. clips: batches of (N, T, S, S, 3) uint8 and (N, T) bool."""
    eyes = Eyes(network, device)
    features, touched = [], []
    for frames, truth in clips:
        features.append(eyes(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]))
        touched.append(truth)
    return Sequences(torch.cat(features), torch.cat(touched))


class Eyes:
    """The convolutions alone: (N, S, S, 3) uint8 frames to pooled features (N, C) float32 on the CPU."""

    def __init__(self, network: ClipNet, device: torch.device) -> None:
        folded = fold_batch_norms(copy.deepcopy(network).eval()).requires_grad_(False)
        self.network = folded.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.device = device

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        size = 256 if self.device.type == "cuda" else CPU_PASS
        pooled = []
        with torch.inference_mode():
            for some in frames.split(size):
                pixels = normalise(some.to(self.device), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
                pooled.append(self.network.pool(self.network.features(pixels)).float().cpu())
        return torch.cat(pooled).clone()


def fit_clip_head(
    network: ClipNet, sequences: Sequences, seed: int, on_epoch: Callable[[int, float], None] = lambda epoch, loss: None
) -> ClipNet:
    """Train LSTM and clip head; convolutions and frame head stay as they are. Returns a network in eval mode.

    The clip head starts at zero, where the clip's score is the mean of its frames'. A clip counts as manipulated
    where any of its frames is. Clips are shortened at random, since a scan's are of 8 to 16 frames.
    """
    torch.manual_seed(seed)
    fitted = copy.deepcopy(network).cpu().eval()
    fitted.requires_grad_(False)
    trained = [*fitted.lstm.parameters(), *fitted.clip_head.parameters()]
    for value in trained:
        value.requires_grad_(True)
    torch.nn.init.zeros_(fitted.clip_head.weight)
    torch.nn.init.zeros_(fitted.clip_head.bias)
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    count, steps = sequences.touched.shape
    rng = np.random.default_rng(seed)
    fitted.lstm.train()
    for epoch in range(EPOCHS):
        order, losses = torch.from_numpy(rng.permutation(count)), []
        for chosen in order.split(BATCH):
            lengths = torch.from_numpy(rng.integers(steps // 2, steps + 1, len(chosen)))
            shown = torch.arange(steps) < lengths[:, None]
            truth = (sequences.touched[chosen] & shown).any(dim=1).float()
            features = F.dropout(sequences.features[chosen], FEATURE_DROPOUT)
            outputs, _ = fitted.lstm(features)
            last = F.dropout(outputs[torch.arange(len(chosen)), lengths - 1], 0.3)
            with torch.no_grad():
                frame_logits = fitted.frame_head(sequences.features[chosen]).squeeze(-1)
                mean = (frame_logits * shown).sum(dim=1) / lengths
            loss = F.binary_cross_entropy_with_logits(mean + fitted.clip_head(last).squeeze(-1), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        on_epoch(epoch + 1, float(np.mean(losses)))
    return fitted.eval().requires_grad_(False)
