"""`deg resume` resumes runs of this machine and launches with what is missing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import h5py
import pytest
from scenes.launch import WORDS, died, only_launch, submitted
from scenes.project import make_labelled_project, make_project
from scenes.run import frame_numbers, scripted_workers
from scripted_engine import FeatureSpans, SequenceSpans
from scripted_training import ScriptedRanks

from deg import execute as door
from deg.launch import cli
from deg.launch.on.local import place
from deg.launch.on.slurm import jobs
from deg.launch.scheduler.queue import NEVER, array_of
from deg.runs.attempts import read_attempts
from deg.runs.rundir import RunDir
from deg.work import StopFlag

pytestmark = pytest.mark.slow

LENGTHS = {"mouse_1": 1100, "mouse_2": 30}
FIXED = ("feature_extractor.weights=latest", "inference.devices=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("made") / "mice", LENGTHS)


@pytest.fixture
def folder(made, tmp_path):
    subprocess.run(["cp", "-a", str(made), str(tmp_path / "mice")], check=True)
    return tmp_path / "mice"


@pytest.fixture
def script(monkeypatch, tmp_path):
    return scripted_workers(monkeypatch, tmp_path)


@pytest.fixture
def deg(script, capsys):
    """`deg(...)` returns the exit status, the JSON document, and the messages."""

    def deg(*words: object):
        status = cli.run([*map(str, words), "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out), said.err

    return deg


def outputs(folder: Path, key: str) -> Path:
    return folder / "DATA" / key / f"{key}_outputs.h5"


# ---------------------------------------------------------------------------------------------------- on this machine


def test_an_interrupted_inference_is_resumed(deg, folder, script):
    script(deaths={"mouse_2": 9})
    assert deg("infer", "feature_extractor", folder, *FIXED)[0] == 1
    (run,) = [RunDir(file.parent) for file in folder.glob("models/*/plan.json")]
    before = outputs(folder, "mouse_1").stat().st_mtime_ns
    script()
    status, report, _ = deg("resume", folder)
    assert status == 0 and report["run"] == run.name and run.is_merged()
    assert frame_numbers(outputs(folder, "mouse_2")).tolist() == list(range(30))
    assert outputs(folder, "mouse_1").stat().st_mtime_ns == before


@pytest.fixture
def ranks(monkeypatch):
    scripted = ScriptedRanks()
    monkeypatch.setattr(place, "run_ranks", scripted)
    return scripted


def test_an_interrupted_training_is_resumed(deg, tmp_path, ranks):
    project = make_labelled_project(tmp_path / "lab")
    ranks.then = ["stop"]
    assert deg("train", "flow_generator", project, "train.num_epochs=7")[0] == 75
    status, report, _ = deg("resume", project)
    assert status == 0 and Path(report["best"]["weights"]).exists()
    (run,) = [RunDir(file.parent) for file in project.glob("models/*/plan.json")]
    assert run.done_file.exists() and run.load_training_plan().config.train.num_epochs == 7
    assert [name for name, _, _ in ranks.calls] == [run.name] * 2


def test_a_run_that_is_named(deg, tmp_path, ranks):
    project = make_labelled_project(tmp_path / "lab")
    ranks.then = ["stop", "stop"]
    for name in ("one", "two"):
        deg("train", "flow_generator", project, "--run", name)
    assert deg("resume", project / "models" / "one")[1]["run"] == "one"
    status, report, _ = deg("resume", project / "models" / "one")
    assert status == 2 and "it is finished" in report["error"]
    assert deg("resume", project)[1]["run"] == "two"


def test_nothing_was_interrupted(deg, folder):
    status, report, _ = deg("resume", folder)
    assert status == 2 and "nothing was interrupted" in report["error"]


def test_a_run_of_this_machine_keeps_the_options_of_its_plan(deg, folder, script):
    script(deaths={"mouse_2": 9})
    deg("infer", "feature_extractor", folder, *FIXED)
    status, report, _ = deg("resume", folder, "cluster.time=8:00:00")
    assert status == 2 and "options of its plan" in report["error"]


# ---------------------------------------------------------------------------------------------------- launches


@pytest.fixture
def launched(deg, folder):
    """Submits both stages of an inference."""

    def launched(*words: str):
        status, _, _ = deg("infer", "all", folder, *FIXED, *WORDS, *words, "--on", "slurm")
        assert status == 0
        return only_launch(folder)

    return launched


@pytest.fixture
def finish(monkeypatch, capsys):
    """`finish(launch, 0, 1)` does the work of these stages' last submitted jobs in this process."""
    done: set[str] = set()

    def make_engine(plan):
        return (FeatureSpans if plan.stage == "feature_extractor" else SequenceSpans)(plan)

    def finish_one(launch, index: int) -> None:
        array, merging = [job for job in launch.jobs() if job.stage == index][-2:]
        assert array.job not in done, f"stage {index} was not submitted again"
        done.add(array.job)
        for element in array.elements:
            os.environ.update(SLURM_JOB_ID="99", SLURM_ARRAY_JOB_ID=array.job, SLURM_ARRAY_TASK_ID=str(element))
            jobs.execute(launch.load(), index, 0, StopFlag())
        os.environ["SLURM_JOB_ID"] = merging.job
        assert jobs.merge(launch.load(), index, StopFlag()) == 0

    def finish(launch, *indices: int) -> None:
        before = dict(os.environ)
        for index in indices:
            finish_one(launch, index)
        os.environ.clear()
        os.environ.update(before)
        capsys.readouterr()

    monkeypatch.setattr(door, "make_engine", make_engine)
    return finish


def state_of(launch, index: int) -> str:
    return launch.verdict(index).state


