"""A run directory is named once, read by anybody, held by one process, and whole or no run at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scenes.run import make_plan, make_run

from deg.errors import RunError
from deg.runs import rundir
from deg.runs.plans import InferencePlan
from deg.runs.rundir import RunDir, find_runs, tail, unfinished_runs

HOLD = """
import sys, time
from pathlib import Path
from deg.runs.rundir import RunDir
with RunDir(Path(sys.argv[1])).claimed():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def plan(tmp_path):
    return make_plan(tmp_path, {"a": 3000, "b": 10}, units=3)


@pytest.fixture
def run(tmp_path, plan):
    return make_run(tmp_path, plan)


def test_the_name_is_the_one_by_which_the_original_finds_runs(run):
    assert run.name == "261122_120000_feature_extractor_inference"


def test_runs_of_one_second_get_different_names(tmp_path, plan):
    names = [make_run(tmp_path, plan).name for _ in range(3)]
    base = "261122_120000_feature_extractor_inference"
    assert names == [base, f"{base}_2", f"{base}_3"]


def test_notes_stand_at_the_end_of_the_name_and_make_no_folders(tmp_path, plan):
    run = make_run(tmp_path, plan, notes="night/second try")
    assert run.path == tmp_path / "models" / "261122_120000_feature_extractor_inference_night-second-try"


def test_a_name_that_is_taken_is_refused(tmp_path, plan):
    make_run(tmp_path, plan, name="mine")
    with pytest.raises(RunError, match="a run of this name exists"):
        make_run(tmp_path, plan, name="mine")


@pytest.mark.parametrize("name", ["a/b", "", "with space", "../up"])
def test_a_name_that_is_no_name_of_a_folder_is_refused(tmp_path, plan, name):
    with pytest.raises(RunError, match="letters, digits"):
        make_run(tmp_path, plan, name=name)


def test_the_configuration_says_which_network_it_is_about(run):
    """DeepEthogram's scan of models/ breaks on a run that does not say so."""
    config = yaml.safe_load(run.config_file.read_text())
    assert config["run"] == {"type": "inference", "model": "feature_extractor", "dir": str(run.path)}


def test_a_plan_comes_back_from_its_file_as_it_was(run, plan):
    assert run.load_plan() == plan


def test_paths_that_are_not_utf8_survive(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xe4use"))
    folder.mkdir()
    plan = make_plan(folder, {os.fsdecode(b"m\xff"): 10})
    run = make_run(folder, plan)
    assert run.load_plan() == plan
    assert yaml.safe_load(run.config_file.read_text())["run"]["type"] == "inference"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 99}', "null", '"text"'])
def test_a_plan_that_cannot_be_read_is_named(run, content):
    run.plan_file.write_text(content)
    with pytest.raises(RunError, match=r"plan\.json"):
        run.load_plan()


def test_a_folder_without_plan_is_no_run(tmp_path, run):
    (tmp_path / "models" / "261122_130000_training").mkdir()
    assert find_runs(tmp_path / "models") == [run]
    with pytest.raises(RunError, match="found none"):
        RunDir(tmp_path / "models" / "261122_130000_training").load_plan()


def test_a_run_that_was_not_fully_made_has_no_plan(tmp_path, plan, monkeypatch):
    def full_disk(path, content):
        if path.name == "plan.json":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(rundir, "write_atomically", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_run(tmp_path, plan)
    assert find_runs(tmp_path / "models") == []


def test_unfinished_runs_are_those_of_the_stage_without_outcome(tmp_path, plan):
    first, second = make_run(tmp_path, plan), make_run(tmp_path, plan)
    make_run(tmp_path, replace(plan, stage="sequence"), stage="sequence")
    broken = make_run(tmp_path, plan)
    broken.plan_file.write_text("{")
    first.done_file.write_text("{}")
    assert [run for run, _ in unfinished_runs(tmp_path / "models", "feature_extractor")] == [second]


def test_units_are_finished_when_their_results_are_there(run):
    for index in (0, 2):
        run.unit_folder(index).mkdir(parents=True)
    run.result_file(2).touch()
    (run.unit_folder(0) / ".result.h5.77.part").touch()
    assert run.finished_units() == {2}


def test_events_come_back_in_order_and_torn_lines_are_left_out(run):
    run.log_event("merged", key="a")
    with run.events_file.open("a") as file:
        file.write('{"event": "mer\n')
    run.log_event("merged", key="b")
    with run.events_file.open("a") as file:
        file.write('{"event": "unit_do')
    assert [(event["event"], event.get("key")) for event in run.events()] == [
        ("planned", None),
        ("merged", "a"),
        ("merged", "b"),
    ]


def test_lines_of_several_processes_do_not_mix(run):
    code = (
        "import sys; from pathlib import Path; from deg.runs.rundir import RunDir\n"
        "for i in range(200): RunDir(Path(sys.argv[1])).log_event('x', who=sys.argv[2], text='y' * 500)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(run.path), str(i)]) for i in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert len([json.loads(line) for line in run.events_file.read_text().splitlines()]) == 401


@pytest.fixture
def holder(run):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_run_is_held_by_one_process(run, holder, monkeypatch):
    monkeypatch.setattr(rundir, "CLAIM_SECONDS", 0.1)
    assert run.is_claimed()
    with pytest.raises(RunError, match="another `deg` is working"), run.claimed():
        pass


def test_the_hold_ends_with_the_process_however_it_ends(run, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not run.is_claimed()
    with run.claimed():
        assert run.is_claimed()


def test_looking_whether_a_run_is_held_keeps_nobody_out(run):
    """`deg status` holds the run for an instant; a process that claims it at that moment tries again."""
    import fcntl
    import threading

    descriptor = os.open(run.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    threading.Timer(0.3, os.close, [descriptor]).start()
    with run.claimed():
        pass


def test_the_last_lines_of_a_log():
    assert tail("a\n\nb\nc\n \n", 2) == ["b", "c"]


def test_a_plan_of_another_version_is_refused(plan):
    with pytest.raises(ValueError, match="another version"):
        InferencePlan.from_json(json.dumps(json.loads(plan.to_json()) | {"version": 2}))
