"""Grad-CAM: where in a face the network saw what it scored, and the picture of it."""

from __future__ import annotations

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


def grad_cam(network: ClipNet, pooled: torch.Tensor, frame: int, maps: torch.Tensor, size: int) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) of one frame of a clip.

    pooled: (T, C) float32 features of the clip's T real frames. maps: (C, h, w) float32, output of the network's last
    convolution block for number `frame` of them: no other frame's maps are needed for it. That block is the target
    layer because all that follows is averaging and linear or recurrent, so that its cells are the places between which
    the evidence can still be told apart (one cell is 32 input pixels wide).

    What is explained is the sum of the frame's logit and the clip's: the one says why this frame, the other why the
    clip (it fades where the LSTM's gates saturate). Channel weights are the gradient of the sum averaged over the
    cells; the heatmap is the weighted sum of the maps, ReLU'd, enlarged bilinearly to (size, size), and divided by its
    maximum. Where nothing speaks for a fake it is zero.

    Returns (size, size) float32 in 0..1.
    """
    maps = maps.detach().requires_grad_()
    lengths = torch.tensor([len(pooled)], device=maps.device)
    # cuDNN's LSTM has no backward pass in eval mode; torch's own has.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        row = torch.arange(len(pooled), device=maps.device)[:, None]
        sequence = torch.where(row == frame, network.pool(maps[None]), pooled)
        frame_logits, clip_logits = network.heads(sequence[None], lengths)
        (gradient,) = torch.autograd.grad(frame_logits[0, frame] + clip_logits[0], maps)
    with torch.no_grad():
        weights = gradient.mean(dim=(1, 2), keepdim=True)
        heat = F.relu((weights * maps).sum(dim=0))
        heat = F.interpolate(heat[None, None], size=(size, size), mode="bilinear", align_corners=False)[0, 0]
        peak = heat.max()
        if peak > 0:
            heat = heat / peak
    return heat.cpu().numpy()


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
