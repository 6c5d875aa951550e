"""The convolutions: as wide and deep as the paper says, and awake from the first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.backbone import FEATURES, feature_channels, mobilenet_v2_features


def test_mobilenet_v2_is_as_large_as_in_its_paper():
    features = mobilenet_v2_features(1.0)
    weights = sum(value.numel() for value in features.parameters())
    assert weights + 1280 * 1000 + 1000 == 3_504_872  # with the classifier of ImageNet: the paper's 3.4 million
    depthwise = [one for one in features.modules() if isinstance(one, nn.Conv2d) and one.groups > 1]
    assert len(depthwise) == 17 and sum(one.stride == (2, 2) for one in depthwise) == 4


@pytest.mark.parametrize(("width", "last"), [(0.25, 1280), (1.0, 1280), (1.4, 1792), (2.0, 2560)])
def test_maps_are_a_32nd_of_the_frame(width: float, last: int):
    features = mobilenet_v2_features(width).eval()
    with torch.no_grad():
        assert features(torch.zeros(1, 3, 96, 65)).shape == (1, last, 3, 3)
    assert feature_channels(features) == last


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backbone", FEATURES)
def test_a_new_network_tells_frames_apart(backbone: str, seed: int):
    """Training keeps batch norms fixed, so that nothing would wake a signal that fades from layer to layer."""
    torch.manual_seed(seed)
    features = FEATURES[backbone](1.0).eval()
    with torch.no_grad():
        tiles = torch.randn(4, 3, 4, 4).repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)
        pooled = features(tiles).mean(dim=(2, 3))
    assert pooled.std(dim=0).mean() > 1e-3  # drawn by fan-out, MobileNetV2's were at 1e-10
