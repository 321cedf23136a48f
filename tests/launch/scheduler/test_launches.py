"""The folder of a launch: what is written is read back, and lines torn by a crash are skipped."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes.launch import add_job, inference, make_launch, training
from shims import Shims

from deg.data.json_lines import append_line
from deg.errors import LaunchError, RunError
from deg.launch import cli
from deg.launch.scheduler import queue
from deg.launch.scheduler.launches import (
    Launch,
    LaunchDir,
    Stage,
    SubmittedJob,
    Verdict,
    find_launches,
    launch_of,
    require_free,
)
from deg.options.schema import Cluster
from deg.projects.project import create_project
from deg.runs.rundir import RunDir

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
paths = st.text("abc ä'\"\n=", min_size=1, max_size=12).map(lambda name: Path("/lab") / name)
stages = st.builds(
    Stage,
    verb=st.sampled_from(["train", "infer"]),
    stage=words,
    run=words,
    elements=st.integers(1, 10**6),
    command=st.lists(words, max_size=4).map(tuple),
)
clusters = st.builds(
    Cluster, account=words | st.none(), binds=st.lists(words, max_size=3).map(tuple), jobs=st.integers(1, 9)
)
launches = st.builds(
    Launch,
    folder=paths.map(LaunchDir),
    project=paths,
    stages=st.lists(stages, max_size=4).map(tuple),
    report=st.booleans(),
    deg=words,
    image=paths | st.none(),
    cluster=clusters,
    array_size=st.integers(1, 10**6),
)


@given(launches)
def test_a_launch_comes_back_as_it_was_written(launch):
    assert Launch.from_json(launch.to_json(), launch.folder) == launch


@pytest.fixture
def launch(tmp_path) -> LaunchDir:
    return make_launch(tmp_path, [inference(tmp_path, "one"), training(tmp_path, "two")], submitted=False)


def test_a_launch_is_loaded(launch, tmp_path):
    loaded = launch.load()
    assert [stage.name for stage in loaded.stages] == ["infer feature_extractor", "train flow_generator"]
    assert loaded.run_of(1) == RunDir(tmp_path / "models" / "two")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 99}', '{"version": 1}', '{"version": 1, "project": "/a", "image": null}']
)
def test_a_file_that_is_no_launch_is_reported(launch, text):
    launch.launch_file.write_text(text)
    with pytest.raises(RunError, match="not a launch that this version of deg can read"):
        launch.load()


def test_a_folder_that_is_no_launch_is_reported(tmp_path):
    with pytest.raises(RunError, match=r"expected a launch\.json, found none"):
        LaunchDir(tmp_path).load()


# ---------------------------------------------------------------------------------------------------- jobs

jobs = st.builds(
    SubmittedJob,
    job=st.integers(1, 10**9).map(str),
    stage=st.integers(0, 9),
    role=st.sampled_from(["execute", "merge"]),
    elements=st.none() | st.lists(st.integers(0, 1000), max_size=5).map(tuple),
    round=st.integers(0, 20),
    time=st.floats(1, 2e9),
)


@given(st.lists(jobs, max_size=5))
def test_jobs_come_back_in_their_order(tmp_path_factory, submitted):
    launch = LaunchDir(tmp_path_factory.mktemp("launch"))
    for job in submitted:
        launch.add_job(job)
    assert launch.jobs() == submitted


def test_a_job_is_noted_with_the_time_of_its_submission(launch):
    launch.add_job(SubmittedJob("7", 0, "merge"))
    (job,) = launch.jobs()
    assert abs(job.time - launch.jobs_file.stat().st_mtime) < 60


def test_lines_torn_by_a_crash_are_passed_over(launch):
    add_job(launch, "7")
    with launch.jobs_file.open("a") as file:
        file.write('{"job": "8", "sta\n')
    add_job(launch, "9")
    with launch.jobs_file.open("a") as file:
        file.write('{"job": "10", "stage": 0, "rol')
    assert [job.job for job in launch.jobs()] == ["7", "9"]


def test_before_the_first_submission_there_are_no_jobs(launch):
    assert launch.jobs() == []


def test_lines_of_many_processes_do_not_mix(tmp_path):
    if os.fork() == 0:
        for number in range(200):
            append_line(tmp_path / "lines", {"who": "child", "number": number, "text": "x" * 500})
        os._exit(0)
    for number in range(200):
        append_line(tmp_path / "lines", {"who": "parent", "number": number, "text": "x" * 500})
    os.wait()
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["number"] for line in lines if line["who"] == "child"] == list(range(200))
    assert len(lines) == 400


# ---------------------------------------------------------------------------------------------------- verdicts, finding


def test_the_last_verdict_holds(launch):
    assert launch.verdict(1) is None
    launch.set_verdict(1, Verdict("again", "2 of its units are still to be done"))
    launch.set_verdict(1, Verdict("failed", "the disk is full", 2))
    assert launch.verdict(1) == Verdict("failed", "the disk is full", 2) and launch.verdict(0) is None


def test_events_are_told_in_their_order(launch):
    launch.log_event("submitted", jobs=["1"])
    launch.log_event("merged", stage=0)
    lines = [json.loads(line) for line in (launch.path / "events.jsonl").read_text().splitlines()]
    assert [(line["event"], line.get("jobs"), line.get("stage")) for line in lines] == [
        ("submitted", ["1"], None),
        ("merged", None, 0),
    ]


def aged(launch: LaunchDir, time: int) -> LaunchDir:
    os.utime(launch.launch_file, (time, time))
    return launch


def test_launches_are_found_newest_first(tmp_path):
    made = [aged(make_launch(tmp_path, [], name=name), time) for name, time in (("b", 100), ("a", 300), ("c", 200))]
    (tmp_path / "models" / "no_launch").mkdir()
    assert [found.name for found in find_launches(tmp_path / "models")] == ["a", "c", "b"]
    assert len(made) == 3


def test_the_newest_launch_of_a_run(tmp_path):
    for number, runs in enumerate((["one", "two"], ["two"], ["three"])):
        stages = [inference(tmp_path, run) for run in runs]
        aged(make_launch(tmp_path, stages, name=f"launch_{number}"), 100 + number)
    assert launch_of(RunDir(tmp_path / "models" / "one")).name == "launch_0"
    assert launch_of(RunDir(tmp_path / "models" / "two")).name == "launch_1"
    assert launch_of(RunDir(tmp_path / "models" / "four")) is None


def test_a_launch_of_another_version_does_not_hide_the_others(tmp_path):
    aged(make_launch(tmp_path, [inference(tmp_path, "one")], name="old"), 100)
    other = aged(make_launch(tmp_path, [], name="other"), 200)
    other.launch_file.write_text('{"version": 99}')
    assert launch_of(RunDir(tmp_path / "models" / "one")).name == "old"


# ---------------------------------------------------------------------------------------------------- runs in use


@pytest.fixture
def shims(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "AGAIN_SECONDS", 0.0)
    return Shims(tmp_path / "bin", monkeypatch)


def line(job: str, state: str) -> str:
    return f"{job}|{state}|n1|1795354200|5:01|4:00:00|None\n"


def test_a_run_is_left_to_the_jobs_that_work_on_it(launch, shims):
    shims("squeue", line("7_0", "RUNNING") + line("7_1", "PENDING") + line("7_2", "COMPLETED"))
    add_job(launch, "7", elements=(0, 1, 2))
    run = launch.load().run_of(0)
    with pytest.raises(RunError, match=f"2 jobs of {launch.name}"):
        require_free(run)
    require_free(RunDir(launch.path.parent / "another"))


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"])
def test_jobs_that_have_ended_hold_nobody_up(launch, shims, state):
    shims("squeue", line("7", state))
    add_job(launch, "7")
    require_free(launch.load().run_of(0))


def test_jobs_of_others_hold_nobody_up(launch, recorder, tmp_path):
    (tmp_path / "other.sh").write_text("#!/bin/sh\n")
    subprocess.run(["sbatch", str(tmp_path / "other.sh")], check=True)
    recorder.tell("RUNNING")
    add_job(launch, "999")
    require_free(launch.load().run_of(0))


def test_jobs_of_the_launch_itself_do_not_hold_each_other_up(launch, shims, monkeypatch):
    shims("squeue", line("7", "PENDING") + line("8", "RUNNING"))
    for job in ("7", "8"):
        add_job(launch, job)
    run = launch.load().run_of(0)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    with pytest.raises(RunError):
        require_free(run)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    require_free(run)


def test_where_there_is_no_scheduler_nobody_is_held_up(launch, shims):
    add_job(launch, "7")
    with pytest.raises(LaunchError):
        queue.alive(["7"])
    require_free(launch.load().run_of(0))


# ---------------------------------------------------------------------------------------------------- earlier versions


OF_VERSION_1 = """\
{
 "project": "/lab/mice",
 "stages": [
  {
   "verb": "infer",
   "stage": "feature_extractor",
   "run": "261122_120000_feature_extractor_inference",
   "elements": 3,
   "command": [
    "infer",
    "feature_extractor",
    "/lab/mice",
    "feature_extractor.weights=latest",
    "--run",
    "261122_120000_feature_extractor_inference"
   ]
  }
 ],
 "report": false,
 "deg": "0.1.0",
 "image": null,
 "cluster": {
  "image": null,
  "jobs": 4
 },
 "array_size": 1000,
 "version": 1
}"""
"""launch.json as deg wrote it before stages had their own options."""


@pytest.fixture
def under_way(tmp_path):
    """A launch that was submitted by the previous version."""
    project = create_project(tmp_path / "mice", ["groom"]).path
    launch = LaunchDir(project / "models" / "261122_120000_launch")
    launch.jobs_folder.mkdir(parents=True)
    launch.launch_file.write_text(OF_VERSION_1)
    launch.add_job(SubmittedJob("10", 0, "execute", (0, 1, 2)))
    return launch


def test_a_launch_of_the_previous_version_is_refused_with_what_to_do(under_way):
    with pytest.raises(RunError, match=r"submitted by another version.*End it with `deg cancel .*_launch`"):
        under_way.load()


@pytest.mark.parametrize("command", ["resume", "why", "logs", "status"])
def test_commands_say_that_a_launch_is_of_the_previous_version(under_way, command, capsys, monkeypatch, tmp_path):
    Shims(tmp_path / "bin", monkeypatch)("squeue", "")
    status = cli.run([command, str(under_way.path)])
    said = capsys.readouterr()
    assert status in (1, 2) and "Traceback" not in said.err
    assert "submitted by another version" in " ".join((said.out + said.err).split())


def test_a_launch_of_the_previous_version_can_be_cancelled(under_way, recorder, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --array=0-2\nsleep 300\n")
    number = subprocess.run(["sbatch", str(script)], check=True, capture_output=True, text=True).stdout.split()[-1]
    under_way.add_job(SubmittedJob(number, 0, "execute", (0, 1, 2)))
    assert cli.run(["cancel", str(under_way.path)]) == 0
    assert set(recorder.jobs()[number].states.values()) == {"CANCELLED"}


def test_a_job_of_the_previous_version_ends_with_what_to_do(capsys):
    work = pickle.loads(b"cdeg.launch.jobs\nwork\n.")  # the function that pickles of that version refer to
    with pytest.raises(SystemExit) as ended:
        work("execute", "/lab/mice/models/261122_120000_launch", "0", "0")
    assert ended.value.code == 2
    assert "Stop its launch with `deg cancel`, then repeat the command" in capsys.readouterr().err
