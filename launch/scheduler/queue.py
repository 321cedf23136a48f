"""Asks the scheduler about jobs: `squeue` first, then `sacct`.

squeue forgets a job minutes after its end. sacct lags behind by seconds, and not every site has it. Only squeue is
believed when it says that a job is alive: accounts are of the past. An array is reported element by element, `12_3`,
even if it was asked for by its own number, `12`.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from deg.errors import LaunchError

ALIVE = frozenset(
    {
        *("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT"),
        *("STOPPED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    }
)
"""States of a job that runs, will run, or waits for somebody to let it run."""
UNKNOWN = "UNKNOWN"
"""State of a job that the scheduler no longer knows: it has ended, and nobody can say how."""
NEVER = "DependencyNeverSatisfied"
"""Reason of a pending job that will never run: a job that it depends on did not end as required."""

TIMEOUT_SECONDS = 60.0
"""A command of the scheduler that takes longer than this, in seconds, is ended."""
AGAIN_SECONDS = 2.0
"""Seconds to wait before asking again: a busy scheduler turns questions away."""

SQUEUE = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%S|%M|%l|%r")
SACCT = ("sacct", "--noheader", "--parsable2", "--format=JobID,State,NodeList,Start,Elapsed,Timelimit,ExitCode,Reason")


@dataclass(frozen=True)
class JobState:
    """One job, or one element of an array, as the scheduler sees it."""

    job: str
    """Job id: `12`, or `12_3` for element 3 of an array."""
    state: str
    """PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, OUT_OF_MEMORY...; `UNKNOWN` if the scheduler has forgotten it."""
    reason: str = ""
    """Reason why it waits, in the scheduler's word. Some jobs that ended have one, too."""
    node: str = ""
    """Node where it runs or ran; several are a list as the scheduler writes it."""
    start: float | None = None
    """Time when it began or is expected to begin, in seconds since 1970; None if unknown."""
    elapsed: float | None = None
    """Time for which it has run, in seconds; None if unknown."""
    limit: float | None = None
    """Time limit, in seconds; None if it has none or it is unknown."""
    status: int | None = None
    """Exit status; 128 + n for signal n. Only sacct tells it."""

    @property
    def is_alive(self) -> bool:
        return self.state in ALIVE

    @property
    def never_runs(self) -> bool:
        """Whether it waits for something that will never happen."""
        return self.state == "PENDING" and self.reason == NEVER


def states(jobs: Sequence[str]) -> dict[str, JobState]:
    """Return the states of jobs, by element of an array. A job that the scheduler has forgotten is `UNKNOWN`.

    Raises LaunchError if squeue is missing or does not answer. Without accounting less is known.
    """
    queued = in_queue(jobs)
    forgotten = [job for job in jobs if not any(is_of(found, job) for found in queued)]
    accounts = {account.job: account for account in in_accounts(forgotten)}
    ended = {job: replace(a, state=UNKNOWN) if a.is_alive else a for job, a in accounts.items()}
    unknown = [job for job in forgotten if not any(is_of(found, job) for found in ended)]
    return {**queued, **ended, **{job: JobState(job, UNKNOWN) for job in unknown}}


def alive(jobs: Sequence[str]) -> set[str]:
    """Return the jobs that run or wait, by element of an array.

    Raises LaunchError if squeue is missing or does not answer.
    """
    return {job for job, state in in_queue(jobs).items() if state.is_alive}


def in_queue(jobs: Sequence[str]) -> dict[str, JobState]:
    """Return what squeue knows of jobs. Raises LaunchError if it is missing or does not answer."""
    if not jobs:
        return {}
    asked = sorted({array_of(job) for job in jobs})
    try:
        text = run_scheduler([*SQUEUE, f"--jobs={','.join(asked)}"], tries=2)
    except LaunchError as error:
        if "Invalid job id" in str(error):  # its answer if the only job asked for is one that it has forgotten
            return {}
        raise
    found = parse_squeue(text)
    return {name: state for name, state in found.items() if any(is_of(name, job) for job in jobs)}


def in_accounts(jobs: Sequence[str], *, former: bool = False) -> list[JobState]:
    """Return what sacct says of jobs; nothing at a site without accounting.

    With `former`, the earlier runs of a job that was put back into the queue are included, oldest first.
    """
    if not jobs:
        return []
    words = [*SACCT, *(["--duplicates"] if former else []), f"--jobs={','.join(sorted(set(jobs)))}"]
    try:
        return parse_sacct(run_scheduler(words))
    except LaunchError:
        return []


