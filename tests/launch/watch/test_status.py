"""How far launches have come: from files that jobs leave, and from lines of squeue."""

from __future__ import annotations

import json
import os
import time

import pytest
from scenes.launch import BEGAN, ended, exited, make_launch, output, plan_stage, queued, started
from scenes.project import make_project
from scenes.run import do_units
from scenes.training import leave_trained
from shims import Shims

from deg.launch import cli
from deg.launch.scheduler.launches import Verdict
from deg.launch.scheduler.queue import parse_squeue
from deg.launch.watch.status import read_launch
from deg.launch.watch.target import Queue
from deg.runs.merge import finish, merge

CHAIN = ("train feature_extractor", "infer feature_extractor", "train sequence")


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "mice", {"m": 20})


def look(launch, *lines, problem=""):
    return read_launch(launch, Queue(parse_squeue("".join(lines)), problem))


def test_a_launch_that_was_just_submitted_waits(project):
    launch = make_launch(project, CHAIN)
    found = look(
        launch,
        queued("10", "PENDING", "Priority", start=BEGAN + 600),
        *(queued(job, "PENDING", "Dependency", start=None) for job in ("11", "20_[0-3%2]", "21", "30", "31")),
    )
    assert found.state == "waiting" and [stage.state for stage in found.stages] == ["waiting"] * 3
    assert found.stages[0].starts == BEGAN + 600 and found.stages[1].starts is None
    assert found.stages[1].jobs == {"PENDING": 5}


def test_the_units_of_an_inference_at_work(project):
    launch = make_launch(project)
    run, plan = plan_stage(launch)
    do_units(run, plan, [0])
    for unit in range(4):
        started(run, unit, f"10_{unit}")
    ended(run, 0)
    exited(run, 3, "10_3", 137)
    found = look(launch, *(queued(f"10_{unit}") for unit in (0, 1, 2)), queued("11", "PENDING", "Dependency"))
    stage = found.stages[0]
    assert (found.state, stage.state, stage.work.units_done) == ("running", "running", 1)
    assert stage.working.units == (1, 2) and stage.working.recordings == 2
    assert stage.jobs == {"RUNNING": 3, "PENDING": 1}


