"""How far a launch has come, stage by stage: from its files first, from the queue second.

The queue tells what files cannot: whether anything still runs or waits that will go on with what is not done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deg.data.json_lines import read_lines
from deg.errors import RunError
from deg.launch.on.slurm.launches import Job, LaunchDir, Stage, Verdict
from deg.launch.on.slurm.queue import JobState, is_of
from deg.launch.watch.runs import RunStatus, TrainingStatus, read_status
from deg.launch.watch.target import Queue
from deg.runs.attempts import Attempt, read_attempts
from deg.runs.rundir import RunDir
from deg.runs.state import InferenceRun, TrainingRun, open_run

OVER = ("finished", "failed", "cancelled", "stalled")
"""States of a launch in which nothing happens any more by itself."""
SETTLED = ("done", "partly", "failed")
SKEW_SECONDS = 30.0
"""Largest difference between the clocks of nodes and scheduler that is tolerated, in seconds."""


@dataclass(frozen=True)
class Working:
    """What is being worked on at this moment."""

    units: tuple[int, ...] = ()
    recordings: int = 0
    frames: int = 0
    """Number of frames of these units that their workers have told of."""
    speed: float | None = None
    """Speed of all workers together, in frames/s; of a training, in samples/s."""
    ends: float | None = None
    """When the stage is done at this speed, in seconds since 1970; of a training, at the latest."""


@dataclass(frozen=True)
class StageStatus:
    """One stage of a launch, at this moment."""

    name: str
    run: str
    state: str
    """`done`; `partly`: done but for some recordings; `running`; `waiting`: for its turn or for the scheduler;
    `failed`; `stalled`: not done, and nothing is in the queue that would do it; `not begun`: as the one before it is
    one of the last two; `unknown`: the queue cannot be asked."""
    message: str = ""
    """What its merge job found."""
    jobs: Mapping[str, int] = field(default_factory=dict)
    """How many of its jobs are in which state, of those in the queue that have not ended."""
    starts: float | None = None
    """When the first that waits is expected to begin, in seconds since 1970."""
    restarts: int = 0
    """Attempts beyond the first of each unit."""
    working: Working = field(default_factory=Working)
    work: RunStatus | TrainingStatus | None = None
    """None: not planned yet, or nothing to do."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"work": None if self.work is None else self.work.as_dict()}


