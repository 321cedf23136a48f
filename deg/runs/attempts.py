"""Attempts of a scheduler's jobs at a unit: which job started when, how it ended, and when the unit is given up.

    units/00042/attempts.jsonl   started, then done, stopped or failed, by the attempt; exited, by its job's script
    units/00042/exit.json        how the process of the last attempt ended, as its host saw it

An attempt that wrote `started` and nothing after it was killed or is still running. A scheduler lets only one job at a
time work on a unit.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deg.data.json_lines import append_line, read_lines
from deg.errors import DegError, RunError
from deg.work import STOPPED, Stopped

MOST_DEATHS = 3
"""A unit that has killed its worker this often is given up."""
MOST_FAILURES = 2
"""A unit that has failed with an error this often is given up. The first failure may be the fault of the host."""
MOST_TIME_LIMITS = 2
"""A unit that was stopped by the time limit this often, without progress, is given up."""
EARLY_SECONDS = 90.0
"""A signal up to this long before `ThisJob.ends` counts as the time limit: Slurm sends it up to a minute early."""


@dataclass(frozen=True)
class ThisJob:
    """The job of a scheduler that this process works for."""

    name: str
    """Job id: `12`, or `12_3` for element 3 of an array."""
    restart: int
    most: int
    """Number of attempts without progress after which a unit is given up."""
    ends: float | None
    """When it is told to stop ahead of its time limit, in seconds since 1970; None if that is unknown."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ThisJob | None:
        """Return the job that `to_environment` described; None for a process that no scheduler has started."""
        if (name := environment.get("DEG_JOB")) is None:
            return None
        ends = environment.get("DEG_JOB_ENDS")
        return cls(
            name,
            int(environment.get("DEG_JOB_RESTART", 0)),
            int(environment.get("DEG_JOB_RESTARTS", 10)),
            None if ends is None else float(ends),
        )

    def to_environment(self) -> dict[str, str]:
        """Return the environment variables from which `python -m deg.execute` learns its job."""
        told = {"DEG_JOB": self.name, "DEG_JOB_RESTART": str(self.restart), "DEG_JOB_RESTARTS": str(self.most)}
        return told if self.ends is None else told | {"DEG_JOB_ENDS": str(self.ends)}


@dataclass(frozen=True)
class Attempt:
    """One process that worked on a unit."""

    job: str
    restart: int
    host: str
    time: float
    """Start of the attempt, in seconds since 1970."""
    progress: int = 0
    """Progress of the unit when the attempt began; for a training, in steps."""
    end: str | None = None
    """`done`, `stopped` by a signal or `failed` with an error; None if it was killed or is running."""
    why: str = ""
    """Why it ended: `time limit` or `signal` if it was stopped, the error message if it failed."""
    ended: float | None = None
    status: int | None = None
    """Exit status that the host saw, 128 + n for signal n. None while it runs, or if it ended through no fault of its
    own: the host died, or the job was preempted, cancelled or out of time."""
    oom_kills: int | None = None
    """Number of the job's processes that the kernel killed because memory ran out; None where the host does not say."""


@dataclass(frozen=True)
class Exit:
    """How a process ended, as the host saw it."""

    job: str
    restart: int
    host: str
    status: int
    """Exit status; 128 + n for signal n."""
    oom_kills: int | None = None
    """Number of the job's processes that the kernel killed because memory ran out; None where the host does not say."""
    time: float = 0.0


def read_attempts(unit_folder: Path) -> list[Attempt]:
    """Return all attempts at a unit since it was last given a new chance, oldest first."""
    attempts: list[Attempt] = []
    for entry in read_lines(unit_folder / "attempts.jsonl"):
        kind = entry.pop("event")
        if kind == "started":
            attempts.append(Attempt(**entry))
        elif kind == "again":
            attempts.clear()
        elif kind == "exited":
            _exited(attempts, Exit(**entry))
        else:
            _ended(attempts, kind, entry)
    return attempts


def _ended(attempts: list[Attempt], kind: str, entry: Mapping[str, Any]) -> None:
    """Add to an attempt what it wrote at its end."""
    for index, attempt in enumerate(attempts):
        if (attempt.job, attempt.restart) == (entry["job"], entry["restart"]):
            why = entry.get("why") or entry.get("message") or ""
            attempts[index] = replace(attempt, end=kind, why=why, ended=entry["time"])


