"""What the jobs of a launch do. submitit calls `work` inside the image, with strings as arguments.

    work("execute", LAUNCH, STAGE, FIRST)    do the units of one array element, or be one rank of a training
    work("merge", LAUNCH, STAGE)             merge a stage, then plan the next one or, after the last, write the report

Jobs share nothing but files. `work` never returns: its exit status tells the job's script on the host (after.sh) what
to do. 75 means that the work stopped cleanly or, for a merge job, that something must be submitted again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from deg import execute as door
from deg.data.atomic import write_atomically
from deg.data.json_lines import read_lines
from deg.errors import DegError
from deg.launch.on.slurm.orders import request_of, workers_on
from deg.launch.say import say
from deg.launch.scheduler.launches import Launch, LaunchDir, Verdict
from deg.launch.stages.chain import may_continue
from deg.launch.stages.report import write_report
from deg.launch.stages.request import StageReport
from deg.launch.stages.stage import answer_of, merge_run, plan_run
from deg.options.schema import Cluster
from deg.runs.attempts import ThisJob, bad_hosts, read_attempts, why_given_up
from deg.runs.rundir import RunDir, read_error, steps_done
from deg.runs.state import open_run
from deg.work import CORES, STOPPED, StopFlag, Stopped, leave

FAILED = 1
RANK_ZERO_SECONDS = 1800.0
"""Longest time that ranks wait for the first one to write the files of a finished phase, in seconds."""


def work(*words: str) -> NoReturn:
    """Do what the words say, then end the process. submitit writes no result then, which nobody would read."""
    leave(do(*words))


def do(role: str, folder: str, stage: str, *rest: str) -> int:
    """Do one job's part; return the exit status. Replaces signal handlers first: submitit's would requeue the job."""
    stop = StopFlag(_deadline(os.environ))
    stop.install()
    try:
        launch = LaunchDir(Path(folder)).load()
        return execute(launch, int(stage), int(*rest), stop) if role == "execute" else merge(launch, int(stage), stop)
    except Stopped:
        return STOPPED
    except DegError as error:
        say(f"Error: {error}")
        return error.exit_status
    finally:
        stop.ignore()


# ---------------------------------------------------------------------------------------------------- execute


def execute(launch: Launch, index: int, first: int, stop: StopFlag) -> int:
    """Do the units of this array element, or train as this rank. Return the exit status."""
    stage = launch.stages[index]
    run = launch.run_of(index)
    if run.done_file.exists() or not run.plan_file.exists():
        say(f"{stage.name}: there was nothing to do.")
        return 0
    element = first + int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))
    is_first = int(os.environ.get("SLURM_PROCID", 0)) == 0
    os.environ.update(this_job(launch.cluster, os.environ).to_environment())
    found = open_run(run)
    undone = [unit for unit in found.share(element, stage.elements) if not found.is_unit_done(unit)]

    def begins(unit: int) -> None:
        if is_first:
            _say_where(launch.folder, index, element, unit)

    if undone and found.continues_after_failure:
        os.environ.update(_share_of_cores(os.environ))
        begins(undone[0])  # a death while the network is loaded counts as one of this unit
        status = door.main([str(run.path), *map(str, undone)], stop, begins)
        return 0 if status == FAILED else status  # those units are at fault, and their error.json files say why
    for unit in undone:
        if status := door.main([str(run.path), str(unit)], stop, begins):
            return status
        # the first rank may still be writing, and srun ends all ranks soon after one has ended
        deadline = time.monotonic() + RANK_ZERO_SECONDS
        while not found.is_unit_done(unit) and time.monotonic() < deadline:
            stop.check()
            time.sleep(0.5)
    return 0


def _share_of_cores(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that tells this process its share of the cores. Not every cluster binds jobs to theirs."""
    cores = environment.get("SLURM_CPUS_PER_TASK", "")
    return {CORES: cores} if cores.isdecimal() else {}


def this_job(cluster: Cluster, environment: Mapping[str, str]) -> ThisJob:
    """Read from the environment which job of Slurm started this process."""
    name = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        name = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    ends = _deadline(environment)
    restart = int(environment.get("SLURM_RESTART_COUNT") or 0)
    return ThisJob(name, restart, cluster.restarts, None if ends == math.inf else ends)


def _deadline(environment: Mapping[str, str]) -> float:
    """Return when the work must stop, ahead of its time limit, in seconds since 1970; infinity if nothing says when."""
    end, ahead = environment.get("DEG_JOB_END", ""), environment.get("DEG_STOP_AHEAD", "")
    return float(end) - float(ahead) if end.isdecimal() and ahead.isdecimal() else math.inf


def _say_where(folder: LaunchDir, index: int, element: int, unit: int) -> None:
    """Tell the script on the host which unit this element is doing."""
    folder.stage_folder(index).mkdir(parents=True, exist_ok=True)
    write_atomically(folder.stage_folder(index) / f"at-{element}", str(unit))


