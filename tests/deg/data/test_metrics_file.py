"""Metrics files have the layout of the original, and survive restarts, kills and full disks."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from deg.arithmetic.ethogram import apply_thresholds, with_background
from deg.arithmetic.metrics import Counts, binary_confusion, epoch_metrics, threshold_metrics
from deg.data.json_lines import append_line, read_lines
from deg.data.metrics_file import (
    MetricsFile,
    classification_row,
    truncate_lines,
    without_tables,
)
from deg.errors import RunError
from deg.runs.networks import read_thresholds

CLASSES = 4


def row(seed: int = 0, **others) -> dict:
    """Return the row of a classifier with random predictions."""
    rng = np.random.default_rng(seed)
    probabilities_TK = rng.random((300, CLASSES), np.float32)
    labels_TK = (rng.random((300, CLASSES)) < 0.3).astype(np.int8)
    by_threshold = threshold_metrics(Counts.of(probabilities_TK, labels_TK))
    predictions_TK = with_background(apply_thresholds(probabilities_TK, by_threshold.optimum))
    losses = {"loss": 1.0 + seed, "data_loss": 0.75, "reg_loss": 0.25, "fps": 12.5}
    return classification_row(
        by_threshold, epoch_metrics(binary_confusion(predictions_TK, labels_TK)), **losses | others
    )


@pytest.fixture
def new(tmp_path):
    return MetricsFile(
        tmp_path / "classification_metrics.h5", key_metric="f1_class_mean", key_metric_mode="max", num_parameters=123
    )


def fill(file: MetricsFile, epochs: int) -> MetricsFile:
    for epoch in range(epochs):
        file.append(train=row(epoch, lr=0.1 / (epoch + 1)), val=row(100 + epoch))
    return file


def datasets(path) -> dict[str, tuple]:
    """Return {name: (shape of a row, dtype, whether it may grow)}."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: (item.shape[1:], item.dtype, item.maxshape[0] is None)})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return found


# ---- the original's layout


def test_names_types_and_shapes_are_those_of_the_original(shared_data, new):
    original = shared_data("data/deg_project_original/models/261122_064227_sequence_train/classification_metrics.h5")
    assert datasets(fill(new, 2).path) == datasets(original)
    with h5py.File(original) as theirs, h5py.File(new.path) as ours:
        assert theirs.attrs.keys() == ours.attrs.keys()


def test_a_flow_generator_s_file_has_the_original_s_layout_too(shared_data, tmp_path):
    original = shared_data("data/deg_project_original/models/261122_063818_flow_generator_train/opticalflow_metrics.h5")
    file = MetricsFile(tmp_path / "m.h5", key_metric="SSIM", key_metric_mode="min", num_parameters=1)
    val = dict.fromkeys(("loss", "SSIM", "L1", "smoothness", "reg_loss", "fps"), 0.5)
    file.append(train=val | {"lr": 1e-4}, val=val)
    assert datasets(file.path) == datasets(original)


