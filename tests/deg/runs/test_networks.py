"""Trained networks on disk: which runs exist, which weights an option means, which thresholds belong to them."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from deg.errors import WeightsError
from deg.runs.networks import (
    companion,
    read_thresholds,
    resolve_weights,
    run_date,
    run_section,
    scan,
    training_flow_weights,
    weight_files,
)

EXTRACTOR = "feature_extractor"
FLOW = "flow_generator"


@dataclass(frozen=True)
class Folders:
    """The part of a project that these functions use."""

    model_path: Path
    pretrained_path: Path | None = None


@pytest.fixture
def project(tmp_path):
    (tmp_path / "models" / "pretrained_models").mkdir(parents=True)
    return Folders(tmp_path / "models", tmp_path / "models" / "pretrained_models")


def make_run(root: Path, name: str, model: str, arch: str, *weights: str, **config) -> Path:
    """Make a run's folder with weight files, whose content does not matter here."""
    folder = root / name
    for weight in weights or ("checkpoint.pt",):
        path = folder / weight
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run = {"type": "train", "model": model, "dir": f"/elsewhere/models/{name}"}
    content = {model: {"arch": arch}, "run": run, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def make_metrics(folder: Path, rows, name: str = "val/metrics_by_threshold/optimum") -> Path:
    path = folder / "classification_metrics.h5"
    with h5py.File(path, "w") as file:
        file[name] = np.asarray(rows, dtype=np.float64)
    return path


def found(root: Path) -> list[tuple[str, str, str]]:
    return [(run.folder.name, run.model, run.arch) for run in scan(root)]


# ---------------------------------------------------------------------------------------------------- scan


def test_runs_are_listed_by_the_date_in_their_folders_names(project):
    make_run(project.model_path, "240102_000000_b", FLOW, "MotionNet")
    make_run(project.model_path, "240101_000000_z", FLOW, "TinyMotionNet")
    make_run(project.pretrained_path, "200221_115158_TinyMotionNet", FLOW, "TinyMotionNet")
    assert found(project.model_path) == [
        ("200221_115158_TinyMotionNet", FLOW, "TinyMotionNet"),
        ("240101_000000_z", FLOW, "TinyMotionNet"),
        ("240102_000000_b", FLOW, "MotionNet"),
    ]


def test_a_date_in_the_path_of_the_project_plays_no_part(tmp_path):
    root = tmp_path / "200101_000000_mice" / "models"
    make_run(root, "240102_000000_a", FLOW, "MotionNet")
    make_run(root, "230102_000000_b", FLOW, "MotionNet")
    assert [run.date.year for run in scan(root)] == [2023, 2024]


def test_a_run_without_a_date_is_dated_by_its_weights(tmp_path):
    folder = make_run(tmp_path, "mine", FLOW, "MotionNet")
    os.utime(folder / "checkpoint.pt", (1_700_000_000, 1_700_000_000))
    make_run(tmp_path, "230101_000000_a", FLOW, "MotionNet")
    make_run(tmp_path, "240101_000000_a", FLOW, "MotionNet")
    assert [run.folder.name for run in scan(tmp_path)] == ["230101_000000_a", "mine", "240101_000000_a"]


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("261122_064300_sequence_train", datetime(2026, 11, 22, 6, 43)),
        ("mice_261122_064300", datetime(2026, 11, 22, 6, 43)),
        ("999999_999999_x", None),
        ("1261122_0643001", None),
        ("mine", None),
    ],
)
def test_dates_are_read_from_names(name, date):
    assert run_date(name) == date


@pytest.mark.parametrize(
    "config",
    [
        "run: {model: null, type: zscore}\n",
        "run: null\n",
        "run: {model: sequence}\n",
        "run: {model: [a]}\n",
        "model: flow_generator\n",
        "a: [1\n",
        "just text\n",
        "",
    ],
)
def test_a_run_that_does_not_say_what_it_is_is_passed_over_with_a_note(tmp_path, caplog, config):
    make_run(tmp_path, "240101_000000_good", FLOW, "MotionNet")
    bad = make_run(tmp_path, "240102_000000_bad", FLOW, "MotionNet")
    (bad / "config.yaml").write_text(config)
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path) == [("240101_000000_good", FLOW, "MotionNet")]
    assert str(bad) in caplog.text


def test_folders_without_weights_are_not_trained_networks(tmp_path):
    make_run(tmp_path, "240101_000000_sequence_inference", "sequence", "tgmj", "log.txt")
    assert scan(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "model", "arch"),
    [
        ({"model": FLOW, FLOW: "MotionNet"}, FLOW, "MotionNet"),
        ({"model": FLOW, "arch": "MotionNet"}, FLOW, "MotionNet"),
        ({"model": EXTRACTOR, "classifier": "resnet50", "arch": "x"}, EXTRACTOR, "resnet50"),
        ({"model": EXTRACTOR, EXTRACTOR: {"arch": "resnet18"}}, EXTRACTOR, "resnet18"),
    ],
)
def test_the_old_format_is_read_and_hyperparameters_come_before_config(tmp_path, content, model, arch):
    folder = make_run(tmp_path, "200101_000000_old", "sequence", "tgmj")
    (folder / "hyperparameters.yaml").write_text(yaml.safe_dump(content))
    assert found(tmp_path) == [("200101_000000_old", model, arch)]


