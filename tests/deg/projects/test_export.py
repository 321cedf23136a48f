"""Exported predictions: the CSV that the original writes, and Parquet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scenes.project import CLASSES, make_project

from deg.options.load import load_config
from deg.projects.export import export_recordings
from deg.projects.project import open_project

PROBABILITIES = np.array([[0.1, 0.9, 0.2], [0.8, 0.4, 0.2], [0.2, 0.6, 0.9], [0.1, 0.1, 0.8]], np.float32)
EXPECTED = [[0, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]]


def add_results(folder: Path, key: str, group: str = "tgmj", names=CLASSES, probabilities=PROBABILITIES) -> None:
    with h5py.File(folder / "DATA" / key / f"{key}_outputs.h5", "a") as file:
        file[f"{group}/P"] = probabilities
        file[f"{group}/thresholds"] = np.full(probabilities.shape[1], 0.5, np.float32)
        file[f"{group}/class_names"] = np.array(names, dtype=h5py.string_dtype())


@pytest.fixture
def folder(tmp_path):
    folder = make_project(tmp_path / "mice", {"mouse_1": 4, "mouse_2": 4})
    for key in ("mouse_1", "mouse_2"):
        add_results(folder, key)
    return folder


def export(project_folder: Path, *overrides: str, file_format: str = "csv", **options):
    project = open_project(project_folder)
    config = load_config(project.config_file, ["postprocessor.type=null", *overrides], stage="inference")
    return export_recordings(project, config, list(project.records.values()), file_format=file_format, **options)


def test_a_csv_has_an_index_and_a_column_of_zeros_and_ones_for_each_class(folder):
    path = export(folder).written["mouse_1"]
    assert path == folder / "DATA" / "mouse_1" / "mouse_1_predictions.csv"
    assert path.read_text().splitlines() == [",background,groom,rear", "0,0,1,0", "1,1,0,0", "2,0,1,1", "3,0,0,1"]


def test_the_original_s_own_predictions_come_out_of_its_own_results(shared_data, tmp_path):
    original = shared_data("data/deg_project_original")
    folder = tmp_path / "project"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns("*.ckpt", "lightning_logs", "models"))
    (folder / "models").mkdir()
    project = open_project(folder)
    wanted = {key: (folder / "DATA" / key / f"{key}_predictions.csv").read_bytes() for key in project.records}
    config = load_config(project.config_file, stage="inference")
    report = export_recordings(project, config, list(project.records.values()), file_format="csv")
    assert not report.failed
    assert {key: path.read_bytes() for key, path in report.written.items()} == wanted


def test_parquet_has_probabilities_too_and_says_what_it_is(folder):
    table = pd.read_parquet(export(folder, file_format="parquet").written["mouse_1"])
    assert list(table.columns) == ["frame"] + [
        f"{name}_{what}" for name in CLASSES for what in ("probability", "prediction")
    ]
    np.testing.assert_array_equal(table["rear_probability"], PROBABILITIES[:, 2])
    np.testing.assert_array_equal(table[[f"{name}_prediction" for name in CLASSES]], EXPECTED)
    assert table.attrs == {"group": "tgmj", "thresholds": dict.fromkeys(CLASSES, 0.5)}


def test_columns_are_matched_by_name(folder):
    add_results(folder, "mouse_1", "other", CLASSES[::-1], PROBABILITIES[:, ::-1])
    assert pd.read_csv(export(folder, group="other").written["mouse_1"], index_col=0).to_numpy().tolist() == EXPECTED


def test_results_for_other_behaviours_are_refused(folder):
    add_results(folder, "mouse_1", "other", ("background", "groom", "jump"))
    assert "results are for background, groom, jump" in export(folder, group="other").failed["mouse_1"]


def test_the_sequence_network_s_results_come_before_the_features_extractor_s(folder):
    add_results(folder, "mouse_1", "resnet18", probabilities=1 - PROBABILITIES)
    assert pd.read_csv(export(folder).written["mouse_1"], index_col=0).to_numpy().tolist() == EXPECTED


def test_a_recording_without_results_does_not_stop_the_others(folder):
    (folder / "DATA/mouse_1/mouse_1_outputs.h5").unlink()
    report = export(folder)
    assert list(report.written) == ["mouse_2"]
    assert "no results yet. Run `deg infer` first" in report.failed["mouse_1"]


def test_a_group_that_is_not_there_is_named_with_those_that_are(folder):
    assert "no group rnn (groups: tgmj)" in export(folder, group="rnn").failed["mouse_1"]
    assert "found tgmj" in export(folder, "sequence.arch=rnn", "feature_extractor.arch=resnet50").failed["mouse_1"]


def test_videos_of_one_name_do_not_overwrite_each_other_in_one_folder(folder, tmp_path):
    for key in ("mouse_1", "mouse_2"):
        for name in (folder / "DATA" / key).iterdir():
            name.rename(name.with_name(name.name.replace(key, "video")))
    report = export(folder, folder=tmp_path / "out")
    assert sorted(path.name for path in report.written.values()) == [
        "mouse_1_predictions.csv",
        "mouse_2_predictions.csv",
    ]


def test_labels_that_cannot_be_read_are_left_out_with_a_notice(folder):
    (folder / "DATA/mouse_1/mouse_1_labels.csv").write_text("nonsense\n1\n")
    report = export(folder)
    assert not report.failed and "labels left out" in report.notices[0]


def test_argmax_takes_the_most_probable_class_of_a_softmax_network(folder):
    """The result itself says what its network is; the project's option may be for another network."""
    with h5py.File(folder / "DATA/mouse_1/mouse_1_outputs.h5", "a") as file:
        file["tgmj"].attrs["deg_provenance"] = json.dumps({"engines": [{"activation": "softmax"}]})
    report = export(folder, "inference.argmax=true")
    assert report.written["mouse_1"].read_text().splitlines()[1:] == ["0,0,1,0", "1,1,0,0", "2,0,0,1", "3,0,0,1"]
    assert "sigmoid network" in report.failed["mouse_2"]