@pytest.mark.parametrize("scene", ["plain", "ignored_rows", "class_without_positives", "hopeless_rare_class"])
def test_scores_of_a_row_are_the_original_s(golden, scene):
    arrays, _ = golden("metrics")
    of_scene = {name.removeprefix(f"{scene}/"): value for name, value in arrays.items() if name.startswith(scene)}
    by_threshold = threshold_metrics(Counts.of(of_scene["probabilities"], of_scene["labels"]))
    predictions_TK = with_background(apply_thresholds(of_scene["probabilities"], by_threshold.optimum))
    made = classification_row(by_threshold, epoch_metrics(binary_confusion(predictions_TK, of_scene["labels"])))
    expected = {name.removeprefix("epoch/"): value for name, value in of_scene.items() if name.startswith("epoch/")}
    assert expected.keys() <= made.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(made[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_the_original_s_file_is_read(shared_data):
    file = MetricsFile.open(
        shared_data("data/deg_project_original/models/261122_064227_sequence_train/classification_metrics.h5")
    )
    assert (file.num_epochs, file.key_metric, file.key_metric_mode) == (4, "f1_class_mean", "max")
    np.testing.assert_allclose(file.values("val", "metrics_by_threshold/optimum")[3, 3], 0.05034623, atol=1e-8)


def test_thresholds_of_an_old_file_are_found(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["train/loss"] = file["val/loss"] = np.array([3, 2], np.float32)
        file["threshold_curves/val/optimum"] = np.array([[0.1, 0.2], [0.3, 0.4]])
        file.attrs["key_metric"] = "loss"
    file = MetricsFile.open(tmp_path / "old.h5")
    assert file.values("val", "metrics_by_threshold/optimum").tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert file.key_metric_mode == "min" and file.num_parameters is None and file.best_epoch() == 1


def test_an_epoch_that_the_original_did_not_finish_is_left_out(new):
    fill(new, 3)
    with h5py.File(new.path, "a") as file:
        for name in ("train/lr", "val/f1_overall"):
            file[name].resize(2, axis=0)
    assert MetricsFile.open(new.path).num_epochs == 2


def test_thresholds_of_an_epoch_are_found_beside_its_checkpoint(new):
    fill(new, 3)
    checkpoint = new.path.parent / "lightning_checkpoints" / "epoch=1-step=2.ckpt"
    np.testing.assert_array_equal(
        read_thresholds(checkpoint, CLASSES).values, new.values("val", "metrics_by_threshold/optimum")[1]
    )


# ---- resuming


def test_rows_survive_a_restart(new):
    fill(new, 2)
    again = MetricsFile.open(new.path)
    again.append(train=row(7, lr=0.5), val=row(8))
    both = MetricsFile.open(new.path)
    assert both.num_epochs == 3
    assert both.values("train", "loss").tolist() == [1.0, 2.0, 8.0]
    np.testing.assert_array_equal(both.values("val", "f1_by_class")[:2], new.values("val", "f1_by_class"))
    assert (both.key_metric, both.key_metric_mode, both.num_parameters) == ("f1_class_mean", "max", 123)


def test_a_training_that_goes_back_forgets_what_came_later(new, tmp_path):
    fill(new, 3).write_test(row(5))
    new.truncate(1)
    new.append(train=row(1, lr=0.05), val=row(101))
    straight = fill(
        MetricsFile(tmp_path / "s.h5", key_metric="f1_class_mean", key_metric_mode="max", num_parameters=123), 2
    )
    assert new.path.read_bytes() == straight.path.read_bytes()


def test_back_to_the_beginning(new):
    fill(new, 2).truncate(0)
    assert MetricsFile.open(new.path).num_epochs == 0
    new.append(train={"loss": 1.0}, val={"loss": 2.0})
    assert MetricsFile.open(new.path).values("val", "loss").tolist() == [2.0]


def test_epochs_that_are_not_there_cannot_be_kept(new):
    with pytest.raises(ValueError, match="expected at most 2 epochs, got 3"):
        fill(new, 2).truncate(3)


def test_the_test_part_has_one_row(new):
    fill(new, 2).write_test(row(5))
    new.write_test(row(6))
    assert MetricsFile.open(new.path).values("test", "loss").tolist() == [7.0]
    assert MetricsFile.open(new.path).num_epochs == 2


def test_every_epoch_has_the_same_names_and_shapes(new):
    fill(new, 1)
    with pytest.raises(ValueError, match="train: expected"):
        new.append(train=row(1), val=row(2))
    with pytest.raises(ValueError, match=r"val/f1_by_class: expected shape \(4,\), got \(3,\)"):
        new.append(train=row(1, lr=0.1), val=row(2) | {"f1_by_class": np.zeros(3)})
    assert new.num_epochs == MetricsFile.open(new.path).num_epochs == 1


def test_the_best_epoch_is_the_first_of_equals_and_never_nan(tmp_path):
    file = MetricsFile(tmp_path / "m.h5", key_metric="SSIM", key_metric_mode="min", num_parameters=None)
    assert file.best_epoch() is None
    for score in (np.nan, 0.3, 0.2, 0.2):
        file.append(train={"loss": 1.0}, val={"loss": 1.0, "SSIM": score})
    assert file.best_epoch() == 2


# ---- faults


def test_a_disk_that_refuses_leaves_the_file_and_the_rows_as_they_were(new, monkeypatch):
    fill(new, 1)
    before = new.path.read_bytes()

    def refuse(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deg.data.metrics_file.write_atomically", refuse)
    with pytest.raises(OSError, match="No space left"):
        new.append(train=row(1, lr=0.1), val=row(2))
    assert new.path.read_bytes() == before and new.num_epochs == 1


@pytest.mark.parametrize(
    ("content", "message"), [(None, "nothing is there"), (b"", "not a readable"), (b"nonsense", "not a readable")]
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "classification_metrics.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=f"classification_metrics.h5: .*{message}"):
        MetricsFile.open(path)


def test_a_cut_file_is_named(new):
    fill(new, 3)
    new.path.write_bytes(new.path.read_bytes()[: new.path.stat().st_size // 2])
    with pytest.raises(RunError, match="not a readable metrics file"):
        MetricsFile.open(new.path)


def test_another_hdf5_file_is_not_taken_for_metrics(tmp_path):
    with h5py.File(tmp_path / "outputs.h5", "w") as file:
        file["tgmj/P"] = np.zeros((3, 2))
    with pytest.raises(RunError, match="expected metrics of train and val, found neither"):
        MetricsFile.open(tmp_path / "outputs.h5")


# ---- metrics.jsonl


def test_lines_are_strict_json_without_the_tables(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"epoch": 0, "phase": "both", "val": without_tables(row())})
    [line] = path.read_text().splitlines()
    val = json.loads(line, parse_constant=lambda name: pytest.fail(name))["val"]
    assert val["auroc_overall"] is None and len(val["f1_by_class"]) == CLASSES and val["loss"] == 1.0
    assert not any(name.startswith("metrics_by_threshold") for name in val)


def test_lines_of_later_epochs_and_of_the_test_go_when_training_goes_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for line in ({"epoch": 0}, {"epoch": 1}, {"epoch": 2}, {"test": {"loss": 1}}):
        append_line(path, line)
    truncate_lines(path, 2)
    assert read_lines(path) == [{"epoch": 0}, {"epoch": 1}]


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []
