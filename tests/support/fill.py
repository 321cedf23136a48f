"""Parameters without a weight file: values drawn from each tensor's name and shape, equal on every machine.

The golden outputs were made with parameters drawn by this rule. For a tensor named key, a generator PCG64 seeded with
crc32(key) + salt * 2^32 draws, in float64:

    running_var               uniform in [0.5, 1.5)
    running_mean              normal, deviation 0.1
    bias...                   normal, deviation 0.05
    weight with one axis      normal around 1, deviation 0.1
    another with one axis     normal, deviation 0.5
    two or more axes          normal, deviation 1 / sqrt(elements of one output)
    num_batches_tracked       left unchanged

A tensor that has two names is drawn by its first name (SECOND_NAMES).
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np
import torch
from torch import Tensor, nn

SECOND_NAMES = {
    r"(^|\.)net\.0\.": r"\1conv1.",
    r"(^|\.)net\.1\.": r"\1bn1.",
    r"(^|\.)net\.[34]\.": r"\1conv2.",
    r"(^|\.)classify2\.(1\.)?bias$": r"\1classify1.\2bias",
}


def draw(key: str, shape: tuple[int, ...], salt: int = 0) -> np.ndarray:
    """Return float32 values for the tensor `key`."""
    leaf = key.split(".")[-1]
    for pattern, name in SECOND_NAMES.items():
        key = re.sub(pattern, name, key)
    random = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + (salt << 32)))
    if leaf == "running_var":
        values = random.random(shape) + 0.5
    else:
        values = random.standard_normal(shape)
        if leaf == "running_mean":
            values = 0.1 * values
        elif leaf.startswith("bias"):
            values = 0.05 * values
        elif len(shape) > 1:
            values = values * (1 / math.sqrt(math.prod(shape[1:])))
        else:
            values = 1 + 0.1 * values if leaf == "weight" else 0.5 * values
    return np.asarray(values, dtype=np.float32)


def filled_state(state: dict[str, Tensor], salt: int = 0, prefix: str = "") -> dict[str, Tensor]:
    """Return a filled state dict with the same keys; `prefix` precedes the keys in the whole network."""
    return {
        key: torch.from_numpy(draw(prefix + key, tuple(old.shape), salt)) if old.is_floating_point() else old.clone()
        for key, old in state.items()
    }


def fill(network: nn.Module, salt: int = 0, prefix: str = "") -> nn.Module:
    """Fill the parameters and buffers of a network in place, and return it in eval mode."""
    network.load_state_dict(filled_state(network.state_dict(), salt, prefix))
    return network.eval()
