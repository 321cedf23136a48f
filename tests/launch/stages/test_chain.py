"""`deg run`, with scripted ranks and workers, does every step once, then only what is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scenes.place import Here
from scenes.project import make_labelled_project, relabel
from scenes.training import make_training_plan
from scripted_training import ScriptedRanks
from videos import write_video

from deg.errors import LaunchError
from deg.launch import cli
from deg.launch.on.local import place
from deg.launch.on.local.place import Local
from deg.launch.stages.chain import differences
from deg.options.yamlfile import read_yaml
from deg.runs.planned import PlannedFile
from deg.runs.rundir import RunDir

pytestmark = pytest.mark.slow

STEPS = [
    "train flow_generator",
    "train feature_extractor",
    "infer feature_extractor",
    "train sequence",
    "infer sequence",
    "report",
]


@pytest.fixture
def folder(tmp_path):
    return make_labelled_project(tmp_path / "mice")


@pytest.fixture
def ranks(monkeypatch):
    scripted = ScriptedRanks()
    monkeypatch.setattr(place, "run_ranks", scripted)
    return scripted


@pytest.fixture
def script(monkeypatch):
    """Units are done in this process; `script(faults=...)` says what goes wrong with them."""
    monkeypatch.setattr(Local, "do_units", lambda self, *about: Here().do_units(*about))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda **script: monkeypatch.setenv("SCRIPT", json.dumps(script))


@pytest.fixture
def deg(folder, ranks, script, capsys):
    """`deg(...)` is `deg run` and returns the exit status, {step: its report}, and the messages."""

    def deg(*words: str):
        status = cli.run(["run", str(folder), "feature_extractor.weights=random", *words, "--json"])
        said = capsys.readouterr()
        document = json.loads(said.out)
        assert document.get("exit_status", status) == status
        return status, {step["name"]: step for step in document.get("steps", [])}, said.err

    return deg


def states(steps) -> list[str]:
    return [step["state"] for step in steps.values()]


def runs(folder: Path, stage: str = "") -> list[RunDir]:
    return [RunDir(file.parent) for file in sorted((folder / "models").glob(f"*{stage}*/plan.json"))]


@pytest.fixture
def trained(deg):
    """A project on which the whole chain has run."""
    status, steps, _ = deg()
    assert status == 0
    return steps


def test_every_step_is_done_in_its_order(deg, folder, ranks):
    status, steps, said = deg()
    assert status == 0 and list(steps) == STEPS and states(steps) == ["done"] * 6
    assert [name.split("_", 2)[2] for name, _, _ in ranks.calls] == [
        "flow_generator_train",
        "feature_extractor_train",
        "sequence_train",
    ]
    assert steps["infer sequence"]["document"]["stages"][0]["done"] == ["mouse_1", "mouse_2", "mouse_3"]
    assert Path(steps["report"]["document"]["page"]).is_file()
    assert "[1/6] train flow_generator" in said and "$ deg train flow_generator" in said


def test_the_feature_extractor_sees_motion_through_the_flow_generator_just_trained(trained, folder):
    flow = trained["train flow_generator"]["document"]["best"]["weights"]
    (run,) = runs(folder, "feature_extractor_train")
    assert read_yaml(run.config_file, LaunchError)["flow_generator"]["weights"] == flow
    inference = RunDir(folder / "models" / trained["infer feature_extractor"]["document"]["stages"][0]["run"])
    assert str(inference.load_plan().weights["flow_generator"].path) == flow


def test_a_second_call_does_nothing(trained, deg, folder, ranks):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ranks.calls.clear()
    status, steps, said = deg()
    assert status == 0 and ranks.calls == []
    assert states(steps) == ["there", "there", "done", "there", "done", "there"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "has changed" not in said


def test_new_recordings_are_inferred_without_training_again(trained, deg, folder, ranks):
    (folder / "DATA" / "mouse_4").mkdir()
    write_video(folder / "DATA" / "mouse_4" / "mouse_4.mp4", 20)
    ranks.calls.clear()
    status, steps, said = deg()
    assert status == 0 and ranks.calls == []
    for name in ("infer feature_extractor", "infer sequence"):
        assert steps[name]["document"]["stages"][0]["done"] == ["mouse_4"]
    assert steps["report"]["state"] == "done"
    assert "this has changed: recordings of mouse_4. To train again: deg train flow_generator" in said


def test_changed_labels_and_options_are_said_and_nothing_is_trained_silently(trained, deg, folder, ranks):
    relabel(folder, "mouse_2", np.arange(24) // 3 % 3)
    ranks.calls.clear()
    status, _, said = deg("train.lr=0.01")
    assert status == 0 and ranks.calls == []
    assert said.count("has changed: labels of mouse_2, train.lr.") == 2


def test_what_was_trained_anew_is_used(trained, deg, folder, capsys):
    assert cli.run(["train", "feature_extractor", str(folder), *first_words(trained)]) == 0
    capsys.readouterr()
    _, steps, said = deg()
    assert len(steps["infer feature_extractor"]["document"]["stages"][0]["done"]) == 3
    assert "features of mouse_1, mouse_2, mouse_3" in said


def first_words(steps) -> list[str]:
    """Return the options with which the chain trained the feature extractor."""
    return [word for word in steps["train feature_extractor"]["command"] if "=" in word]


def test_networks_of_deepethogram_are_used_and_not_trained_again(trained, deg, folder, ranks):
    for run in runs(folder, "_train"):
        for file in (run.plan_file, run.done_file):
            file.unlink()
    ranks.calls.clear()
    assert deg()[0] == 0 and ranks.calls == []


def test_pretrained_networks_do_not_count_as_trained(trained, deg, folder, ranks):
    (folder / "models" / "pretrained_models").mkdir()
    (run,) = runs(folder, "flow_generator_train")
    run.path.rename(folder / "models" / "pretrained_models" / run.name)
    ranks.calls.clear()
    deg()
    assert [name.split("_", 2)[2] for name, _, _ in ranks.calls] == ["flow_generator_train"]


def test_another_architecture_is_another_network(trained, deg, folder, ranks):
    ranks.calls.clear()
    status, steps, _ = deg("sequence.arch=linear")
    assert status == 0 and [name.split("_", 2)[2] for name, _, _ in ranks.calls] == ["sequence_train"]
    assert steps["infer sequence"]["document"]["stages"][0]["group"] == "linear"


def test_options_reach_every_step(deg, folder, tmp_path):
    extra = tmp_path / "more.yaml"
    extra.write_text("train: {num_epochs: 7}")
    status, _, _ = deg("--config", str(extra), "train.patience=2", "--run", "try")
    assert status == 0
    for stage in ("flow_generator", "feature_extractor", "sequence"):
        plan = RunDir(folder / "models" / f"try_{stage}_train").load_training_plan()
        assert plan.config.train.num_epochs == 7 and plan.config.train.patience == 2


# ---------------------------------------------------------------------------------------------------- going wrong


def test_the_chain_ends_at_the_first_step_that_fails(deg, ranks):
    ranks.then = [None, LaunchError("Rank 1 was killed.")]
    status, steps, _ = deg()
    assert status == 3 and states(steps) == ["done", "failed"]
    assert steps["train feature_extractor"]["document"]["error"] == "Rank 1 was killed."


def test_a_stopped_chain_resumes_where_it_stopped(deg, folder, ranks):
    ranks.then = [None, "stop"]
    status, steps, _ = deg()
    assert status == 75 and states(steps) == ["done", "stopped"]
    status, steps, said = deg()
    assert status == 0 and states(steps) == ["there", "done", "done", "done", "done", "done"]
    assert "Resuming the interrupted run" in said and len(runs(folder, "_train")) == 3


def test_without_labels_nothing_is_begun(deg, folder, ranks):
    for path in folder.glob("DATA/*/*_labels.csv"):
        path.unlink()
    status, _, said = deg()
    assert status == 2 and ranks.calls == [] and "at least two recordings" in said


def test_a_bad_video_without_labels_is_named_and_the_chain_continues(deg, folder):
    (folder / "DATA" / "bad").mkdir()
    (folder / "DATA" / "bad" / "bad.mp4").write_bytes(b"no video")
    status, steps, _ = deg()
    assert status == 1 and list(steps) == STEPS
    assert list(steps["infer feature_extractor"]["document"]["stages"][0]["failed"]) == ["bad"]


def test_a_labelled_recording_without_features_ends_the_chain(deg, script):
    script(faults={"mouse_2": "the file is damaged"})
    status, steps, said = deg()
    assert status == 1 and list(steps) == STEPS[:3]
    assert "mouse_2 is labelled but has no features" in said


def test_a_training_that_another_process_runs_is_waited_for(deg, folder, ranks):
    ranks.then = ["stop"]
    deg()
    (run,) = runs(folder)
    with run.claimed():
        status, _, said = deg()
    assert status == 2 and "another `deg` is training the flow_generator" in said


# ---------------------------------------------------------------------------------------------------- dry runs


def test_a_dry_run_of_a_new_project_shows_the_first_step_and_names_the_others(deg, folder, ranks):
    before = sorted(folder.rglob("*"))
    status, steps, said = deg("--dry-run")
    assert status == 0 and states(steps) == ["missing"] * 6 and sorted(folder.rglob("*")) == before
    assert steps["train flow_generator"]["document"]["plan"]["parts"] and steps["train sequence"]["document"] is None
    assert "$ deg train sequence" in said and ranks.calls == []


def test_a_dry_run_says_what_is_there(trained, deg):
    status, steps, _ = deg("--dry-run")
    assert status == 0 and states(steps) == ["there"] * 6


# ---------------------------------------------------------------------------------------------------- differences


def test_differences_of_two_trainings_in_words(tmp_path):
    one = make_training_plan(tmp_path)
    assert differences(one, one) == []
    labels = {"a": PlannedFile(Path("a.csv"), "1")}
    sequence = replace(one.config.sequence, num_layers=9, weights="latest")
    steps = replace(one.config.train.steps_per_epoch, train=5, val=None, test=None)
    config = replace(one.config, sequence=sequence, train=replace(one.config.train, steps_per_epoch=steps))
    other = make_training_plan(tmp_path, labels=labels, config=config, class_names=("background", "groom"))
    assert differences(one, other) == [
        "labels of a",
        "the behaviours",
        "train.steps_per_epoch.train",
        "sequence.num_layers",
    ]
    assert differences(one, make_training_plan(tmp_path, parts={"train": ("b",), "val": ("a",), "test": ()})) == [
        "the split"
    ]
