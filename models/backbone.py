"""MobileNetV2 from torchvision, also where torchvision's compiled operators cannot be loaded."""

from __future__ import annotations

import sys

import torch
from torch import nn

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


def feature_channels(features: nn.Sequential) -> int:
    """Channels of the maps that `features` gives: 1280, or more where it is wider than usual."""
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
