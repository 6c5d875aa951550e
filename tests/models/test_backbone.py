"""The convolutions: as wide and deep as the paper says, and awake from the first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.backbone import FEATURES, adopt_style, feature_channels, mobilenet_v2_features


def test_mobilenet_v2_is_as_large_as_in_its_paper():
    features = mobilenet_v2_features(1.0)
    weights = sum(value.numel() for value in features.parameters())
    assert weights + 1280 * 1000 + 1000 == 3_504_872  # with the classifier of ImageNet: the paper's 3.4 million
    depthwise = [one for one in features.modules() if isinstance(one, nn.Conv2d) and one.groups > 1]
    assert len(depthwise) == 17 and sum(one.stride == (2, 2) for one in depthwise) == 4


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "mobilenet_v2_ibn"])
@pytest.mark.parametrize(("width", "last"), [(0.25, 1280), (1.0, 1280), (1.4, 1792), (2.0, 2560)])
def test_maps_are_a_32nd_of_the_frame(backbone: str, width: float, last: int):
    features = FEATURES[backbone].make(width).eval()
    with torch.no_grad():
        assert features(torch.zeros(1, 3, 96, 65)).shape == (1, last, 3, 3)
    assert feature_channels(features) == last


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backbone", FEATURES)
def test_a_new_network_tells_frames_apart(backbone: str, seed: int):
    """Training keeps batch norms fixed, so that nothing would wake a signal that fades from layer to layer."""
    torch.manual_seed(seed)
    features = FEATURES[backbone].make(1.0).eval()
    with torch.no_grad():
        tiles = torch.randn(4, 3, 4, 4).repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)
        pooled = features(tiles).mean(dim=(2, 3))
    assert pooled.std(dim=0).mean() > 1e-3  # drawn by fan-out, MobileNetV2's were at 1e-10


@pytest.fixture
def styled() -> nn.Sequential:
    """MobileNetV2 with instance norms, whose batch norms have learnt something."""
    torch.manual_seed(0)
    features = FEATURES["mobilenet_v2_ibn"].make(1.0).eval()
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    adopt_style(features)
    return features


def test_instance_norms_take_out_what_is_the_same_all_over_a_picture(styled: nn.Sequential):
    maps = torch.randn(2, 24, 48, 48)
    louder = maps * torch.rand(2, 24, 1, 1).add(0.5) + torch.randn(2, 24, 1, 1)
    style = styled[3].style
    with torch.no_grad():
        assert (style(maps) - style(louder)).abs().max() < 0.02 * style(maps).std()
        assert torch.isfinite(style(torch.full((1, 24, 48, 48), 7.0))).all()  # a picture of one colour
        assert style(maps.bfloat16()).dtype == torch.bfloat16


def test_instance_norms_begin_where_the_batch_norms_before_them_lead_to(styled: nn.Sequential):
    def norm(block: int) -> nn.BatchNorm2d:
        return styled[block].conv[-1]

    # block 3 adds its own maps to those of block 2; block 6 to those of block 5, and that to those of block 4
    for last, summands in ((3, (2, 3)), (6, (4, 5, 6))):
        style = styled[last].style
        assert torch.allclose(style.bias, sum(norm(i).bias for i in summands))
        assert torch.allclose(style.weight.square(), sum(norm(i).weight.square() for i in summands))


@pytest.mark.parametrize("backbone", FEATURES)
def test_heatmaps_know_where_in_a_picture_each_cell_looks(backbone: str):
    kind = FEATURES[backbone]
    torch.manual_seed(0)
    early = kind.make(1.0).eval()[: kind.explained + 1]
    picture = torch.randn(8, 3, 256, 256, requires_grad=True)
    maps = early(picture)
    assert maps.shape[2:] == (256 // kind.stride,) * 2
    row, column = 3 * maps.shape[2] // 8, 5 * maps.shape[3] // 8
    (gradient,) = torch.autograd.grad(maps[:, :, row, column].sum(), picture)
    sight = gradient.square().sum(dim=(0, 1))  # squared: instance norms see a little of everything
    pixels = torch.arange(256.0)
    middle = [float((sight.sum(dim=other) * pixels).sum() / sight.sum()) for other in (1, 0)]
    assert middle == pytest.approx([kind.first_cell + kind.stride * cell for cell in (row, column)], abs=3)
