"""Why attempts at the unfinished units of a run ended: memory, time limit, node, preemption..."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deg.errors import RunError
from deg.launch.scheduler.launches import Launch, LaunchDir, Stage
from deg.launch.scheduler.queue import JobState
from deg.launch.watch.status import SKEW_SECONDS, at_work, output_file
from deg.launch.watch.symptoms import Symptom, symptom_of
from deg.options.forms import time_limit_minutes
from deg.runs.attempts import Attempt, bad_hosts, read_attempts
from deg.runs.rundir import RunDir, read_error, tail
from deg.runs.state import open_run
from deg.runs.working import told_frames
from deg.work import STOPPED

LAST_LINES = 15
"""Number of lines that are read from the end of a log."""
SHOWN = 5
"""Number of cases that are shown for one cause."""
ENOUGH = 1.5
"""Time limit to ask for, as a multiple of what the slowest unit needs."""


@dataclass(frozen=True)
class Cause:
    """One cause, its evidence, and what would help."""

    kind: str
    cause: str
    evidence: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Options to resume with, as `key=value`."""
    command: str | None = None
    """Command to run instead of `deg resume`, if there is one."""


@dataclass(frozen=True)
class Ended:
    """An attempt that ended without finishing its unit, and why."""

    unit: int
    attempt: Attempt
    kind: str
    """`memory`, `gpu_memory`, `time_limit`, `preempted`, `cancelled`, `node`, `killed`, `failed`, `stopped`,
    `never_started` or the kind of a symptom."""
    lines: tuple[str, ...] = ()
    """The last lines of its log."""
    symptom: Symptom | None = None

    def __str__(self) -> str:
        at = self.attempt
        words = [
            f"unit {self.unit}: job {at.job}" + (f" (restart {at.restart})" if at.restart else "") + f" on {at.host}"
        ]
        if at.oom_kills:
            words.append(f"the kernel killed {at.oom_kills} of its processes for lack of memory")
        if at.status not in (None, STOPPED):
            words.append(f"exit status {at.status}")
        if at.why:
            words.append(at.why)
        return ", ".join(words)


def ended_attempts(
    folder: LaunchDir, run: RunDir, jobs: Mapping[str, JobState], known: bool, accounts: Sequence[JobState]
) -> list[Ended]:
    """Return the ended attempts at units that are still not done."""
    found = []
    for unit in open_run(run).undone():
        for attempt in read_attempts(run.unit_folder(unit)):
            if not at_work(attempt, jobs, known):
                found.append(_ended(folder, unit, attempt, [*accounts, *jobs.values()]))
    return found


def _ended(folder: LaunchDir, unit: int, attempt: Attempt, said: Sequence[JobState]) -> Ended:
    lines = last_words(output_file(folder, attempt.job, ending="err"))
    if attempt.end == "stopped":
        state = state_at(attempt, said)
        kind = "time_limit" if attempt.why == "time limit" else {"CANCELLED": "cancelled"}.get(state, "preempted")
        return Ended(unit, attempt, kind)
    symptom = symptom_of([attempt.why]) if attempt.end == "failed" else symptom_of(lines)
    if attempt.end == "failed":
        return Ended(unit, attempt, "failed" if symptom is None else symptom.kind, (), symptom)
    return Ended(unit, attempt, why_it_died(attempt, state_at(attempt, said), symptom), lines, symptom)


def why_it_died(attempt: Attempt, state: str, symptom: Symptom | None) -> str:
    """Return the kind of end of an attempt that recorded none itself.

    Processes killed for lack of memory, which its host counted, decide first; then what the scheduler says; then the
    symptom in its log; then its exit status.
    """
    if attempt.oom_kills:
        return "memory"
    by_state = {
        "OUT_OF_MEMORY": "memory",
        "TIMEOUT": "time_limit",
        "DEADLINE": "time_limit",
        "PREEMPTED": "preempted",
        "CANCELLED": "cancelled",
        "NODE_FAIL": "node",
        "BOOT_FAIL": "node",
    }
    if state in by_state:
        return by_state[state]
    if symptom is not None:
        return symptom.kind
    if attempt.status is None:
        return "node"
    if attempt.ended == attempt.time:
        return "never_started"
    return {STOPPED: "preempted", 140: "preempted", 143: "preempted"}.get(attempt.status, "killed")


