"""Killed at every line of what writes results, and at random with all processes: nothing torn, nothing lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from kills import kill_inference
from scenes.project import CLASSES
from scenes.run import do_units, make_plan, make_run, scripted_workers
from watching import Expected, differences, parts_of, read_outputs

from deg import execute
from deg.arithmetic.units import missing_units
from deg.data import atomic, results
from deg.runs import merge, rundir
from deg.runs.plans import InferencePlan
from deg.runs.rundir import RunDir, find_runs

WRITERS = {module.__file__ for module in (atomic, results, rundir, execute, merge)}

Line = tuple[str, int]


def lines_of(act: Callable[[], None], at_line: Callable[[Line], None]) -> None:
    """Do `act`, and tell of every line of the modules that write before it is run."""

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in WRITERS:
            return None
        if event == "line":
            at_line((frame.f_code.co_filename, frame.f_lineno))
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(former)


def moments(lines: list[Line]) -> list[int]:
    """For each line one of the times that it is run."""
    times: dict[Line, list[int]] = {}
    for number, line in enumerate(lines):
        times.setdefault(line, []).append(number)
    draw = random.Random(0)
    return sorted(draw.choice(numbers) for numbers in times.values())


def killed_at(moment: int, act: Callable[[], None]) -> None:
    """Do `act` in a child process that is killed at its line number `moment`."""
    child = os.fork()
    if child == 0:
        count = iter(range(moment + 1))
        try:
            lines_of(act, lambda line: next(count) == moment and os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def each_moment(folder: Path, act: Callable[[], None]) -> Iterator[None]:
    """`act` killed at one moment after another, each time from what is in `folder` now."""
    before = folder.with_name("before")
    shutil.copytree(folder, before)
    lines: list[Line] = []
    lines_of(act, lines.append)
    for moment in moments(lines):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        killed_at(moment, act)
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill is no power cut; and so a moment takes no time
    return tmp_path / "project"


@pytest.fixture
def plan(folder):
    return make_plan(folder, {"a": 780, "b": 20}, units=2)


def put_former_results(plan: InferencePlan) -> None:
    """Another network's results in the files that the run writes to."""
    for key, video in plan.videos.items():
        rows = np.arange(video.num_frames * len(CLASSES), dtype=np.float32).reshape(-1, len(CLASSES))
        results.write_group(
            plan.outputs[key],
            "former",
            num_frames=video.num_frames,
            columns={"P": len(CLASSES)},
            blocks=[{"P": rows}],
            class_names=CLASSES,
            thresholds_K=np.full(len(CLASSES), 0.5),
            mark=results.Mark(video.num_frames, {}, "", 0, 0),
            provenance={},
        )


def go_on(run: RunDir, plan: InferencePlan) -> None:
    """What `deg infer` does with a run that it finds."""
    if not merge.close_if_merged(run, plan):
        do_units(run, plan, {unit.index for unit in missing_units(plan.units, run.finished_units())})
        merge.finish(run, merge.merge(run, plan))


def look(run: RunDir, plan: InferencePlan) -> None:
    """Whatever has its final name is whole."""
    for key, path in plan.outputs.items():
        for group in results.groups(path):
            results.verify_group(path, group, results.read_mark(path, group).frames)
        assert "former" in results.groups(path)
        assert merge.is_done(plan, key) or not run.is_merged()
    for index in run.finished_units():
        with h5py.File(run.result_file(index)) as file:
            assert [*file] and all("crc32" in span.attrs for span in file.values())


@pytest.mark.slow
def test_a_run_killed_at_any_line_leaves_whole_files_and_can_be_finished(folder, plan):
    put_former_results(plan)
    run = make_run(folder, plan)
    expected: Expected = {}
    for _ in each_moment(folder, lambda: go_on(run, plan)):
        look(run, plan)
        go_on(run, plan)
        look(run, plan)
        expected = expected or read_outputs(folder)
        assert differences(folder, expected) == []


@pytest.mark.slow
def test_a_run_killed_while_it_is_made_is_a_whole_run_or_none(folder, plan):
    for _ in each_moment(folder, lambda: make_run(folder, plan) and None):
        assert [run.load_plan() for run in find_runs(folder / "models")] in ([], [plan])
        assert make_run(folder, plan).load_plan() == plan


@pytest.mark.slow
def test_random_kills_of_all_processes_leave_no_trace(tmp_path, monkeypatch):
    script = scripted_workers(monkeypatch, tmp_path)
    script(pause=0.02)
    (tmp_path / "kills").mkdir()
    tally = kill_inference(tmp_path / "kills", kills=12, seed=1, pace=0.2)
    assert tally.violations == []
    assert tally.completed and tally.polls > 100
    assert parts_of(tmp_path / "kills") == []