def array_of(job: str) -> str:
    """Return the number of the array that an element belongs to. Any other job has its own number."""
    return job.partition("_")[0]


def is_of(found: str, asked: str) -> bool:
    """Whether a job is the one that was asked for, or an element of it."""
    return asked in (found, array_of(found))


def run_scheduler(words: Sequence[str], timeout: float = TIMEOUT_SECONDS, *, tries: int = 1) -> str:
    """Run a command of the scheduler and return what it prints. Only questions may have more than one of `tries`.

    Raises LaunchError with the scheduler's words if it refuses, or if the command is missing.
    """
    # the user's own choice of columns or jobs would hide what is asked for
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SACCT_", "SCANCEL_"))}
    environment["SLURM_TIME_FORMAT"] = "%s"
    for left in reversed(range(tries)):
        try:
            asked = subprocess.run(
                list(words), capture_output=True, text=True, errors="replace", timeout=timeout, env=environment
            )
        except FileNotFoundError:
            raise LaunchError(
                f"{words[0]}: not found on PATH. Run this on a login node of the cluster, where Slurm's commands are."
            ) from None
        except subprocess.TimeoutExpired:
            problem = f"{words[0]}: no answer within {timeout:.0f} s. Is the scheduler down? Try again later."
        else:
            if asked.returncode == 0:
                return asked.stdout
            said = asked.stderr.strip() or asked.stdout.strip() or "it gave no message"
            problem = f"{words[0]} ended with exit status {asked.returncode}: {said}"
            if "Invalid job id" in said:
                break
        if left:
            time.sleep(AGAIN_SECONDS)
    raise LaunchError(problem)


# ---------------------------------------------------------------------------------------------------- pure


def parse_squeue(text: str) -> dict[str, JobState]:
    """Parse lines of squeue with the columns of `SQUEUE`."""
    found = {}
    for line in text.splitlines():
        cells = line.strip().split("|", 6)
        if len(cells) < 7:
            continue
        name, state, node, start, elapsed, limit, reason = (cell.strip() for cell in cells)
        for job in elements(name):
            found[job] = JobState(
                job,
                state,
                reason="" if reason == "None" else reason,
                node="" if node.startswith("(") else node,
                start=_moment(start),
                elapsed=seconds(elapsed),
                limit=seconds(limit),
            )
    return found


def parse_sacct(text: str) -> list[JobState]:
    """Parse lines of sacct with the columns of `SACCT`, in their order.

    Often only a step says that a process was killed because memory ran out, and its job just failed. Then the job gets
    the state of the step.
    """
    found: list[JobState] = []
    for line in text.splitlines():
        cells = line.strip().split("|", 7)
        if len(cells) < 8:
            continue
        name, state, node, start, elapsed, limit, code, reason = (cell.strip() for cell in cells)
        word = state.split()[0].rstrip("+") if state else UNKNOWN
        job, dot, _ = name.partition(".")
        if dot:
            if word == "OUT_OF_MEMORY" and found and found[-1].job == job and found[-1].state != "COMPLETED":
                found[-1] = replace(found[-1], state=word)
            continue
        for element in elements(job):
            found.append(
                JobState(
                    element,
                    word,
                    reason="" if reason == "None" else reason,
                    node="" if node.startswith("None") else node,
                    start=_moment(start),
                    elapsed=seconds(elapsed),
                    limit=seconds(limit),
                    status=_status(code),
                )
            )
    return found


def elements(name: str) -> Iterator[str]:
    """Yield the jobs of one line: `12_[3-5,9%2]` is 12_3, 12_4, 12_5 and 12_9; any other name is itself."""
    array, bracket, inside = name.partition("_[")
    if not bracket:
        yield name
        return
    for part in inside.rstrip("]").partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = match.groups()
            for index in range(int(first), int(last or first) + 1, int(step or 1)):
                yield f"{array}_{index}"


def seconds(text: str) -> float | None:
    """Return the seconds of a time as the scheduler writes it, `days-hours:minutes:seconds`; None if it is not a time.

    Days and hours may be missing.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?", text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)


def _moment(text: str) -> float | None:
    return float(text) if text.isdecimal() and text != "0" else None


def _status(code: str) -> int | None:
    match = re.fullmatch(r"(\d+):(\d+)", code)
    if match is None:
        return None
    status, number = map(int, match.groups())
    return 128 + number if number else status
