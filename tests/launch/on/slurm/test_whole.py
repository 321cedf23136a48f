"""From the command to the results, on a scheduler whose jobs really run, undisturbed and under fire."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from scenes.launch import WORDS, only_launch, submitted
from scenes.project import make_labelled_project, make_project
from scenes.run import frame_numbers, scripted_workers

from deg.launch import cli
from deg.launch.scheduler.launches import LaunchDir
from deg.runs.attempts import read_attempts
from deg.runs.rundir import RunDir

pytestmark = pytest.mark.slow

LENGTHS = {"mouse_1": 1100, "mouse_2": 30}
PATIENCE = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("made") / "mice", LENGTHS)


def copy(made: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", str(made), str(to)], check=True)
    return to


@pytest.fixture
def folder(made, tmp_path):
    return copy(made, tmp_path / "mice")


@pytest.fixture
def script(monkeypatch, tmp_path):
    return scripted_workers(monkeypatch, tmp_path)


@pytest.fixture
def deg(fake_slurm, script, capsys):
    """`deg("infer", ...)` with --on slurm returns the exit status and the JSON document."""

    def deg(*words: object, cluster=WORDS):
        status = cli.run([*map(str, words), *cluster, "--on", "slurm", "--json"])
        return status, json.loads(capsys.readouterr().out)

    return deg


@pytest.fixture
def infer(deg, folder):
    """Submits jobs and returns the launch."""

    def infer(stage: str, *words: str) -> LaunchDir:
        assert deg("infer", stage, folder, "feature_extractor.weights=latest", *words)[0] == 0
        return only_launch(folder)

    return infer


def datasets(project: Path) -> dict[str, np.ndarray]:
    """Return every dataset of every outputs file of a project."""
    found = {}
    for path in sorted(project.glob("DATA/*/*_outputs.h5")):
        with h5py.File(path) as file:

            def keep(name, item, key=path.parent.name):
                if isinstance(item, h5py.Dataset):
                    found[f"{key}/{name}"] = item[()]

            file.visititems(keep)
    return found


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    assert one.keys() == other.keys() and one
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    """Datasets of all stages, computed with `--on local`."""
    folder = tmp_path_factory.mktemp("local")
    project = copy(made, folder / "mice")
    with pytest.MonkeyPatch.context() as patch:
        scripted_workers(patch, folder)
        words = ["feature_extractor.weights=latest", "inference.devices=1"]
        assert cli.run(["infer", "all", str(project), *words]) == 0
    return datasets(project)


def states(launch: LaunchDir) -> list[str]:
    return [launch.verdict(index).state for index in range(len(launch.load().stages))]


def until(test: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def begun(launch: LaunchDir, *units: int) -> bool:
    """Whether workers are working on these units of the first stage."""
    run = launch.load().run_of(0)
    return all(attempts_at(run, unit) and attempts_at(run, unit)[-1].end is None for unit in units)


def attempts_at(run: RunDir, unit: int):
    return read_attempts(run.unit_folder(unit))


def ends(launch: LaunchDir, unit: int) -> list[tuple[str | None, int | None]]:
    """Return how the attempts at a unit of the first stage ended: by their own record, and as their host saw it."""
    run = launch.load().run_of(0)
    return [(attempt.end, attempt.status) for attempt in attempts_at(run, unit)]


def units_done(launch: LaunchDir, index: int = 0) -> list[int]:
    run = launch.load().run_of(index)
    return sorted(event["unit"] for event in run.events() if event["event"] == "unit_done")


# ---------------------------------------------------------------------------------------------------- undisturbed


def test_results_are_those_of_one_machine(fake_slurm, infer, folder, undisturbed):
    launch = infer("all")
    assert set(fake_slurm.wait(seconds=PATIENCE).values()) == {"COMPLETED"}
    assert same(datasets(folder), undisturbed) and states(launch) == ["done", "done"]
    assert units_done(launch) == [0, 1, 2]
    assert all(launch.load().run_of(index).is_merged() for index in range(2))


def test_arrays_cut_short_do_all_the_units(fake_slurm, infer, folder, undisturbed):
    fake_slurm.configure(max_array_size=2, accounting=False)
    launch = infer("feature_extractor")
    fake_slurm.wait(seconds=PATIENCE)
    assert [job.elements for job in launch.jobs()] == [(0, 1), (0,), None] and units_done(launch) == [0, 1, 2]
    assert same(datasets(folder), {name: values for name, values in undisturbed.items() if "resnet18" in name})


# ---------------------------------------------------------------------------------------------------- under fire


def test_an_array_under_fire(fake_slurm, infer, folder, script, undisturbed):
    """One element is preempted, the node of another dies, and a third is cancelled."""
    script(pause=0.08)
    launch = infer("all")
    until(lambda: begun(launch, 0, 1))
    array = launch.jobs()[0].job
    (node,) = next(job["nodes"] for job in fake_slurm.jobs() if job["name"] == f"{array}_1")
    fake_slurm.preempt(f"{array}_0")
    fake_slurm.kill_node(node)
    fake_slurm.run("scancel", f"{array}_2")
    fake_slurm.start_node(node)
    script()
    fake_slurm.wait(seconds=PATIENCE)
    assert same(datasets(folder), undisturbed) and states(launch) == ["done", "done"]
    assert units_done(launch) == [0, 1, 2]
    lives = {job["name"]: job["restarts"] for job in fake_slurm.jobs()}
    assert lives[f"{array}_0"] == 1 and lives[f"{array}_1"] == 1
    assert ends(launch, 0)[-1][0] == "done" and len(ends(launch, 0)) == 2


def test_a_signal_ahead_of_the_end_many_times_to_all_processes(fake_slurm, infer, folder, script, undisturbed):
    fake_slurm.configure(signal_everything=True)
    script(pause=0.12)
    launch = infer("feature_extractor")
    until(lambda: begun(launch, 0))
    array = launch.jobs()[0].job
    for _ in range(3):
        fake_slurm.run("scancel", "--signal=USR2", f"{array}_0")
    fake_slurm.wait(seconds=PATIENCE)
    assert ends(launch, 0) == [("stopped", 75), ("done", None)]
    assert {job["name"]: job["restarts"] for job in fake_slurm.jobs()}[f"{array}_0"] == 1
    assert frame_numbers(folder / "DATA" / "mouse_1" / "mouse_1_outputs.h5").tolist() == list(range(1100))


@pytest.mark.parametrize("told", [True, False], ids=["as the profile says", "and nobody said so"])
def test_where_jobs_may_not_be_put_back_another_one_follows(fake_slurm, infer, folder, script, undisturbed, told):
    fake_slurm.configure(requeue=False, requeue_forbidden=True)
    script(pause=0.12)  # a signal may be slow on a loaded machine
    launch = infer("all", *["cluster.requeue=false"] * told)
    until(lambda: begun(launch, 0))
    array = launch.jobs()[0].job
    fake_slurm.run("scancel", "--signal=USR2", f"{array}_0")
    if told:
        until(lambda: begun(launch, 1))
        fake_slurm.preempt(f"{array}_1")
    fake_slurm.wait(seconds=PATIENCE)
    assert same(datasets(folder), undisturbed) and states(launch) == ["done", "done"]
    again = [entry for entry in submitted(launch) if entry[3] == 1]
    assert again == [(0, "execute", (0, 1) if told else (0,), 1), (0, "merge", None, 1)]
    assert all(job["restarts"] == 0 for job in fake_slurm.jobs())


def test_a_unit_that_kills_its_worker_three_times_is_given_up(fake_slurm, infer, folder, script, undisturbed):
    script(deaths={"mouse_2": 3})
    launch = infer("all")
    fake_slurm.wait(seconds=PATIENCE)
    assert states(launch) == ["partly", "done"] and "mouse_2" in launch.verdict(0).message
    assert [status for _, status in ends(launch, 2)] == [137] * 3
    assert same(datasets(folder), {name: v for name, v in undisturbed.items() if name.startswith("mouse_1")})
    assert "3 times" in json.loads(launch.load().run_of(0).error_file(2).read_text())["message"]
    assert [entry[3] for entry in submitted(launch) if entry[:2] == (0, "execute")] == [0, 1, 2]


def test_a_preempted_merge_job_is_one_job(fake_slurm, infer, folder, undisturbed):
    """It repeats what it had begun; no second merge job runs beside it."""
    launch = infer("all")
    merging = launch.jobs()[1].job
    fake_slurm.wait(merging, state="RUNNING", seconds=PATIENCE)
    fake_slurm.preempt(merging)
    fake_slurm.wait(seconds=PATIENCE)
    assert states(launch) == ["done", "done"] and same(datasets(folder), undisturbed)
    assert len(launch.jobs()) == 4 and units_done(launch) == [0, 1, 2]


def test_a_stage_that_fails_takes_those_after_it_out_of_the_queue(fake_slurm, infer, folder):
    launch = infer("all", "cluster.restarts=1")
    for file in folder.glob("models/*sequence_train/checkpoint.pt"):
        file.unlink()
    fake_slurm.wait(seconds=PATIENCE)
    found = {job.job: job for job in launch.jobs()}
    ended = {name.partition("_")[0]: state for name, state in fake_slurm.states().items()}
    assert [ended[job] for job, entry in found.items() if entry.stage == 1] == ["CANCELLED", "CANCELLED"]
    assert launch.verdict(0).state == "failed" and launch.verdict(1) is None


# ---------------------------------------------------------------------------------------------------- the chain


def test_a_training_that_cannot_be_done_ends_the_chain_with_its_reason(fake_slurm, deg, script, tmp_path):
    project = make_labelled_project(tmp_path / "lab")
    script(fail={"flow_generator": "NaN in frame 7 of mouse_3"})
    assert deg("run", project, "feature_extractor.weights=random")[0] == 0
    launch = only_launch(project)
    fake_slurm.wait(seconds=PATIENCE)
    assert launch.verdict(0).state == "failed" and "NaN in frame 7" in launch.verdict(0).message
    assert [job["state"] for job in fake_slurm.jobs()].count("CANCELLED") == 8