def _exited(attempts: list[Attempt], exit: Exit) -> None:
    """Add to an attempt how its process ended. A process that died before it wrote `started` is an attempt too."""
    for index, attempt in enumerate(attempts):
        if (attempt.job, attempt.restart) == (exit.job, exit.restart):
            ended = attempt.ended or exit.time
            attempts[index] = replace(attempt, status=exit.status, oom_kills=exit.oom_kills, ended=ended)
            return
    progress = attempts[-1].progress if attempts else 0
    attempts.append(
        Attempt(
            exit.job,
            exit.restart,
            exit.host,
            exit.time,
            progress,
            ended=exit.time,
            status=exit.status,
            oom_kills=exit.oom_kills,
        )
    )


def read_exit(unit_folder: Path) -> Exit | None:
    """Return how the last attempt ended, as its host saw it; None if that is unknown."""
    try:
        return Exit(**json.loads((unit_folder / "exit.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def note(unit_folder: Path, event: str, **details: Any) -> None:
    """Append an event to the attempts at a unit."""
    unit_folder.mkdir(parents=True, exist_ok=True)
    append_line(unit_folder / "attempts.jsonl", {"event": event, "time": round(time.time(), 3), **details})


def give_new_chance(unit_folder: Path) -> None:
    """Forget the attempts so far, and that the unit was given up."""
    note(unit_folder, "again")
    (unit_folder / "error.json").unlink(missing_ok=True)


@contextmanager
def attempt(unit_folder: Path, *, progress: int = 0, writes: bool = True) -> Iterator[None]:
    """Note how the block ends, if a scheduler's job works on the unit. Raises RunError if the unit is given up.

    If several ranks work on it, only the one that `writes` notes anything.
    """
    job = ThisJob.from_environment()
    if job is None:
        yield
        return
    before = [other for other in read_attempts(unit_folder) if (other.job, other.restart) != (job.name, job.restart)]
    if (reason := why_given_up(before, progress, job.most)) is not None:
        raise RunError(f"given up: {reason}")
    if not writes:
        yield
        return
    who = {"job": job.name, "restart": job.restart}
    note(unit_folder, "started", **who, host=socket.gethostname(), progress=progress)
    try:
        yield
    except Superseded:
        raise
    except Stopped:
        late = job.ends is not None and time.time() > job.ends - EARLY_SECONDS
        note(unit_folder, "stopped", **who, why="time limit" if late else "signal")
        raise
    except (DegError, OSError) as error:
        note(unit_folder, "failed", **who, message=str(error))
        raise
    note(unit_folder, "done", **who)


class Superseded(RunError):
    """Another job has started on the unit: the scheduler took this one for dead, perhaps because it was cut off."""


def require_current(unit_folder: Path) -> None:
    """Raise Superseded if a later attempt than this process's own has begun. Call it before writing shared files."""
    job = ThisJob.from_environment()
    if job is None:
        return
    begun = [(attempt.job, attempt.restart) for attempt in read_attempts(unit_folder)]
    if (job.name, job.restart) in begun[:-1]:
        raise Superseded(f"job {begun[-1][0]} has taken over the work of job {job.name}; this process ends.")


def why_given_up(attempts: Sequence[Attempt], progress: int, most: int) -> str | None:
    """Return why a unit is given up; None if another attempt is worth it.

    Only attempts without progress count: those that began at `progress`, which is where the unit is now. Once there are
    `most` of them, the unit is given up, whatever ended them.
    """
    fruitless = [attempt for attempt in attempts if attempt.progress == progress and attempt.end != "done"]
    dead = [attempt for attempt in fruitless if attempt.end is None and attempt.status is not None]
    failed = [attempt for attempt in fruitless if attempt.end == "failed"]
    late = [attempt for attempt in fruitless if attempt.why == "time limit"]
    if len(dead) >= MOST_DEATHS:
        hosts = ", ".join(sorted({attempt.host for attempt in dead}))
        return f"its worker died {len(dead)} times (on {hosts})"
    if len(failed) >= MOST_FAILURES:
        return failed[-1].why
    if len(late) >= MOST_TIME_LIMITS:
        return f"it was stopped by the time limit {len(late)} times without any progress; raise cluster.time"
    if len(fruitless) >= most:
        return f"it was started {len(fruitless)} times without any progress"
    return None


def bad_hosts(run_folder: Path) -> list[str]:
    """Return the hosts where attempts at units of a run failed or died and none ended well.

    Empty unless another host has had success: without one, the work itself may be at fault.
    """
    attempts = [attempt for file in run_folder.glob("units/*/attempts.jsonl") for attempt in read_attempts(file.parent)]
    good = {attempt.host for attempt in attempts if attempt.end in ("done", "stopped")}
    bad = {attempt.host for attempt in attempts if _went_wrong(attempt)}
    return sorted(bad - good) if good else []


def _went_wrong(attempt: Attempt) -> bool:
    return attempt.end == "failed" or (attempt.end is None and attempt.status not in (None, 0, STOPPED, 143, 140))
