"""Why a launch or a run is not done: causes with their evidence, and one command that deals with all of them.

Files are read first; then the queue is asked, then the accounts, which not every site has.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deg.errors import show_path
from deg.launch.scheduler.launches import Launch, LaunchDir
from deg.launch.scheduler.queue import JobState, in_accounts
from deg.launch.watch.causes import (
    SHOWN,
    Cause,
    ended_attempts,
    explain_given_up,
    explain_recordings,
    explain_units,
    last_words,
    shown,
    symptom_command,
)
from deg.launch.watch.status import OVER, LaunchStatus, StageStatus, jobs_of, read_launch, was_cancelled
from deg.launch.watch.symptoms import symptom_of, wait_in_words, waits_in_vain
from deg.launch.watch.target import Queue, Watched, ask_queue
from deg.runs.rundir import RunDir
from deg.runs.state import open_run
from deg.version import __version__
from deg.work import describe_exit

ORDER = (
    *("version", "no_image", "no_apptainer", "driver", "namespace", "disk", "never_started", "gpu_memory", "memory"),
    *("time_limit", "bad_node", "node", "killed", "failed", "given_up", "recordings", "dependency", "merge", "queue"),
    *("cancelled", "preempted"),
)
"""Kinds of causes in the order in which they are shown. If several name a command, the first one is the advice."""
USUAL = ("queue", "dependency", "preempted")
"""Kinds of causes that are normal."""
UNEXPLAINED = {"killed", "failed", "never_started"}
"""Kinds of causes that only the logs can explain."""


@dataclass(frozen=True)
class Explanation:
    """Why one launch or run is not done, and what to do."""

    name: str
    state: str
    summary: str
    findings: tuple[Cause, ...]
    command: str | None
    """What to do; None if there is nothing to do, or only to wait."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def explain(watched: Watched, word: Path) -> Explanation:
    """Explain the newest of the launches and runs. `word` is what the user calls it; the command uses it."""
    newest = watched.newest()
    if newest.launches:
        return explain_launch(newest.launches[0], ask_queue(newest.launches), word)
    return explain_run(newest.runs[0], word)


# ---------------------------------------------------------------------------------------------------- launches


def explain_launch(folder: LaunchDir, queue: Queue, word: Path) -> Explanation:
    """Explain a launch. RunError if it, or a plan of its runs, cannot be read."""
    launch, status = folder.load(), read_launch(folder, queue)
    findings = list(_about_version(launch))
    for index, stage in enumerate(status.stages):
        if stage.state != "done":
            findings += _about_stage(launch, index, stage, queue, word)
    if status.state == "cancelled":
        findings.append(Cause("cancelled", "Cancelled by `deg cancel`"))
    if queue.problem:
        findings.append(Cause("queue", "The queue could not be asked", (queue.problem,)))
    findings.sort(key=lambda finding: ORDER.index(finding.kind))
    return Explanation(
        folder.name, status.state, _summary(status, findings), tuple(findings), _command(status, findings, queue, word)
    )


def _about_version(launch: Launch) -> Iterator[Cause]:
    if launch.deg != __version__ and launch.image is not None:
        cause = f"The jobs were submitted by deg {launch.deg}; this is deg {__version__}"
        yield Cause("version", cause, (f"image: {show_path(launch.image)}",))


def _about_stage(launch: Launch, index: int, status: StageStatus, queue: Queue, word: Path) -> Iterator[Cause]:
    stage = launch.stages[index]
    submitted = [job for job in launch.folder.jobs() if job.stage == index]
    jobs = jobs_of(queue, submitted)
    run = launch.run_of(index)
    found: list[Cause] = []
    if status.work is not None:
        accounts = in_accounts([job.job for job in submitted if job.role == "execute"], former=True)
        ended = ended_attempts(launch.folder, run, jobs, queue.is_known, accounts)
        found += explain_units(launch, stage, run, ended)
        found += explain_given_up(stage.name, run)
        found += explain_recordings(stage.name, run, f"deg check {_quoted(launch.project)} --deep")
    yield from found
    yield from _about_waiting(status, jobs)
    if status.state in ("failed", "stalled") and not was_cancelled(launch.folder, launch.folder.jobs()):
        merges = [job.job for job in submitted if job.role == "merge"]
        yield from _about_merge(launch, status, merges, explained=bool(found))


def _about_waiting(status: StageStatus, jobs: Mapping[str, JobState]) -> Iterator[Cause]:
    by_reason: dict[str, list[JobState]] = defaultdict(list)
    for job in jobs.values():
        if job.state == "PENDING":
            by_reason[job.reason].append(job)
    for reason, waiting in by_reason.items():
        kind = "dependency" if reason.startswith("Dependency") else "queue"
        if reason == "Dependency":
            continue  # as it should: the stage before it is not done
        names = shown([job.job for job in waiting])
        count = f"{len(waiting)} job{'s' if len(waiting) > 1 else ''}"
        yield Cause(kind, f"In the queue: {status.name}, {count}: {wait_in_words(reason)}", (", ".join(names),))


