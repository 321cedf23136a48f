"""The flow generators on their own: sizes, units between levels, initial values. Golden flows: test_two_stream.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deg.models.motionnet import MotionNet, TinyMotionNet, join
from deg.models.two_stream import FLOW_GENERATORS


@pytest.mark.parametrize("arch", FLOW_GENERATORS)
@pytest.mark.parametrize("training", [True, False])
def test_three_levels_finest_first_for_training_and_inference(arch, training):
    network = FLOW_GENERATORS[arch](11).train(training)
    clip = torch.randn((2, 33, 64, 32) if network.stacks_frames else (2, 3, 11, 64, 32))
    channels = (20,) if network.stacks_frames else (2, 10)
    with torch.no_grad():
        pyramid = network(clip)
    assert [tuple(flow.shape) for flow in pyramid] == [
        (2, *channels, 32, 16),
        (2, *channels, 16, 8),
        (2, *channels, 8, 4),
    ]


def test_joined_maps_keep_their_top_left():
    large, small = torch.arange(30.0).view(1, 1, 5, 6), torch.ones(1, 2, 4, 6)
    joined = join(large, small)
    assert joined.shape == (1, 3, 4, 6)
    assert torch.equal(joined[:, :1], large[:, :, :4])


def test_motionnet_starts_from_xavier_weights_and_biases_between_0_and_1():
    layer = MotionNet().conv4[0]
    bound = (6 / (256 * 9 + 512 * 9)) ** 0.5
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.bias.min() >= 0 and 0.9 < layer.bias.max() < 1


def test_fewer_frames_make_fewer_channels():
    network = TinyMotionNet(n_rgb=3)
    assert isinstance(network.predict_flow2, nn.Conv2d)
    assert network(torch.randn(2, 9, 16, 16)).half.shape == (2, 4, 8, 8)
