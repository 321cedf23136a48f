"""What a word on the command line means."""

from __future__ import annotations

import os

import pytest
from scenes.launch import make_launch, plan_stage
from scenes.project import make_project
from scenes.run import make_plan, make_run
from shims import Shims

from deg.errors import ProjectError, RunError
from deg.launch.watch.target import Ending, Watched, ask_queue, find_watched


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "mice", {"m": 20})


def test_a_run_is_found_by_its_folder_and_by_its_project(project):
    run = make_run(project, make_plan(project, {"m": 20}))
    for word in (run.path, project, project / "project_config.yaml"):
        assert find_watched(word) == Watched((), (run,))


def test_a_launch_is_found_by_its_folder_its_project_and_its_runs(project):
    launch = make_launch(project)
    run, _ = plan_stage(launch)
    for word in (launch.path, project, run.path):
        assert find_watched(word) == Watched((launch,), ())


def test_runs_of_a_launch_are_not_runs_by_themselves(project):
    alone = make_run(project, make_plan(project, {"m": 20}))
    launch = make_launch(project)
    plan_stage(launch)
    assert find_watched(project) == Watched((launch,), (alone,))
    assert find_watched(alone.path) == Watched((), (alone,))


def test_a_name_is_looked_for_in_the_project_of_the_current_folder(project, monkeypatch):
    launch = make_launch(project)
    run, _ = plan_stage(launch)
    monkeypatch.chdir(project)
    for name in (launch.name, run.name):
        assert find_watched(type(project)(name)).launches[0].name == launch.name


def test_the_newest_is_meant_where_one_is(project):
    alone, launch = make_run(project, make_plan(project, {"m": 20})), make_launch(project)
    os.utime(alone.plan_file, (1, 1))
    assert find_watched(project).newest() == Watched((launch,), ())
    os.utime(launch.launch_file, (0, 0))
    assert find_watched(project).newest() == Watched((), (alone,))


def test_a_project_without_runs_and_what_is_no_project(project, tmp_path):
    with pytest.raises(RunError, match="no runs of deg yet"):
        find_watched(project)
    with pytest.raises(ProjectError):
        find_watched(tmp_path)


def test_a_launch_that_cannot_be_read_hides_nothing(project):
    launch = make_launch(project)
    launch.launch_file.write_text("{")
    run = make_run(project, make_plan(project, {"m": 20}))
    assert find_watched(project) == Watched((launch,), (run,))


def test_the_queue_is_asked_once_and_only_of_what_is_not_done(project, tmp_path, monkeypatch):
    shims = Shims(tmp_path / "bin", monkeypatch)
    shims("squeue", "10_0|RUNNING|n1|N/A|0:01|1:00|None\n")
    launch = make_launch(project)
    assert list(ask_queue([launch]).jobs) == ["10_0"]
    assert "--jobs=10,11" in shims.calls("squeue")[0]
    launch.merge_file(0).parent.mkdir(parents=True, exist_ok=True)
    launch.merge_file(0).write_text('{"state": "done"}')
    assert ask_queue([launch]).jobs == {} and len(shims.calls("squeue")) == 1


def test_a_queue_that_cannot_be_asked_is_no_error(project, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = ask_queue([make_launch(project)])
    assert not found.is_known and "login node" in found.problem


def test_the_end_of_a_launch_is_when_nothing_is_alive(project, tmp_path, monkeypatch):
    shims = Shims(tmp_path / "bin", monkeypatch)
    shims("squeue", "10_0|RUNNING|n1|N/A|0:01|1:00|None\n")
    ending = Ending(find_watched(make_launch(project).path), seconds=1000)
    assert not ending() and not ending()
    assert len(shims.calls("squeue")) == 1
    shims("squeue", "10_0|FAILED|n1|N/A|0:01|1:00|None\n")
    assert Ending(find_watched(project))()


def test_the_end_of_a_run_is_when_nobody_holds_it(project):
    run = make_run(project, make_plan(project, {"m": 20}))
    with run.claimed():
        assert not Ending(Watched((), (run,)))()
    assert Ending(Watched((), (run,)))()
