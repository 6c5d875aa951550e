"""What makes training faster on a CPU changes nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from models.folding import fold_batch_norms
from models.network import ClipNet
from models.spec import Architecture
from models.training.speed import Float32Conv2d, half_precision, spare_strided

CPU = torch.device("cpu")


def network() -> ClipNet:
    torch.manual_seed(0)
    return fold_batch_norms(ClipNet(Architecture(width_mult=0.25, lstm_hidden=8)).eval())


def test_sparing_strided_convolutions_changes_no_parameter_and_no_answer():
    plain = network()
    spared = copy.deepcopy(plain)
    spare_strided(spared)
    assert sum(isinstance(module, Float32Conv2d) for module in spared.modules()) == 4  # MobileNetV2's, but the stem's
    assert spared.state_dict().keys() == plain.state_dict().keys()
    frames = torch.randn(2, 3, 64, 64)
    assert torch.equal(spared.features(frames), plain.features(frames))


def test_they_compute_in_float32_amid_half_precision():
    spared = network()
    spare_strided(spared)
    strided = next(module for module in spared.modules() if isinstance(module, Float32Conv2d))
    maps = torch.randn(1, strided.in_channels, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = strided(maps)
        half = strided(maps.bfloat16())
    assert answer.dtype == torch.float32 and torch.equal(answer, strided(maps))
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("able", [{}, {"amx_bf16": True}, {"avx512_bf16": True}, {"avx512_bf16": False}])
def test_a_cpu_without_fast_half_precision_is_left_alone(able, monkeypatch):
    product = torch.randn(4, 4)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    with half_precision(CPU):
        assert (product @ product).dtype == (torch.bfloat16 if any(able.values()) else torch.float32)
