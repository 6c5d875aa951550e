"""The convolutions that see a face: MobileNetV2 from torchvision, and MesoNet-4 to compare with."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn

_MESO_MAP = 8  # cells on a side of MesoNet-4's last map, where its input has 256 px
_KEEP: list[torch.library.Library] = []  # an operator's schema lives as long as its Library


def mobilenet_v2_features(width_mult: float) -> nn.Sequential:
    """Convolutions of MobileNetV2 (Sandler et al. 2018), randomly initialised.

    Maps (N, 3, H, W) float to (N, channels, ceil(H/32), ceil(W/32)).
    """
    _import_torchvision()
    from torchvision.models import mobilenet_v2

    features = mobilenet_v2(weights=None, width_mult=width_mult).features
    assert isinstance(features, nn.Sequential)
    return features


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


def _import_torchvision() -> None:
    """Import torchvision beside a torch that its binary was not built for.

    A package registry may pair a CPU torch with torchvision's CUDA build. Its compiled library then fails to load,
    and the import stops at "operator torchvision::nms does not exist", where it registers shapes for two operators
    that the library should have defined. The networks are plain Python and need neither, so
    declaring the two is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)
        import torchvision  # noqa: F401  the second try, which must succeed