def state_at(attempt: Attempt, said: Sequence[JobState]) -> str:
    """Return the state in which the job of an attempt ended, as the scheduler says; empty if it does not say.

    A job that was put back into the queue has one entry in `said` for each start.
    """
    mine = [
        job
        for job in said
        if job.job == attempt.job
        and not job.is_alive
        and (job.start is None or job.start <= attempt.time + SKEW_SECONDS)
    ]
    return max(mine, key=lambda job: job.start or 0.0).state if mine else ""


def last_words(path: Path) -> tuple[str, ...]:
    """Return the last lines of a log; none if it does not exist."""
    try:
        return tuple(tail(path.read_text(encoding="utf-8", errors="replace"), LAST_LINES))
    except FileNotFoundError:
        return ()


# ---------------------------------------------------------------------------------------------------- findings


def explain_units(launch: Launch, stage: Stage, run: RunDir, ended: Sequence[Ended]) -> Iterator[Cause]:
    """Yield one finding for each kind of end, then one for bad nodes."""
    by_kind: dict[str, list[Ended]] = defaultdict(list)
    for one in ended:
        by_kind[one.kind].append(one)
    for kind, cases in by_kind.items():
        hosts = ", ".join(sorted({case.attempt.host for case in cases}))
        where = f"{stage.name}, {_units([case.unit for case in cases])}, on {hosts}"
        evidence = shown([str(case) for case in cases])
        if kind == "memory":
            yield Cause(kind, f"Out of memory: {where}", evidence, _more_memory(launch))
        elif kind == "gpu_memory":
            smaller = open_run(run).smaller_batch()
            command = smaller and " ".join(["deg", *stage.command, smaller, "--on slurm"])
            yield Cause(kind, f"Out of GPU memory: {where}", evidence, command=command)
        elif kind == "time_limit":
            limit = launch.cluster.time or "the partition's"
            time = _more_time(launch, run, cases)
            yield Cause(kind, f"Stopped by the time limit ({limit}): {where}", evidence, time)
        elif kind == "preempted":
            times = f"{len(cases)} time{'s' if len(cases) > 1 else ''}"
            yield Cause(kind, f"Preempted, or stopped by a signal, {times}: {where}", evidence)
        elif kind == "cancelled":
            yield Cause(kind, f"Cancelled by `scancel` or `deg cancel`: {where}", evidence)
        elif kind == "node":
            yield Cause(kind, f"The node failed or was lost: {where}", evidence)
        elif kind == "failed":
            yield Cause(kind, f"The work itself failed: {where}", evidence)
        else:
            symptom = cases[-1].symptom
            cause = symptom.meaning if symptom else _unexplained(kind)
            advice = (symptom.advice,) if symptom and symptom.advice else ()
            command = None if symptom is None else symptom_command(symptom, launch)
            yield Cause(kind, f"{cause}: {where}", (*evidence, *advice, *cases[-1].lines[-SHOWN:]), command=command)
    yield from _bad_nodes(launch, stage, run)


def _unexplained(kind: str) -> str:
    return "The job ended before its work began" if kind == "never_started" else "The worker died"


def symptom_command(symptom: Symptom, launch: Launch) -> str | None:
    """Return what to run if resuming would meet the same symptom again; None if it would not."""
    if symptom.kind in ("no_image", "driver", "version") and launch.image is not None:
        return f"deg image check {launch.image}"
    return "deg doctor --on slurm" if symptom.kind in ("no_apptainer", "namespace") else None


def explain_given_up(stage: str, run: RunDir) -> Iterator[Cause]:
    """Yield the units that will not be tried again unless the run is resumed."""
    given_up = {unit: reason for unit in open_run(run).undone() if (reason := read_error(run, unit)) is not None}
    if given_up:
        evidence = shown([f"unit {unit}: {reason}" for unit, reason in given_up.items()])
        yield Cause("given_up", f"Given up, not tried again automatically: {stage}, {_units(given_up)}", evidence)


