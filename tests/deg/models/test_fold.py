"""Batch norm folded into the layer before it gives the same numbers, and leaves the original network unchanged."""

from __future__ import annotations

import pytest
import torch
from fill import fill
from torch import nn

from deg.models.fold import fold_batchnorm

pytestmark = pytest.mark.slow

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def count_norms(network):
    return sum(isinstance(layer, NORMS) for layer in network.modules())


@pytest.mark.parametrize("name", ["deg_f", "deg_m", "deg_s"])
@torch.inference_mode()
def test_two_stream_networks_give_the_same_without_any_batch_norm(golden_model, name):
    network, clip, _ = golden_model(name)
    folded = fold_batchnorm(network)
    assert count_norms(folded) == 0
    for before, after in zip(network(clip[:1]), folded(clip[:1]), strict=True):
        scale = before.abs().max()
        torch.testing.assert_close(after / scale, before / scale, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_classifiers_batch_norm_is_folded_into_its_linear_layer(scene):
    network = fill(scene.two_stream("deg_f", final_bn=True))
    features = torch.rand(3, 512)
    folded = fold_batchnorm(network)
    assert count_norms(folded) == 0
    torch.testing.assert_close(
        folded.spatial_classifier.classify(features), network.spatial_classifier.classify(features)
    )


@pytest.mark.parametrize("arch", ["tgmj", "conv_nonlinear"])
@torch.inference_mode()
def test_sequence_networks_with_shared_tensors_give_the_same(scene, arch):
    network = fill(scene.sequence(16, 3, arch=arch))
    features = torch.randn(2, 16, 30)
    torch.testing.assert_close(fold_batchnorm(network)(features), network(features), rtol=1e-4, atol=1e-6)


def test_the_network_given_is_not_altered(scene):
    network = scene.two_stream("deg_f").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batchnorm(network)
    assert network.training and not folded.training
    assert any(value.requires_grad for value in network.parameters())
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    shared = {value.data_ptr() for value in network.parameters()} & {value.data_ptr() for value in folded.parameters()}
    assert not shared