def test_links_to_shared_weights_are_followed_and_circles_are_not(tmp_path):
    make_run(tmp_path / "shared", "200101_000000_a", FLOW, "MotionNet")
    models = tmp_path / "models"
    models.mkdir()
    (models / "pretrained_models").symlink_to(tmp_path / "shared")
    (tmp_path / "shared" / "circle").symlink_to(models)
    assert found(models) == [("200101_000000_a", FLOW, "MotionNet")]


def test_the_runs_of_the_original_are_found(shared_data):
    models = shared_data("data/deg_project_original") / "models"
    assert found(models) == [
        ("261122_063818_flow_generator_train", FLOW, "TinyMotionNet"),
        ("261122_064227_sequence_train", "sequence", "tgmj"),
    ]
    assert [run.weights.name for run in scan(models)] == ["epoch=0-step=3.ckpt", "epoch=3-step=12.ckpt"]


# ---------------------------------------------------------------------------------------------------- weight files


def test_best_checkpoints_come_first_by_number_then_last_then_the_newest(tmp_path):
    names = ["epoch=9-step=90.ckpt", "epoch=10-step=100.ckpt", "epoch=10-step=100-v1.ckpt", "last.ckpt"]
    folder = make_run(tmp_path, "a", FLOW, "x", "checkpoint.pt", *(f"lightning_checkpoints/{name}" for name in names))
    assert [path.name for path in weight_files(folder)] == [
        "epoch=10-step=100-v1.ckpt",
        "epoch=10-step=100.ckpt",
        "epoch=9-step=90.ckpt",
        "last.ckpt",
        "checkpoint.pt",
    ]


def test_a_link_that_leads_nowhere_is_no_weight_file(tmp_path):
    folder = make_run(tmp_path, "a", FLOW, "x")
    (folder / "lightning_checkpoints").mkdir()
    (folder / "lightning_checkpoints" / "epoch=1-step=2.ckpt").symlink_to("gone.ckpt")
    assert [path.name for path in weight_files(folder)] == ["checkpoint.pt"]


def test_config_and_metrics_are_found_beside_weights_and_one_folder_up(tmp_path):
    checkpoint = "lightning_checkpoints/epoch=1-step=2.ckpt"
    folder = make_run(tmp_path, "a", EXTRACTOR, "resnet18", "checkpoint.pt", checkpoint)
    metrics = make_metrics(folder, [[0.5]])
    for weights in weight_files(folder):
        run = companion(weights)
        assert (run.folder, run.metrics) == (folder, metrics)
        assert run_section(run.config, EXTRACTOR) == {"arch": "resnet18"}


def test_weights_may_lie_alone(tmp_path):
    run = companion(tmp_path / "somewhere" / "weights.pt")
    assert (run.folder, run.config, run.metrics) == (tmp_path / "somewhere", None, None)
    assert run_section(run.config, EXTRACTOR) == {}


# ---------------------------------------------------------------------------------------------------- resolution


def test_latest_and_pretrained_are_the_newest_of_that_network_and_architecture(project):
    older = make_run(project.model_path, "240101_000000_a", FLOW, "MotionNet")
    make_run(project.model_path, "240103_000000_b", FLOW, "TinyMotionNet")
    make_run(project.model_path, "240104_000000_c", EXTRACTOR, "MotionNet")
    downloaded = make_run(project.pretrained_path, "200310_174416_MotionNet_kinetics", FLOW, "MotionNet")
    for value, folder in [("latest", older), ("pretrained", downloaded)]:
        path = resolve_weights(value, model=FLOW, arch="MotionNet", project=project)
        assert path == folder / "checkpoint.pt"


def test_null_is_none_unless_the_latest_is_to_be_reloaded(project):
    folder = make_run(project.model_path, "240101_000000_a", "sequence", "tgmj")
    assert resolve_weights(None, model="sequence", arch="tgmj", project=project) is None
    reloaded = resolve_weights(None, model="sequence", arch="tgmj", project=project, reload_latest=True)
    assert reloaded == folder / "checkpoint.pt"


