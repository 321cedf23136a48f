"""`deg demo`, shortened: every step of a project's life, by the real networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deg.launch import cli, demo


@pytest.mark.slow
def test_the_demo_trains_infers_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "VIDEOS", 2)
    monkeypatch.setattr(demo, "FRAMES", 60)
    short = {"num_epochs": 1, "steps_per_epoch": {"train": 2}}
    small = {"augs": {"resize": [32, 40], "LR": 0.0}, "compute": {"batch_size": 4, "num_workers": 0}, "train": short}
    monkeypatch.setattr(demo, "OPTIONS", demo.OPTIONS | small)
    folder = tmp_path / "demo"
    assert cli.run(["demo", str(folder), "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert list(report["f1"]["sequence"]) == ["background", "right", "fall", "mean"]
    assert Path(report["report"]).is_file() and len(report["results"]) == 2
    assert "F1 on the validation video" in said.err
    assert cli.run(["demo", str(folder), "--json"]) == 0  # nothing is trained again
    assert len(list(folder.glob("models/*_train"))) == 3


def test_a_folder_that_holds_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    assert cli.run(["demo", str(tmp_path)]) == 2
    assert "expected no folder or an empty one" in capsys.readouterr().err
