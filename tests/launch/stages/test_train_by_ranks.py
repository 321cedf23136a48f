"""`deg train` with two real ranks on the CPU: stopped, resumed, left alone, and broken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from scenes.project import CLASSES
from scenes.training import QUICK, labels_of, write_features
from videos import write_video
from waiting import wait_until

from deg.data.labels import write_labels
from deg.runs.rundir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path):
    """A project of three labelled recordings with features."""
    folder = tmp_path / "lab"
    (folder / "models").mkdir(parents=True)
    for index in range(3):
        recording = folder / "DATA" / f"mouse_{index}"
        recording.mkdir(parents=True)
        video = recording / f"mouse_{index}.mp4"
        write_video(video, 80)
        labels_TK = labels_of(80, index)
        write_labels(recording / f"mouse_{index}_labels.csv", labels_TK, CLASSES)
        write_features(recording / f"mouse_{index}_outputs.h5", labels_TK, index, video)
    config = {"project": {"name": "mice", "class_names": list(CLASSES), "path": str(folder)}, "augs": {}}
    (folder / "project_config.yaml").write_text(yaml.safe_dump(config))
    return folder


def start(lab, *overrides, devices=2):
    words = ["train", "sequence", str(lab), f"compute.devices={devices}", "sequence.sequence_length=20", *QUICK]
    words += ["sequence.arch=linear", "compute.batch_size=4", "train.stopping_type=num_epochs", *overrides]
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from deg.launch.cli import main; sys.exit(main())", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


def wait_for_epoch(lab, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.stat().st_size for path in lab.glob("models/*/metrics.jsonl")):
            return
        time.sleep(0.05)
    raise TimeoutError(process.stdout.read() if process.poll() is not None else "no epoch came to its end")


def ranks_of(lab):
    """Return the process ids of the ranks that work on this project, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
                environment = dict(
                    item.split(b"=", 1) for item in (entry / "environ").read_bytes().split(b"\0") if b"=" in item
                )
            except OSError:  # it has ended by now
                continue
            if b"deg.execute" in words and str(lab).encode() in words and b"RANK" in environment:
                found[int(environment[b"RANK"])] = int(entry.name)
    return found


def test_ctrl_c_stops_both_ranks_the_same_command_resumes_and_they_end_with_their_launcher(lab):
    process = start(lab, "train.num_epochs=100000")
    wait_for_epoch(lab, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "again" in output
    assert not ranks_of(lab)
    [folder] = (lab / "models").iterdir()
    run = RunDir(folder)
    assert list((run.unit_folder(0) / "state").glob("step-*.ckpt"))

    before = (run.path / "metrics.jsonl").read_text()
    again = start(lab, "train.num_epochs=100000")
    wait_until(lambda: (run.path / "metrics.jsonl").read_text().count("\n") > before.count("\n"), 120)
    assert (run.path / "metrics.jsonl").read_text().startswith(before)
    assert len(list(lab.glob("models/*_train*"))) == 1

    again.kill()
    again.communicate()
    wait_until(lambda: not ranks_of(lab), 60)


def test_a_fault_of_one_rank_is_told_in_its_own_words(lab):
    process = start(lab, "train.lr=1e38", "train.num_epochs=5")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "expected a finite loss" in output and "Traceback" not in output
