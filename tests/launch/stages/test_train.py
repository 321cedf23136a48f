"""`deg train`, with scripted ranks: what is finished is reported, what was interrupted is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scenes.project import make_labelled_project, relabel
from scripted_training import ScriptedRanks

from deg.errors import DegError, LaunchError
from deg.launch import cli
from deg.launch.on.local import place
from deg.runs.networks import scan
from deg.runs.rundir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    return make_labelled_project(tmp_path / "mice")


@pytest.fixture
def ranks(monkeypatch):
    scripted = ScriptedRanks()
    monkeypatch.setattr(place, "run_ranks", scripted)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return scripted


@pytest.fixture
def deg(folder, ranks, capsys):
    """`deg("flow_generator", ...)` returns the exit status, the JSON document, and the messages."""

    def deg(stage: str = "flow_generator", *words: str):
        status = cli.run(["train", stage, str(folder), *words, "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out), said.err

    return deg


def runs(folder: Path) -> list[RunDir]:
    return [RunDir(file.parent) for file in sorted((folder / "models").glob("*/plan.json"))]


def test_a_training_says_where_the_network_is_and_how_good(deg, folder, ranks):
    status, report, said = deg()
    (run,) = runs(folder)
    assert status == report["exit_status"] == 0 and run.done_file.exists()
    assert ranks.calls == [(run.name, 0, 1)]
    best = report["best"]
    assert best["weights"] == str(run.path / "lightning_checkpoints" / "epoch=1-step=20.ckpt")
    assert (best["epoch"], best["epochs"], best["key_metric"]) == (1, 2, "SSIM")
    assert best["val"] == {"loss": 0.5, "SSIM": pytest.approx(0.4)}
    assert f"Weights: {best['weights']}" in said and "epoch 2 was best" in said


def test_the_run_is_one_that_deepethogram_can_list(deg, folder):
    deg("flow_generator", "notes=first try")
    (run,) = runs(folder)
    assert run.name.endswith("_flow_generator_train_first-try")
    stored = yaml.safe_load(run.config_file.read_text())
    assert stored["run"] == {"type": "train", "model": "flow_generator", "dir": str(run.path)}
    assert {"latent_name", "output_name", "arch"} <= stored["sequence"].keys() and stored["feature_extractor"]["arch"]
    for name, path in {
        "path": folder,
        "config_file": folder / "project_config.yaml",
        "data_path": folder / "DATA",
    }.items():
        assert stored["project"][name] == str(path)
    assert (run.path / "split.yaml").exists() and (folder / "DATA" / "split.yaml").exists()
    assert json.loads((run.path / "provenance.json").read_text())["deg"]
    (trained,) = scan(folder / "models")
    assert (trained.folder, trained.model, trained.arch) == (run.path, "flow_generator", "TinyMotionNet")


def test_a_feature_extractor_remembers_its_flow_generator(deg, folder):
    flow = deg()[1]["best"]["weights"]
    status, report, _ = deg("feature_extractor", "flow_generator.weights=latest", "feature_extractor.weights=random")
    assert status == 0 and report["best"]["key_metric"] == "f1_class_mean_nobg"
    stored = yaml.safe_load((folder / "models" / report["run"] / "config.yaml").read_text())
    assert stored["flow_generator"]["weights"] == flow


def test_phases_are_done_one_after_the_other(deg, folder, ranks):
    deg()
    words = ("flow_generator.weights=latest", "feature_extractor.weights=random", "feature_extractor.curriculum=true")
    _, report, said = deg("feature_extractor", *words)
    assert [unit for run, unit, _ in ranks.calls if run == report["run"]] == [0, 1, 2]
    assert "phase spatial" in said and "phase both" in said


def test_a_finished_training_is_not_resumed(deg, folder):
    deg()
    deg()
    assert len(runs(folder)) == 2


def test_a_stopped_training_says_so_and_is_resumed(deg, folder, ranks):
    ranks.then = ["stop"]
    status, report, said = deg()
    assert status == report["exit_status"] == 75 and report["stopped"] and report["best"] is None
    assert "Run the same command again" in said
    status, report, said = deg()
    assert status == 0 and f"Resuming the interrupted run {report['run']}" in said
    assert len(runs(folder)) == 1 and runs(folder)[0].done_file.exists()


def test_only_the_phases_that_are_missing_are_done(deg, folder, ranks):
    deg()
    words = ("flow_generator.weights=latest", "feature_extractor.weights=random", "feature_extractor.curriculum=true")
    ranks.then = [None, "stop"]
    assert deg("feature_extractor", *words)[0] == 75
    ranks.calls.clear()
    status, report, _ = deg("feature_extractor", *words)
    assert status == 0 and ranks.calls == [(report["run"], 1, 1), (report["run"], 2, 1)]


def test_a_run_killed_when_all_phases_were_done_is_only_closed(deg, folder, ranks):
    _, report, _ = deg()
    (run,) = runs(folder)
    run.done_file.unlink()
    ranks.calls.clear()
    status, again, _ = deg()
    assert status == 0 and again["best"] == report["best"] and ranks.calls == []


@pytest.mark.parametrize("change", [["train.lr=0.01"], ["--run", "another"]], ids=["options", "name"])
def test_another_training_is_not_resumed(deg, folder, ranks, change):
    ranks.then = ["stop"]
    deg()
    assert deg("flow_generator", *change)[0] == 0
    assert sorted(run.done_file.exists() for run in runs(folder)) == [False, True]


def test_a_named_run_is_found_by_its_name(deg, folder, ranks):
    ranks.then = ["stop", "stop"]
    deg("flow_generator", "--run", "one")
    deg("flow_generator", "--run", "two")
    assert deg("flow_generator", "--run", "one")[1]["run"] == "one"
    assert {run.name: run.done_file.exists() for run in runs(folder)} == {"one": True, "two": False}


def test_a_run_that_another_process_trains_is_left_to_it(deg, folder, ranks):
    ranks.then = ["stop"]
    deg()
    (run,) = runs(folder)
    with run.claimed():
        status, report, said = deg()
    assert status == 0 and report["run"] != run.name and "another `deg` is doing this training" in said


@pytest.mark.parametrize(
    ("error", "status"), [(DegError("mouse_3: NaN in frame 7."), 2), (LaunchError("Rank 1 was killed."), 3)]
)
def test_the_fault_of_a_rank_is_told_and_the_run_is_resumed_later(deg, folder, ranks, error, status):
    if status == 2:
        error.exit_status = 2
    ranks.then = [error]
    found, document, _ = deg()
    assert found == status and document["error"] == str(error)
    assert deg()[0] == 0 and len(runs(folder)) == 1


def test_ranks_that_end_without_a_network_are_an_error(deg, ranks):
    ranks.then = ["nothing"]
    status, document, _ = deg()
    assert status == 3 and "the phase is not done" in document["error"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(deg, folder, ranks):
    before = sorted(folder.rglob("*"))
    status, report, said = deg("flow_generator", "--dry-run")
    assert status == 0 and sorted(folder.rglob("*")) == before and ranks.calls == []
    assert sorted(key for part in report["plan"]["parts"].values() for key in part) == ["mouse_1", "mouse_2", "mouse_3"]
    assert "recordings" in said and "flow_generator TinyMotionNet" in said


def test_recordings_that_cannot_be_used_are_named(deg, folder):
    (folder / "DATA" / "mouse_3" / "mouse_3.mp4").write_bytes(b"no video")
    _, report, said = deg()
    assert list(report["left_out"]) == ["mouse_3"] and "mouse_3: left out: " in said


def test_the_number_of_devices(deg, ranks):
    deg("flow_generator", "compute.devices=2")
    assert [count for _, _, count in ranks.calls] == [2]


@pytest.mark.parametrize("words", [["train"], ["train", "flow"], ["train", "sequence"]])
def test_stage_and_project_are_asked_for(words, capsys):
    assert cli.run(words) == 2
    assert "Expected one" in capsys.readouterr().err


def test_changed_labels_are_another_training_of_a_classifier(deg, folder, ranks):
    deg()
    words = ("flow_generator.weights=latest", "feature_extractor.weights=random")
    ranks.then = ["stop"]
    _, stopped, _ = deg("feature_extractor", *words)
    relabel(folder, "mouse_2", np.arange(24) // 3 % 3)
    _, report, _ = deg("feature_extractor", *words)
    assert report["run"] != stopped["run"]
