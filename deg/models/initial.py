"""Initial values of networks, where they are not PyTorch's defaults."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def log_odds(positive_K: Sequence[int] | np.ndarray, negative_K: Sequence[int] | np.ndarray) -> Tensor:
    """Return log(positive / negative) of each class, the bias that makes a network start at the classes' frequencies.

    A class that is always present gets 1; one that never is, or has no labels, gets 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(np.asarray(positive_K, dtype=np.float64) / np.asarray(negative_K, dtype=np.float64))
    return torch.from_numpy(np.nan_to_num(odds, nan=0.0, posinf=1.0, neginf=0.0)).float()


def kaiming_fan_out(network: nn.Module) -> None:
    """Initialise every convolution of a residual network from He's normal distribution, scaled by its outputs."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
