"""How far a launch has come, stage by stage: from its files first, then from the queue.

The queue tells what files cannot: whether jobs still run or wait that will do what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deg.data.json_lines import read_lines
from deg.errors import RunError
from deg.launch.scheduler.launches import Launch, LaunchDir, SubmittedJob, Verdict
from deg.launch.scheduler.queue import JobState, is_of
from deg.launch.watch.target import Queue
from deg.runs.attempts import Attempt, read_attempts
from deg.runs.state import Status, open_run
from deg.runs.working import Working

OVER = ("finished", "failed", "cancelled", "stalled")
"""States of a launch in which nothing more happens by itself."""
SETTLED = ("done", "partly", "failed")
SKEW_SECONDS = 30.0
"""Largest difference between the clocks of nodes and scheduler that is tolerated, in seconds."""


@dataclass(frozen=True)
class StageStatus:
    """How far one stage of a launch is at this moment."""

    name: str
    run: str
    state: str
    """`done`; `partly`: done except for some recordings; `running`; `waiting`: all its jobs wait, for another stage or
    for the scheduler; `failed`; `stalled`: not done, and no job in the queue would do it; `not begun`: not done because
    a stage before it failed or stalled; `unknown`: the queue could not be asked."""
    message: str = ""
    """What its merge job reported."""
    jobs: Mapping[str, int] = field(default_factory=dict)
    """Number of its jobs in each state, among those in the queue that have not ended."""
    starts: float | None = None
    """When the first waiting job is expected to begin, in seconds since 1970; None if the scheduler does not say."""
    restarts: int = 0
    """Number of attempts beyond the first of each unit."""
    working: Working = field(default_factory=Working)
    work: Status | None = None
    """How far its run is. None if it is not planned yet, or has nothing to do."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"work": None if self.work is None else self.work.as_dict()}


@dataclass(frozen=True)
class LaunchStatus:
    """How far a launch is at this moment."""

    name: str
    state: str
    """`running`, `waiting`, `finished`, `failed`, `cancelled`; `stalled`: not done, and no job is left that would do
    the rest; `unknown`: the queue could not be asked."""
    stages: tuple[StageStatus, ...]
    problem: str = ""
    """Why the queue could not be asked; empty if it could."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"stages": [stage.as_dict() for stage in self.stages]}


def read_launch(folder: LaunchDir, queue: Queue) -> LaunchStatus:
    """Return how far a launch is. RunError if it, or a plan of its runs, cannot be read."""
    launch, jobs = folder.load(), folder.jobs()
    found: list[StageStatus] = []
    for index in range(len(launch.stages)):
        mine = jobs_of(queue, [job for job in jobs if job.stage == index])
        status = _read_stage(launch, index, mine, queue)
        broken = any(other.state in ("failed", "stalled") for other in found)
        # its merge job may have run anyway, and found nothing to do
        if broken and (status.state == "stalled" or (status.state == "done" and status.work is None)):
            status = replace(status, state="not begun")
        found.append(status)
    return LaunchStatus(folder.name, _state(folder, jobs, found), tuple(found), queue.problem)


def jobs_of(queue: Queue, jobs: Sequence[SubmittedJob]) -> dict[str, JobState]:
    """Return what the queue says about these jobs, by array task."""
    return {name: state for name, state in queue.jobs.items() if any(is_of(name, job.job) for job in jobs)}


def _state(folder: LaunchDir, jobs: Sequence[SubmittedJob], stages: Sequence[StageStatus]) -> str:
    states = {stage.state for stage in stages}
    if states <= {"done", "partly"}:
        return "finished"
    for state in ("running", "waiting", "unknown"):
        if state in states:
            return state
    return "cancelled" if was_cancelled(folder, jobs) else "failed" if "failed" in states else "stalled"


def was_cancelled(folder: LaunchDir, jobs: Sequence[SubmittedJob]) -> bool:
    """Whether `deg cancel` came after the last job was submitted."""
    times = [event["time"] for event in read_lines(folder.path / "events.jsonl") if event.get("event") == "cancelled"]
    return bool(times) and times[-1] >= max((job.time for job in jobs), default=0.0)


def _read_stage(launch: Launch, index: int, jobs: Mapping[str, JobState], queue: Queue) -> StageStatus:
    stage, verdict = launch.stages[index], launch.folder.verdict(index)
    run = launch.run_of(index)
    found = open_run(run) if stage.run and run.plan_file.exists() else None
    alive = {name: job for name, job in jobs.items() if job.is_alive}
    state = _stage_state(verdict, found is not None and run.done_file.exists(), list(alive.values()), queue.is_known)
    status = StageStatus(
        stage.name,
        stage.run,
        state,
        message="" if verdict is None else verdict.message,
        jobs=dict(Counter(job.state for job in alive.values())),
        starts=min((job.start for job in alive.values() if job.state == "PENDING" and job.start), default=None),
    )
    if found is None:
        return status
    attempts = {unit.index: read_attempts(run.unit_folder(unit.index)) for unit in found.plan.units}
    working = Working()
    if state in ("running", "unknown"):
        last = {unit: made[-1] for unit, made in attempts.items() if made}
        now = {unit: attempt for unit, attempt in last.items() if at_work(attempt, jobs, queue.is_known)}
        working = found.working(now, lambda attempt: output_file(launch.folder, attempt.job))
    return replace(
        status,
        restarts=sum(max(len(made) - 1, 0) for made in attempts.values()),
        working=working,
        work=replace(found.status(), state=state),
    )


def _stage_state(verdict: Verdict | None, done: bool, alive: Sequence[JobState], known: bool) -> str:
    active = [job for job in alive if job.state not in ("PENDING", "COMPLETING")]
    waiting = [job for job in alive if job.state == "PENDING"]
    if verdict is not None and verdict.state in SETTLED and not active and not waiting:
        return verdict.state
    if active or waiting:
        return "running" if active else "waiting"
    if done:
        return "done"
    return "stalled" if known else "unknown"


# ---------------------------------------------------------------------------------------------------- at work


def at_work(attempt: Attempt, jobs: Mapping[str, JobState], known: bool) -> bool:
    """Whether an attempt still runs: no end of it was recorded, and its job started before it and is running."""
    if attempt.end is not None or attempt.status is not None:
        return False
    if not known:
        return True
    job = jobs.get(attempt.job)
    return (
        job is not None
        and job.is_alive
        and job.state != "PENDING"
        and (job.start is None or job.start < attempt.time + SKEW_SECONDS)
    )


def output_file(folder: LaunchDir, job: str, rank: int = 0, ending: str = "out") -> Path:
    """Return the file that a process of a job writes."""
    return folder.jobs_folder / f"{job}_{rank}_log.{ending}"


def read_launches(launches: Sequence[LaunchDir], queue: Queue) -> tuple[list[LaunchStatus], dict[str, str]]:
    """Return how far launches are, and for those that cannot be read the reason, by name."""
    found, unreadable = [], {}
    for folder in launches:
        try:
            found.append(read_launch(folder, queue))
        except RunError as error:
            unreadable[folder.name] = str(error)
    return found, unreadable
