"""Batch norms folded into the convolutions before them, and taken out again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.network import ClipNet


def fold_batch_norms(network: ClipNet) -> ClipNet:
    """Fold every batch norm that follows a convolution in a Sequential into it, in place; only valid in eval mode.

    Batch norm with fixed statistics is an affine map per channel, which the convolution's weights and bias can hold.
    """
    for sequence, index in _pairs(network):
        convolution, norm = sequence[index], sequence[index + 1]
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        folded = fuse_conv_bn_eval(convolution, norm)
        assert folded.bias is not None
        folded.bias.requires_grad_(folded.weight.requires_grad)  # torch leaves a bias that was not there before fixed
        sequence[index] = folded
        sequence[index + 1] = nn.Identity()
    return network


def unfold_batch_norms(folded: ClipNet) -> ClipNet:
    """A network of the usual shape that computes what `folded` does: its batch norms only add the biases."""
    network = ClipNet(folded.architecture).eval()
    inside = dict(folded.named_modules())
    with torch.no_grad():
        norms = set()
        for sequence, index in _pairs(network):
            name = next(name for name, module in network.named_modules() if module is sequence)
            convolution, norm = sequence[index], sequence[index + 1]
            source = inside[f"{name}.{index}"]
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            assert isinstance(source, nn.Conv2d) and source.bias is not None
            convolution.weight.copy_(source.weight)
            norm.running_mean.zero_()  # pyright: ignore[reportOptionalMemberAccess]  norms here track statistics
            norm.running_var.fill_(1.0)  # pyright: ignore[reportOptionalMemberAccess]
            norm.weight.fill_((1.0 + norm.eps) ** 0.5)
            norm.bias.copy_(source.bias)
            norms |= {f"{name}.{index}", f"{name}.{index + 1}"}
        rest = {k: v for k, v in folded.state_dict().items() if k.rpartition(".")[0] not in norms}
        network.load_state_dict(rest, strict=False)
    return network


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Sequential, int]]:
    """Places (sequence, index) where a convolution is followed by its batch norm."""
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index, (first, second) in enumerate(pairwise(sequence)):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                yield sequence, index
