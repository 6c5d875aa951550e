"""The convolutions that see a face: MobileNetV2, and MesoNet-4 to compare with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

#: Of each stage of MobileNetV2: expansion, channels, blocks, stride of the first block (Sandler et al. 2018, table 2).
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM, _LAST = 32, 1280  # channels of the first and the last convolution
_MESO_MAP = 8  # cells on a side of MesoNet-4's last map, where its input has 256 px


def mobilenet_v2_features(width_mult: float) -> nn.Sequential:
    """Convolutions of MobileNetV2 (Sandler et al. 2018), randomly initialised (He et al. 2015).

    Maps (N, 3, H, W) float to (N, channels, ceil(H/32), ceil(W/32)). Modules and tensors are named as torchvision
    names those of its `mobilenet_v2().features`, so that weights go either way. They are written out here because
    importing torchvision.models costs each process two seconds of a core, and fails beside a torch of another build.
    """
    channels = _in_eights(_STEM * width_mult)
    blocks: list[nn.Module] = [_convolution(3, channels, 3, stride=2)]
    for expansion, width, count, stride in _STAGES:
        for number in range(count):
            out = _in_eights(width * width_mult)
            blocks.append(_InvertedResidual(channels, out, expansion, 1 if number else stride))
            channels = out
    blocks.append(_convolution(channels, _in_eights(_LAST * max(1.0, width_mult)), 1))
    features = nn.Sequential(*blocks)
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # a new batch norm changes nothing: without it the signal would fade
    return features


class _InvertedResidual(nn.Module):
    """A depthwise convolution between a widening and a linear, narrowing one; added to its input where shapes allow."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        inside = channels * expansion
        self.conv = nn.Sequential(
            *([_convolution(channels, inside, 1)] if expansion > 1 else []),
            _convolution(inside, inside, 3, stride, groups=inside),
            nn.Conv2d(inside, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.residual = stride == 1 and channels == out

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.conv(maps) if self.residual else self.conv(maps)


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


def _in_eights(channels: float) -> int:
    """The nearest multiple of 8 that takes away no more than a tenth: what width multipliers lead to."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def meso4_features(width_mult: float) -> nn.Sequential:
    """Convolutions and hidden layer of MesoNet-4 (Afchar et al. 2018), randomly initialised.

    The hidden layer, fully connected in the paper, is a convolution as large as the map that it sees, which is the
    same. Maps (N, 3, H, W) float, H = W = 256 in the paper, to (N, 16, 1, 1): Grad-CAM's heatmap has one cell.
    """
    narrow, wide = max(1, round(8 * width_mult)), max(1, round(16 * width_mult))
    blocks = [
        _meso_block(3, narrow, 3, 2),
        _meso_block(narrow, narrow, 5, 2),
        _meso_block(narrow, wide, 5, 2),
        _meso_block(wide, wide, 5, 4),
        nn.Sequential(nn.AdaptiveAvgPool2d(_MESO_MAP), nn.Conv2d(wide, wide, _MESO_MAP), nn.LeakyReLU(0.1)),
    ]
    return nn.Sequential(*blocks)


def _meso_block(channels: int, out: int, kernel: int, pool: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, padding="same")
    return nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm2d(out), nn.MaxPool2d(pool))


#: The makers of BACKBONES: width multiplier -> convolutions.
FEATURES: dict[str, Callable[[float], nn.Sequential]] = {
    "mobilenet_v2": mobilenet_v2_features,
    "meso4": meso4_features,
}


def feature_channels(features: nn.Sequential) -> int:
    """Channels of the maps that `features` gives: of MobileNetV2 1280, or more where it is wider than usual."""
    last = [module for module in features.modules() if isinstance(module, nn.Conv2d)][-1]
    return last.out_channels