# ---------------------------------------------------------------------------------------------------- merge


def merge(launch: Launch, index: int, stop: StopFlag) -> int:
    """Merge a stage and plan the next one, or ask for units to be computed again. Return the exit status."""
    stop.check()
    folder, stage, restarts = launch.folder, launch.stages[index], launch.cluster.restarts
    run = launch.run_of(index)
    folder.stage_folder(index).mkdir(parents=True, exist_ok=True)
    if index and not folder.is_done(index - 1):
        folder.set_verdict(index, Verdict("failed", f"{launch.stages[index - 1].name} is not done", FAILED))
        return FAILED
    if run.plan_file.exists() and (left := units_left(run, restarts)):
        rounds = [job.round for job in folder.jobs() if job.stage == index and job.role == "execute"]
        round = 1 + (rounds[-1] if rounds else 0)
        excluded, progress = bad_hosts(run.path), open_run(run).progress()
        if fruitless_rounds(folder, index, progress) < restarts:
            ask_again(launch, index, sorted({unit % stage.elements for unit in left}), excluded, round)
            folder.set_verdict(index, Verdict("again", f"{len(left)} of its units are still to be done"))
            folder.log_event("again", stage=index, units=left, excluded=excluded, round=round, progress=progress)
            return STOPPED
    verdict = _merged(launch, index, stop)
    folder.set_verdict(index, verdict)
    folder.log_event("merged", stage=index, state=verdict.state, message=verdict.message)
    return verdict.exit_status if verdict.state == "failed" else 0


def fruitless_rounds(folder: LaunchDir, index: int, progress: int) -> int:
    """Count how many times in a row a stage was submitted again without any progress since."""
    count = 0
    for event in reversed(read_lines(folder.path / "events.jsonl")):
        if event["event"] == "resumed" or (event.get("stage") == index and event.get("progress", progress) != progress):
            break
        count += event["event"] == "again" and event["stage"] == index
    return count


def _merged(launch: Launch, index: int, stop: StopFlag) -> Verdict:
    """Merge a stage, then plan the next one or write the report. Return how that ended."""
    verdict = Verdict("done")
    run = launch.run_of(index)
    if run.plan_file.exists():
        if (reason := open_run(run).why_undone()) is not None:
            say(f"{run.name}: {reason}")
            return Verdict("failed", reason, FAILED)
        merged = answer_of(lambda: merge_run(request_of(launch, index)))
        if merged.exit_status:
            stop.check()
            if not may_continue(launch.project, merged):
                return Verdict("failed", merged.reason, merged.exit_status)
            verdict = Verdict("partly", merged.reason, merged.exit_status)
    following = [number for number in range(index + 1, len(launch.stages)) if not launch.folder.is_done(number)]
    if following:
        after = answer_of(lambda: _plan(launch, following[0]))
    elif launch.report:
        after = answer_of(lambda: write_report(launch.project))
    else:
        return verdict
    if after.exit_status:
        stop.check()
    return Verdict("failed", after.reason, after.exit_status) if after.exit_status > FAILED else verdict


def _plan(launch: Launch, index: int) -> StageReport:
    request = request_of(launch, index)
    return plan_run(request, workers_on(launch.cluster, request))


def units_left(run: RunDir, most: int) -> list[int]:
    """Return the undone units that are worth another attempt."""
    found = open_run(run)
    if found.close_if_complete():
        return []
    undone = found.undone()
    if found.in_order:
        return undone if undone and not _is_given_up(run, undone[0], most) else []
    return [unit for unit in undone if not _is_given_up(run, unit, most)]


def _is_given_up(run: RunDir, unit: int, most: int) -> bool:
    """Whether a unit is given up. If it is, write the reason to its error.json."""
    folder = run.unit_folder(unit)
    reason = why_given_up(read_attempts(folder), steps_done(folder / "state"), most)
    if reason is not None and read_error(run, unit) is None:
        write_atomically(run.error_file(unit), json.dumps({"message": f"given up: {reason}"}))
    return reason is not None


def ask_again(launch: Launch, index: int, elements: Sequence[int], excluded: Sequence[str], round: int) -> None:
    """Ask the script on the host to submit arrays again: write `again`, with a line for each array."""
    size = launch.array_size
    nodes = ",".join(excluded) or "-"
    lines = []
    if launch.stages[index].verb == "train":
        lines = [f"0 - {nodes} {round}"]
    else:
        for chunk in sorted({element // size for element in elements}):
            of_chunk = [str(element % size) for element in elements if element // size == chunk]
            lines.append(f"{chunk} {','.join(of_chunk)} {nodes} {round}")
    write_atomically(launch.folder.stage_folder(index) / "again", "\n".join(lines) + "\n")
