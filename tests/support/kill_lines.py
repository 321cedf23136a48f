"""Kill what writes results at every line of it: the checks of tests/test_kills.py, in a small process of their own."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from scenes.project import CLASSES
from scenes.run import do_units, make_plan, make_run
from watching import Expected, differences, read_outputs

from deg import execute
from deg.arithmetic.units import missing_units
from deg.data import atomic, results
from deg.runs import merge, rundir
from deg.runs.plans import InferencePlan
from deg.runs.rundir import RunDir, find_runs

WRITERS = {module.__file__ for module in (atomic, results, rundir, execute, merge)}

Line = tuple[str, int]


def lines_of(act: Callable[[], None], at_line: Callable[[Line], None]) -> None:
    """Do `act`, and report every line of the writing modules before it is run."""

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
    """Choose one of the times that each line is run."""
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
    """Kill `act` at one moment after another, each time starting from what is in `folder` now."""
    before = folder.with_name("before")
    shutil.copytree(folder, before)
    lines: list[Line] = []
    lines_of(act, lines.append)
    for moment in moments(lines):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        killed_at(moment, act)
        yield


def in_small_process(check: Callable[[Path], None], folder: Path) -> None:
    """Run a check in a process of its own. To fork one that has loaded networks takes most of the time."""
    process = multiprocessing.get_context("spawn").Process(target=_without_syncing, args=(check, folder))
    process.start()
    process.join()
    assert process.exitcode == 0, "its traceback is in what was written to stderr"


def _without_syncing(check: Callable[[Path], None], folder: Path) -> None:
    os.fsync = lambda descriptor: None  # a kill is no power cut, and syncing at every moment takes minutes
    check(folder / "project")


def make_small_plan(folder: Path) -> InferencePlan:
    return make_plan(folder, {"a": 780, "b": 20}, units=2)


def put_former_results(plan: InferencePlan) -> None:
    """Write another network's results into the files that the run writes to."""
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


def resume(run: RunDir, plan: InferencePlan) -> None:
    """Do what `deg infer` does with a run that it finds."""
    if not merge.close_if_merged(run, plan):
        do_units(run, plan, {unit.index for unit in missing_units(plan.units, run.finished_units())})
        merge.finish(run, merge.merge(run, plan))


def look(run: RunDir, plan: InferencePlan) -> None:
    """Check that every file with its final name is whole."""
    for key, path in plan.outputs.items():
        for group in results.groups(path):
            results.verify_group(path, group, results.read_mark(path, group).frames)
        assert "former" in results.groups(path)
        assert merge.is_done(plan, key) or not run.is_merged()
    for index in run.finished_units():
        with h5py.File(run.result_file(index)) as file:
            assert [*file] and all("crc32" in span.attrs for span in file.values())


def check_every_line(folder: Path) -> None:
    plan = make_small_plan(folder)
    put_former_results(plan)
    run = make_run(folder, plan)
    expected: Expected = {}
    for _ in each_moment(folder, lambda: resume(run, plan)):
        look(run, plan)
        resume(run, plan)
        look(run, plan)
        expected = expected or read_outputs(folder)
        assert differences(folder, expected) == []


def check_making(folder: Path) -> None:
    plan = make_small_plan(folder)
    for _ in each_moment(folder, lambda: make_run(folder, plan) and None):
        assert [run.load_plan() for run in find_runs(folder / "models")] in ([], [plan])
        assert make_run(folder, plan).load_plan() == plan
