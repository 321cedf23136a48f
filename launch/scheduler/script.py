"""Submits jobs to Slurm through submitit: turns the cluster's options into flags of sbatch, and writes batch scripts.

A job runs `srun bash container.sh -u -m submitit.core._submit ...` on its host, and then after.sh.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from deg.errors import LaunchError
from deg.launch.scheduler.queue import run_scheduler
from deg.options.forms import sbatch_flag, time_limit_minutes
from deg.options.schema import Cluster

SBATCH_SECONDS = 180
"""An sbatch that takes longer than this, in seconds, is ended."""
RANKS_END_SECONDS = 120
"""Seconds that srun lets the other ranks run after one has ended. They save after the same step."""
SLURM_ARRAY_SIZE = 1000
"""Largest number of array elements if the site does not say otherwise. Slurm's default for MaxArraySize is 1001."""


OUTLIVE_WORK = "trap : TERM USR1 USR2  # which Slurm may send to this shell as well as to the work"
DEAF = "trap '' TERM USR1 USR2"
"""Line before what follows the work: a signal that was meant for the work must not cut it short."""
TELL_END = (
    "export DEG_JOB_END=${SLURM_JOB_END_TIME:-"
    "$(SLURM_TIME_FORMAT=%s timeout 60 squeue --noheader --format=%e "
    "--jobs=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID})}"
)
"""Line that finds out when the time limit comes; Slurm itself says it from 23.02 on. It names the element of an array,
because one element has the job id of the whole array."""


@dataclass(frozen=True)
class Need:
    """What one job asks for. All else is the same for all jobs of a cluster."""

    name: str
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    time: str | None
    partition: str | None


def training_need(cluster: Cluster, name: str) -> Need:
    """Return what a training needs: all its ranks in one job."""
    return Need(name, cluster.nodes or 1, tasks_per_node(cluster), gpus(cluster), cluster.time, cluster.partition)


def worker_need(cluster: Cluster, name: str) -> Need:
    """Return what one worker of an inference needs."""
    return Need(name, 1, 1, min(gpus(cluster), 1), cluster.time, cluster.partition)


def merge_need(cluster: Cluster, name: str) -> Need:
    """Return what a job between two stages needs."""
    return Need(name, 1, 1, 0, cluster.merge_time, cluster.merge_partition or cluster.partition)


def gpus(cluster: Cluster) -> int:
    """Return the number of GPUs of a training on each node."""
    return cluster.gpus_per_node or 0


def tasks_per_node(cluster: Cluster) -> int:
    """Return the number of ranks of a training on each node."""
    return max(gpus(cluster), 1) if cluster.tasks_per_node == "auto" else cluster.tasks_per_node


def stop_ahead(cluster: Cluster, need: Need) -> int:
    """Return how many seconds before its limit a job is told to stop: at most a quarter of its time; 0 for never."""
    ahead = cluster.stop_ahead or 0
    return ahead if need.time is None else min(ahead, int(time_limit_minutes(need.time) * 60 / 4))


def parameters(cluster: Cluster, need: Need) -> tuple[dict[str, Any], frozenset[str]]:
    """Return what submitit writes into a batch script, and the flags that must be taken out of it again."""
    more: dict[str, Any] = {"kill-on-invalid-dep": "yes", "requeue" if cluster.requeue else "no-requeue": True}
    given: dict[str, Any] = {
        "job_name": need.name,
        "partition": need.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": need.time,
        "nodes": need.nodes,
        "ntasks_per_node": need.tasks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "signal_delay_s": stop_ahead(cluster, need),
        "wckey": None,
        "srun_args": [f"--wait={RANKS_END_SECONDS}"],
    }
    if cluster.cpus_per_task is not None:  # Slurm 22.05 to 23.02 does not pass it on to srun
        given["srun_args"].append(f"--cpus-per-task={cluster.cpus_per_task}")
    if cluster.memory_gb is not None:
        mib = cluster.memory_gb * 1024
        if cluster.memory_flag == "mem":
            given["mem"] = f"{math.ceil(mib * need.tasks_per_node)}M"
        else:
            given["mem_per_cpu"] = f"{math.ceil(mib / (cluster.cpus_per_task or 1))}M"
    if need.gpus_per_node:
        kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
        if cluster.gpu_flag == "gpus_per_node":
            given["gpus_per_node"] = f"{kind}{need.gpus_per_node}"
        elif cluster.gpu_flag == "gres":
            given["gres"] = f"gpu:{kind}{need.gpus_per_node}"
        else:
            more["gpus"] = f"{kind}{need.gpus_per_node * need.nodes}"
    dropped = {name for name, value in (("nodes", cluster.nodes), ("signal", cluster.stop_ahead)) if value is None}
    for flag in cluster.sbatch:
        name, value = sbatch_flag(flag)
        if value is None:
            dropped.add(name)
        else:
            more[name] = value or True
    return {**given, "additional_parameters": more}, frozenset(dropped)


@dataclass(frozen=True)
class Script:
    """A batch script before it is submitted."""

    need: Need
    call: Callable[..., object]
    """Importable function that each process of the job calls."""
    words: tuple[str, ...]
    """Arguments of `call`."""
    after: tuple[str, ...]
    """Arguments of after.sh that follow the exit status."""
    elements: int | None = None
    """Number of elements of an array; None for a single job."""
    before: tuple[str, ...] = ()
    """Lines of shell that run on the host before srun."""