def test_frames_that_workers_tell_of_count_before_their_unit_is_done(project):
    launch = make_launch(project)
    run, _ = plan_stage(launch)
    now = time.time()
    for unit, frames in ((0, 40), (1, 20)):
        job = f"10_{unit}"
        started(run, unit, job, at=now - 100)
        before = [{"event": "ready"}, {"event": "progress", "frames": 99}, {"event": "unit", "unit": 7}]
        output(launch, job, *before, *[{"event": "progress", "frames": frames // 2}] * 2)
        os.utime(launch.jobs_folder / f"{job}_0_log.out", (now, now))
    found = look(launch, *(queued(f"10_{unit}", start=now - 100) for unit in (0, 1)))
    working = found.stages[0].working
    assert working.frames == 60 and working.speed == pytest.approx(0.6, rel=0.05)
    assert working.ends - now == pytest.approx(3940 / 0.6, rel=0.05)


def test_an_attempt_of_before_the_job_was_put_back_is_not_at_work(project):
    launch = make_launch(project)
    run, _ = plan_stage(launch)
    started(run, 0, "10_0")
    assert look(launch, queued("10_0", start=BEGAN + 600)).stages[0].working.units == ()
    assert look(launch, queued("10_0", "PENDING", "BeginTime", start=BEGAN + 600)).stages[0].working.units == ()
    started(run, 0, "10_0", restart=1, at=BEGAN + 601)
    found = look(launch, queued("10_0", start=BEGAN + 600)).stages[0]
    assert found.working.units == (0,) and found.restarts == 1


def test_a_training_at_work(project):
    launch = make_launch(project, ("train sequence",))
    run, _ = plan_stage(launch)
    leave_trained(run, 0, epochs=2)
    run.phase_done_file(0).unlink()
    started(run, 0, "10", at=BEGAN)
    step = {"event": "step", "epoch": 2, "batch": 5, "of": 10, "samples_per_second": 12.5}
    output(launch, "10", {"event": "ready"}, step)
    found = look(launch, queued("10")).stages[0]
    assert (found.state, found.work.epochs_done, found.working.speed) == ("running", 2, 12.5)
    assert found.working.ends - time.time() == pytest.approx(97.5 * 60, abs=5)


@pytest.mark.parametrize("state", ["done", "partly", "failed"])
def test_the_merge_job_has_the_word_when_nothing_is_alive(project, state):
    launch = make_launch(project)
    plan_stage(launch)
    launch.set_verdict(0, Verdict(state, "so it is"))
    found = look(launch)
    assert (found.stages[0].state, found.stages[0].message) == (state, "so it is")
    assert found.state == ("failed" if state == "failed" else "finished")


def test_jobs_that_were_submitted_again_have_the_word_after_it(project):
    launch = make_launch(project)
    plan_stage(launch)
    launch.set_verdict(0, Verdict("failed", "no"))
    assert look(launch, queued("10_1", "PENDING", "Resources")).stages[0].state == "waiting"


def test_nothing_alive_and_not_done_is_stalled_and_what_comes_after_has_not_begun(project):
    found = look(make_launch(project, CHAIN), queued("10", "FAILED"))
    assert found.state == "stalled" and [stage.state for stage in found.stages] == ["stalled", "not begun", "not begun"]


def test_a_merge_job_that_ran_behind_a_failed_stage_has_done_nothing(project):
    launch = make_launch(project, CHAIN)
    launch.set_verdict(0, Verdict("failed", "no"))
    launch.set_verdict(2, Verdict("done"))
    assert [stage.state for stage in look(launch).stages] == ["failed", "not begun", "not begun"]


def test_a_launch_that_was_cancelled(project):
    launch = make_launch(project)
    launch.log_event("cancelled")
    assert look(launch).state == "cancelled"


def test_without_the_queue_files_tell_what_they_can(project):
    launch = make_launch(project, CHAIN)
    train, _ = plan_stage(launch, 0)
    leave_trained(train, 0)
    train.done_file.write_text("{}")
    launch.set_verdict(0, Verdict("done"))
    run, _ = plan_stage(launch, 1)
    started(run, 2, "20_2")
    found = look(launch, problem="squeue: not found")
    assert [stage.state for stage in found.stages] == ["done", "unknown", "unknown"]
    assert found.state == "unknown" and found.stages[1].working.units == (2,)


def test_a_stage_without_anything_to_do_is_done(project):
    launch = make_launch(project)
    launch.set_verdict(0, Verdict("done"))
    found = look(launch)
    assert (found.state, found.stages[0].work) == ("finished", None)


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def shims(tmp_path, monkeypatch):
    return Shims(tmp_path / "bin", monkeypatch)


def test_the_command_shows_a_launch_and_its_runs_once(project, shims, capsys):
    launch = make_launch(project, CHAIN)
    train, _ = plan_stage(launch, 0)
    leave_trained(train, 0, epochs=30)
    launch.set_verdict(0, Verdict("done"))
    run, plan = plan_stage(launch, 1)
    do_units(run, plan, [0])
    started(run, 1, "20_1")
    run.unit_folder(3).mkdir(parents=True)
    run.error_file(3).write_text('{"message": "given up"}')
    shims("squeue", queued("20_1") + queued("30", "PENDING", "Dependency"))
    assert cli.run(["status", str(project)]) == 0
    shown = capsys.readouterr().out
    assert f"{launch.name}: running" in shown and train.name not in shown
    assert "epoch 30/100" in shown and "1/4 units" in shown and "0/2, 1 failed" in shown
    assert len(shims.calls("squeue")) == 1


def test_the_command_prints_launches_and_all_runs_as_json(project, shims, capsys):
    launch = make_launch(project, CHAIN)
    run, _ = plan_stage(launch, 1)
    shims("squeue")
    assert cli.run(["status", str(project), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["launches"]] == [launch.name]
    assert told["launches"][0]["state"] == "stalled"
    assert [(one["name"], one["launch"]) for one in told["runs"]] == [(run.name, launch.name)]


def test_the_command_says_what_to_do_about_a_launch_that_nobody_goes_on_with(project, shims, capsys):
    make_launch(project)
    shims("squeue")
    assert cli.run(["status", str(project)]) == 0
    assert "stalled" in (shown := capsys.readouterr().out) and "deg resume" in shown


def test_a_broken_launch_is_told_and_hides_nothing(project, shims, capsys):
    launch = make_launch(project)
    launch.launch_file.write_text("{")
    assert cli.run(["status", str(project), "--json"]) == 1
    assert list(json.loads(capsys.readouterr().out)["unreadable"]) == [launch.name]


def test_the_scheduler_is_not_asked_every_second(project, shims, capsys):
    make_launch(project)
    assert cli.run(["status", str(project), "--watch", "--every", "5"]) == 2
    assert "30 or more" in capsys.readouterr().err


def test_watching_ends_when_all_is_over(project, shims, capsys, monkeypatch):
    launch = make_launch(project)
    run, plan = plan_stage(launch)
    shims("squeue", queued("10_0"))
    naps = []

    def nap(seconds):
        naps.append(seconds)
        do_units(run, plan)
        finish(run, merge(run, plan))
        launch.set_verdict(0, Verdict("done"))

    monkeypatch.setattr("deg.launch.commands.watch.sleep", nap)
    assert cli.run(["status", str(project), "--watch"]) == 0
    assert naps == [30.0]
    shown = capsys.readouterr().out
    assert "running" in shown and "finished" in shown
