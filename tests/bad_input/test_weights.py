"""Weights that do not fit or cannot be trusted: nothing is done or changed, and none of their code is run."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from command import infer
from scenes.project import CLASSES, make_project, write_results

from deg.errors import WeightsError
from deg.infer.features import FeatureEngine
from deg.infer.sequences import SequenceEngine
from deg.models.sequence import build_sequence
from deg.models.two_stream import FLOW_GENERATORS
from deg.options.schema import FeatureExtractor, FlowGenerator, Sequence
from deg.runs.plans import FeatureTask, SequenceTask
from deg.types import NUM_FEATURES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]
CPU = torch.device("cpu")


@pytest.fixture
def lab(tmp_path):
    """A project with one recording, which has results."""
    lab = make_project(tmp_path / "lab", {"mouse": 12})
    write_results(lab / "DATA" / "mouse" / "mouse_outputs.h5", 12)
    return lab


def refused(lab: Path, *words: str, stage: str = "feature_extractor") -> str:
    """Return the one sentence with which `deg infer` ends, and check that all results are as they were."""
    path = lab / "DATA" / "mouse" / "mouse_outputs.h5"
    before = path.read_bytes()
    answer = infer(lab, *words, stage=stage)
    assert answer.status == answer.json["status"] == 2
    assert path.read_bytes() == before and [file.name for file in path.parent.glob("*h5*")] == [path.name]
    assert f"Error: {answer.json['error']}" in answer.told and "\n" not in answer.json["error"]
    return answer.json["error"]


# ------------------------------------------------------------------------------------------------ found when planning


def test_no_such_file(lab):
    message = refused(lab, "feature_extractor.weights=gone.pt")
    assert "gone.pt: no weight file is there" in message and "Set it to an existing path" in message


def test_no_weights_of_this_network(lab):
    message = refused(lab, "feature_extractor.arch=resnet50")
    assert "No trained feature_extractor of architecture resnet50" in message
    assert "architectures found: resnet18" in message


def test_thresholds_of_other_classes(lab):
    run = lab / "models" / "200101_000001_feature_extractor_train"
    with h5py.File(run / "classification_metrics.h5", "w") as file:
        file["threshold_curves/val/optimum"] = np.full((1, len(CLASSES) + 1), 0.5)
    message = refused(lab)
    assert f"{run}/classification_metrics.h5: thresholds of 4 behaviours, but 3 were expected" in message
    assert "train again, or use others" in message


# -------------------------------------------------------------------------------------------- found when they are read


class _Touches:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self):
        return os.mknod, (os.fspath(self._path),)


def test_weights_that_would_run_code(lab, tmp_path):
    """The whole command runs, with a worker that reads these weights as it reads all weights."""
    path, made = tmp_path / "evil.pt", tmp_path / "code was run"
    torch.save({"state_dict": {}, "hyperparameters": _Touches(made)}, path)
    message = refused(lab, f"sequence.weights={path}", stage="sequence")
    assert f"{path}: refused, because it names" in message and "mknod" in message and "could run code" in message
    assert not made.exists()


@pytest.fixture
def unloadable(tmp_path):
    """`unloadable(network, size)`: the message with which a sequence network refuses a file cut to `size` bytes."""
    path = tmp_path / "checkpoint.pt"

    def read(network: torch.nn.Module, size: int | None = None) -> str:
        torch.save({"epoch": 0, "state_dict": network.state_dict()}, path)
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(WeightsError) as raised:
            SequenceEngine.load(SequenceTask(Sequence(), 3, str(path), "resnet18"), CPU)
        message = str(raised.value)
        assert message.startswith(f"{path}: ") and "\n" not in message
        return message

    return read


def sequence_network(num_classes: int) -> torch.nn.Module:
    return build_sequence(Sequence(), NUM_FEATURES, num_classes)


def test_truncated_weights(unloadable):
    message = unloadable(sequence_network(3), 100_000)
    assert "not a readable checkpoint (100000 bytes)" in message and "Copy it again" in message


def test_weights_of_another_network(unloadable):
    message = unloadable(FLOW_GENERATORS["TinyMotionNet"](11))
    assert "only 0 of" in message and "Expected sequence network tgmj" in message
    assert "the file looks like flow generator TinyMotionNet" in message
    assert "Choose weights of this architecture" in message


def test_weights_of_other_classes(unloadable):
    message = unloadable(sequence_network(4))
    assert "the weights have 4 classes, the project 3 (background included)" in message
    assert "Choose weights trained with this project's classes" in message


def test_a_feature_extractor_of_other_classes(models):
    (weights,) = models.glob("*_feature_extractor_train/checkpoint.pt")
    networks = (FeatureExtractor(), FlowGenerator())
    task = FeatureTask(*networks, 4, str(weights), None, None, None, None, mean=(0.4,) * 3, std=(0.2,) * 3)
    with pytest.raises(WeightsError) as raised:
        FeatureEngine.load(task, CPU)
    assert f"{weights}: the weights have 3 classes, the project 4 (background included)" in str(raised.value)
    assert "Choose weights trained with this project's classes" in str(raised.value)
