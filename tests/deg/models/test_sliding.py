"""Sliding over frames gives the network's output on each window, also if tiles and image do not end together."""

from __future__ import annotations

import pytest
import torch
from fill import fill
from torch import nn
from torch.nn import functional as F

from deg.models.fold import fold_batchnorm
from deg.models.sliding import SlidingConvolution, SlidingTwoStream, slides


def windows(frames_TCHW: torch.Tensor, window: int) -> torch.Tensor:
    count = len(frames_TCHW) - window + 1
    return torch.stack([frames_TCHW[first : first + window].flatten(0, 1) for first in range(count)])


@pytest.mark.parametrize("size", [(16, 16), (33, 50), (5, 17)])
@pytest.mark.parametrize(("kernel", "window", "bias"), [(7, 11, True), (3, 4, False)])
@torch.inference_mode()
def test_a_convolution_of_every_window(size, kernel, window, bias):
    generator = torch.Generator().manual_seed(1)
    conv = nn.Conv2d(3 * window, 8, kernel, padding=kernel // 2, bias=bias)
    frames = torch.randn(window + 2, 3, *size, generator=generator)
    expected = F.conv2d(windows(frames, window), conv.weight, conv.bias, padding=kernel // 2)
    torch.testing.assert_close(SlidingConvolution(conv, window)(frames), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (70, 75)])
@torch.inference_mode()
def test_a_whole_network(scene, size):
    network = fill(scene.two_stream("deg_f"))
    assert slides(network)
    frames = torch.randn(13, 3, *size, generator=torch.Generator().manual_seed(2))
    expected = network.eval()(windows(frames, 11))
    found = SlidingTwoStream(fold_batchnorm(network))(frames)
    for want, got in zip(expected, found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_only_deg_f_is_worth_it(scene):
    assert not slides(scene.two_stream("deg_m"))
    assert not slides(scene.two_stream("deg_s"))
