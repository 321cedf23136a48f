"""Runs that an earlier version left unfinished are resumed, and what it has done is not done again.

runs_of_f871421.tar.xz holds a project in /srv/mice with two runs of revision f871421, stopped by SIGTERM: an inference
with one of three units done, and a training of four epochs in its third.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import h5py
import pytest

from deg.data.json_lines import read_lines
from deg.launch import cli
from deg.runs.rundir import RunDir

pytestmark = pytest.mark.slow

RECORDED = Path(__file__).with_name("runs_of_f871421.tar.xz")
TEXTS = {".json", ".jsonl", ".yaml", ".txt"}


@pytest.fixture
def project(tmp_path) -> Path:
    """The recorded project, moved here with the times of its videos."""
    with tarfile.open(RECORDED) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "mice"
    for path in folder.rglob("*"):
        if path.suffix in TEXTS:
            path.write_text(path.read_text().replace("/srv/mice", str(folder)))
    for plan in folder.glob("models/*/plan.json"):
        for video in json.loads(plan.read_text())["videos"].values():
            os.utime(video["path"], ns=(video["mtime_ns"], video["mtime_ns"]))
    return folder


def test_an_inference_does_the_units_that_are_missing(project):
    run = RunDir(project / "models" / "201122_120000_sequence_inference")
    before = list(run.events())
    assert cli.run(["resume", str(run.path)]) == 0
    after = list(run.events())
    assert after[: len(before)] == before
    assert [event["unit"] for event in after if event["event"] == "unit_done"] == [0, 1, 2]
    assert run.is_merged()
    for number in (1, 2, 3):
        with h5py.File(project / f"DATA/mouse_{number}/mouse_{number}_outputs.h5") as file:
            assert file["linear/P"].shape == (300, 3)


def test_a_training_begins_where_it_was_stopped(project):
    run = RunDir(project / "models" / "201122_130000_sequence_train")
    before = read_lines(run.path / "metrics.jsonl")
    assert cli.run(["resume", str(run.path)]) == 0
    after = read_lines(run.path / "metrics.jsonl")
    assert after[: len(before)] == before and [line["epoch"] for line in after] == [0, 1, 2, 3]
    assert "Resuming from step-000000007.ckpt" in run.log_file(0).read_text()
    assert json.loads(run.done_file.read_text())["epochs"] == 4
