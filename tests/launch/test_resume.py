"""`deg resume`: runs of this machine and launches, gone on with from what is missing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import h5py
import pytest
from launched import WORDS, attempted, only_launch, submitted
from runs import frame_numbers, make_project, scripted_workers
from training_runs import ScriptedRanks, make_labelled_project

from deg.attempts import read_attempts
from deg.launch import cli, training
from deg.rundir import RunDir

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
    """`deg(...)` gives the exit status, the JSON document, and what was said."""

    def deg(*words: object):
        status = cli.run([*map(str, words), "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out), said.err

    return deg


def outputs(folder: Path, key: str) -> Path:
    return folder / "DATA" / key / f"{key}_outputs.h5"


# ---------------------------------------------------------------------------------------------------- on this machine


def test_an_interrupted_inference_is_gone_on_with(deg, folder, script):
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
    monkeypatch.setattr(training, "run_ranks", scripted)
    return scripted


def test_an_interrupted_training_is_gone_on_with(deg, tmp_path, ranks):
    project = make_labelled_project(tmp_path / "lab")
    ranks.then = ["stop"]
    assert deg("train", "flow_generator", project, "train.num_epochs=7")[0] == 75
    status, report, _ = deg("resume", project)
    assert status == 0 and Path(report["best"]["weights"]).exists()
    (run,) = [RunDir(file.parent) for file in project.glob("models/*/plan.json")]
    assert run.done_file.exists() and run.load_training_plan().config["train"]["num_epochs"] == 7
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
def launched(fake_slurm, deg, folder):
    """Submits both stages of an inference."""

    def launched(*words: str):
        status, _, _ = deg("infer", "all", folder, *FIXED, *WORDS, *words, "--on", "slurm")
        assert status == 0
        return only_launch(folder)

    return launched


def down(fake_slurm) -> None:
    for node in fake_slurm.site.nodes:
        fake_slurm.kill_node(node)


def up(fake_slurm) -> None:
    for node in fake_slurm.site.nodes:
        fake_slurm.start_node(node)


def state_of(launch, index: int) -> str:
    return launch.verdict(index).state


def test_a_cancelled_launch_is_submitted_again_with_other_options(fake_slurm, launched, deg, folder):
    down(fake_slurm)
    launch = launched()
    fake_slurm.run("scancel", "--me")
    before = launch.jobs()
    up(fake_slurm)
    status, report, said = deg("resume", folder, "cluster.account=other", "cluster.time=20:00")
    assert status == 0 and report["launch"] == launch.name and "Submitted again" in said
    fake_slurm.wait()
    new = {job.job for job in launch.jobs()[len(before) :]}
    asked = [job["options"] for job in fake_slurm.jobs() if str(job["array_id"]) in new]
    assert {(options["account"], options["time"]) for options in asked} >= {("other", "20:00")}
    assert state_of(launch, 0) == state_of(launch, 1) == "done"
    assert launch.load().cluster["account"] == "other"
    with h5py.File(outputs(folder, "mouse_2")) as file:
        assert sorted(file) == ["resnet18", "tgmj"]


def test_only_the_stages_that_are_not_done_are_submitted(fake_slurm, launched, deg, folder):
    launch = launched()
    merging = launch.jobs()[1].job
    fake_slurm.wait(merging)
    fake_slurm.run("scancel", "--me")
    fake_slurm.wait()
    assert launch.verdict(0).state == "done"
    count = len(launch.jobs())
    if launch.verdict(1) is not None:
        launch.merge_file(1).unlink()  # too quick for us
    assert deg("resume", folder)[0] == 0
    assert {job.stage for job in launch.jobs()[count:]} == {1}
    fake_slurm.wait()
    assert state_of(launch, 1) == "done"


def test_jobs_that_are_alive_are_not_disturbed(fake_slurm, launched, deg, folder):
    down(fake_slurm)
    launch = launched()
    before = launch.jobs()
    status, report, _ = deg("resume", folder)
    assert status == 2 and "still at it" in report["error"] and "deg cancel" in report["error"]
    assert launch.jobs() == before and set(fake_slurm.states().values()) == {"PENDING"}


def test_a_launch_that_is_finished(fake_slurm, launched, deg, folder):
    launch = launched()
    fake_slurm.wait()
    status, report, _ = deg("resume", launch.path)
    assert status == 2 and "it is finished" in report["error"]


def test_jobs_that_wait_in_vain_are_taken_out_of_the_queue(fake_slurm, launched, deg, folder):
    down(fake_slurm)
    launch = launched("cluster.sbatch=[kill-on-invalid-dep=null]")
    execute, merging, *others = [job.job for job in launch.jobs()]
    fake_slurm.run("scancel", merging)
    fake_slurm.run("scancel", execute)
    fake_slurm.wait(merging)
    up(fake_slurm)
    assert deg("resume", folder)[0] == 0
    fake_slurm.wait()
    ended = {name.partition("_")[0]: state for name, state in fake_slurm.states().items()}
    assert [ended[job] for job in others] == ["CANCELLED"] * 2 and state_of(launch, 1) == "done"


def test_what_was_put_aside_gets_a_new_chance(fake_slurm, launched, deg, folder, script):
    down(fake_slurm)
    launch = launched()
    run = launch.run_of(launch.load().stages[0])
    fake_slurm.run("scancel", "--me")
    for job in ("1", "2", "3"):
        attempted(run, 1, {"event": "started", "job": job}, {"event": "exited", "job": job})
    run.error_file(1).write_text('{"message": "given up: its worker died 3 times"}')
    up(fake_slurm)
    assert deg("resume", folder)[0] == 0
    fake_slurm.wait()
    assert state_of(launch, 0) == state_of(launch, 1) == "done" and run.is_merged()
    assert [attempt.end for attempt in read_attempts(run.unit_folder(1))] == ["done"]
    assert [entry[3] for entry in submitted(launch)] == [0] * 8


def test_a_unit_that_was_put_aside_is_done_in_all_stages(fake_slurm, launched, deg, folder, script):
    script(deaths={"mouse_2": 3})
    launch = launched()
    fake_slurm.wait()
    assert state_of(launch, 0) == "partly"
    script()
    assert deg("resume", folder)[0] == 0
    fake_slurm.wait()
    assert state_of(launch, 0) == "done"
    with h5py.File(outputs(folder, "mouse_2")) as file:
        assert sorted(file) == ["resnet18", "tgmj"]


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("inference.batch_size=8", "all others are of the plan"),
        ("cluster=another", "all others are of the plan"),
        ("cluster.time=soon", "cluster.time"),
        ("cluster.tiem=8:00:00", "cluster.tiem"),
    ],
)
def test_options_that_a_launch_cannot_change(fake_slurm, launched, deg, folder, word, named):
    down(fake_slurm)
    launch = launched()
    fake_slurm.run("scancel", "--me")
    before = launch.launch_file.read_bytes()
    status, report, _ = deg("resume", folder, word)
    assert status == 2 and named in report["error"]
    assert launch.launch_file.read_bytes() == before and len(launch.jobs()) == 4


def test_a_refusal_leaves_the_launch_to_be_resumed(fake_slurm, launched, deg, folder):
    down(fake_slurm)
    launch = launched()
    fake_slurm.run("scancel", "--me")
    fake_slurm.configure(max_jobs=4)
    assert deg("resume", folder)[0] == 3
    assert "PENDING" not in fake_slurm.states().values()
    fake_slurm.configure(max_jobs=None)
    up(fake_slurm)
    assert deg("resume", folder)[0] == 0
    fake_slurm.wait()
    assert state_of(launch, 1) == "done"
