"""What training cannot work with is reported by name before a GPU is requested; nothing is written, nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from scenes.project import CLASSES, add_good, add_weights, make_project, place, write_results
from videos import write_video

from deg.data.labels import write_labels
from deg.data.results import MARK, read_mark
from deg.errors import DegError
from deg.options.load import load_config
from deg.plan.train import PreparedTraining, commit, describe, prepare
from deg.projects.project import open_project

pytestmark = pytest.mark.usefixtures("in_process")

FRAMES = 12
LABELS = np.eye(3, dtype=int)[np.arange(FRAMES) // 2 % 3]
"""Return labels in bouts of two frames: background, groom, rear, and again."""
BACKGROUND, GROOM, REAR = range(3)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", FRAMES)


@pytest.fixture
def lab(tmp_path):
    """A project with a trained flow generator and no recording yet."""
    lab = make_project(tmp_path / "lab")
    add_weights(lab, "flow_generator", "TinyMotionNet", "200101_000000")
    return lab


@pytest.fixture
def add(lab, video):
    """`add(key, labels)` adds a recording, without a label file if there are no labels."""

    def add_recording(key: str, labels_TK: np.ndarray | None = LABELS, names: Sequence[str] = CLASSES) -> Path:
        path = place(lab, key)
        shutil.copy(video, path)
        if labels_TK is not None:
            write_labels(path.with_name(f"{key}_labels.csv"), labels_TK, names)
        return path

    return add_recording


@pytest.fixture
def add_features(add):
    """`add_features(key, names)` adds a labelled recording with features of a network for these behaviours."""

    def add_recording(key: str, names: Sequence[str] = CLASSES) -> Path:
        return write_results(add(key).with_name(f"{key}_outputs.h5"), FRAMES, names)

    return add_recording


def contents(lab: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in lab.rglob("*") if path.is_file()}


def planned(lab: Path, *overrides: str, stage: str = "feature_extractor") -> PreparedTraining:
    """Return the plan of a stage, and check that planning writes nothing."""
    defaults = ["flow_generator.weights=latest", "feature_extractor.weights=null"]
    if stage == "flow_generator":
        defaults = ["flow_generator.weights=null"]
    before = contents(lab)
    try:
        config = load_config(lab / "project_config.yaml", [*defaults, *overrides], stage=stage)
        return prepare(stage, open_project(lab), config, devices=1)
    finally:
        assert contents(lab) == before


def refused(lab: Path, *overrides: str, stage: str = "feature_extractor") -> str:
    """Return the one sentence with which planning ends."""
    with pytest.raises(DegError) as raised:
        planned(lab, *overrides, stage=stage)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def only(*classes: int) -> np.ndarray:
    """Return the labels of these behaviours alone; frames of all others become background."""
    labels_TK = np.zeros_like(LABELS)
    labels_TK[:, list(classes)] = LABELS[:, list(classes)]
    labels_TK[labels_TK.sum(axis=1) == 0, BACKGROUND] = 1
    return labels_TK


# ---------------------------------------------------------------------------------------------------- too little


@pytest.mark.parametrize("stage", ["flow_generator", "feature_extractor", "sequence"])
def test_no_recordings(lab, stage):
    message = refused(lab, stage=stage)
    assert message.startswith(f"{lab}: expected at least two recordings to train the {stage}")
    assert "found 0 of 0 that can be used. Add videos with `deg add`." in message


def test_no_labels(lab, add):
    add("mouse", None)
    add("rat", None)
    message = refused(lab)
    assert "found 0 of 2 that can be used. Label two of them completely." in message
    assert (
        f"`mouse`: {lab}/DATA/mouse: there is no label file. Label the video in the GUI, or put mouse_labels.csv"
        in message
    )
    assert "`rat`: " in message


def test_one_labelled_video(lab, add):
    add("mouse")
    add("rat", None)
    message = refused(lab)
    assert "one to learn from and one to evaluate on; found 1 of 2 that can be used (`mouse`)" in message
    assert "Label another one, or cut this one in two, with its labels." in message
    assert "`rat`: " in message and "there is no label file" in message


def test_one_video_for_the_flow_generator(lab, add):
    add("mouse", None)
    assert "Add another with `deg add`, or cut this one in two." in refused(lab, stage="flow_generator")


def test_a_video_that_cannot_be_read(lab, add):
    for key in ("mouse", "rat", "vole"):
        add(key)
    (lab / "DATA/vole/vole.mp4").write_bytes(b"")
    prepared = planned(lab)
    assert list(prepared.left_out) == ["vole"] and "the file is empty (0 bytes)" in prepared.left_out["vole"]
    assert any(line.startswith("left out: vole: ") for line in describe(prepared))


# ---------------------------------------------------------------------------------------------------- labels


def test_rows_of_minus_one(lab, add):
    partly = LABELS.copy()
    partly[7:10] = -1
    for key, labels_TK in {"mouse": LABELS, "rat": LABELS, "vole": partly}.items():
        add(key, labels_TK)
    reason = planned(lab).left_out["vole"]
    assert reason.startswith(f"{lab}/DATA/vole/vole_labels.csv: 3 of 12 frames are not labelled yet (-1)")
    assert "the first is frame 7. Finish them in the GUI" in reason


@pytest.mark.parametrize(("rows", "remedy"), [(14, "delete rows there"), (6, "if one frame in 2 was labelled")])
def test_labels_that_are_not_as_long_as_the_video(lab, add, rows, remedy):
    for key, labels_TK in {"mouse": LABELS, "rat": LABELS, "vole": np.resize(LABELS, (rows, 3))}.items():
        add(key, labels_TK)
    reason = planned(lab).left_out["vole"]
    assert f"vole_labels.csv: the video has 12 frames, its labels have {rows} rows" in reason and remedy in reason


def test_a_class_in_one_video_only(lab, add):
    add("mouse")
    for key in ("rat", "shrew", "vole"):
        add(key, only(BACKGROUND, GROOM))
    prepared = planned(lab)
    assert "mouse" in prepared.plan.parts["train"]
    assert any("val has no positive frame of `rear` (in 1): too few recordings have one. Label more" in notice
               for notice in prepared.notices)  # fmt: skip


def test_a_class_that_is_never_positive(lab, add):
    for key in ("mouse", "rat"):
        add(key, only(BACKGROUND, GROOM))
    notices = planned(lab).notices
    assert any("no labelled recording has a positive frame of `rear`: it cannot be learned. Label some" in notice
               for notice in notices)  # fmt: skip


@pytest.mark.parametrize(("always", "name"), [(BACKGROUND, "background"), (GROOM, "groom")])
def test_labels_that_are_all_the_same(lab, add, always, name):
    for key in ("mouse", "rat"):
        add(key, np.eye(3, dtype=int)[[always] * FRAMES])
    message = refused(lab)
    assert "all 12 frames of the training recordings (`" in message and f"have the same label, `{name}`" in message
    assert "expected frames with and without a behaviour (groom, rear)" in message and "Label recordings" in message


def test_a_class_that_is_in_every_frame(lab, add):
    always = LABELS.copy()
    always[:, GROOM] = 1
    for key in ("mouse", "rat"):
        add(key, always)
    assert any("every frame of the training recordings is `groom`" in notice for notice in planned(lab).notices)


def test_a_class_that_was_added_and_not_labelled(lab, add):
    for key in ("mouse", "rat"):
        add(key)
    project = yaml.safe_load((lab / "project_config.yaml").read_text())
    project["project"]["class_names"].append("sleep")
    (lab / "project_config.yaml").write_text(yaml.safe_dump(project))
    message = refused(lab)
    assert "found 0 of 2 that can be used" in message
    assert "mouse_labels.csv: expected the columns `background`, `groom`, `rear`, `sleep`, `sleep` missing" in message


# ---------------------------------------------------------------------------------------------------- split


def write_split(lab: Path, content: dict) -> Path:
    path = lab / "DATA" / "split.yaml"
    path.write_text(yaml.safe_dump({"metadata": {"split": [0.8, 0.2, 0.0]}, **content}))
    return path


def test_a_split_file_that_names_deleted_recordings(lab, add):
    for key in ("mouse", "rat"):
        add(key)
    path = write_split(lab, {"train": ["mouse", "gone"], "val": ["rat", "lost"], "test": []})
    before = path.read_bytes()
    prepared = planned(lab)
    assert prepared.plan.parts == {"train": ("mouse",), "val": ("rat",), "test": ()}
    assert any(f"{path} names recordings that the project does not have (`gone`, `lost`)" in notice
               for notice in prepared.notices)  # fmt: skip
    commit(prepared, None)
    assert path.read_bytes() == before


def test_a_split_file_without_a_usable_recording_for_validation(lab, add):
    for key in ("mouse", "rat"):
        add(key)
    add("vole", None)
    write_split(lab, {"train": ["mouse", "rat"], "val": ["vole"], "test": []})
    prepared = planned(lab)
    (moved,) = prepared.plan.parts["val"]
    assert any(f"recording `{moved}` moved from train to val, which had none that can be used" in notice
               for notice in prepared.notices)  # fmt: skip
    assert prepared.split["val"] == ["vole", moved]


def test_a_split_file_that_is_not_there(lab, add):
    for key in ("mouse", "rat"):
        add(key)
    message = refused(lab, "split.file=mine.yaml")
    assert message == f"{lab}/mine.yaml: split.file names it, but it is not there. Correct it, or set split.file=null."


def test_a_split_file_that_makes_no_sense(lab, add):
    for key in ("mouse", "rat"):
        add(key)
    path = write_split(lab, {"train": "mouse"})
    assert refused(lab).startswith(f"{path}: expected a list of recordings under `train`, found 'mouse'")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("[0.9,0.3,0]", "split.train_val_test: expected train_val_test to be three shares with sum 1"),
        ("[3,1,0]", "asks for 4 recordings, but only 2 can be used"),
        ("[0,0,0]", "expected recordings for training and for validation, found 0 and 0"),
    ],
)
def test_shares_that_cannot_be_met(lab, add, shares, message):
    for key in ("mouse", "rat"):
        add(key)
    assert message in refused(lab, f"split.train_val_test={shares}")


# ---------------------------------------------------------------------------------------------------- features


def test_features_that_are_missing(lab, add, add_features):
    for key in ("mouse", "rat"):
        add_features(key)
    add("vole")
    reason = planned(lab, stage="sequence").left_out["vole"]
    assert reason == f"{lab}/DATA/vole/vole_outputs.h5: there are no results yet. Run `deg infer` first."
    message = refused(lab, "sequence.latent_name=tgmj", stage="sequence")
    assert "there is no group tgmj (groups: resnet18). Choose one of these, or run `deg infer`." in message


def test_features_of_another_network(lab, add_features):
    for key, weights in {"mouse": "aa", "rat": "aa", "vole": "bb"}.items():
        path = add_features(key)
        mark = replace(read_mark(path, "resnet18"), weights={"feature_extractor": weights * 32})
        with h5py.File(path, "r+") as file:
            file["resnet18"].attrs[MARK] = json.dumps(vars(mark))
    message = refused(lab, stage="sequence")
    assert "group resnet18: expected features made by one network in all recordings" in message
    assert "`mouse`, `rat` by feature_extractor aaaaaaaaaaaa; those of `vole` by feature_extractor bbbbbb" in message
    assert "Run `deg infer feature_extractor --overwrite`" in message


def test_features_some_of_which_deepethogram_made(lab, add_features):
    for key in ("mouse", "rat", "vole"):
        path = add_features(key)
    with h5py.File(path, "r+") as file:
        del file["resnet18"].attrs[MARK]
    assert "those of `vole` by a network unknown to deg" in refused(lab, stage="sequence")


def test_features_of_another_project_or_from_before_the_classes_changed(lab, add_features):
    add_features("mouse")
    path = add_features("rat", ["background", "bite"])
    message = refused(lab, stage="sequence")
    assert message.startswith(f"{path}: expected group resnet18 to be of a network for the project's behaviours")
    assert "(background, groom, rear), found one for background, bite" in message
    assert "Train the feature extractor, then run `deg infer feature_extractor --overwrite`." in message


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf")])
def test_features_that_are_not_finite(lab, add_features, value, shown):
    for key in ("mouse", "rat", "vole"):
        path = add_features(key)
    with h5py.File(path, "r+") as file:
        file["resnet18/flow_features"][7, 3] = value
    reason = planned(lab, stage="sequence").left_out["vole"]
    assert reason.startswith(f"{path}: group resnet18, recording `vole`: feature 515 of frame 7 is {shown}")
    assert "Run `deg infer feature_extractor --overwrite`" in reason


def test_features_of_another_width(lab, add_features):
    for key in ("mouse", "rat", "vole"):
        path = add_features(key)
    with h5py.File(path, "r+") as file:
        del file["resnet18/flow_features"]
        file["resnet18/flow_features"] = np.zeros((FRAMES, 100), np.float32)
    reason = planned(lab, stage="sequence").left_out["vole"]
    assert "expected 1024 features a frame, found 612" in reason


def test_features_from_before_the_video_was_replaced(lab, add_features):
    for key in ("mouse", "rat", "vole"):
        add_features(key)
    write_video(lab / "DATA/vole/vole.mp4", FRAMES + 1)
    reason = planned(lab, stage="sequence").left_out["vole"]
    assert "its features are of another version of vole.mp4. Run `deg infer feature_extractor`" in reason


def test_features_fewer_than_labels(lab, add_features):
    for key in ("mouse", "rat", "vole"):
        path = add_features(key)
    write_results(path, FRAMES - 1)
    assert "the video has 11 frames, its labels have 12 rows" in planned(lab, stage="sequence").left_out["vole"]


def test_keypoints_that_are_missing_or_no_keypoints(lab, add):
    for key in ("mouse", "rat"):
        add(key)
    (lab / "DATA/rat/rat_DLC.csv").write_text("a,b\n1,2\n")
    message = refused(lab, "sequence.input_type=keypoints", stage="sequence")
    assert f"`mouse`: {lab}/DATA/mouse: there are no keypoints. Put the .csv of DeepLabCut" in message
    assert f"`rat`: {lab}/DATA/rat/rat_DLC.csv: expected rows that begin with scorer, bodyparts, coords" in message


# ---------------------------------------------------------------------------------------------------- weights, sizes


def test_no_flow_generator_yet(lab, add):
    shutil.rmtree(lab / "models/200101_000000_flow_generator_train")
    message = refused(lab, "flow_generator.weights=pretrained")
    assert "flow_generator.weights is pretrained: expected a trained TinyMotionNet" in message
    assert (
        "this project has no folder of pretrained weights. Train one with `deg train flow_generator` first" in message
    )
    assert "is null: expected a trained TinyMotionNet" in refused(lab, "flow_generator.weights=null")
    message = refused(lab, "flow_generator.weights=latest")
    assert (
        "No trained flow_generator of architecture TinyMotionNet" in message and "Train one with `deg train" in message
    )


def test_a_flow_generator_that_only_needs_to_be_named(lab):
    (lab / "models/pretrained_models").mkdir()
    for weights in ("pretrained", "null"):
        message = refused(lab, f"flow_generator.weights={weights}")
        assert message.endswith("This project has one: set flow_generator.weights=latest.")


@pytest.mark.parametrize(
    ("stage", "remedy"),
    [
        ("feature_extractor", "Or set feature_extractor.weights to null to begin with ImageNet weights, or to random."),
        ("flow_generator", "Or set flow_generator.weights=null to train from scratch."),
    ],
)
def test_no_weights_to_begin_with(lab, stage, remedy):
    message = refused(lab, f"{stage}.weights=pretrained", stage=stage)
    assert f"{stage}.weights = pretrained: this project has no folder of pretrained weights" in message
    assert message.endswith(remedy)
    assert f"{stage}.weights = gone.pt: no weight file is there" in refused(
        lab, f"{stage}.weights=gone.pt", stage=stage
    )


def test_videos_of_several_sizes(lab, add):
    add_good(lab, "mouse", FRAMES)
    write_labels(lab / "DATA/mouse/mouse_labels.csv", LABELS, CLASSES)
    write_video(add("rat"), FRAMES, size=(48, 96))
    assert planned(lab)
    for resize, shown in {"null": "null", "32": "32"}.items():
        message = refused(lab, f"augs.resize={resize}")
        assert message.startswith("expected frames of one size, found ") and f"augs.resize={shown}" in message
        assert "in `mouse`" in message and "in `rat`" in message
        assert "Set augs.resize to [height, width], such as [224,224]." in message
    message = refused(lab, "augs.crop_size=[60,60]")
    assert "recording `rat`: augs.crop_size is 60 x 60 (height x width) but a frame is only 48 x 96" in message


def test_a_batch_smaller_than_its_pieces(lab, add):
    for key in ("mouse", "rat"):
        add(key)
    message = refused(lab, "compute.batch_size=2", "train.accumulate=4")
    assert "compute.batch_size is 2, for all devices together: expected 4 at least" in message


def test_a_data_folder_that_cannot_be_written(lab, add, monkeypatch):
    for key in ("mouse", "rat"):
        add(key)
    prepared = planned(lab)

    def full(*_):
        raise OSError(28, "No space left on device")

    before = contents(lab)
    monkeypatch.setattr("deg.data.atomic.flush", full)
    with pytest.raises(DegError, match=r"split\.yaml: No space left on device. Check permissions and free space"):
        commit(prepared, None)
    assert contents(lab) == before
