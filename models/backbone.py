"""The convolutions that see a face: MobileNetV2, with and without instance norm, and MesoNet-4 to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: Of each stage of MobileNetV2: expansion, channels, blocks, stride of the first block (Sandler et al. 2018, table 2).
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM, _LAST = 32, 1280  # channels of the first and the last convolution
#: The blocks whose maps the variant with instance norms normalises: the last ones at a quarter and an eighth of the
#: input. Unseen manipulated videos are ranked a little better so (models/training/LOG.md, 2026-11-29).
_CALMED = (3, 6)
_FLAT, _NOTHING = 1e-3, 1e-12
STYLE = ".style."  # in the names of the instance norms' tensors
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
        self.style: nn.Module = nn.Identity()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.style(maps + self.conv(maps) if self.residual else self.conv(maps))


class _InstanceNorm(nn.Module):
    """Each map of each picture by itself: its mean becomes `bias`, its standard deviation over the cells `weight`.

    What is the same all over a picture (how sharp, noisy and contrasty an archive is) goes, what differs from place to
    place stays. torch's own instance norm takes 0.26 ms a frame of 192 px where this takes 0.15 (one core, Intel Xeon).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        cells = maps.to(self.weight.dtype)
        mean = cells.mean(dim=(2, 3), keepdim=True)
        centred = cells - mean
        variance = centred.square().mean(dim=(2, 3), keepdim=True)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        # an even picture's maps are flat: a thousandth of the usual variance keeps their noise from being blown up
        scale = weight / (variance + _FLAT * weight.square() + _NOTHING).sqrt()
        return (centred * scale + bias).to(maps.dtype)


def mobilenet_v2_ibn_features(width_mult: float) -> nn.Sequential:
    """MobileNetV2 with instance norms behind two of its stages: the arrangement IBN-b of Pan et al. (ECCV 2018).

    Shapes and names are those of mobilenet_v2_features, but for the norms' own tensors.
    """
    features = mobilenet_v2_features(width_mult)
    for block, norms in _calmed(features):
        block.style = _InstanceNorm(norms[0].num_features)
    return features


def adopt_style(features: nn.Sequential) -> None:
    """Start the instance norms of mobilenet_v2_ibn_features, in place, where the batch norms before them lead to.

    For convolutions that were trained without: what follows then sees maps of the usual range.
    """
    for block, norms in _calmed(features):
        assert isinstance(block.style, _InstanceNorm)
        with torch.no_grad():
            block.style.weight.copy_(torch.stack([norm.weight for norm in norms]).square().sum(dim=0).sqrt())
            block.style.bias.copy_(torch.stack([norm.bias for norm in norms]).sum(dim=0))


def _calmed(features: nn.Sequential) -> Iterator[tuple[_InvertedResidual, list[nn.BatchNorm2d]]]:
    """The blocks of _CALMED, each with the batch norms of the summands that its maps consist of."""
    blocks: list[Any] = list(features)
    for last in _CALMED:
        first = last
        while blocks[first].residual:
            first -= 1
        yield blocks[last], [block.conv[-1] for block in blocks[first : last + 1]]


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
    same. Maps (N, 3, H, W) float, H = W = 256 in the paper, to (N, 16, 1, 1).
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


@dataclass(frozen=True)
class Backbone:
    """A kind of convolutions, and what the rest of the house has to know of its blocks."""

    make: Callable[[float], nn.Sequential]  # width multiplier -> convolutions
    #: First blocks that training leaves as they come. MobileNetV2's three see edges and colours, at the largest maps:
    #: leaving them out of the backward pass gives 45 frames a second instead of 35 (AMD EPYC).
    frozen: int
    #: The block whose maps heatmaps are drawn from. Of MobileNetV2's, the eighth points best at what a score rests on:
    #: its heat correlates with where blurring lowers the logit by 0.66, the last one's by 0.09 (training/LOG.md).
    explained: int
    stride: int  # px of the input from one cell of those maps to the next
    first_cell: float  # px: the middle of the first cell


#: The backbones of models.spec.BACKBONES. Padded on both sides, MobileNetV2's convolutions of stride 2 have the middle
#: of their first cell on the first pixel; MesoNet's pools have it amid the pixels that they take together.
FEATURES = {
    "mobilenet_v2": Backbone(mobilenet_v2_features, frozen=3, explained=8, stride=16, first_cell=0.0),
    "mobilenet_v2_ibn": Backbone(mobilenet_v2_ibn_features, frozen=3, explained=8, stride=16, first_cell=0.0),
    "meso4": Backbone(meso4_features, frozen=0, explained=3, stride=32, first_cell=15.5),
}


def feature_channels(features: nn.Sequential) -> int:
    """Channels of the maps that `features` gives: of MobileNetV2 1280, or more where it is wider than usual."""
    last = [module for module in features.modules() if isinstance(module, nn.Conv2d)][-1]
    return last.out_channels