def explain_recordings(stage: str, run: RunDir, check: str) -> Iterator[Cause]:
    """Yield the recordings that failed, each with its reason, which names the frame if that is known."""
    failed = open_run(run).failed_recordings()
    if failed:
        evidence = shown([f"{key}: {reason}" for key, reason in failed.items()])
        yield Cause("recordings", f"{len(failed)} recording(s) failed: {stage}", evidence, command=check)


def _bad_nodes(launch: Launch, stage: Stage, run: RunDir) -> Iterator[Cause]:
    bad = bad_hosts(run.path)
    if not bad:
        return
    done_by = {
        file.parent.name: attempts[-1].host
        for file in run.path.glob("units/*/attempts.jsonl")
        if (attempts := read_attempts(file.parent)) and attempts[-1].end == "done"
    }
    evidence = []
    for file in sorted(run.path.glob("units/*/attempts.jsonl")):
        for attempt in read_attempts(file.parent):
            if attempt.host in bad and attempt.end != "done":
                other = done_by.get(file.parent.name)
                mended = f", done on {other} afterwards" if other else ""
                evidence.append(f"unit {int(file.parent.name)} failed on {attempt.host}{mended}")
    sbatch = [flag for flag in launch.cluster.sbatch if not str(flag).startswith("exclude=")]
    flags = [*sbatch, f"exclude={','.join(bad)}"]
    cause = f"Bad node: work fails on {', '.join(bad)} and succeeds on other nodes: {stage.name}"
    yield Cause("bad_node", cause, shown(evidence), (f"cluster.sbatch={json.dumps(flags)}",))


# ---------------------------------------------------------------------------------------------------- remedies


def _more_memory(launch: Launch) -> tuple[str, ...]:
    memory = launch.cluster.memory_gb
    return (f"cluster.memory_gb={memory * 2:g}",) if memory else ()


def _more_time(launch: Launch, run: RunDir, cases: Sequence[Ended]) -> tuple[str, ...]:
    text = launch.cluster.time
    if text is None:
        return ()
    limit = time_limit_minutes(text) * 60
    slowest = _slowest_unit(launch.folder, run, cases)
    wanted = limit * 2 if slowest is None else slowest * ENOUGH
    return (f"cluster.time={in_hours(wanted)}",) if wanted > limit else ()


def _slowest_unit(folder: LaunchDir, run: RunDir, cases: Sequence[Ended]) -> float | None:
    """Return how long the largest of these units takes at the lowest speed seen, in seconds; None without a speed."""
    timed = [event for event in run.events() if event["event"] == "unit_done" and event["seconds"]]
    speeds = [event["frames"] / event["seconds"] for event in timed]
    for case in {case.attempt.job: case for case in cases}.values():  # a log tells about its job's last attempt
        frames, speed = told_frames(output_file(folder, case.attempt.job), case.attempt)
        speeds += [speed] if frames and speed else []
    try:
        left = [open_run(run).plan.units[case.unit].num_frames for case in cases]
    except RunError:
        return None
    return max(left) / min(speeds) if speeds and left else None


def in_hours(seconds: float) -> str:
    """Return seconds as a time limit, rounded up to half hours: `8:00:00`, `1-06:30:00`."""
    halves = math.ceil(seconds / 1800)
    days, hours = divmod(halves // 2, 24)
    clock = f"{hours}:{30 * (halves % 2):02d}:00"
    return f"{days}-{hours:02d}:{30 * (halves % 2):02d}:00" if days else clock


def shown(cases: Sequence[str]) -> tuple[str, ...]:
    """Return the first cases, and a line that counts the others."""
    more = [f"... and {len(cases) - SHOWN} more"] if len(cases) > SHOWN else []
    return (*cases[:SHOWN], *more)


def _units(numbers: Sequence[int] | Mapping[int, object]) -> str:
    each = sorted(set(numbers))
    listed = ", ".join(map(str, each[:SHOWN])) + (f" and {len(each) - SHOWN} more" if len(each) > SHOWN else "")
    return f"unit{'s' if len(each) > 1 else ''} {listed}"
