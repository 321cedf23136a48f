"""Torchvision's ImageNet weights, from which a stream starts if it is given no weights. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import torch
from torchvision.models import get_model, get_model_weights

from deg.errors import WeightsError, show_path
from deg.models.resnet import ResNet2D, start_from_imagenet
from deg.models.two_stream import EXTRACTORS, Stream
from deg.models.weights import read_checkpoint

WITHOUT_IMAGENET = ("resnet3d_34",)
"""Feature extractors for which torchvision has no weights."""


def find_imagenet(arch: str) -> Path:
    """Return the file with the ImageNet weights of a 2D feature extractor, in the folder of torch.hub's downloads.

    That is $TORCH_HOME/hub/checkpoints, by default ~/.cache/torch/hub/checkpoints. Raises WeightsError if the file is
    not there, or if there are no ImageNet weights of this network.
    """
    with_imagenet = [name for name in EXTRACTORS if name not in WITHOUT_IMAGENET]
    if arch not in with_imagenet:
        raise WeightsError(
            f"feature_extractor.weights=null starts from ImageNet, but there are no ImageNet weights of {arch}, only "
            f"of {', '.join(with_imagenet)}. Set feature_extractor.weights to pretrained, to a path, or to random to "
            "start from random values."
        )
    # V1: DeepEthogram starts from it, and older versions of torchvision have downloaded this file
    url = get_model_weights(arch)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        shown = show_path(path)
        raise WeightsError(
            f"{shown}: expected torchvision's ImageNet weights of {arch}, from which training starts with "
            "feature_extractor.weights=null, but there is no such file. On a machine with internet access, run\n"
            f"    curl --create-dirs -o {quote(shown)} {url}\n"
            "and, if that is another machine, copy the file to the same path on this one. Or set "
            "feature_extractor.weights to the path of other weights, or to random to start from random values."
        )
    return path


def load_imagenet(stream: Stream, arch: str, path: Path) -> None:
    """Copy the weights in `path` into the stream's network, of architecture `arch`; its classifier keeps its values.

    If the first layer takes other than three channels, each gets the mean over red, green and blue, not rescaled.
    Raises WeightsError if the file cannot be read or holds the weights of another network.
    """
    network, state = stream[0], read_checkpoint(path).state_dict
    assert isinstance(network, ResNet2D)
    with torch.device("meta"):
        expected = get_model(arch, weights=None).state_dict()
    for key, value in expected.items():
        # old files have no count of batches, and no result depends on it
        if key.endswith(".num_batches_tracked") or key.startswith("fc."):
            continue
        found = tuple(state[key].shape) if key in state else None
        if found != tuple(value.shape):
            raise WeightsError(
                f"{show_path(path)}: expected torchvision's ImageNet weights of {arch}, with {key} of shape "
                f"{tuple(value.shape)}; found {'none' if found is None else f'shape {found}'}. "
                "Remove the file and download it again, or set feature_extractor.arch to that of the weights."
            )
    start_from_imagenet(network, {key: state[key] for key in expected if key in state})
