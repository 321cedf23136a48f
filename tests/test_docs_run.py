"""Every `deg` command that the pages show runs, word for word, in a project like the one that they describe.

The fake Slurm runs the jobs that they submit, with a profile `mysite` that needs no image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import commands, pages, read
from videos import write_video

from deg.data.labels import write_labels
from deg.launch.cli import run
from deg.launch.selftest import write_untrained_weights
from deg.projects.add import add_recording
from deg.projects.project import create_project

FRAMES = 24
SHORT = ["train.num_epochs=1", "train.steps_per_epoch.train=2", "compute.batch_size=4", "compute.num_workers=0"]
ADDED = {
    "bench": ["--frames", "8", "--runs", "1", "--size", "32", "32"],
    "train": SHORT,
    "run": SHORT,
}
"""Words added at the end, where the last word for an option wins, so that measuring and training take seconds."""
ELSEWHERE = {("demo", "small_demo")}
"""Command that tests/launch/stages/test_demo.py runs, word for word."""
ONCE = {"bench", "demo", "doctor", "infer", "train"}
"""Slow commands: if a second page shows the same words, they are not run again."""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with `my_project`, of two short recordings and untrained weights of its own, and a video to add."""
    project = create_project(tmp_path / "my_project", ["groom", "rear"])
    for key in ("mouse1", "mouse2", "mouse3"):
        video = write_video(tmp_path / f"{key}.mp4", FRAMES)
        labels = video.with_name(f"{key}_labels.csv")
        write_labels(labels, np.eye(3, dtype=np.int8)[np.arange(FRAMES) % 3], project.class_names)
        if key != "mouse3":
            add_recording(project, video, labels)
    config = yaml.safe_load(project.config_file.read_text())
    config["augs"]["resize"] = [32, 32]
    project.config_file.write_text(yaml.safe_dump(config))
    write_untrained_weights(project.path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_shown_commands_run_in_the_order_of_their_page(folder, mysite, fake_slurm, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    shown = {page: list(commands(read(page))) for page in pages()}
    assert sum(map(len, shown.values())) >= 10
    done = set(ELSEWHERE)
    for page, lines in shown.items():
        for words in lines:
            if words[0] in ONCE and tuple(words) in done:
                continue
            done.add(tuple(words))
            if "slurm" in words:
                leave_work(folder / "my_project")
            status = run([*words, *ADDED.get(words[0], [])])
            assert status == 0, f"{page}: deg {' '.join(words)} ended with {status}:\n{capsys.readouterr().err}"
        if alive := [job for job, state in fake_slurm.states().items() if state in ("PENDING", "RUNNING")]:
            fake_slurm.run("scancel", *alive)  # jobs of a page whose last command resumes a launch


def leave_work(project: Path) -> None:
    """Remove the results, so that there is something to submit."""
    for outputs in project.glob("DATA/*/*_outputs.h5"):
        outputs.unlink()
