"""Temporal mixture layers: smoothing of features in time by filters that share a few learned shapes.

Source: Piergiovanni, Ryoo, "Temporal Gaussian mixture layer for videos", ICML 2019. As in DeepEthogram 0.5.0, the
"Gaussians" are Cauchy bells, and the parameter `delta` has no influence: its weight files were trained like that.
"""

from __future__ import annotations

from math import pi
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reduction = Literal["max", "mean", "conv1x1"]


class MixtureLayer(nn.Module):
    """A temporal mixture layer: [B, c_in, T] -> [B, c_out, T], with B sequences, one for each feature.

    All sequences share the same filters. The filter from one channel to another is a mixture (softmax) of the n_filters
    bells of the layer. The results of the c_in channels are summed with learned weights: either a softmax (soft_attn),
    or free weights followed by a bias and a ReLU.
    """

    def __init__(self, c_in: int, c_out: int, n_filters: int, filter_length: int, soft_attn: bool):
        super().__init__()
        self.c_in, self.c_out, self.filter_length = c_in, c_out, filter_length
        self.center = nn.Parameter(0.5 * torch.randn(n_filters))
        self.delta = nn.Parameter(0.01 * torch.randn(n_filters))
        self.gamma = nn.Parameter(1e-4 * torch.randn(n_filters))
        self.soft_attn = nn.Parameter(nn.init.xavier_normal_(torch.empty(c_out * c_in, n_filters)))
        self.cls_attn: nn.Parameter | None = None
        self.convs = nn.ModuleList()
        if c_in > 1 and soft_attn:
            weights = nn.init.xavier_normal_(torch.empty(c_out, c_in))
            self.cls_attn = nn.Parameter(weights.view(1, c_out, c_in, 1, 1))
        elif c_in > 1:
            self.convs.extend(nn.Conv2d(c_in, 1, 1) for _ in range(c_out))

    def bells(self) -> Tensor:
        """Return the shapes that are mixed, [n_filters, filter_length], each with a sum of 1."""
        last = self.filter_length - 1
        center = last * (torch.tanh(self.center) + 1) / 2
        width = torch.exp(1.5 - 2 * torch.tanh(self.gamma).abs())
        time = torch.arange(self.filter_length, dtype=center.dtype, device=center.device)
        bells = 1 / (pi * width[:, None] * (1 + ((time - center[:, None]) / width[:, None]) ** 2))
        return bells / (bells.sum(dim=1, keepdim=True) + 1e-6)

    def forward(self, sequences: Tensor) -> Tensor:
        # Filters and weights are both linear: with their product, the whole layer is one convolution.
        mixture = torch.softmax(self.soft_attn, dim=1) @ self.bells()
        filters = mixture.view(self.c_out, self.c_in, self.filter_length)
        before = (self.filter_length - 1) // 2
        padded = F.pad(sequences, (before, self.filter_length - 1 - before))
        if self.cls_attn is not None:
            filters = filters * torch.softmax(self.cls_attn.view(self.c_out, self.c_in, 1), dim=1)
        if not self.convs:
            return F.conv1d(padded, filters)
        weights = torch.cat([conv.weight for conv in self.convs]).view(self.c_out, self.c_in, 1)  # type: ignore[misc]
        bias = torch.cat([conv.bias for conv in self.convs])  # type: ignore[misc]
        return F.relu(F.conv1d(padded, filters * weights, bias))


class Smoothing(nn.Module):
    """What tgm and tgmj share: [B, D, T] -> [B, D, T], smoothed by a stack of mixture layers and a reduction.

    This is a base class, not a submodule, because `tgm_layers` and `reduction_layer` are at the top level of the weight
    files.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        c_out: int,
        n_filters: int,
        filter_length: int,
        soft_attn: bool,
        tgm_reduction: Reduction,
    ):
        super().__init__()
        self.tgm_layers = nn.ModuleList(
            MixtureLayer(c_out if index else 1, c_out, n_filters, filter_length, soft_attn)
            for index in range(num_layers)
        )
        self.tgm_reduction = tgm_reduction
        if tgm_reduction == "conv1x1":
            self.reduction_layer = nn.Conv2d(c_out, 1, 1)

    def smooth(self, features_BDT: Tensor) -> Tensor:
        channels = features_BDT.flatten(0, 1).unsqueeze(1)
        for layer in self.tgm_layers:
            channels = layer(channels)
        return self._reduce(channels).view_as(features_BDT)

    def _reduce(self, channels: Tensor) -> Tensor:
        if self.tgm_reduction == "max":
            return channels.amax(dim=1)
        if self.tgm_reduction == "mean":
            return channels.mean(dim=1)
        return F.conv1d(channels, self.reduction_layer.weight.squeeze(-1), self.reduction_layer.bias)
