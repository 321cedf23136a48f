"""Which recordings each stage takes; tests/bad_input/test_training.py tests the messages about the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scenes.project import CLASSES, add_good, make_project, write_results

from deg.data.keypoints import PARTS
from deg.data.labels import write_labels
from deg.data.results import MARK, read_mark
from deg.options.load import load_config
from deg.plan.recordings import Trainable, find_trainable
from deg.projects.project import open_project

FRAMES = 12
LABELS = np.eye(3, dtype=int)[np.arange(FRAMES) // 2 % 3]


@pytest.fixture
def lab(tmp_path):
    """Two labelled recordings with features, and one with a video alone."""
    lab = make_project(tmp_path / "lab")
    for key in ("a", "b", "raw"):
        video = add_good(lab, key, FRAMES)
        if key != "raw":
            write_labels(video.with_name(f"{key}_labels.csv"), LABELS, CLASSES)
            write_results(video.with_name(f"{key}_outputs.h5"), FRAMES)
    return lab


def found(lab: Path, stage: str, *overrides: str) -> Trainable:
    return find_trainable(stage, open_project(lab), load_config(lab / "project_config.yaml", overrides, stage=stage))


def set_mark(path: Path, **changes) -> None:
    mark = replace(read_mark(path, "resnet18"), **changes)
    with h5py.File(path, "r+") as file:
        file["resnet18"].attrs[MARK] = json.dumps(vars(mark))


def write_keypoints(path: Path, num_frames: int, rng: np.random.Generator) -> None:
    header = [["scorer", *["net"] * 21], ["bodyparts"], ["coords"]]
    for part in PARTS:
        header[1] += [part] * 3
        header[2] += ["x", "y", "likelihood"]
    rows = [[t, *np.column_stack([rng.random((7, 2)) * 60, np.ones(7)]).ravel()] for t in range(num_frames)]
    path.write_text("\n".join(",".join(map(str, row)) for row in [*header, *rows]) + "\n")


def test_flow_generators_take_every_video(lab):
    trainable = found(lab, "flow_generator")
    assert list(trainable.videos) == ["a", "b", "raw"] and list(trainable.positives) == ["a", "b"]


def test_feature_extractors_take_labelled_videos(lab):
    trainable = found(lab, "feature_extractor")
    assert trainable.positives == {"a": (4, 4, 4), "b": (4, 4, 4)} and list(trainable.left_out) == ["raw"]


def test_frames_without_any_label_count_as_background(lab):
    labels_TK = LABELS.copy()
    labels_TK[:, 0] = 0
    write_labels(lab / "DATA/a/a_labels.csv", labels_TK, CLASSES)
    assert found(lab, "feature_extractor").positives["a"] == (4, 4, 4)


def test_flow_generators_do_not_mind_wrong_labels(lab):
    write_labels(lab / "DATA/a/a_labels.csv", LABELS[:5], CLASSES)
    trainable = found(lab, "flow_generator")
    assert list(trainable.videos) == ["a", "b", "raw"] and trainable.left_out == {}


def test_sequence_networks_take_features_for_which_the_video_need_not_be_there(lab):
    (lab / "DATA/a/a.mp4").unlink()
    trainable = found(lab, "sequence")
    assert {key: video.num_frames for key, video in trainable.videos.items()} == {"a": FRAMES, "b": FRAMES}
    assert trainable.inputs["a"].group == "resnet18"


def test_sequence_networks_take_features_of_deepethogram_which_have_no_mark(lab):
    for key in ("a", "b"):
        with h5py.File(lab / f"DATA/{key}/{key}_outputs.h5", "r+") as file:
            del file["resnet18"].attrs[MARK]
    assert found(lab, "sequence").inputs["a"].mark == ""


def test_the_group_of_features_can_be_named(lab):
    for key in ("a", "b"):
        write_results(lab / f"DATA/{key}/{key}_outputs.h5", FRAMES, group="mine")
    assert found(lab, "sequence", "sequence.latent_name=mine").inputs["a"].group == "mine"


def test_features_of_one_network_with_other_settings_are_taken_with_a_warning(lab):
    set_mark(lab / "DATA/a/a_outputs.h5", settings="others")
    (notice,) = found(lab, "sequence").notices
    assert "made with 2 different settings" in notice and "`deg infer feature_extractor --overwrite`" in notice


def test_keypoints_stand_in_for_features(lab):
    rng = np.random.default_rng(0)
    for key in ("a", "b"):
        write_keypoints(lab / f"DATA/{key}/{key}_DLC.csv", FRAMES, rng)
    trainable = found(lab, "sequence", "sequence.input_type=keypoints")
    assert trainable.inputs["a"].path == lab / "DATA/a/a_DLC.csv" and trainable.inputs["a"].group == ""
    assert trainable.videos["a"].num_frames == FRAMES
