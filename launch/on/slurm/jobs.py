"""What jobs of a scheduler do: the callable that submitit starts, in the image, with texts as arguments.

    work("execute", LAUNCH, STAGE, FIRST)    the units of one element of an array, or one rank of a training
    work("merge", LAUNCH, STAGE)             merge a stage, plan the next one; after the last one report

Nothing is remembered between jobs but files. It never returns: the exit status tells the job's script on the host
(after.sh) what to do. 75: stopped cleanly, or, of a merge job, that something is to be submitted again.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deg import execute as door
from deg.data.atomic import write_atomically
from deg.data.json_lines import read_lines
from deg.errors import DegError
from deg.launch.on.slurm.launches import Launch, LaunchDir, Verdict
from deg.launch.on.slurm.orders import request_of
from deg.launch.say import say
from deg.launch.stages.chain import may_go_on
from deg.launch.stages.report import write_report
from deg.launch.stages.stage import answer_of, merge_run, plan_run
from deg.runs.attempts import Attempt, Job, hopeless, read_attempts
from deg.runs.rundir import RunDir, read_error, steps_done
from deg.runs.state import open_run
from deg.work import STOPPED, StopFlag, Stopped

FAILED = 1
RANK_ZERO_SECONDS = 1800.0
"""How long ranks wait for the first one to write what is to be written at the end of a training."""


def work(*words: str) -> None:
    """Do what the words say, and end the process. Signals are taken over first: submitit would requeue by itself."""
    role, folder, stage, *rest = words
    stop = StopFlag(_deadline(os.environ))
    stop.install()
    try:
        if role == "execute":
            status = execute(LaunchDir(Path(folder)), int(stage), int(rest[0]), stop)
        else:
            status = merge(LaunchDir(Path(folder)), int(stage), stop)
    except Stopped:
        status = STOPPED
    except DegError as error:
        say(f"Error: {error}")
        status = error.exit_status
    stop.ignore()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)  # not an Exception, so submitit writes no result, which nobody would read


# ---------------------------------------------------------------------------------------------------- execute


def execute(launch: LaunchDir, index: int, first: int, stop: StopFlag) -> int:
    """Do the units of this element, or train as this rank."""
    spec = launch.load()
    stage = spec.stages[index]
    run = launch.run_of(stage)
    if run.done_file.exists() or not run.plan_file.exists():
        say(f"{stage.name}: there was nothing to do.")
        return 0
    element = first + int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))
    is_first = int(os.environ.get("SLURM_PROCID", 0)) == 0
    os.environ.update(this_job(spec.cluster, os.environ).to_environment())
    found = open_run(run)
    for unit in found.share(element, stage.elements):
        if found.is_unit_done(unit):
            continue
        if is_first:
            _say_where(launch, index, element, unit)
        status = door.main([str(run.path), str(unit)], stop)
        if status == FAILED and found.goes_on_after_failure:
            continue  # the unit is at fault, and its error.json says why
        if status:
            return status
        # the first rank writes what is to be written; and srun ends all ranks soon after one has ended
        deadline = time.monotonic() + RANK_ZERO_SECONDS
        while not found.is_unit_done(unit) and time.monotonic() < deadline:
            stop.check()
            time.sleep(0.5)
    return 0


def this_job(cluster: Mapping[str, Any], environment: Mapping[str, str]) -> Job:
    """The job that Slurm started this process for."""
    name = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        name = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    ends = _deadline(environment)
    return Job(
        name, int(environment.get("SLURM_RESTART_COUNT") or 0), cluster["restarts"], None if ends == math.inf else ends
    )


def _deadline(environment: Mapping[str, str]) -> float:
    """When the work is to stop, ahead of its time limit, in seconds since 1970."""
    end, ahead = environment.get("DEG_JOB_END", ""), environment.get("DEG_STOP_AHEAD", "")
    return float(end) - float(ahead) if end.isdecimal() and ahead.isdecimal() else math.inf


def _say_where(launch: LaunchDir, index: int, element: int, unit: int) -> None:
    """Tell the script on the host which unit this element is at."""
    launch.stage_folder(index).mkdir(parents=True, exist_ok=True)
    write_atomically(launch.stage_folder(index) / f"at-{element}", str(unit))


# ---------------------------------------------------------------------------------------------------- merge


def merge(launch: LaunchDir, index: int, stop: StopFlag) -> int:
    """Merge a stage and plan the next, or ask for what is still to be computed."""
    stop.check()
    spec = launch.load()
    stage = spec.stages[index]
    run = launch.run_of(stage)
    launch.stage_folder(index).mkdir(parents=True, exist_ok=True)
    if index and not launch.is_done(index - 1):
        launch.set_verdict(index, Verdict("failed", f"{spec.stages[index - 1].name} is not done", FAILED))
        return FAILED
    if run.plan_file.exists() and (left := units_left(run, spec.cluster["restarts"])):
        rounds = [job.round for job in launch.jobs() if job.stage == index and job.role == "execute"]
        round = 1 + (rounds[-1] if rounds else 0)
        excluded, progress = bad_hosts(run), open_run(run).progress()
        if rounds_in_vain(launch, index, progress) < spec.cluster["restarts"]:
            ask_again(launch, index, sorted({unit % stage.elements for unit in left}), excluded, round)
            what = f"{len(left)} of its units are still to be done"
            launch.set_verdict(index, Verdict("again", what))
            launch.log_event("again", stage=index, units=left, excluded=excluded, round=round, progress=progress)
            return STOPPED
    verdict = _merged(launch, spec, index, stop)
    launch.set_verdict(index, verdict)
    launch.log_event("merged", stage=index, state=verdict.state, message=verdict.message)
    return verdict.exit_status if verdict.state == "failed" else 0


def rounds_in_vain(launch: LaunchDir, index: int, progress: int) -> int:
    """How many times a stage was submitted again, one after the other, that is no further now than it was then."""
    count = 0
    for event in reversed(read_lines(launch.path / "events.jsonl")):
        if event["event"] == "resumed" or (event.get("stage") == index and event.get("progress", progress) != progress):
            break
        count += event["event"] == "again" and event["stage"] == index
    return count


def _merged(launch: LaunchDir, spec: Launch, index: int, stop: StopFlag) -> Verdict:
    """Merge a stage, then plan the next one or write the report; what became of that."""
    stage = spec.stages[index]
    verdict = Verdict("done")
    run = launch.run_of(stage)
    if run.plan_file.exists():
        if (reason := open_run(run).why_undone()) is not None:
            say(f"{run.name}: {reason}")
            return Verdict("failed", reason, FAILED)
        merged = answer_of(lambda: merge_run(request_of(launch, spec, index)))
        if merged.exit_status:
            stop.check()
            if not may_go_on(spec.project, merged):
                return Verdict("failed", merged.reason, merged.exit_status)
            verdict = Verdict("partly", merged.reason, merged.exit_status)
    following = [number for number in range(index + 1, len(spec.stages)) if not launch.is_done(number)]
    if following:
        after = answer_of(lambda: plan_run(request_of(launch, spec, following[0])))
    elif spec.report:
        after = answer_of(lambda: write_report(spec.project))
    else:
        return verdict
    if after.exit_status:
        stop.check()
    return Verdict("failed", after.reason, after.exit_status) if after.exit_status > FAILED else verdict


def units_left(run: RunDir, most: int) -> list[int]:
    """The units that are worth another attempt."""
    found = open_run(run)
    if found.close_if_complete():
        return []
    undone = found.undone()
    if found.in_order:
        return undone if undone and _given_up(run, undone[0], most) is None else []
    return [unit for unit in undone if _given_up(run, unit, most) is None]


def _given_up(run: RunDir, unit: int, most: int) -> str | None:
    """Why there is to be no further attempt; a unit whose workers were killed is put aside with that reason."""
    folder = run.unit_folder(unit)
    reason = hopeless(read_attempts(folder), steps_done(folder / "state"), most)
    if reason is not None and read_error(run, unit) is None:
        write_atomically(run.error_file(unit), json.dumps({"message": f"given up: {reason}"}))
    return reason


def bad_hosts(run: RunDir) -> list[str]:
    """Hosts on which nothing was done, and something failed or died that others did, or may do, elsewhere."""
    attempts = [attempt for file in run.path.glob("units/*/attempts.jsonl") for attempt in read_attempts(file.parent)]
    good = {attempt.host for attempt in attempts if attempt.end in ("done", "stopped")}
    bad = {attempt.host for attempt in attempts if _went_wrong(attempt)}
    return sorted(bad - good) if good else []


def _went_wrong(attempt: Attempt) -> bool:
    return attempt.end == "failed" or (attempt.end is None and attempt.status not in (None, 0, STOPPED, 143, 140))


def ask_again(launch: LaunchDir, index: int, elements: Sequence[int], excluded: Sequence[str], round: int) -> None:
    """Leave word for the script on the host, a line for each array that is to be submitted again."""
    spec = launch.load()
    size = spec.array_size
    nodes = ",".join(excluded) or "-"
    lines = []
    if spec.stages[index].verb == "train":
        lines = [f"0 - {nodes} {round}"]
    else:
        for chunk in sorted({element // size for element in elements}):
            of_chunk = [str(element % size) for element in elements if element // size == chunk]
            lines.append(f"{chunk} {','.join(of_chunk)} {nodes} {round}")
    write_atomically(launch.stage_folder(index) / "again", "\n".join(lines) + "\n")