@dataclass(frozen=True)
class LaunchStatus:
    """A launch, at this moment."""

    name: str
    state: str
    """`running`, `waiting`, `finished`, `failed`, `cancelled`; `stalled`: not done, and nothing is alive that would go
    on; `unknown`: the queue cannot be asked."""
    stages: tuple[StageStatus, ...]
    problem: str = ""
    """Why the queue could not be asked."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"stages": [stage.as_dict() for stage in self.stages]}


def read_launch(launch: LaunchDir, queue: Queue) -> LaunchStatus:
    """The state of a launch. RunError if it, or a plan of its runs, cannot be read."""
    what, jobs = launch.load(), launch.jobs()
    found: list[StageStatus] = []
    for index, stage in enumerate(what.stages):
        mine = jobs_of(queue, [job for job in jobs if job.stage == index])
        status = _read_stage(launch, stage, launch.verdict(index), mine, queue)
        broken = any(other.state in ("failed", "stalled") for other in found)
        # its merge job may have run all the same, and found nothing to do
        if broken and (status.state == "stalled" or (status.state == "done" and status.work is None)):
            status = replace(status, state="not begun")
        found.append(status)
    return LaunchStatus(launch.name, _state(launch, jobs, found), tuple(found), queue.problem)


def jobs_of(queue: Queue, jobs: Sequence[Job]) -> dict[str, JobState]:
    """What the queue says of these, by element of an array."""
    return {name: state for name, state in queue.jobs.items() if any(is_of(name, job.job) for job in jobs)}


def _state(launch: LaunchDir, jobs: Sequence[Job], stages: Sequence[StageStatus]) -> str:
    states = {stage.state for stage in stages}
    if states <= {"done", "partly"}:
        return "finished"
    for state in ("running", "waiting", "unknown"):
        if state in states:
            return state
    return "cancelled" if was_cancelled(launch, jobs) else "failed" if "failed" in states else "stalled"


def was_cancelled(launch: LaunchDir, jobs: Sequence[Job]) -> bool:
    """Whether `deg cancel` came after the last job was submitted."""
    times = [event["time"] for event in read_lines(launch.path / "events.jsonl") if event.get("event") == "cancelled"]
    return bool(times) and times[-1] >= max((job.time for job in jobs), default=0.0)


def _read_stage(
    launch: LaunchDir, stage: Stage, verdict: Verdict | None, jobs: Mapping[str, JobState], queue: Queue
) -> StageStatus:
    run = launch.run_of(stage)
    planned = bool(stage.run) and run.plan_file.exists()
    alive = {name: job for name, job in jobs.items() if job.is_alive}
    state = _stage_state(verdict, planned and run.done_file.exists(), list(alive.values()), queue.is_known)
    work = read_status(run) if planned else None
    attempts = _attempts(run, work) if planned else {}
    at_it = planned and state in ("running", "unknown")
    working = _working(launch, run, attempts, jobs, queue) if at_it else Working()
    return StageStatus(
        stage.name,
        stage.run,
        state,
        message="" if verdict is None else verdict.message,
        jobs=dict(Counter(job.state for job in alive.values())),
        starts=min((job.start for job in alive.values() if job.state == "PENDING" and job.start), default=None),
        restarts=sum(max(len(made) - 1, 0) for made in attempts.values()),
        working=working,
        work=None if work is None else replace(work, state=state),
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


def _attempts(run: RunDir, work: RunStatus | TrainingStatus | None) -> dict[int, list[Attempt]]:
    count = work.units if isinstance(work, RunStatus) else work.phases if work is not None else 0
    return {index: read_attempts(run.unit_folder(index)) for index in range(count)}


# ---------------------------------------------------------------------------------------------------- at work


def at_work(attempt: Attempt, jobs: Mapping[str, JobState], known: bool) -> bool:
    """Whether an attempt still runs: nothing was heard of its end, and its job runs since before it."""
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


def _working(
    launch: LaunchDir,
    run: RunDir,
    attempts: Mapping[int, Sequence[Attempt]],
    jobs: Mapping[str, JobState],
    queue: Queue,
) -> Working:
    last = {index: made[-1] for index, made in attempts.items() if made}
    now = {index: attempt for index, attempt in last.items() if at_work(attempt, jobs, queue.is_known)}
    found = open_run(run)
    return _training(launch, found, now) if isinstance(found, TrainingRun) else _inference(launch, found, now)


def _inference(launch: LaunchDir, found: InferenceRun, now: Mapping[int, Attempt]) -> Working:
    run, plan = found.folder, found.plan
    finished = run.finished_units()
    timed = [event for event in run.events() if event["event"] == "unit_done"]
    usual = sum(event["frames"] for event in timed) / max(sum(event["seconds"] for event in timed), 1e-9)
    frames, speeds = 0, []
    for attempt in now.values():
        told, speed = told_frames(output_file(launch, attempt.job), attempt)
        frames += told
        speeds.append(speed or usual)
    speed = sum(speeds) or None
    units = [unit for unit in plan.units if unit.index not in finished and not run.error_file(unit.index).exists()]
    left = sum(unit.num_frames for unit in units) - frames
    return Working(
        units=tuple(now),
        recordings=len({span.key for index in now for span in plan.units[index].spans}),
        frames=frames,
        speed=None if speed is None else round(speed, 2),
        ends=None if speed is None else round(time.time() + max(left, 0) / speed),
    )


def output_file(launch: LaunchDir, job: str, rank: int = 0, ending: str = "out") -> Path:
    """What a process of a job wrote."""
    return launch.jobs_folder / f"{job}_{rank}_log.{ending}"


def told_frames(output: Path, attempt: Attempt) -> tuple[int, float | None]:
    """Frames of its unit that a worker has told of, and its speed in frames/s."""
    frames = 0
    for line in read_lines(output):
        if line.get("event") == "progress":
            frames += line["frames"]
        elif line.get("event") in ("ready", "unit", "unit_failed"):
            frames = 0
    if not frames:
        return 0, None
    elapsed = output.stat().st_mtime - attempt.time
    return frames, frames / elapsed if elapsed > 1.0 else None


def _training(launch: LaunchDir, found: TrainingRun, now: Mapping[int, Attempt]) -> Working:
    plan = found.plan
    if not now:
        return Working()
    (index, attempt), *_ = now.items()
    steps = [line for line in read_lines(output_file(launch, attempt.job)) if line.get("event") == "step"]
    lines = read_lines(found.phase_folder(index) / "metrics.jsonl")
    epochs = plan.config["train"]["num_epochs"]
    left = epochs * (len(plan.phases) - index) - len(lines)
    if steps and steps[-1]["epoch"] == len(lines):
        left -= steps[-1]["batch"] / steps[-1]["of"]
    seconds = list(_epoch_seconds([line["seconds"] for line in lines if "seconds" in line]))
    return Working(
        units=(index,),
        speed=steps[-1]["samples_per_second"] if steps else None,
        ends=round(time.time() + left * seconds[-1]) if seconds else None,
    )


def _epoch_seconds(clock: Sequence[float]) -> Iterator[float]:
    """How long epochs took, from a clock at their ends that begins anew with each attempt."""
    before = 0.0
    for now in clock:
        yield now - before if now > before else now
        before = now


def read_launches(launches: Sequence[LaunchDir], queue: Queue) -> tuple[list[LaunchStatus], dict[str, str]]:
    """The states of launches, and of those that cannot be read the reasons."""
    found, unreadable = [], {}
    for launch in launches:
        try:
            found.append(read_launch(launch, queue))
        except RunError as error:
            unreadable[launch.name] = str(error)
    return found, unreadable
