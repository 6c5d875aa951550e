"""The parts of a whole training that no single stage shows."""

from __future__ import annotations

import copy

import pytest
import torch

from models.network import ClipNet
from models.spec import Architecture
from models.training.fit import Fit, fit_frames
from models.training.recipe import averaged
from models.training.sampling import Geometry, Sampler

SMALL = Architecture(backbone="mobilenet_v2_ibn", width_mult=0.25, lstm_hidden=8)


@pytest.fixture
def fitted(tracks) -> list[ClipNet]:
    """Three networks that began as one and saw different pairs."""
    torch.manual_seed(0)
    first = ClipNet(SMALL).eval()
    return [
        fit_frames(
            copy.deepcopy(first),
            Sampler(tracks, Geometry(input_size=64), labelled=1.0, seed=seed),
            Fit(steps=2, pairs=2, seed=seed),
            torch.device("cpu"),
            lambda progress: None,
        )
        for seed in range(3)
    ]


def test_the_mean_of_fitted_networks_has_the_mean_of_every_weight_and_bias(fitted: list[ClipNet]) -> None:
    states = [network.state_dict() for network in fitted]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name, value in averaged(fitted).state_dict().items():
        mean = torch.stack([state[name] for state in states]).float().mean(dim=0)
        torch.testing.assert_close(value, mean.to(value.dtype))


def test_the_mean_of_one_network_thrice_answers_as_it_does(fitted: list[ClipNet]) -> None:
    frames, lengths = torch.rand(2, 3, 3, 64, 64), torch.tensor([3, 2])
    with torch.no_grad():
        for got, wanted in zip(averaged([fitted[0]] * 3)(frames, lengths), fitted[0](frames, lengths), strict=True):
            torch.testing.assert_close(got, wanted)
