"""Kills at every line of the modules that write results, and random kills of all processes: nothing torn or lost."""

from __future__ import annotations

import pytest
from kill_lines import check_every_line, check_making, in_small_process
from kills import kill_inference
from scenes.run import scripted_workers
from watching import parts_of


@pytest.mark.slow
def test_a_run_killed_at_any_line_leaves_whole_files_and_can_be_finished(tmp_path):
    in_small_process(check_every_line, tmp_path)


@pytest.mark.slow
def test_a_run_killed_while_it_is_made_is_a_whole_run_or_none(tmp_path):
    in_small_process(check_making, tmp_path)


@pytest.mark.slow
def test_random_kills_of_all_processes_leave_no_trace(tmp_path, monkeypatch):
    script = scripted_workers(monkeypatch, tmp_path)
    script(pause=0.02)
    (tmp_path / "kills").mkdir()
    tally = kill_inference(tmp_path / "kills", kills=12, seed=1, pace=0.2)
    assert tally.violations == []
    assert tally.completed and tally.polls > 100
    assert parts_of(tmp_path / "kills") == []