def _about_merge(launch: Launch, status: StageStatus, merges: Sequence[str], *, explained: bool) -> Iterator[Cause]:
    """Yield what a merge job reported, or the last lines of its log if it died."""
    if status.state == "failed" and status.message:
        yield Cause("merge", f"{status.name} failed: {status.message}")
        return
    if not merges:
        yield Cause("merge", f"{status.name}: no merge job was submitted")
        return
    lines = last_words(launch.folder.jobs_folder / f"{merges[-1]}_0_log.err")
    symptom = symptom_of(lines)
    if symptom is not None:
        evidence = (*([symptom.advice] if symptom.advice else []), *lines[-SHOWN:])
        cause = f"{symptom.meaning}: {status.name}, job {merges[-1]}"
        yield Cause(symptom.kind, cause, evidence, command=symptom_command(symptom, launch))
    elif not explained:
        cause = f"{status.name}: no job in the queue would continue it. The last lines of job {merges[-1]}:"
        yield Cause("merge", cause, lines[-SHOWN:] or ("(none)",))


def _summary(status: LaunchStatus, findings: Sequence[Cause]) -> str:
    at = [stage for stage in status.stages if stage.state in ("running", "waiting")]
    if status.state == "finished":
        partly = [stage.name for stage in status.stages if stage.state == "partly"]
        return f"Done, except for some recordings: {', '.join(partly)}." if partly else "Done."
    if status.state == "running":
        well = all(finding.kind in USUAL for finding in findings)
        return f"Running {'without problems' if well else 'in spite of problems'}: {at[0].name}."
    if status.state == "waiting":
        return f"Waiting in the queue: {at[0].name}."
    return {
        "failed": "It failed, and nothing more happens by itself.",
        "cancelled": "It was cancelled. Finished work is kept.",
        "stalled": "It is not done, and no job in the queue would do the rest.",
    }.get(status.state, "The queue could not be asked, so it is unknown whether any jobs still run or wait.")


def _command(status: LaunchStatus, findings: Sequence[Cause], queue: Queue, word: Path) -> str | None:
    partly = any(stage.state == "partly" for stage in status.stages)
    if status.state not in OVER or (status.state == "finished" and not partly):
        vain = any(job.state == "PENDING" and waits_in_vain(job.reason) for job in queue.jobs.values())
        return f"deg cancel {_quoted(word)}" if vain and status.state == "waiting" else None
    return _advice(findings, word)


def _advice(findings: Sequence[Cause], word: Path) -> str:
    """Return the command to run next: `deg resume` with the options of all findings, or what one of them names."""
    options = list(dict.fromkeys(option for finding in findings for option in finding.options))
    kinds = {finding.kind for finding in findings}
    if not options and (commands := [finding.command for finding in findings if finding.command]):
        return commands[0]
    if not options and "given_up" in kinds and kinds & UNEXPLAINED:
        return f"deg logs {_quoted(word)}"  # resuming would end the same way
    return " ".join(["deg", "resume", _quoted(word), *map(shlex.quote, options)])


def _quoted(path: Path) -> str:
    return shlex.quote(show_path(path))


# ---------------------------------------------------------------------------------------------------- local runs


def explain_run(run: RunDir, word: Path) -> Explanation:
    """Explain a run on this machine. RunError if it has no plan that can be read."""
    status = open_run(run).status()
    findings = [*explain_given_up(status.stage, run), *explain_recordings(status.stage, run, _check(run))]
    if status.state == "interrupted":
        findings += _about_deaths(run)
    if status.state == "running":
        return Explanation(run.name, status.state, f"Running: {status.how_far}.", tuple(findings), None)
    if status.state == "finished":
        summary = "Done, except for some recordings." if findings else "Done."
        return Explanation(run.name, status.state, summary, tuple(findings), findings[0].command if findings else None)
    holder = run.holder()
    which = "" if holder is None else f" ({holder[1]} on {holder[0]})"
    summary = f"It is not done ({status.how_far}), and the process that worked on it{which} has ended."
    return Explanation(run.name, status.state, summary, tuple(findings), _advice(findings, word))


def _check(run: RunDir) -> str:
    return f"deg check {_quoted(run.path.parent.parent)} --deep"


def _about_deaths(run: RunDir) -> Iterator[Cause]:
    """Yield how workers or ranks have died since the run was last claimed."""
    deaths: list[dict[str, Any]] = []
    for event in run.events():
        if event["event"] == "claimed":
            deaths.clear()
        elif event["event"] == "worker_died" or (event["event"] == "rank_ended" and event["status"] not in (0, 75)):
            deaths.append(event)
    if not deaths:
        return
    evidence = [
        f"{'rank ' + str(event['rank']) if 'rank' in event else 'worker'}, unit {event['unit']}: "
        f"{describe_exit(event['status'])}"
        for event in deaths
    ]
    lines = [line for file in sorted(run.path.glob("jobs/*.log")) for line in last_words(file)]
    symptom = symptom_of(lines)
    kind = "killed" if symptom is None else symptom.kind
    cause = "Processes died" if symptom is None else symptom.meaning
    newest = max(run.path.glob("jobs/*.log"), key=lambda file: file.stat().st_mtime_ns, default=None)
    last = () if newest is None else (f"The last lines of {newest.name}:", *last_words(newest)[-SHOWN:])
    yield Cause(kind, cause, (*shown(evidence), *last))
