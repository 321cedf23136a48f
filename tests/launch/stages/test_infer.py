"""One stage from beginning to end, with scripted workers: what is done is kept, what is missing is done."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from scenes.project import add_weights, make_project
from scenes.run import frame_numbers, scripted_workers

from deg.launch import cli
from deg.launch.selftest import write_untrained_weights
from deg.launch.stages import infer
from deg.runs import merge as merging
from deg.runs.rundir import RunDir

pytestmark = pytest.mark.slow

FEATURES = ("spatial_features", "flow_features")
LENGTHS = {"mouse_1": 1100, "mouse_2": 30}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("made") / "mice", LENGTHS)


@pytest.fixture
def folder(made, tmp_path):
    """A project; each test has its own."""
    subprocess.run(["cp", "-a", str(made), str(tmp_path / "mice")], check=True)
    return tmp_path / "mice"


@pytest.fixture
def script(monkeypatch, tmp_path):
    return scripted_workers(monkeypatch, tmp_path)


@pytest.fixture
def deg(folder, script, capsys):
    """`deg("infer", "all", ...)` returns the exit status, the JSON document, and the messages."""

    def deg(*words: str, stage: str = "feature_extractor"):
        fixed = ["feature_extractor.weights=latest", "inference.devices=2", "--json"]
        status = cli.run(["infer", stage, str(folder), *fixed, *words])
        said = capsys.readouterr()
        return status, json.loads(said.out), said.err

    return deg


def outputs(folder: Path, key: str) -> Path:
    return folder / "DATA" / key / f"{key}_outputs.h5"


def runs(folder: Path) -> list[RunDir]:
    return [RunDir(file.parent) for file in sorted((folder / "models").glob("*/plan.json"))]


def listed(folder: Path):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def test_every_recording_gets_its_results(deg, folder):
    status, document, said = deg()
    (report,) = document["stages"]
    assert status == report["exit_status"] == 0
    assert report["done"] == ["mouse_1", "mouse_2"] and report["group"] == "resnet18"
    for key, frames in LENGTHS.items():
        assert frame_numbers(outputs(folder, key)).tolist() == list(range(frames))
    (run,) = runs(folder)
    assert run.is_merged() and run.name == report["run"]
    assert "2 recordings done, 0 failed, 0 still to do" in said


def test_a_second_call_has_nothing_to_do(deg, folder):
    deg()
    before = listed(folder)
    status, document, _ = deg()
    assert status == 0 and document["stages"][0]["already_done"] == ["mouse_1", "mouse_2"]
    assert listed(folder) == before


def test_overwrite_does_everything_again(deg, folder):
    deg()
    before = outputs(folder, "mouse_1").stat().st_ino
    _, document, _ = deg("--overwrite")
    assert document["stages"][0]["done"] == ["mouse_1", "mouse_2"]
    assert outputs(folder, "mouse_1").stat().st_ino != before
    assert len(runs(folder)) == 2


def test_new_weights_do_everything_again(deg, folder):
    deg()
    add_weights(folder, "feature_extractor", "resnet18", "210101_000000")
    assert deg()[1]["stages"][0]["done"] == ["mouse_1", "mouse_2"]


def test_only_the_recordings_named_are_done(deg, folder):
    assert deg("--videos", "mouse_2")[1]["stages"][0]["done"] == ["mouse_2"]
    assert not outputs(folder, "mouse_1").exists()


def test_an_unknown_recording_is_a_mistake_in_the_input(deg, folder):
    status, document, said = deg("--videos", "mouse_22")
    assert status == document["status"] == 2
    assert "Did you mean mouse_2" in document["error"] and "Did you mean mouse_2" in said


def test_a_dry_run_shows_the_plan_and_writes_nothing(deg, folder):
    before = listed(folder)
    status, document, said = deg("--dry-run")
    assert status == 0
    assert document["stages"][0]["plan"]["frames"] == sum(LENGTHS.values())
    assert "mouse_1[0:" in said
    assert listed(folder) == before


def test_a_dry_run_of_both_stages_does_not_miss_features_that_are_to_come(deg):
    status, document, said = deg("--dry-run", stage="all")
    assert status == 0 and [report["stage"] for report in document["stages"]] == ["feature_extractor"]
    assert "sequence: can be planned once the features are there" in said


def test_both_stages_one_after_the_other(deg, folder):
    status, document, _ = deg(stage="all")
    assert status == 0 and [report["stage"] for report in document["stages"]] == ["feature_extractor", "sequence"]
    with h5py.File(outputs(folder, "mouse_1")) as file:
        assert sorted(file) == ["resnet18", "tgmj"]
        assert sorted(file["tgmj"]) == ["P", "class_names", "logits", "thresholds"]
    deg("augs.resize=[40,40]")  # other features: the sequence results are outdated
    assert deg(stage="sequence")[1]["stages"][0]["done"] == ["mouse_1", "mouse_2"]


def test_a_bad_recording_is_named_and_the_others_are_done(deg, folder, script):
    script(faults={"mouse_2": "the file is damaged"})
    status, document, said = deg()
    assert status == 1
    assert document["stages"][0]["done"] == ["mouse_1"]
    assert "mouse_2.mp4: the file is damaged. Copy it again." in document["stages"][0]["failed"]["mouse_2"]
    assert "mouse_2: FAILED: " in said
    script()
    status, document, _ = deg()
    assert status == 0 and document["stages"][0]["done"] == ["mouse_2"]


def test_the_first_bad_recording_ends_the_work_if_that_is_wanted(deg, script, monkeypatch):
    monkeypatch.setattr(infer, "MERGE_SECONDS", 0.0)
    script(faults={"mouse_2": "the file is damaged"})
    status, document, _ = deg("inference.ignore_error=false")
    assert status == 1 and "mouse_2" in document["stages"][0]["failed"]


def test_a_unit_that_kills_its_workers_is_named_and_the_next_call_tries_again(deg, folder, script):
    script(deaths={"mouse_2": 3})
    status, document, _ = deg()
    report = document["stages"][0]
    assert status == 1 and "killed by SIGKILL" in report["failed"]["mouse_2"] and "mouse_2" in report["waiting"]
    status, document, said = deg()
    assert status == 0 and "Resuming the interrupted run" in said
    assert len(runs(folder)) == 1 and runs(folder)[0].is_merged()


def test_an_outputs_file_that_cannot_be_written_costs_no_work(deg, folder, monkeypatch):
    real, full = merging.write_group, []

    def fill_up(path, *arguments, **options):
        if path.name == "mouse_1_outputs.h5" and not full:
            full.append(path)
            raise OSError(28, "No space left on device")
        real(path, *arguments, **options)

    monkeypatch.setattr(merging, "write_group", fill_up)
    status, document, _ = deg()
    assert status == 1 and "No space left" in document["stages"][0]["failed"]["mouse_1"]
    (run,) = runs(folder)
    done = {index: run.result_file(index).stat().st_ino for index in run.finished_units()}
    assert len(done) == len(run.load_plan().units)
    status, document, said = deg()
    assert status == 0 and ": 0 of " in said
    assert run.is_merged()


def test_weights_that_do_not_fit_end_the_command_with_their_message(deg, script):
    script(refuse="weights.ckpt: the weights have 4 classes, the project 3.")
    status, document, _ = deg()
    assert status == 2 and document == {
        "error": "weights.ckpt: the weights have 4 classes, the project 3.",
        "status": 2,
    }


# ---------------------------------------------------------------------------------------------------- interrupted


@pytest.fixture
def interrupted(folder, script):
    """Exit status and folder of a run that SIGTERM stopped after its first unit."""
    script(pause=0.04)
    words = ["feature_extractor.weights=latest", "inference.devices=1", "--json"]
    command = [sys.executable, "-m", "deg.launch.cli", "infer", "feature_extractor", str(folder), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 60
        while not (runs(folder) and runs(folder)[0].finished_units()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        document = json.loads(process.stdout.read())
    script()
    assert document["stages"][0]["stopped"] is True
    return process.returncode, runs(folder)[0]


def test_a_stopped_run_says_so_and_is_resumed_without_doing_anything_twice(interrupted, deg, folder):
    status, run = interrupted
    assert status == 75 and not run.is_merged()
    before = {index: run.result_file(index).stat().st_ino for index in run.finished_units()}
    status, _, said = deg()
    assert status == 0 and f"Resuming the interrupted run {run.name}" in said
    assert runs(folder) == [run] and run.is_merged()
    done = [event["unit"] for event in run.events() if event["event"] == "unit_done"]
    assert sorted(done) == [unit.index for unit in run.load_plan().units] and before
    assert frame_numbers(outputs(folder, "mouse_1")).tolist() == list(range(LENGTHS["mouse_1"]))


def test_a_stopped_run_is_left_alone_if_something_else_is_wanted(interrupted, deg, folder):
    assert deg("augs.resize=[40,40]")[0] == 0
    assert len(runs(folder)) == 2 and not interrupted[1].is_merged()


def test_overwriting_does_not_resume_a_run_that_spared_existing_results(interrupted, deg, folder):
    assert deg("--overwrite")[0] == 0
    assert len(runs(folder)) == 2 and not interrupted[1].is_merged()


def test_a_unit_result_that_was_lost_meanwhile_is_made_again(interrupted, deg, folder):
    _, run = interrupted
    (index, *_) = run.finished_units()
    run.result_file(index).write_bytes(b"lost")
    status, document, said = deg()
    assert status == 1 and "Run the same command again to resume" in said
    assert document["stages"][0]["waiting"] == ["mouse_1"]
    assert deg()[0] == 0
    assert frame_numbers(outputs(folder, "mouse_1")).tolist() == list(range(LENGTHS["mouse_1"]))


def test_a_named_run_is_resumed_under_its_name(deg, folder, script):
    script(deaths={"mouse_2": 3})
    assert deg("--run", "mine")[0] == 1
    status, _, said = deg("--run", "mine")
    assert status == 0 and "Resuming the interrupted run mine" in said
    assert [run.name for run in runs(folder)] == ["mine"] and runs(folder)[0].is_merged()


def test_a_run_that_was_killed_after_its_last_merge_is_closed_by_the_next_call(deg, folder):
    deg()
    (run,) = runs(folder)
    run.done_file.unlink()
    left = run.result_file(0)
    left.touch()
    (part := left.with_name(".error.json.4242.part")).touch()
    status, document, _ = deg()
    assert status == 0 and document["stages"][0]["already_done"] == ["mouse_1", "mouse_2"]
    assert run.is_merged() and not left.exists() and not part.exists()


# ---------------------------------------------------------------------------------------------------- the real thing


def test_the_real_networks_give_the_same_bits_sharded_and_unsharded(tmp_path, monkeypatch, capsys):
    folder = make_project(tmp_path / "mice", {"mouse": 790})
    shutil.rmtree(folder / "models")
    (folder / "models").mkdir()
    write_untrained_weights(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    fixed = ["feature_extractor.weights=latest", "inference.precision=fp32", "inference.threads=1"]
    results = []
    for cut in (["inference.units_per_device=1"], ["inference.devices=2", "--overwrite"]):
        assert cli.run(["infer", "feature_extractor", str(folder), *fixed, *cut]) == 0
        with h5py.File(outputs(folder, "mouse")) as file:
            results.append({name: file["resnet18"][name][()] for name in ("logits", "P", *FEATURES)})
    assert [len(run.load_plan().units) for run in runs(folder)] == [1, 2]
    for name, values in results[0].items():
        assert np.isfinite(values).all() and values.tobytes() == results[1][name].tobytes(), name
    assert np.ptp(results[0]["logits"], axis=0).min() > 0
