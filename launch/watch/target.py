"""What a word after `deg status`, `logs`, `why` and `cancel` means: launches, and runs that belong to none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deg.errors import DegError, LaunchError, RunError, show_path
from deg.launch.scheduler.launches import LaunchDir, find_launches, launch_of
from deg.launch.scheduler.queue import JobState, in_queue
from deg.runs.rundir import RunDir, find_runs

ASK_SECONDS = 30.0
"""Shortest interval between two questions to the scheduler, in seconds."""


@dataclass(frozen=True)
class Watched:
    """Launches, and runs that belong to none of them; newest first."""

    launches: tuple[LaunchDir, ...]
    runs: tuple[RunDir, ...]

    def newest(self) -> Watched:
        """Return the launch or run that was begun last."""
        launches = [folder.launch_file.stat().st_mtime_ns for folder in self.launches[:1]]
        runs = [run.plan_file.stat().st_mtime_ns for run in self.runs[:1]]
        return Watched(self.launches[:1], ()) if launches > runs else Watched((), self.runs[:1])


def find_watched(word: Path) -> Watched:
    """Return the launches and runs that `word` means.

    It is the folder of a launch, a run or a project, or the name of a launch or run in the project of the current
    folder. A run that belongs to a launch means the launch. RunError or ProjectError if it is none of these.
    """
    from deg.projects.project import open_project

    if not word.exists() and len(word.parts) == 1 and (named := _named(word.name)) is not None:
        word = named
    if (word / "launch.json").exists():
        return Watched((LaunchDir(word.resolve()),), ())
    if (word / "plan.json").exists():
        run = RunDir(word)
        folder = launch_of(run)
        return Watched((), (run,)) if folder is None else Watched((folder,), ())
    project = open_project(word)
    launches = list(find_launches(project.model_path))
    belonging = {name for folder in launches for name in folder.run_names()}
    runs = [run for run in find_runs(project.model_path) if run.name not in belonging]
    if not launches and not runs:
        raise RunError(f"{show_path(project.path)}: no runs of deg yet. Start with `deg run {show_path(word)}`.")
    return Watched(tuple(launches), tuple(runs))


def _named(name: str) -> Path | None:
    """Return the launch or run of this name in the project of the current folder; None if there is none."""
    from deg.projects.project import open_project

    try:
        folder = open_project(Path()).model_path / name
    except DegError:
        return None
    return folder if (folder / "launch.json").exists() or (folder / "plan.json").exists() else None


@dataclass(frozen=True)
class Queue:
    """What squeue says about all jobs of some launches, from one call."""

    jobs: dict[str, JobState]
    problem: str = ""
    """Why squeue could not be asked; empty if it could. If not, nothing is known, and `jobs` is empty."""

    @property
    def is_known(self) -> bool:
        return not self.problem


def is_settled(folder: LaunchDir) -> bool:
    """Whether files say that every stage is done. Then there is no need to ask the queue."""
    try:
        verdicts = [folder.verdict(index) for index in range(len(folder.load().stages))]
    except RunError:
        return False
    return all(verdict is not None and verdict.state in ("done", "partly") for verdict in verdicts)


def ask_queue(launches: Sequence[LaunchDir]) -> Queue:
    """Ask the queue about the jobs of launches that are not done. No answer is no error: files tell most of it."""
    jobs = [job.job for folder in launches if not is_settled(folder) for job in folder.jobs()]
    try:
        return Queue(in_queue(jobs))
    except LaunchError as error:
        return Queue({}, str(error))


class Ending:
    """Tells whether nothing more happens. It may be called often: it asks the scheduler only every `seconds`."""

    def __init__(self, watched: Watched, seconds: float = ASK_SECONDS):
        self._watched, self._seconds, self._asked = watched, seconds, time.monotonic() - seconds

    def __call__(self) -> bool:
        if any(run.is_claimed() for run in self._watched.runs):
            return False
        if time.monotonic() - self._asked < self._seconds:
            return not self._watched.launches
        self._asked = time.monotonic()
        queue = ask_queue(self._watched.launches)
        return queue.is_known and not any(job.is_alive for job in queue.jobs.values())