def give_up(run: RunDir, unit: int) -> None:
    """Record that the worker of a unit has died three times."""
    died(run, unit, "1", "2", "3")
    run.error_file(unit).write_text('{"message": "given up: its worker died 3 times"}')


def test_a_cancelled_launch_is_submitted_again_with_other_options(fake_slurm, launched, deg, folder):
    for node in fake_slurm.site.nodes:
        fake_slurm.kill_node(node)
    launch = launched("cluster.jobs=1")
    fake_slurm.run("scancel", "--me")
    for node in fake_slurm.site.nodes:
        fake_slurm.start_node(node)
    before = launch.jobs()
    status, report, said = deg("resume", folder, "cluster.account=other", "cluster.time=20:00")
    assert status == 0 and report["launch"] == launch.name and f"Resumed {launch.name}" in said
    fake_slurm.wait()
    new = {job.job for job in launch.jobs()[len(before) :]}
    asked = [job["options"] for job in fake_slurm.jobs() if str(job["array_id"]) in new]
    assert {(options["account"], options["time"]) for options in asked} >= {("other", "20:00")}
    assert state_of(launch, 0) == state_of(launch, 1) == "done"
    assert launch.load().cluster.account == "other"
    with h5py.File(outputs(folder, "mouse_2")) as file:
        assert sorted(file) == ["resnet18", "tgmj"]


def test_only_the_stages_that_are_not_done_are_submitted(recorder, launched, finish, deg, folder):
    launch = launched()
    finish(launch, 0)
    recorder.tell("CANCELLED")
    assert launch.verdict(0).state == "done"
    count = len(launch.jobs())
    assert deg("resume", folder)[0] == 0
    assert {job.stage for job in launch.jobs()[count:]} == {1}
    finish(launch, 1)
    assert state_of(launch, 1) == "done"


def test_jobs_that_are_alive_are_not_disturbed(recorder, launched, deg, folder):
    launch = launched()
    before = launch.jobs()
    status, report, _ = deg("resume", folder)
    assert status == 2 and "running or queued" in report["error"] and "deg cancel" in report["error"]
    assert launch.jobs() == before and {*recorder.states().values()} == {"PENDING"}


def test_a_launch_that_is_finished(recorder, launched, finish, deg, folder):
    launch = launched()
    finish(launch, 0, 1)
    status, report, _ = deg("resume", launch.path)
    assert status == 2 and "it is finished" in report["error"]


@pytest.mark.parametrize("reason", [NEVER, "Dependency"])
def test_jobs_that_can_never_start_are_taken_out_of_the_queue(recorder, launched, finish, deg, folder, reason):
    launch = launched("cluster.sbatch=[kill-on-invalid-dep=null]")
    execute, merging, *others = [job.job for job in launch.jobs()]
    recorder.tell("CANCELLED", execute, merging)
    recorder.tell("PENDING", *others, reason=reason)
    assert deg("resume", folder)[0] == 0
    states = recorder.states()
    assert {state for job, state in states.items() if array_of(job) in others} == {"CANCELLED"}
    finish(launch, 0, 1)
    assert state_of(launch, 1) == "done"


def test_what_was_given_up_gets_a_new_chance(recorder, launched, finish, deg, folder):
    launch = launched()
    run = launch.load().run_of(0)
    recorder.tell("CANCELLED")
    give_up(run, 1)
    word = launch.stage_folder(0) / "again"
    word.parent.mkdir(parents=True, exist_ok=True)
    word.write_text("of a merge job that could not be followed by another\n")
    assert deg("resume", folder)[0] == 0
    assert not word.exists()
    finish(launch, 0, 1)
    assert state_of(launch, 0) == state_of(launch, 1) == "done" and run.is_merged()
    assert [attempt.end for attempt in read_attempts(run.unit_folder(1))] == ["done"]
    assert [entry[3] for entry in submitted(launch)] == [0] * 8


def test_a_unit_that_was_given_up_is_done_in_all_stages(recorder, launched, finish, deg, folder):
    launch = launched()
    run = launch.load().run_of(0)
    give_up(run, 2)
    finish(launch, 0, 1)
    assert state_of(launch, 0) == "partly" and not outputs(folder, "mouse_2").exists()
    recorder.tell("COMPLETED")
    assert deg("resume", folder)[0] == 0
    finish(launch, 0, 1)
    assert state_of(launch, 0) == "done"
    with h5py.File(outputs(folder, "mouse_2")) as file:
        assert sorted(file) == ["resnet18", "tgmj"]


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("inference.batch_size=8", "takes cluster.* options only"),
        ("cluster=another", "takes cluster.* options only"),
        ("cluster.time=soon", "cluster.time"),
        ("cluster.tiem=8:00:00", "cluster.tiem"),
    ],
)
def test_options_that_a_launch_cannot_change(recorder, launched, deg, folder, word, named):
    launch = launched()
    recorder.tell("CANCELLED")
    before = launch.launch_file.read_bytes()
    status, report, _ = deg("resume", folder, word)
    assert status == 2 and named in report["error"]
    assert launch.launch_file.read_bytes() == before and len(launch.jobs()) == 4


def test_a_refusal_leaves_the_launch_to_be_resumed(recorder, launched, finish, deg, folder):
    launch = launched()
    recorder.tell("CANCELLED")
    recorder.refuse("", "Job violates accounting/QOS policy", from_job=6)
    assert deg("resume", folder)[0] == 3
    assert {*recorder.states().values()} == {"CANCELLED"} and len(recorder.jobs()) == 5
    recorder.refuse_nothing()
    assert deg("resume", folder)[0] == 0
    finish(launch, 0, 1)
    assert state_of(launch, 1) == "done"
