"""Sequence inference: the frames that a network is shown, and the original's numbers on real features."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deg.errors import ResultError
from deg.infer.sequences import SequenceEngine
from deg.models.sequence import MLP, build_sequence
from deg.options.schema import Sequence
from deg.runs.plans import SequenceTask

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


class Stretches(nn.Module):
    """A network with two "logits" per frame: its first feature, and the sum of that over the stretch it is shown in."""

    def forward(self, features_BDL: torch.Tensor) -> torch.Tensor:
        own = features_BDL[:, :1]
        return torch.cat([own, own.sum(dim=2, keepdim=True).expand_as(own)], dim=1)


class Windows(MLP):
    """A stand-in for the mlp: its "logits" are the window of a one-feature video."""

    def __init__(self, length: int):
        super().__init__(length, 1, dropout_p=0.0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frame_numbers(num_frames: int) -> np.ndarray:
    """Return a video whose only feature is the number of the frame, from 1."""
    return np.arange(1, num_frames + 1, dtype=np.float32).reshape(-1, 1)


def reader(features_TD: np.ndarray):
    return lambda start, stop: features_TD[start:stop]


def run(engine: SequenceEngine, features_TD: np.ndarray) -> SimpleNamespace:
    """Return the results of all blocks of a video, joined."""
    blocks = list(engine.run(reader(features_TD), len(features_TD)))
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]
    assert (blocks[0].start, blocks[-1].stop) == (0, len(features_TD))
    return SimpleNamespace(
        logits=np.concatenate([block.logits_TK for block in blocks]),
        probabilities=np.concatenate([block.probabilities_TK for block in blocks]),
    )


# ----------------------------------------------------------------- the grid


@given(num_frames=st.integers(0, 50), length=st.integers(1, 12), batch_size=st.integers(1, 4))
def test_each_frame_is_shown_once_with_the_stretch_that_it_lies_in(num_frames, length, batch_size):
    """The zeros that fill up the last stretch do not change its sum."""
    engine = SequenceEngine(Stretches(), length, device=CPU, batch_size=batch_size)
    features = frame_numbers(num_frames)
    sums = [features[t - t % length : t - t % length + length].sum() for t in range(num_frames)]
    logits = run(engine, features).logits
    np.testing.assert_array_equal(logits, np.stack([features[:, 0], sums], axis=1).astype(np.float32))


def test_a_video_is_read_in_order_a_block_at_a_time():
    """Ten stretches of 5 frames, 3 per batch, and 2 more frames: memory holds 15 frames, however long the video is."""
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return np.zeros((stop - start, 1), np.float32)

    engine = SequenceEngine(Stretches(), 5, device=CPU, batch_size=3)
    blocks = [(block.start, block.stop) for block in engine.run(read, 52)]
    assert blocks == asked == [(0, 15), (15, 30), (30, 45), (45, 52)]


@pytest.mark.parametrize("arch", ["tgmj", "tgm", "linear", "conv_nonlinear", "rnn", "mlp", "tcn"])
def test_every_network_works_on_empty_short_and_odd_videos(arch):
    section = Sequence(arch=arch, sequence_length=9, filter_length=5, n_filters=3, bidirectional=True, tcn_layers=3)
    torch.manual_seed(0)
    network = build_sequence(section, 6 * 9 if arch == "mlp" else 6, 4)
    engine = SequenceEngine(network, 9, device=CPU, batch_size=2)
    for num_frames in (0, 1, 8, 9, 10, 40):
        result = run(engine, np.random.default_rng(0).standard_normal((num_frames, 6), np.float32))
        assert result.logits.shape == result.probabilities.shape == (num_frames, 4)
        assert result.logits.dtype == result.probabilities.dtype == np.float32
        assert np.isfinite(result.logits).all()


@pytest.mark.parametrize("arch", ["tgmj", "rnn", "mlp", "tcn"])
def test_the_batch_size_does_not_matter(arch):
    section = Sequence(arch=arch, sequence_length=9, filter_length=5, bidirectional=True)
    torch.manual_seed(0)
    network = build_sequence(section, 6 * 9 if arch == "mlp" else 6, 4)
    features = np.random.default_rng(0).standard_normal((50, 6), np.float32)
    one, many = (run(SequenceEngine(network, 9, device=CPU, batch_size=size), features).logits for size in (1, 100))
    np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------- the windows of the mlp


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, [[1], [2], [3]]),
        (3, [[0, 1, 2], [1, 2, 3], [2, 3, 0]]),
        (4, [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 0]]),
        (7, [[0, 0, 0, 1, 2, 3, 0], [0, 0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 0, 0, 0]]),
    ],
)
def test_the_mlp_sees_a_window_around_each_frame_with_zeros_outside_the_video(length, expected):
    engine = SequenceEngine(Windows(length), length, device=CPU, batch_size=2)
    assert run(engine, frame_numbers(3)).logits.tolist() == expected


@given(num_frames=st.integers(1, 40), length=st.integers(1, 9), batch_size=st.integers(1, 5))
def test_windows_do_not_depend_on_how_the_video_is_cut_into_blocks(num_frames, length, batch_size):
    engine = SequenceEngine(Windows(length), length, device=CPU, batch_size=batch_size)
    before = length // 2
    video = np.pad(np.arange(1, num_frames + 1), (before, length))
    expected = [video[t : t + length].tolist() for t in range(num_frames)]
    assert run(engine, frame_numbers(num_frames)).logits.tolist() == expected


def test_a_window_is_flattened_feature_by_feature():
    engine = SequenceEngine(Windows(2), 2, device=CPU)
    features = np.array([[1, 10], [2, 20]], np.float32)
    assert run(engine, features).logits.tolist() == [[0, 1, 0, 10], [1, 2, 10, 20]]


# ----------------------------------------------------------------- the tcn, which has no grid


@pytest.fixture(scope="module")
def tcn():
    """A network that sees 15 frames on each side."""
    torch.manual_seed(0)
    return build_sequence(Sequence(arch="tcn", tcn_layers=4, hidden_size=8), 6, 3).eval()


@settings(deadline=None)
@given(num_frames=st.integers(1, 120), length=st.integers(1, 40), batch_size=st.integers(1, 3))
def test_the_tcn_says_of_a_video_in_blocks_what_it_says_of_it_in_one_piece(tcn, num_frames, length, batch_size):
    features = np.random.default_rng(num_frames).standard_normal((num_frames, 6), np.float32)
    with torch.inference_mode():
        whole = tcn(torch.from_numpy(features.T)[None])[0].T.numpy()
    found = run(SequenceEngine(tcn, length, device=CPU, batch_size=batch_size), features).logits
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


def test_the_tcn_reads_a_block_at_a_time_with_what_its_frames_depend_on(tcn):
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return np.zeros((stop - start, 6), np.float32)

    engine = SequenceEngine(tcn, 20, device=CPU, batch_size=2)
    assert [(block.start, block.stop) for block in engine.run(read, 100)] == [(0, 40), (40, 80), (80, 100)]
    assert asked == [(0, 55), (25, 95), (65, 100)]


# ----------------------------------------------------------------- activation and faults


def test_sigmoid_probabilities_are_independent_and_softmax_ones_sum_to_one():
    features = np.array([[0.0], [1.0]], np.float32)
    sigmoid = run(SequenceEngine(Stretches(), 2, device=CPU), features)
    np.testing.assert_allclose(sigmoid.probabilities, 1 / (1 + np.exp(-sigmoid.logits)), rtol=1e-6)
    softmax = run(SequenceEngine(Stretches(), 2, device=CPU, activation="softmax"), features)
    np.testing.assert_allclose(softmax.probabilities.sum(axis=1), 1, rtol=1e-6)


def test_fewer_features_than_frames_are_an_error_and_not_zeros():
    engine = SequenceEngine(Stretches(), 4, device=CPU)
    with pytest.raises(ResultError, match=r"Expected features of the frames \[0, 10\) of 10, found those of 7"):
        list(engine.run(reader(frame_numbers(7)), 10))


def test_dropout_is_off():
    engine = SequenceEngine(nn.Sequential(Stretches(), nn.Dropout(0.9)), 4, device=CPU)
    assert run(engine, frame_numbers(4)).logits[:, 0].tolist() == [1, 2, 3, 4]


# ----------------------------------------------------------------- against the original


@pytest.fixture(scope="module")
def trained(shared_data):
    """The project of the original, and a task from its sequence training run."""
    project = shared_data("data/deg_project_original")
    folder = project / "models" / "261122_064227_sequence_train"
    options = yaml.safe_load((folder / "config.yaml").read_text())["sequence"]
    task = SequenceTask(
        sequence=Sequence(**options),
        num_classes=4,
        weights=str(folder / "checkpoint.pt"),
        latent_name="resnet18",
    )
    return SimpleNamespace(project=project, folder=folder, task=task)


def test_a_task_travels_as_plain_values(trained):
    assert SequenceTask.from_dict(yaml.safe_load(yaml.safe_dump(trained.task.as_dict()))) == trained.task


@pytest.mark.parametrize("weights", ["checkpoint.pt", "lightning_checkpoints/epoch=3-step=12.ckpt"])
@pytest.mark.parametrize("record", ["field_1", "field_2", "field_3", "field_4"])
def test_logits_and_probabilities_equal_the_originals(trained, weights, record):
    engine = SequenceEngine.load(replace(trained.task, weights=str(trained.folder / weights)), CPU)
    with h5py.File(trained.project / "DATA" / record / f"{record}_outputs.h5") as file:
        parts = [file["resnet18/spatial_features"], file["resnet18/flow_features"]]
        result = run(engine, np.concatenate([part[:] for part in parts], axis=1))
        np.testing.assert_allclose(result.logits, file["tgmj/logits"][:], rtol=1e-4, atol=5e-6)
        np.testing.assert_allclose(result.probabilities, file["tgmj/P"][:], rtol=0, atol=1e-6)
