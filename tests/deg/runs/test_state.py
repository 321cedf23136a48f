"""The state of runs, read from their files alone."""

from __future__ import annotations

import json

import pytest
from scenes.project import make_project
from scenes.run import NOW, do_units, make_plan, make_run
from scenes.training import leave_trained, make_training_plan

from deg.launch import cli
from deg.runs.merge import finish, merge
from deg.runs.rundir import RunDir, create_run
from deg.runs.state import open_run

LENGTHS = {"a": 600, "b": 40, "c": 1500}


@pytest.fixture
def plan(tmp_path):
    return make_plan(tmp_path, LENGTHS, units=3)


@pytest.fixture
def run(tmp_path, plan):
    return make_run(tmp_path, plan)


def test_a_run_that_has_not_begun(run):
    found = open_run(run).status()
    assert (found.state, found.units, found.units_done, found.recordings, found.recordings_done) == (
        "interrupted",
        3,
        0,
        3,
        0,
    )
    assert found.frames == sum(LENGTHS.values()) and found.frames_done == 0 and found.frames_per_second is None


def test_a_run_at_work(run, plan):
    do_units(run, plan, [0])
    merge(run, plan)
    with run.claimed():
        found = open_run(run).status()
    assert (found.state, found.units_done, found.recordings_done, found.frames_done) == ("running", 1, 2, 640)
    assert found.frames_per_second > 0


def test_a_unit_that_failed_counts_until_it_is_done(run, plan):
    run.unit_folder(1).mkdir(parents=True)
    run.error_file(1).write_text("{}")
    found = open_run(run).status()
    assert (found.units_failed, found.recordings_failed) == (1, len({span.key for span in plan.units[1].spans}))
    do_units(run, plan, [1])
    assert (open_run(run).status().units_failed, open_run(run).status().recordings_failed) == (0, 0)


def test_a_finished_run(run, plan):
    do_units(run, plan, faults={"b": "the file is damaged"})
    finish(run, merge(run, plan))
    found = open_run(run).status()
    assert (found.state, found.units_done, found.recordings_done, found.recordings_failed) == ("finished", 3, 2, 1)
    assert found.frames_done == found.frames


def test_a_recording_merged_twice_is_one_recording(run, plan):
    do_units(run, plan)
    merge(run, plan)
    plan.outputs["a"].unlink()
    merge(run, plan)
    assert open_run(run).status().recordings_done == 3


def test_looking_does_not_disturb(run, plan):
    do_units(run, plan, [0])
    before = sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*"))
    open_run(run).status()
    assert sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*")) == before


def test_the_command_prints_a_table_or_json(run, capsys):
    assert cli.run(["status", str(run.path)]) == 0
    assert "interrupted" in capsys.readouterr().out
    assert cli.run(["status", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["name"] == run.name


def test_one_unreadable_plan_does_not_hide_the_other_runs(tmp_path, capsys):
    project = make_project(tmp_path / "mice", {"a": 40})
    plan = make_plan(tmp_path, {"a": 40})
    good, bad = make_run(project, plan), make_run(project, plan)
    bad.plan_file.write_text("{")
    assert cli.run(["status", str(project), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in told["runs"]] == [good.name]
    assert list(told["unreadable"]) == [bad.name]


# ---------------------------------------------------------------------------------------------------- training


def make_training(folder, **changes) -> RunDir:
    plan = make_training_plan(folder, **changes)
    return create_run(folder / "models", stage=plan.stage, kind="train", plan=plan, config={}, provenance={}, now=NOW)


def test_a_training_that_has_not_begun(tmp_path):
    found = open_run(make_training(tmp_path)).status()
    assert (found.stage, found.arch, found.state, found.phases_done) == ("sequence", "tgmj", "interrupted", 0)
    assert (found.epochs_done, found.epochs, found.loss, found.value) == (0, 100, None, None)


def test_a_training_at_work_tells_its_last_epoch(tmp_path):
    run = make_training(tmp_path)
    leave_trained(run, 0, epochs=3)
    run.phase_done_file(0).unlink()
    with (run.path / "metrics.jsonl").open("a") as lines:
        lines.write('{"epoch": 3, "tra')  # this line is being written
    with run.claimed():
        found = open_run(run).status()
    assert (found.state, found.epochs_done, found.figure) == ("running", 3, "f1_class_mean")
    assert found.value == pytest.approx(0.7) and found.loss == pytest.approx(1 / 3)


def test_a_curriculum_tells_of_the_phase_at_work(tmp_path):
    run = make_training(tmp_path, stage="feature_extractor", phases=("spatial", "flow", "both"))
    assert open_run(run).status().phase == "spatial"
    leave_trained(run, 0)
    leave_trained(run, 1)
    run.phase_done_file(1).unlink()
    found = open_run(run).status()
    assert (found.phase, found.phases_done, found.phases, found.epochs_done) == ("flow", 1, 3, 2)
    leave_trained(run, 1)
    leave_trained(run, 2)
    run.done_file.write_text("{}")
    found = open_run(run).status()
    assert (found.phase, found.phases_done, found.state) == ("both", 3, "finished")


def test_the_command_shows_both_kinds_of_runs(tmp_path, run, capsys):
    folder = make_project(tmp_path / "mice", {"m": 20})
    inference, training = make_run(folder, make_plan(folder, {"m": 20})), make_training(folder)
    leave_trained(training, 0)
    assert cli.run(["status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert inference.name in shown and training.name in shown and "2/100" in shown and "F1 0.600" in shown
    assert cli.run(["status", str(folder), "--json"]) == 0
    told = {run["name"]: run["kind"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert told == {inference.name: "inference", training.name: "train"}
