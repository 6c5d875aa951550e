"""Fitting learns, goes on after an interruption as if there had been none, and keeps what it should."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.folding import fold_batch_norms, unfold_batch_norms
from models.network import ClipNet
from models.spec import BACKBONES, Architecture
from models.training.fit import Fit, fit_frames
from models.training.sampling import Geometry, Sampler
from models.training.temporal import Sequences, fit_clip_head

CPU = torch.device("cpu")
SMALL = Architecture(width_mult=0.25, lstm_hidden=8)


@pytest.fixture
def network() -> ClipNet:
    torch.manual_seed(0)
    return ClipNet(SMALL).eval()


@pytest.fixture
def sampler(tracks) -> Sampler:
    return Sampler(tracks, Geometry(input_size=64), labelled=1.0, seed=2)


def _weights(network: ClipNet) -> torch.Tensor:
    return torch.cat([value.flatten() for value in network.state_dict().values()])


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.usefixtures("double_precision")
def test_folding_and_unfolding_change_no_answer(backbone):
    torch.manual_seed(0)
    network = ClipNet(replace(SMALL, backbone=backbone)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2)
    frames, lengths = torch.randn(2, 3, 3, 64, 64), torch.tensor([3, 2])
    folded = fold_batch_norms(copy.deepcopy(network))
    for other in (folded, unfold_batch_norms(folded)):
        for ours, theirs in zip(network(frames, lengths), other(frames, lengths), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-9)
    assert unfold_batch_norms(folded).state_dict().keys() == network.state_dict().keys()


def test_training_lowers_the_loss_and_leaves_the_clip_head_alone(network, sampler):
    losses = []
    fitted = fit_frames(network, sampler, Fit(steps=12, learning_rate=3e-3), CPU, lambda p: losses.append(p.loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    assert torch.equal(fitted.lstm.weight_ih_l0, network.lstm.weight_ih_l0)
    assert not torch.equal(fitted.frame_head.weight, network.frame_head.weight)


def test_biases_of_folded_norms_learn_and_the_first_blocks_do_not(network, sampler):
    before = dict(unfold_batch_norms(fold_batch_norms(copy.deepcopy(network))).named_parameters())
    fitted = fit_frames(network, sampler, Fit(steps=2, learning_rate=3e-3), CPU, lambda p: None)
    for name, value in fitted.features.named_parameters():
        first = int(name.split(".")[0]) < network.backbone.frozen
        # the weights of unfolded norms are constants
        if not (name.endswith("weight") and value.ndim == 1):
            assert torch.equal(value, before[f"features.{name}"]) == first, name


def test_an_interrupted_training_ends_as_an_undisturbed_one(network, sampler, tmp_path):
    fit = Fit(steps=6)
    whole = fit_frames(network, sampler, fit, CPU, lambda p: None)

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        fit_frames(network, sampler, fit, CPU, stop, state, every=2)
    steps = []
    resumed = fit_frames(network, sampler, fit, CPU, lambda p: steps.append(p.step), state, every=2)
    assert steps == [5, 6]
    assert torch.allclose(_weights(resumed), _weights(whole), atol=1e-5)


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(network, sampler, tmp_path):
    fit_frames(network, sampler, Fit(steps=2), CPU, lambda p: None, tmp_path / "state.pt", every=1)
    steps = []
    fit_frames(network, sampler, Fit(steps=3), CPU, lambda p: steps.append(p.step), tmp_path / "state.pt")
    assert steps == [1, 2, 3]


def test_the_best_validated_average_is_kept(network, sampler):
    seen = []

    def judge(candidate: ClipNet) -> float:
        seen.append(_weights(unfold_batch_norms(candidate)))
        return [0.6, 0.9, 0.7][len(seen) - 1]

    best = fit_frames(network, sampler, Fit(steps=3), CPU, lambda p: None, validate=judge, every=1)
    assert torch.equal(_weights(best), seen[1])


def test_the_clip_head_learns_what_only_the_order_of_frames_tells(network):
    rng = np.random.default_rng(0)
    channels = network.frame_head.in_features
    touched = rng.random(400) < 0.5
    flicker = np.where(np.arange(16) % 2, 1.0, -1.0) * 2
    features = rng.normal(0, 0.3, (400, 16, channels))
    features[..., 0] += np.where(touched[:, None], flicker, rng.permutation(flicker))
    data = Sequences(torch.from_numpy(features).float(), torch.from_numpy(np.repeat(touched[:, None], 16, axis=1)))
    losses = []
    fitted = fit_clip_head(network, data, 0, lambda epoch, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    assert torch.equal(fitted.frame_head.weight, network.frame_head.weight)
    assert fitted.clip_head.weight.abs().sum() > 0
