"""Batch norm folded into the convolution before it: the same numbers in inference, in fewer passes over memory."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from deg.models.resnet import BasicBlock, Bottleneck, ResNet2D
from deg.models.resnet3d import ResNet3D

Network = TypeVar("Network", bound=nn.Module)

NORMALISED = {
    ResNet2D: (("conv1", "bn1"),),
    ResNet3D: (("conv1", "bn1"),),
    BasicBlock: (("conv1", "bn1"), ("conv2", "bn2")),
    Bottleneck: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
}
"""Layers of each class and the batch norm that follows each of them. In an nn.Sequential it is the next module."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(network: Network) -> Network:
    """Return a copy in eval mode, for inference only, in which nn.Identity replaces each batch norm that was folded.

    The state dict of the copy has other names than the network's: load weights before folding.
    """
    folded = deepcopy(network).eval().requires_grad_(False)
    for module in list(folded.modules()):
        for name, norm_name in _pairs(module):
            layer, norm = module.get_submodule(name), module.get_submodule(norm_name)
            if not isinstance(norm, NORMS):
                continue
            if isinstance(layer, CONVOLUTIONS):
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
            elif isinstance(layer, TRANSPOSED):
                setattr(module, name, fuse_conv_bn_eval(layer, norm, transpose=True))
            elif isinstance(layer, nn.Linear):
                setattr(module, name, fuse_linear_bn_eval(layer, norm))
            else:
                continue
            setattr(module, norm_name, nn.Identity())
    return folded


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(module, nn.Sequential):
        names = [name for name, _ in module.named_children()]
        yield from pairwise(names)
    yield from NORMALISED.get(type(module), ())  # type: ignore[call-overload]
