"""Networks and states on disk are whole or absent, and are read without running code; the newest readable one wins."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from deg.errors import RunError
from deg.models.weights import read_checkpoint
from deg.runs.networks import weight_files
from deg.train import checkpoint
from deg.train.checkpoint import forget_older_states, newest_state, save, save_best, save_newest, state_path

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.zeros(2)}
ABOUT = {"stage": "sequence", "class_names": ["background", "groom"], "thresholds": [0.5, 0.25]}


def test_both_forms_hold_the_network_under_the_names_that_deepethogram_knows(tmp_path):
    save_newest(tmp_path, STATE, epoch=3, step=40, about=ABOUT)
    plain, lightning = tmp_path / "checkpoint.pt", tmp_path / "lightning_checkpoints" / "last.ckpt"
    assert read_checkpoint(plain).state_dict.keys() == STATE.keys()
    assert read_checkpoint(lightning).state_dict.keys() == {"model.conv.weight", "model.conv.bias"}
    for path in (plain, lightning):
        content = torch.load(path, weights_only=True)
        assert content["epoch"] == 3 and content["deg"] == ABOUT


def test_the_best_replaces_the_former_best_and_is_found_first(tmp_path):
    save_newest(tmp_path, STATE, epoch=11, step=120, about=ABOUT)
    save_best(tmp_path, STATE, epoch=9, step=100, about=ABOUT)
    best = save_best(tmp_path, STATE, epoch=10, step=110, about=ABOUT)
    assert best.name == "epoch=10-step=110.ckpt"
    assert [path.name for path in weight_files(tmp_path)] == [best.name, "last.ckpt", "checkpoint.pt"]


def states(folder, *numbers):
    for number in numbers:
        save({"deg": {"batches_done": number}, "weights": torch.randn(1000)}, state_path(folder, number))


def test_training_resumes_from_the_newest_state(tmp_path):
    states(tmp_path, 9, 100, 20)
    assert newest_state(tmp_path) == state_path(tmp_path, 100)
    forget_older_states(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000020.ckpt", "step-000000100.ckpt"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_newest_state_is_passed_over(tmp_path, caplog, damage):
    states(tmp_path, 1, 2)
    newest = state_path(tmp_path, 2)
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    newest.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}.get(damage, content))
    assert newest_state(tmp_path) == state_path(tmp_path, 1)
    assert "step-000000002.ckpt: skipped" in caplog.text


def test_without_a_state_there_is_nothing_to_resume_from(tmp_path):
    assert newest_state(tmp_path / "nowhere") is None


def test_a_state_that_would_run_code_is_passed_over(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch stolen",)

    monkeypatch.chdir(tmp_path)
    torch.save({"deg": {}, "evil": Evil()}, state_path(tmp_path, 5))
    assert newest_state(tmp_path) is None
    assert not (tmp_path / "stolen").exists()


def test_a_full_disk_leaves_the_former_file_and_says_what_to_do(tmp_path, monkeypatch):
    path = state_path(tmp_path, 1)
    states(tmp_path, 1)
    before = path.read_bytes()

    def full(content, file):
        file.write_bytes(b"begun")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(RunError, match=r"step-000000001.ckpt: .*No space left on device.*Make room.*resumes"):
        save({}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
