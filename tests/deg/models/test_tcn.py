"""The tcn: how far it sees, that nothing beyond the ends of a video affects it, and that seeing far helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deg.models.sequence import build_sequence
from deg.models.tcn import TCN, reach
from deg.options.schema import Sequence
from deg.train.losses import FocalBCE


def make(num_layers: int = 3, hidden: int = 8) -> TCN:
    return TCN(5, 2, hidden=hidden, num_layers=num_layers, dropout_p=0.5, input_dropout=0.5).eval()


@pytest.mark.parametrize("num_layers", [1, 3, 5])
def test_a_frame_is_judged_by_the_frames_within_reach_and_no_others(num_layers):
    network, middle = make(num_layers, hidden=64), 40  # if it were narrow, all ReLUs on the way to a frame might be off
    features = torch.randn(1, 5, 81, requires_grad=True)
    network(features)[0, :, middle].sum().backward()
    matters = features.grad[0].abs().sum(dim=0) > 0
    seen = torch.nonzero(matters).flatten()
    assert network.reach == reach(num_layers)
    assert (int(seen[0]), int(seen[-1])) == (middle - network.reach, middle + network.reach)


@torch.inference_mode()
@pytest.mark.parametrize(("before", "after"), [(0, 9), (9, 0), (3, 20), (50, 50)])
def test_padding_does_not_leak_into_a_video_whatever_stands_in_it(before, after):
    network = make()
    video = torch.randn(2, 5, 30)
    padded = torch.nn.functional.pad(video, (before, after), value=1e3)
    valid = torch.zeros(2, padded.shape[2], dtype=torch.bool)
    valid[:, before : before + 30] = True
    logits = network(padded, valid)[:, :, before : before + 30]
    torch.testing.assert_close(logits, network(video), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_without_the_mask_it_would_leak():
    network, video = make(), torch.randn(1, 5, 30)
    padded = torch.nn.functional.pad(video, (0, 9))
    assert (network(padded)[:, :, :30] - network(video)).abs().max() > 1e-3


def test_each_layer_of_a_network_from_the_configuration_doubles_its_reach():
    section = Sequence(arch="tcn", tcn_layers=4, hidden_size=6)
    network = build_sequence(section, 5, 2)
    assert network.reach == 15 and network.project.out_channels == 6


def bouts(seed: int, num_frames: int = 1200) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features [1, D, T] so noisy that a single frame says little, and labels [1, 2, T] of long bouts."""
    rng = np.random.default_rng(seed)
    behaves = np.repeat(rng.random(num_frames // 30) < 0.4, 30)
    directions = np.random.default_rng(0).normal(0, 0.2, (2, 12))
    features = directions[behaves.astype(int)] + rng.normal(0, 1, (num_frames, 12))
    labels = np.stack([~behaves, behaves]).astype(np.int64)
    return torch.from_numpy(features.T.astype(np.float32))[None], torch.from_numpy(labels)[None]


def accuracy_after_training(arch: str) -> float:
    torch.manual_seed(0)
    network = build_sequence(Sequence(arch=arch, tcn_layers=5), 12, 2)
    loss, optimizer = FocalBCE(), torch.optim.Adam(network.parameters(), lr=2e-3)
    videos = [bouts(seed) for seed in range(1, 5)]
    for step in range(80):
        features, labels = videos[step % len(videos)]
        optimizer.zero_grad()
        (loss(network.train()(features), labels) / features.shape[2]).backward()
        optimizer.step()
    features, labels = bouts(100)
    with torch.inference_mode():
        return float((network.eval()(features).argmax(dim=1) == labels.argmax(dim=1)).float().mean())


@pytest.mark.slow
def test_it_finds_in_noise_what_frames_alone_do_not_show():
    assert accuracy_after_training("tcn") > 0.9
    assert accuracy_after_training("linear") < 0.8
