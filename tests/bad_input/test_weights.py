"""Weights that do not fit or cannot be trusted: nothing is done or changed, no code of theirs is run."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from command import infer
from scenes.project import CLASSES, add_good, make_project, write_results


@pytest.fixture
def lab(tmp_path, models):
    """A project with one recording, that has results."""
    lab = make_project(tmp_path / "lab", models=models)
    write_results(add_good(lab, "mouse").with_name("mouse_outputs.h5"), 12)
    return lab


def refused(lab: Path, *words: str, stage: str = "feature_extractor") -> str:
    """The one sentence with which `deg infer` ends; all results are as they were."""
    path = lab / "DATA" / "mouse" / "mouse_outputs.h5"
    before = path.read_bytes()
    answer = infer(lab, *words, stage=stage)
    assert answer.status == answer.json["status"] == 2
    assert path.read_bytes() == before and [file.name for file in path.parent.glob("*h5*")] == [path.name]
    assert f"Error: {answer.json['error']}" in answer.told and "\n" not in answer.json["error"]
    return answer.json["error"]


def newest(models: Path, model: str) -> Path:
    (run,) = models.glob(f"*_{model}_train_untrained")
    return run / "checkpoint.pt"


def test_no_such_file(lab):
    message = refused(lab, "feature_extractor.weights=gone.pt")
    assert "gone.pt: no weight file is there" in message and "Set it to an existing path" in message


def test_no_weights_of_this_network(lab):
    message = refused(lab, "feature_extractor.arch=resnet50")
    assert "No trained feature_extractor of architecture resnet50" in message
    assert "architectures found: resnet18" in message


def test_truncated(lab, models, tmp_path):
    path = tmp_path / "truncated.pt"
    path.write_bytes(newest(models, "sequence").read_bytes()[:100_000])
    message = refused(lab, f"sequence.weights={path}", stage="sequence")
    assert f"{path}: not a readable checkpoint (100000 bytes)" in message and "Copy it again" in message


def test_of_another_network(lab, models):
    path = newest(models, "flow_generator")
    message = refused(lab, f"sequence.weights={path}", stage="sequence")
    assert f"{path}: only 0 of" in message and "Expected sequence network tgmj" in message
    assert "the file looks like flow generator TinyMotionNet" in message
    assert "Choose weights of this architecture" in message


class _Touches:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self):
        return os.mknod, (os.fspath(self._path),)


def test_that_would_run_code(lab, tmp_path):
    import torch

    path, made = tmp_path / "evil.pt", tmp_path / "code was run"
    torch.save({"state_dict": {}, "hyperparameters": _Touches(made)}, path)
    message = refused(lab, f"sequence.weights={path}", stage="sequence")
    assert f"{path}: refused, because it names" in message and "mknod" in message and "could run code" in message
    assert not made.exists()


def test_of_other_classes(lab):
    project = yaml.safe_load((lab / "project_config.yaml").read_text())
    project["project"]["class_names"].append("sleep")
    (lab / "project_config.yaml").write_text(yaml.safe_dump(project))
    message = refused(lab)
    assert "the weights have 3 classes, the project 4 (background included)" in message
    assert "Choose weights trained with this project's classes" in message


def test_thresholds_of_other_classes(lab, models):
    run = lab / "models" / "200101_000000_feature_extractor_train"
    run.mkdir()
    source = newest(models, "feature_extractor")
    (run / "checkpoint.pt").symlink_to(source)
    (run / "config.yaml").write_bytes(source.with_name("config.yaml").read_bytes())
    with h5py.File(run / "classification_metrics.h5", "w") as file:
        file["threshold_curves/val/optimum"] = np.full((1, len(CLASSES) + 1), 0.5)
    message = refused(lab)
    assert f"{run}/classification_metrics.h5: thresholds of 4 behaviours, but 3 were expected" in message
    assert "train again, or take others" in message
