"""What a log shows of a training: a line a minute, and one for each epoch."""

from __future__ import annotations

import time

import pytest

from deg.launch.stages import progress
from deg.launch.stages.progress import TrainingProgress, figures


@pytest.fixture
def clock(monkeypatch):
    """The time that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def step(batch, epoch=0, of=100):
    return {
        "event": "step",
        "epoch": epoch,
        "epochs": 20,
        "batch": batch,
        "of": of,
        "loss": 0.5,
        "lr": 1e-4,
        "samples_per_second": 32.0,
    }


def test_steps_are_told_once_a_minute_with_the_time_that_is_left(clock, capsys):
    with TrainingProgress() as told:
        for batch in range(1, 14):
            told.hear(0, step(batch))
            clock[0] += 10
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1 of 20, step 7 of 100: loss 0.5000, 32.0 samples/s, 16 min left of this epoch",
        "epoch 1 of 20, step 13 of 100: loss 0.5000, 32.0 samples/s, 14 min left of this epoch",
    ]


def test_the_time_of_validation_is_no_time_of_steps(clock, capsys):
    with TrainingProgress() as told:
        told.hear(0, step(99))
        clock[0] += 600
        told.hear(0, step(1, epoch=1))
        clock[0] += 60
        told.hear(0, step(61, epoch=1))
    assert capsys.readouterr().err.splitlines() == [
        "epoch 2 of 20, step 1 of 100: loss 0.5000, 32.0 samples/s",
        "epoch 2 of 20, step 61 of 100: loss 0.5000, 32.0 samples/s, 1 min left of this epoch",
    ]


def test_the_first_rank_speaks_for_all_but_each_fills_its_share_of_the_cache(clock, capsys):
    with TrainingProgress() as told:
        told.hear(1, step(5))
        clock[0] += 60
        told.hear(1, {"event": "cache", "done": 30, "of": 100})
        clock[0] += 60
        told.hear(0, {"event": "cache", "done": 50, "of": 100})
    assert capsys.readouterr().err.splitlines() == [
        "frame cache: 30 of 100 frames",
        "frame cache: 80 of 200 frames",
    ]


def test_epochs_and_notes_are_told_at_once(capsys):
    with TrainingProgress() as told:
        told.hear(0, {"event": "note", "message": "The cache is full."})
        told.hear(0, {"event": "validating"})
        val = {"loss": 0.25, "f1_class_mean_nobg": 0.8125, "fps": 100.0}
        told.hear(0, {"event": "epoch", "epoch": 2, "train": {"loss": 0.5}, "val": val, "best": True})
    assert capsys.readouterr().err.splitlines() == [
        "The cache is full.",
        "epoch 3: loss 0.500; validation: loss 0.250, F1 without background 0.812, the best so far",
    ]


def test_a_figure_that_is_not_known_is_left_out():
    assert figures({"loss": 1.0, "f1_class_mean": None}) == "loss 1.000"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with TrainingProgress() as told:
        told.hear(0, step(50))
        told.hear(0, {"event": "validating"})
        told.hear(0, step(1, epoch=1))
    assert "epoch 2 of 20" in capsys.readouterr().err