def test_a_path_is_a_file_or_a_runs_folder_from_here_or_from_the_models(project, tmp_path, monkeypatch):
    folder = make_run(project.model_path, "mine", "sequence", "tgmj", "lightning_checkpoints/last.ckpt")
    last = folder / "lightning_checkpoints" / "last.ckpt"
    monkeypatch.chdir(tmp_path)
    for value in (str(last), "models/mine/lightning_checkpoints/last.ckpt", "mine/lightning_checkpoints/last.ckpt",
                  str(folder), "models/mine", "mine"):  # fmt: skip
        assert resolve_weights(value, model="sequence", arch="tgmj", project=project) == last


def test_what_cannot_be_found_is_answered_with_what_there_is(project):
    make_run(project.model_path, "240101_000000_a", FLOW, "MotionNet")
    with pytest.raises(WeightsError, match="trained architectures found: MotionNet"):
        resolve_weights("latest", model=FLOW, arch="TinyMotionNet", project=project)
    with pytest.raises(WeightsError, match=r"trained architectures found: none.*deg train sequence"):
        resolve_weights("latest", model="sequence", arch="tgmj", project=project)
    with pytest.raises(WeightsError, match="for sequence networks there are no pretrained"):
        resolve_weights("pretrained", model="sequence", arch="tgmj", project=project)
    with pytest.raises(WeightsError, match="this project has no folder of pretrained"):
        resolve_weights("pretrained", model=FLOW, arch="MotionNet", project=Folders(project.model_path))
    with pytest.raises(WeightsError, match=r"gone\.ckpt: no weight file .* Looked for .*models/gone\.ckpt"):
        resolve_weights("gone.ckpt", model=FLOW, arch="MotionNet", project=project)


# ---------------------------------------------------------------------------------------------------- flow of a run


def extractor_config(flow: dict, name: str = "240201_000000_feature_extractor_train", **more) -> dict:
    return {FLOW: flow, "run": {"model": EXTRACTOR, "dir": f"/elsewhere/models/{name}"}, **more}


def test_latest_means_the_newest_flow_generator_before_that_training(project):
    make_run(project.model_path, "240101_000000_a", FLOW, "TinyMotionNet")
    used = make_run(project.model_path, "240102_000000_b", FLOW, "TinyMotionNet")
    make_run(project.model_path, "240103_000000_c", FLOW, "MotionNet")
    make_run(project.model_path, "240301_000000_d", FLOW, "TinyMotionNet")
    path, sentence = training_flow_weights(extractor_config({"arch": "TinyMotionNet", "weights": "latest"}), project)
    assert path == used / "checkpoint.pt"
    assert "240102_000000_b" in sentence
    assert "before run 240201_000000_feature_extractor_train" in sentence


def test_null_with_reload_latest_means_latest(project):
    used = make_run(project.model_path, "240102_000000_b", FLOW, "MotionNet")
    flow = {"arch": "MotionNet", "weights": None}
    assert training_flow_weights(extractor_config(flow, reload={"latest": True}), project)[0] == used / "checkpoint.pt"
    assert training_flow_weights(extractor_config(flow), project)[0] is None


def test_pretrained_means_the_pretrained_one(project):
    make_run(project.model_path, "240102_000000_b", FLOW, "MotionNet")
    used = make_run(project.pretrained_path, "200310_174416_MotionNet", FLOW, "MotionNet")
    config = extractor_config({"arch": "MotionNet", "weights": "pretrained"})
    assert training_flow_weights(config, project)[0] == used / "checkpoint.pt"


@pytest.mark.parametrize(
    "there",
    [
        "/home/anna/mice_deepethogram/models/240101_000000_a/lightning_checkpoints/last.ckpt",
        r"D:\mice_deepethogram\models\240101_000000_a\lightning_checkpoints\last.ckpt",
        "../240101_000000_a/lightning_checkpoints/last.ckpt",
    ],
)
def test_a_path_of_another_machine_is_found_by_its_last_parts(project, there):
    used = make_run(project.model_path, "240101_000000_a", FLOW, "MotionNet", "lightning_checkpoints/last.ckpt")
    path, _ = training_flow_weights(extractor_config({"arch": "MotionNet", "weights": there}), project)
    assert path == used / "lightning_checkpoints" / "last.ckpt"


def test_a_file_name_alone_is_not_enough_to_find_a_moved_file(project):
    (project.model_path / "checkpoint.pt").touch()
    config = extractor_config({"arch": "MotionNet", "weights": "/elsewhere/models/240101_000000_a/checkpoint.pt"})
    with pytest.raises(WeightsError, match=r"not found here.*name it with flow_generator\.weights"):
        training_flow_weights(config, project)


def test_a_flow_generator_that_is_gone_is_not_replaced_by_another(project):
    make_run(project.model_path, "240301_000000_later", FLOW, "TinyMotionNet")
    with pytest.raises(WeightsError, match="was trained with latest"):
        training_flow_weights(extractor_config({"arch": "TinyMotionNet", "weights": "latest"}), project)


