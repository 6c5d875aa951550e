"""Grad-CAM: where in a face the network saw what it scored, and the picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from models.network import ClipNet

OPACITY = 0.6  # of the hottest pixel in an overlay: the face stays recognisable under it


def most_suspicious(network: ClipNet, pooled: torch.Tensor) -> int:
    """The frame of a clip with the highest frame logit; pooled: (T, C) features of its real frames."""
    with torch.no_grad():
        return int(network.frame_head(pooled).squeeze(-1).argmax())


def grad_cam(
    network: ClipNet, pooled: torch.Tensor, frames: Sequence[int], maps: torch.Tensor, size: int
) -> np.ndarray:
    """Heatmaps of some frames of a clip: Grad-CAM as HiResCAM has it (Draelos & Carin 2020, arXiv:2011.08891).

    pooled: (T, C) float32 features of the clip's T real frames. frames: n of their numbers. maps: (n, c, h, w) float32,
    what `network.early` gave for these: no other frame's maps are needed.

    What is explained is the sum of a frame's logit and the clip's: the one says why this frame, the other why the
    clip (it fades where the LSTM's gates saturate). Each cell's heat is the product of the maps and the sum's gradient
    there, added up over channels and ReLU'd: how far the sum would fall, to first order, were the cell's features zero.
    Grad-CAM (Selvaraju et al. 2017) takes the gradient's mean over the cells instead, which mixes places up where more
    than averaging follows, as it does here. Heatmaps are enlarged bilinearly and divided by their maximum. Where
    nothing speaks for a fake they are zero.

    Returns (n, size, size) float32 in 0..1.
    """
    chosen = torch.tensor(list(frames), device=maps.device)
    lengths = torch.tensor([len(pooled)], device=maps.device)
    maps = maps.detach().requires_grad_()
    # cuDNN's LSTM has no backward pass in eval mode; torch's own has.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        sequence = pooled.index_copy(0, chosen, network.pool(network.late(maps)))
        frame_logits, clip_logits = network.heads(sequence[None], lengths)
        # one backward pass does for all: a frame's logit depends on no other frame's maps
        (gradient,) = torch.autograd.grad(frame_logits[0, chosen].sum() + clip_logits[0], maps)
    heat = F.relu((gradient * maps.detach()).sum(dim=1)).cpu().numpy()
    place = network.backbone.stride, network.backbone.first_cell
    return np.stack([_enlarged(cells, size, *place) for cells in heat])


def _enlarged(cells: np.ndarray, size: int, stride: int, first: float) -> np.ndarray:
    """(h, w) heat to (size, size) in 0..1. stride, first: px from cell to cell, and of the first one's middle."""
    matrix = np.array([[stride, 0, first], [0, stride, first]], np.float64)
    heat = cv2.warpAffine(cells, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    peak = heat.max()
    return heat / peak if peak > 0 else heat


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Lay a heatmap over the face it explains, the more opaque the hotter: cold regions show the plain face.

    image: (H, W, 3) uint8 RGB. heatmap: (H, W) float in 0..1. Returns (H, W, 3) uint8 RGB.
    """
    if image.shape != (*heatmap.shape, 3):
        raise ValueError(f"a heatmap of {heatmap.shape} does not fit an image of {image.shape}")
    heat = np.clip(heatmap, 0.0, 1.0).astype(np.float32)
    # Inferno's lightness rises evenly with heat, so it reads the same in grey and to colour-blind eyes.
    colours = cv2.applyColorMap(np.round(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    alpha = OPACITY * heat[..., None]
    return np.round(image * (1 - alpha) + colours * alpha).astype(np.uint8)
