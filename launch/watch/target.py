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
"""Between two questions to the scheduler, at the least."""


@dataclass(frozen=True)
class Watched:
    """Launches, and runs that belong to none of them; newest first."""

    launches: tuple[LaunchDir, ...]
    runs: tuple[RunDir, ...]

    def newest(self) -> Watched:
        """The launch or run that was begun last."""
        launches = [folder.launch_file.stat().st_mtime_ns for folder in self.launches[:1]]
        runs = [run.plan_file.stat().st_mtime_ns for run in self.runs[:1]]
        return Watched(self.launches[:1], ()) if launches > runs else Watched((), self.runs[:1])


def find_watched(word: Path) -> Watched:
    """What is meant by the folder of a launch, of a run or of a project, or by the name of one of the first two in the
    project of the current folder. A run that belongs to a launch means the launch.

    RunError or ProjectError if it is none of these.
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
    belonging = {name for folder in launches for name in run_names(folder)}
    runs = [run for run in find_runs(project.model_path) if run.name not in belonging]
    if not launches and not runs:
        raise RunError(f"{show_path(project.path)}: no runs of deg yet. `deg run {show_path(word)}` makes them.")
    return Watched(tuple(launches), tuple(runs))


def _named(name: str) -> Path | None:
    """A launch or run of the project of the current folder."""
    from deg.projects.project import open_project

    try:
        folder = open_project(Path()).model_path / name
    except DegError:
        return None
    return folder if (folder / "launch.json").exists() or (folder / "plan.json").exists() else None


def run_names(folder: LaunchDir) -> tuple[str, ...]:
    """The runs of a launch, made or not; none if the launch cannot be read."""
    try:
        return tuple(stage.run for stage in folder.load().stages)
    except RunError:
        return ()


@dataclass(frozen=True)
class Queue:
    """What squeue says of all jobs of some launches, asked for once."""

    jobs: dict[str, JobState]
    problem: str = ""
    """Why it could not be asked. Then nothing is known, and `jobs` is empty."""

    @property
    def is_known(self) -> bool:
        return not self.problem


def is_settled(folder: LaunchDir) -> bool:
    """Whether files say that every stage is done, so that nobody need ask the queue."""
    try:
        verdicts = [folder.verdict(index) for index in range(len(folder.load().stages))]
    except RunError:
        return False
    return all(verdict is not None and verdict.state in ("done", "partly") for verdict in verdicts)


def ask_queue(launches: Sequence[LaunchDir]) -> Queue:
    """The queue's word on the jobs of launches that are not done. No answer is no error: files tell most."""
    jobs = [job.job for folder in launches if not is_settled(folder) for job in folder.jobs()]
    try:
        return Queue(in_queue(jobs))
    except LaunchError as error:
        return Queue({}, str(error))


class Ending:
    """Whether nothing happens any more; called often, it asks the scheduler rarely."""

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