class Submitter(submitit.SlurmExecutor):
    """submitit's executor, in which flags can be taken away and the elements of an array share one pickle."""

    def __init__(self, folder: Path, cluster: Cluster, container: Path, after: Path):
        """Take a folder for pickles, scripts and the scheduler's output, and the scripts container.sh and after.sh."""
        _require_slurm()
        super().__init__(folder, max_num_timeout=0, python=f"bash {shlex.quote(str(container))}")
        self._cluster, self._after = cluster, after
        self._dropped: Collection[str] = ()

    def text(self, script: Script, dependency: str | None = None) -> str:
        """Return the text of the batch script."""
        self._prepare(script, dependency)
        return self._make_submission_file_text(self._submitit_command_str, "")

    def submit_script(self, script: Script, dependency: str | None = None) -> str:
        """Submit a script and return the job id. Raises LaunchError with the scheduler's words if it refuses."""
        self._prepare(script, dependency)
        pickle = self.pickle(script, self.folder / f".{uuid.uuid4().hex}.pkl")
        try:
            with _outside_any_job():
                job = self._submit_command(self._submitit_command_str)
            names = [job.job_id]
            if script.elements is not None:
                names = [f"{job.job_id}_{element}" for element in range(script.elements)]
            for name in names:
                shutil.copyfile(pickle, self.folder / f"{name}_submitted.pkl")
        except (FailedJobError, FailedSubmissionError) as error:
            raise LaunchError(_refusal(str(error), self.text(script, dependency))) from None
        finally:
            for left in (pickle, *self.folder.glob(".submission_file_*.sh")):
                left.unlink(missing_ok=True)
        return str(job.job_id)

    def pickle(self, script: Script, path: Path) -> Path:
        """Write what the job's processes load: one importable function, and strings as its arguments."""
        path.parent.mkdir(parents=True, exist_ok=True)
        delayed = DelayedSubmission(script.call, *script.words)
        delayed.set_timeout(0, 0)
        delayed.dump(path)
        return path

    def _prepare(self, script: Script, dependency: str | None) -> None:
        given, self._dropped = parameters(self._cluster, script.need)
        after = f'bash {shlex.quote(str(self._after))} "$status" {shlex.join(script.after)}'
        self.parameters = {
            **given,
            "dependency": dependency,
            "array_parallelism": self._cluster.jobs,
            "setup": [OUTLIVE_WORK, *self._tell_end(script.need), *script.before],
            "teardown": ["status=$?", DEAF, after],
        }
        if script.elements is not None:
            self.parameters["map_count"] = script.elements

    def _tell_end(self, need: Need) -> list[str]:
        """Return lines that tell the job's processes when it ends.

        They stop by the clock, too: a signal may not come.
        """
        ahead = stop_ahead(self._cluster, need)
        return [TELL_END, f"export DEG_STOP_AHEAD={ahead}"] if ahead else []

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        lines = super()._make_submission_file_text(command, uid).splitlines()
        return "\n".join(line for line in lines if _flag_of(line) not in self._dropped) + "\n"

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["timeout", str(SBATCH_SECONDS), "sbatch", str(submission_file_path)]


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hide the variables of a job that this process may be in. sbatch would take them for options."""
    where = os.environ.get("SLURM_CONF")
    with clean_env():
        if where is not None:
            os.environ["SLURM_CONF"] = where
        yield


def for_again(text: str) -> str:
    """Return a batch script for submitting again, without the flags that held for the first time only."""
    lines = text.splitlines()
    return "\n".join(line for line in lines if _flag_of(line) not in ("array", "dependency")) + "\n"


def _flag_of(line: str) -> str | None:
    found = re.match(r"#SBATCH --([a-z-]+)", line)
    return found[1] if found else None


def _require_slurm() -> None:
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise LaunchError(
            "Expected Slurm's commands sbatch and srun, found none. Run this on a login node of the cluster (perhaps "
            "after `module load slurm`), or without --on slurm to work on this machine."
        )


def _refusal(words: str, text: str) -> str:
    """Return the message of a refusal, with the flags that were refused."""
    said = [line for line in words.splitlines() if "error" in line.lower()] or words.splitlines()[-3:]
    flags = " ".join(line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH"))
    return (
        f"sbatch refused the job: {' '.join(said) or 'it did not answer in time'}\nThe flags were {flags}\nSet "
        "the cluster.* option at fault, or take a flag away, as do cluster.memory_gb=null and "
        "'cluster.sbatch=[open-mode=null]'."
    )


def test_only(text: str) -> str:
    """Return what `sbatch --test-only` says about a script: when it would begin, or why it would be refused."""
    _require_slurm()
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file, _outside_any_job():
        file.write(text)
        file.flush()
        try:
            asked = subprocess.run(
                ["sbatch", "--test-only", file.name], capture_output=True, text=True, timeout=SBATCH_SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"sbatch --test-only did not answer within {SBATCH_SECONDS} s"
    return (asked.stdout + asked.stderr).strip()


def array_size(cluster: Cluster) -> int:
    """Return the largest number of elements of one array at this site."""
    if cluster.max_array_size is not None:
        return cluster.max_array_size
    try:
        told = run_scheduler(["scontrol", "show", "config"])
    except LaunchError:
        return SLURM_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", told, re.MULTILINE)
    # the largest index is one less than MaxArraySize
    return max(int(found[1]) if found else SLURM_ARRAY_SIZE, 1)


def gpu_hours(needs: Sequence[tuple[Need, int]]) -> float | None:
    """Return the most GPU hours that jobs can take, given needs and numbers of jobs; None without time limits."""
    total = 0.0
    for need, count in needs:
        if need.gpus_per_node and need.time is None:
            return None
        total += count * need.nodes * need.gpus_per_node * time_limit_minutes(need.time or "1") / 60
    return total