def test_a_run_that_does_not_say_gives_none(project):
    path, sentence = training_flow_weights({EXTRACTOR: {"arch": "resnet18"}}, project)
    assert path is None
    assert "does not say" in sentence


def test_the_originals_feature_extractor_was_trained_with_the_flow_run_before_it(shared_data):
    models = shared_data("data/deg_project_original") / "models"
    config = companion(models / "261122_063920_feature_extractor_train" / "checkpoint.pt").config
    path, _ = training_flow_weights(config, Folders(models))
    assert path == models / "261122_063818_flow_generator_train" / "lightning_checkpoints" / "epoch=0-step=3.ckpt"


# ---------------------------------------------------------------------------------------------------- thresholds


ROWS = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]


@pytest.mark.parametrize(
    ("weights", "row"),
    [
        ("lightning_checkpoints/epoch=1-step=20.ckpt", 1),
        ("lightning_checkpoints/epoch=0-step=10.ckpt", 0),
        ("lightning_checkpoints/last.ckpt", 2),
        ("checkpoint.pt", 2),
    ],
)
@pytest.mark.parametrize("dataset", ["val/metrics_by_threshold/optimum", "threshold_curves/val/optimum"])
def test_thresholds_are_those_of_the_checkpoints_epoch(tmp_path, weights, row, dataset):
    folder = make_run(tmp_path, "a", EXTRACTOR, "resnet18", weights)
    make_metrics(folder, ROWS, dataset)
    thresholds = read_thresholds(folder / weights, 2)
    assert thresholds.values.tolist() == ROWS[row]
    assert not thresholds.assumed
    assert f"row {row}" in thresholds.source


def test_an_epoch_without_a_row_gets_the_last_and_says_so(tmp_path):
    folder = make_run(tmp_path, "a", EXTRACTOR, "resnet18", "lightning_checkpoints/epoch=7-step=20.ckpt")
    make_metrics(folder, ROWS)
    thresholds = read_thresholds(weight_files(folder)[0], 2)
    assert thresholds.values.tolist() == ROWS[-1]
    assert "no row for epoch 7" in thresholds.source


@pytest.mark.parametrize(("model", "row"), [(EXTRACTOR, 2), ("sequence", 0)])
def test_a_curriculums_epochs_are_ambiguous_so_its_last_row_counts(tmp_path, model, row):
    folder = make_run(tmp_path, "a", model, "x", "lightning_checkpoints/epoch=0-step=20.ckpt")
    sections = {EXTRACTOR: {"arch": "x", "curriculum": True}, "sequence": {"arch": "x"}, "run": {"model": model}}
    (folder / "config.yaml").write_text(yaml.safe_dump(sections))
    make_metrics(folder, ROWS)
    assert read_thresholds(weight_files(folder)[0], 2).values.tolist() == ROWS[row]


def test_thresholds_of_other_behaviours_are_refused(tmp_path):
    folder = make_run(tmp_path, "a", EXTRACTOR, "resnet18")
    make_metrics(folder, ROWS)
    with pytest.raises(WeightsError, match="thresholds of 2 behaviours, but 3 were expected"):
        read_thresholds(folder / "checkpoint.pt", 3)


def no_file(path):
    path.unlink()


def truncated(path):
    path.write_bytes(path.read_bytes()[:100])


def no_dataset(path):
    with h5py.File(path, "w") as file:
        file["val/loss"] = [1.0]


def a_group_instead(path):
    with h5py.File(path, "w") as file:
        file.create_group("val/metrics_by_threshold/optimum")


def no_rows(path):
    with h5py.File(path, "w") as file:
        file["val/metrics_by_threshold/optimum"] = np.zeros((0, 2))


def not_finite(path):
    with h5py.File(path, "w") as file:
        file["val/metrics_by_threshold/optimum"] = [[0.1, np.nan]]


@pytest.mark.parametrize("damage", [no_file, truncated, no_dataset, a_group_instead, no_rows, not_finite])
def test_without_readable_thresholds_half_is_assumed_and_said(tmp_path, damage):
    folder = make_run(tmp_path, "a", EXTRACTOR, "resnet18")
    damage(make_metrics(folder, ROWS))
    thresholds = read_thresholds(folder / "checkpoint.pt", 2)
    assert thresholds.assumed
    assert thresholds.values.tolist() == [0.5, 0.5]
    assert thresholds.source.startswith("Thresholds: 0.5 for every behaviour, as ")


def test_thresholds_of_an_original_run_are_those_it_wrote_into_its_results(shared_data):
    root = shared_data("data/deg_project_original")
    run = next(run for run in scan(root / "models") if run.model == "sequence")
    with h5py.File(root / "DATA" / "field_1" / "field_1_outputs.h5", "r") as file:
        written = file["tgmj/thresholds"][:]
    np.testing.assert_array_equal(read_thresholds(run.weights, 4).values.astype(np.float32), written)
