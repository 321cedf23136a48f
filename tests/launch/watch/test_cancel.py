"""Ending launches of a scheduler, and runs of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from scenes.launch import make_launch
from scenes.project import make_project
from scenes.run import make_plan, make_run
from shims import Shims

from deg.data.json_lines import read_lines
from deg.errors import LaunchError
from deg.launch import cli
from deg.launch.scheduler.launches import SubmittedJob
from deg.launch.scheduler.queue import alive
from deg.launch.watch import cancel
from deg.launch.watch.cancel import cancel_launch, cancel_run


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "mice", {"m": 20})


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(cancel, "LOOK_SECONDS", 0.2)


def submit(tmp_path, *flags: str) -> str:
    script = tmp_path / "job.sh"
    script.write_text("\n".join(["#!/bin/bash", *(f"#SBATCH {flag}" for flag in flags), "sleep 300"]))
    return subprocess.run(["sbatch", str(script)], check=True, capture_output=True, text=True).stdout.split()[-1]


def launch_of(project, *jobs: str):
    launch = make_launch(project, submitted=False)
    for job in jobs:
        launch.add_job(SubmittedJob(job, 0, "execute"))
    return launch


def test_all_that_runs_or_waits_is_ended_and_nothing_else(recorder, project, tmp_path):
    array = submit(tmp_path, "--array=0-2%1")
    merge = submit(tmp_path, f"--dependency=afterany:{array}")
    other = submit(tmp_path)
    recorder.tell("RUNNING", f"{array}_0", other)
    launch = launch_of(project, array, merge)
    found = cancel_launch(launch)
    assert set(found.ended) == {f"{array}_0", f"{array}_1", f"{array}_2", merge} and not found.left
    assert alive([array, merge, other]) == {other}
    assert [event["event"] for event in read_lines(launch.path / "events.jsonl")] == ["cancelled"]


def test_a_job_that_comes_back_is_ended_again(project, tmp_path, monkeypatch):
    shims = Shims(tmp_path / "bin", monkeypatch)
    times = tmp_path / "times"
    lines = ["5|RUNNING", "5|COMPLETING", "5|PENDING", "5|CANCELLED"]
    cases = " ".join(f'{number}) echo "{line}||N/A|0:01|1:00|None" ;;' for number, line in enumerate(lines, start=1))
    shims("squeue", then=f"echo x >> {times}; case $(wc -l < {times}) in {cases} esac")
    shims("scancel")
    found = cancel_launch(launch_of(project, "5"), wait=lambda _: None)
    assert (found.ended, found.left) == (("5",), ())
    assert shims.calls("scancel") == ["5", "5"]


def test_jobs_that_were_submitted_meanwhile_are_ended_too(project, tmp_path, monkeypatch):
    shims = Shims(tmp_path / "bin", monkeypatch)
    launch = launch_of(project, "5")
    shims("squeue", "5|RUNNING||N/A|0:01|1:00|None\n")
    shims("scancel")

    def wait(_):
        if len(launch.jobs()) == 1:
            launch.add_job(SubmittedJob("6", 0, "merge"))
            shims("squeue", "5|CANCELLED||N/A|0:01|1:00|None\n6|PENDING||N/A|0:01|1:00|None\n")
        else:
            shims("squeue", "5|CANCELLED||N/A|0:01|1:00|None\n6|CANCELLED||N/A|0:01|1:00|None\n")

    assert cancel_launch(launch, wait).ended == ("5", "6")
    assert shims.calls("scancel") == ["5", "6"]


def test_those_that_wait_for_others_go_first_in_one_command(project, tmp_path, monkeypatch):
    shims = Shims(tmp_path / "bin", monkeypatch)
    shims("squeue", "".join(f"{job}|PENDING||N/A|0:01|1:00|None\n" for job in ("9_0", "9_1", "10")))
    shims("scancel")
    cancel_launch(launch_of(project, "9", "10"), wait=lambda _: shims("squeue"))
    assert shims.calls("scancel") == ["10 9"]


def test_a_job_that_does_not_end_is_told(project, tmp_path, monkeypatch, capsys):
    shims = Shims(tmp_path / "bin", monkeypatch)
    shims("squeue", "5|RUNNING||N/A|0:01|1:00|None\n")
    shims("scancel")
    monkeypatch.setattr(cancel, "PATIENCE_SECONDS", 0.3)
    launch = launch_of(project, "5")
    assert cli.run(["cancel", str(launch.path)]) == 3
    assert "still there: 5" in capsys.readouterr().out


def test_a_scheduler_that_refuses_is_an_error(project, tmp_path, monkeypatch):
    shims = Shims(tmp_path / "bin", monkeypatch)
    shims("squeue", "5|RUNNING||N/A|0:01|1:00|None\n")
    shims("scancel", errors="Access/permission denied", status=1)
    with pytest.raises(LaunchError, match="permission denied"):
        cancel_launch(launch_of(project, "5"))


def test_nothing_alive(project, tmp_path, monkeypatch, capsys):
    shims = Shims(tmp_path / "bin", monkeypatch)
    shims("squeue")
    launch = launch_of(project, "5")
    assert cli.run(["cancel", str(project)]) == 0
    assert "Nothing is running or waiting" in capsys.readouterr().out
    assert not (launch.path / "events.jsonl").exists()


# ---------------------------------------------------------------------------------------------------- this machine

HOLD = """
import signal, sys, time
from pathlib import Path
from deg.runs.rundir import RunDir
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
with RunDir(Path(sys.argv[1])).claimed():
    print("held", flush=True)
    while not stopped:
        time.sleep(0.05)
"""


@pytest.fixture
def held(project):
    run = make_run(project, make_plan(project, {"a": 40}))
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield run, process
        process.kill()


def test_a_run_of_this_machine_is_asked_to_stop(held, capsys):
    run, process = held
    assert cli.run(["cancel", str(run.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["cancelled"]
    assert [(one["name"], one["ended"]) for one in told] == [(run.name, [f"process {process.pid}"])]
    assert process.wait(5) == 0


def test_a_run_of_another_machine_is_left_alone(held):
    run, process = held
    run.log_event("claimed", host="elsewhere")
    found = cancel_run(run)
    assert "elsewhere" in found.left[0] and "kill" in found.note
    assert process.poll() is None


def test_a_number_that_another_process_has_now_is_left_alone(held):
    run, _ = held
    with subprocess.Popen(["sleep", "60"]) as stranger:
        line = json.dumps({"time": time.time(), "pid": stranger.pid, "event": "claimed", "host": os.uname().nodename})
        with run.events_file.open("a") as events:
            events.write(line + "\n")
        assert cancel_run(run).left and stranger.poll() is None
        stranger.kill()


def test_a_run_that_nobody_works_on(project):
    run = make_run(project, make_plan(project, {"a": 40}))
    assert cancel_run(run) == cancel.Cancelled(run.name)
