"""Fixtures of the network tests: configurations of the original, its golden clips, and networks filled by rule."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fill import fill

from deg.models.sequence import build_sequence
from deg.models.two_stream import TwoStream, build_two_stream

PRESETS = {
    "deg_f": ("resnet18", "TinyMotionNet", 1),
    "deg_m": ("resnet50", "MotionNet", 1),
    "deg_s": ("resnet3d_34", "TinyMotionNet3D", 11),
}

SEQUENCE = {
    "arch": "tgmj",
    "dropout_p": 0.5,
    "num_layers": 3,
    "tcn_layers": 7,
    "hidden_size": 64,
    "filter_length": 15,
    "input_dropout": 0.5,
    "n_filters": 8,
    "tgm_reduction": "max",
    "c_in": 1,
    "c_out": 8,
    "soft_attn": True,
    "num_features": 128,
    "nonlinear_classification": True,
    "final_bn": True,
    "bidirectional": False,
    "rnn_style": "lstm",
    "hidden_dropout": 0.0,
}


@pytest.fixture(autouse=True)
def _quiet_machine():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def two_stream_sections(preset: str, **options: Any) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Return the sections feature_extractor and flow_generator of a preset, with `options` laid over the first."""
    arch, flow_arch, n_rgb = PRESETS[preset]
    extractor = {
        "arch": arch,
        "n_rgb": n_rgb,
        "n_flows": 10,
        "fusion": "average",
        "final_bn": False,
        "dropout_p": 0.25,
    }
    return SimpleNamespace(**extractor | options), SimpleNamespace(arch=flow_arch, n_rgb=11)


def make_two_stream(preset: str, num_classes: int = 4, **options: Any) -> TwoStream:
    return build_two_stream(*two_stream_sections(preset, **options), num_classes)


def sequence_section(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(**SEQUENCE | options)


def make_sequence(num_features: int, num_classes: int, /, **options: Any) -> torch.nn.Module:
    return build_sequence(sequence_section(**options), num_features, num_classes)


@pytest.fixture(scope="session")
def scene():
    """The functions that the tests build networks and clips with."""
    return SimpleNamespace(
        PRESETS=PRESETS,
        two_stream_sections=two_stream_sections,
        two_stream=make_two_stream,
        sequence_section=sequence_section,
        sequence=make_sequence,
        clip=golden_clip,
    )


def golden_clip(clip_uint8: np.ndarray, about: dict[str, Any], stacks_frames: bool) -> torch.Tensor:
    """Normalise uint8 [B, 3, 11, H, W], and stack frames in the channel axis if the network expects that."""
    clip = torch.from_numpy(clip_uint8).float() / 255
    mean, std = (torch.tensor(about[name]).view(1, 3, 1, 1, 1) for name in ("mean", "std"))
    clip = (clip - mean) / std
    return clip.transpose(1, 2).flatten(1, 2) if stacks_frames else clip


@pytest.fixture(scope="session")
def golden_model(golden):
    """`golden_model("deg_f")`: the filled network, the prepared clip, and the original's arrays."""

    @cache
    def filled(preset: str, num_classes: int, salt: int, **sizes: int) -> TwoStream:
        return fill(make_two_stream(preset, num_classes, **sizes), salt)

    def load(name: str) -> tuple[TwoStream, torch.Tensor, dict[str, np.ndarray]]:
        arrays, about = golden(name)
        sizes = {"n_rgb": about["arch"]["num_rgb"], "n_flows": about["num_flows"]}
        network = filled(about["preset"], about["classes"], about["salt"], **sizes)
        return network, golden_clip(arrays["clip"], about, network.stacks_frames), arrays

    return load
