"""Stops what runs: the jobs of launches, and the process of a run on this machine. Finished work is kept."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deg.errors import LaunchError
from deg.launch.scheduler.launches import LaunchDir
from deg.launch.scheduler.queue import alive, array_of, in_queue, run_scheduler
from deg.runs.rundir import RunDir

PATIENCE_SECONDS = 90.0
"""How long to wait until everything has ended, in seconds. Slurm kills a job half a minute after asking it to stop; a
process on this machine stops at the end of a batch."""
LOOK_SECONDS = 2.0
"""Interval between two looks at the queue, in seconds."""


@dataclass(frozen=True)
class Cancelled:
    """What was stopped of one launch or run, and what was not."""

    name: str
    ended: tuple[str, ...] = ()
    """Jobs that have ended, array tasks one by one; for a run on this machine, its process."""
    left: tuple[str, ...] = ()
    """Jobs, or the process, that have not ended yet."""
    note: str = ""
    """What the user can do about `left`."""


def cancel_launch(folder: LaunchDir, wait: Callable[[float], None] = time.sleep) -> Cancelled:
    """Cancel all jobs that run or wait. LaunchError if the scheduler refuses.

    A job that is being stopped may still put itself back into the queue, or submit another job. Jobs found alive
    afterwards are therefore cancelled too.
    """
    asked: set[str] = set()
    left = _alive(folder)
    if not left:
        return Cancelled(folder.name)
    folder.log_event("cancelled", jobs=sorted(left))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left and time.monotonic() < deadline:
        if going_on := {job for job, state in left.items() if state != "COMPLETING"}:
            asked |= going_on
            _scancel(going_on)
        wait(LOOK_SECONDS)
        left = _alive(folder)
    return Cancelled(folder.name, tuple(sorted(asked - left.keys())), tuple(sorted(left)))


def _alive(folder: LaunchDir) -> dict[str, str]:
    """Return the jobs that run, wait or are ending, each with its state."""
    found = in_queue([job.job for job in folder.jobs()])
    return {name: job.state for name, job in found.items() if job.is_alive}


def _scancel(jobs: set[str]) -> None:
    # a job that waits for another is cancelled first: it would begin as soon as the other has ended
    arrays = sorted({array_of(job) for job in jobs}, key=int, reverse=True)
    try:
        run_scheduler(["scancel", *arrays])
    except LaunchError:
        if alive(arrays) >= jobs:  # otherwise it refused because some have ended meanwhile
            raise


def cancel_run(run: RunDir, wait: Callable[[float], None] = time.sleep) -> Cancelled:
    """Ask the process that works on a run to stop, if it is on this machine. It stops at the end of a batch."""
    holder = run.holder() if run.is_claimed() else None
    if holder is None:
        return Cancelled(run.name)
    host, pid = holder
    if host != socket.gethostname() or not _holds(pid, run.path):
        return Cancelled(run.name, left=(f"process {pid} on {host}",), note=f"Stop it with `kill {pid}` on {host}.")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while run.is_claimed() and time.monotonic() < deadline:
        wait(LOOK_SECONDS / 10)
    process = (f"process {pid}",)
    return Cancelled(run.name, left=process) if run.is_claimed() else Cancelled(run.name, ended=process)


def _holds(pid: int, folder: Path) -> bool:
    """Whether a process of this machine has the run's folder open.

    A process that works on a run has it open. The number alone proves nothing: process ids are reused.
    """
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if link.samefile(folder):
                return True
        except OSError:
            continue  # closed meanwhile
    return False
