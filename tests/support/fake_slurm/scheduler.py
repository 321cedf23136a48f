"""All jobs of the fake cluster: where they run and how they end. One process holds them, and calls `tick`."""

from __future__ import annotations

import getpass
import itertools
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fake_slurm.options import (
    Options,
    Refused,
    array_text,
    fill_pattern,
    node_names,
    node_text,
    parse_array,
    parse_gpus,
    parse_minutes,
)
from fake_slurm.site import Site

UNFINISHED = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")
MARK = "FAKE_SLURM_JOB"
"""Environment variable that identifies a job's processes, even after their parent has changed."""


@dataclass
class Job:
    """A job, or one element of an array. An element gets its own id when it starts; the last one takes the array's."""

    array_id: int
    element: int | None
    options: Options
    script: str
    cwd: str
    environment: dict[str, str]
    minutes: float
    submitted: float
    id: int | None = None
    throttle: int | None = None
    siblings: list[int] = field(default_factory=list)
    """Indices of all elements of the array."""
    state: str = "PENDING"
    reason: str = "None"
    held: bool = False
    dependency: str = ""
    excluded: list[str] = field(default_factory=list)
    restarts: int = 0
    eligible: float = 0.0
    started: float | None = None
    ended: float | None = None
    nodes: list[str] = field(default_factory=list)
    gpus: dict[str, list[int]] = field(default_factory=dict)
    exit: tuple[int, int] = (0, 0)
    """Exit status and signal."""
    batch: subprocess.Popen[bytes] | None = None
    steps: dict[int, list[int]] = field(default_factory=dict)
    """Process ids: the first process of each task, for each running step."""
    step_results: dict[int, int] = field(default_factory=dict)
    warned: bool = False
    ending: str | None = None
    """State that it gets once its processes are gone, or REQUEUED."""
    kill_at: float = 0.0

    @property
    def name(self) -> str:
        """Name of the job or element, as squeue shows it."""
        return str(self.array_id) if self.element is None else f"{self.array_id}_{self.element}"

    @property
    def raw_id(self) -> int:
        return self.array_id if self.id is None else self.id

    @property
    def num_nodes(self) -> int:
        return int((self.options.get("nodes") or "1").partition("-")[0])

    @property
    def tasks_per_node(self) -> int:
        given = self.options.number("ntasks-per-node", 0)
        return given or -(-self.options.number("ntasks", self.num_nodes) // self.num_nodes)

    @property
    def num_tasks(self) -> int:
        return self.options.number("ntasks", self.num_nodes * self.tasks_per_node)

    @property
    def cpus_per_node(self) -> int:
        return self.tasks_per_node * self.options.number("cpus-per-task", 1)

    @property
    def gpus_per_node(self) -> int:
        return parse_gpus(self.options)


class Scheduler:
    def __init__(self, folder: Path, site: Site):
        self.folder, self.site = folder, site
        self.jobs: list[Job] = []
        self.history: list[Job] = []
        """Earlier lives of requeued jobs."""
        self.down: set[str] = set()
        self._ids = itertools.count(site.first_job_id)

    # ------------------------------------------------------------------------------------------------------- requests

    def submit(self, options: Options, script: str, cwd: str, environment: dict[str, str], try_only: bool) -> int:
        """Submit a job and return its id. Raise `Refused` with sbatch's message."""
        for name in options.values:
            if name in self.site.forbidden:
                raise Refused(
                    f"sbatch: error: --{name} is not allowed on this cluster\n"
                    "sbatch: error: Batch job submission failed: Unspecified error"
                )
        partition = options.values.setdefault("partition", next(iter(self.site.partitions)))
        if partition not in self.site.partitions:
            raise _failed(f"invalid partition specified: {partition}", "Invalid partition name specified")
        minutes = parse_minutes(options.get("time") or str(self.site.partitions[partition]))
        elements: list[int | None] = [None]
        throttle = None
        if "array" in options:
            found, throttle = parse_array(options.values["array"], self.site.max_array_size)
            elements = [*found]
        now = time.time()
        job = Job(0, None, options, script, cwd, environment, minutes, now, eligible=now)
        job.dependency = self._check_dependency(options.get("dependency") or "")
        job.held = "hold" in options
        job.excluded = node_names(options.get("exclude") or "")
        job.throttle, job.siblings = throttle, [element for element in elements if element is not None]
        if job.num_nodes > len(self.site.nodes) or not self._could_fit(job):
            raise _failed(None, "Requested node configuration is not available")
        waiting = sum(job.state in UNFINISHED for job in self.jobs)
        if self.site.max_jobs is not None and waiting + len(elements) > self.site.max_jobs:
            raise _failed(
                "QOSMaxSubmitJobPerUserLimit",
                "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            )
        number = next(self._ids)
        if not try_only:
            self.jobs += [
                replace(
                    job,
                    array_id=number,
                    element=element,
                    id=number if element is None else None,
                    excluded=[*job.excluded],
                )
                for element in elements
            ]
        return number

    def find(self, word: str) -> list[Job]:
        """Return the jobs that `12`, `12_3` or `12_[1-3]` names; empty if there are none."""
        number, _, inner = word.partition("_")
        if not number.isdecimal():
            return []
        if inner:
            wanted = parse_array(inner.strip("[]"), 1 << 30)[0] if inner != "*" else None
            return [
                job for job in self.jobs if job.array_id == int(number) and (wanted is None or job.element in wanted)
            ]
        whole = [job for job in self.jobs if job.array_id == int(number)]
        return whole or [job for job in self.jobs if job.id == int(number)]

    def cancel(self, jobs: list[Job], number: int | None, batch_too: bool, full: bool) -> None:
        """End jobs, or send their steps a signal."""
        for job in jobs:
            if number is not None:
                self._signal(job, number, steps=not batch_too or full, batch=batch_too or full)
            elif job.state == "PENDING":
                self._finish(job, "CANCELLED")
            elif job.state == "RUNNING":
                self._terminate(job, "CANCELLED")

    def requeue(self, job: Job) -> None:
        """Requeue a job. Raise `Refused` if that is forbidden, or if the job is neither running nor done."""
        if self.site.requeue_forbidden or not self.may_requeue(job):
            raise Refused(f"Requested operation is presently disabled for job {job.name}")
        if job.state == "PENDING":
            raise Refused(f"Job is pending execution for job {job.name}")
        if job.state == "RUNNING":
            self._terminate(job, "REQUEUED")
        elif job.state not in UNFINISHED:
            self._put_back(job)

    def may_requeue(self, job: Job) -> bool:
        return ("requeue" in job.options or self.site.requeue) and "no-requeue" not in job.options

    def preempt(self, job: Job) -> None:
        """Send SIGTERM, and SIGKILL after `kill_wait`; requeue the job if that is allowed."""
        self._terminate(job, "REQUEUED" if self.may_requeue(job) else "PREEMPTED")

    def kill_node(self, node: str) -> None:
        """Kill everything on a node at once; its jobs are requeued or end with NODE_FAIL."""
        self.down.add(node)
        for job in self.jobs:
            if job.state in ("RUNNING", "COMPLETING") and node in job.nodes:
                job.ending = job.ending or ("REQUEUED" if self.may_requeue(job) else "NODE_FAIL")
                job.state, job.kill_at = "COMPLETING", 0.0
                _kill(self.processes(job), signal.SIGKILL)

    def end_of_memory(self, job: Job) -> None:
        """Kill the first process of the last step as the kernel would; the job will end as OUT_OF_MEMORY."""
        _kill([pid for pids in job.steps.values() for pid in pids][-1:], signal.SIGKILL)
        job.exit = (0, 125)

    def set_dependency(self, job: Job, text: str) -> None:
        job.dependency = self._check_dependency(text)

    def processes(self, job: Job) -> list[int]:
        """Return all living processes of the job: those with its mark, and those of its session that have lost it."""
        marks = {f"{MARK}={job.array_id}.{job.raw_id}".encode(), f"FAKE_SLURM={self.folder}".encode()}
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):
                    state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                    ours = job.batch is not None and int(session) == job.batch.pid
                    if state not in "ZX" and (ours or marks <= set((folder / "environ").read_bytes().split(b"\0"))):
                        found.append(int(folder.name))
        return found

    # ------------------------------------------------------------------------------------------------------------ time

    def tick(self) -> None:
        now = time.time()
        for job in self.jobs:
            if job.state in ("RUNNING", "COMPLETING"):
                self._watch(job, now)
        for job in self.jobs:
            if job.state == "PENDING":
                self._consider(job, now)

    def end_everything(self) -> None:
        for job in self.jobs:
            if job.state in ("RUNNING", "COMPLETING"):
                _kill(self.processes(job), signal.SIGKILL)

    def _watch(self, job: Job, now: float) -> None:
        assert job.batch is not None and job.started is not None
        ended = job.batch.poll() is not None
        limit = job.started + job.minutes * 60 / self.site.speed
        if job.state == "RUNNING" and not ended:
            name, ahead, batch = _signal_request(job.options)
            if name and not job.warned and now >= limit - ahead / self.site.speed:
                job.warned = True
                self._signal(job, getattr(signal, f"SIG{name}"), steps=not batch, batch=batch)
            if now >= limit:
                self._terminate(job, "TIMEOUT")
        elif job.state == "RUNNING":
            _kill(self.processes(job), signal.SIGKILL)
            status = job.batch.returncode
            if job.exit == (0, 125):
                state = "OUT_OF_MEMORY"
            else:
                job.exit = (status, 0) if status >= 0 else (0, -status)
                state = "FAILED" if status else "COMPLETED"
            self._finish(job, state)
        elif not (left := self.processes(job)) and ended:
            assert job.ending is not None
            status = job.batch.returncode
            job.exit = (0, 0) if job.ending == "TIMEOUT" else (status, 0) if status >= 0 else (0, -status)
            if job.ending == "REQUEUED":
                self._put_back(job)
            else:
                self._finish(job, job.ending)
        elif now >= job.kill_at:
            _kill(left, signal.SIGKILL)

    def _consider(self, job: Job, now: float) -> None:
        dependency = self._dependency_state(job)
        if dependency == "never":
            job.reason = "DependencyNeverSatisfied"
            if job.options.get("kill-on-invalid-dep") == "yes":
                self._finish(job, "CANCELLED")
        elif dependency == "wait":
            job.reason = "Dependency"
        elif job.held:
            job.reason = "JobHeldUser"
        elif job.minutes > self.site.partitions[job.options.values["partition"]]:
            job.reason = "PartitionTimeLimit"
        elif now < job.eligible:
            job.reason = "BeginTime"
        elif job.throttle and self._running_siblings(job) >= job.throttle:
            job.reason = "JobArrayTaskLimit"
        elif nodes := self._free_nodes(job):
            self._start(job, nodes, now)
        else:
            job.reason = "Resources"

    def _running_siblings(self, job: Job) -> int:
        return sum(one.array_id == job.array_id and one.state in ("RUNNING", "COMPLETING") for one in self.jobs)

    # ---------------------------------------------------------------------------------------------------- dependencies

    def _check_dependency(self, text: str) -> str:
        if text in ("", "0", "(null)"):
            return ""
        for part in text.replace("?", ",").split(","):
            kind, _, rest = part.partition(":")
            if kind not in ("after", "afterany", "afterok", "afternotok", "aftercorr", "singleton") or (
                not rest and kind != "singleton"
            ):
                raise _failed(None, "Job dependency problem")
        return text

    def _dependency_state(self, job: Job) -> str:
        """Return ready, wait or never. A job that the scheduler does not know counts as done, as in Slurm 22.05."""
        if not job.dependency:
            return "ready"
        verdicts = []
        for part in job.dependency.replace("?", ",").split(","):
            kind, _, rest = part.partition(":")
            if kind == "singleton":
                name = job.options.get("job-name")
                others = [one for one in self.jobs if one.options.get("job-name") == name and one.state == "RUNNING"]
                verdicts.append("wait" if others else "ready")
            for word in rest.split(":") if rest else []:
                jobs = self.find(word.partition("+")[0])
                if kind == "aftercorr":
                    jobs = [one for one in jobs if one.element == job.element] or jobs
                verdicts.append(_dependency_verdict(kind, jobs))
        if "?" in job.dependency:
            return "ready" if "ready" in verdicts else "never" if set(verdicts) == {"never"} else "wait"
        return "never" if "never" in verdicts else "wait" if "wait" in verdicts else "ready"

    # ----------------------------------------------------------------------------------------------------------- nodes

    def _could_fit(self, job: Job) -> bool:
        memory = job.options.get("mem") or "0"
        gib = {"K": 1 / 1048576, "M": 1 / 1024, "G": 1, "T": 1024}
        digits = memory.rstrip("BKMGTbkmgt")
        unit = memory[len(digits) :].upper().removesuffix("B") or "M"
        if not digits.isdecimal() or unit not in gib:
            raise Refused("sbatch: error: Invalid --mem specification")
        return (
            job.cpus_per_node <= self.site.cpus
            and job.gpus_per_node <= self.site.gpus
            and int(digits) * gib[unit] * 1024 <= self.site.memory_mb
        )

    def _free_nodes(self, job: Job) -> list[str]:
        wanted = node_names(job.options.get("nodelist") or "")
        free = []
        for node in wanted or self.site.nodes:
            there = [one for one in self.jobs if one.state in ("RUNNING", "COMPLETING") and node in one.nodes]
            cpus = self.site.cpus - sum(one.cpus_per_node for one in there)
            gpus = self.site.gpus - sum(one.gpus_per_node for one in there)
            alone = ("exclusive" in job.options or any("exclusive" in one.options for one in there)) and there
            usable = node not in self.down and node not in job.excluded and not alone
            if usable and cpus >= job.cpus_per_node and gpus >= job.gpus_per_node:
                free.append(node)
        return free[: job.num_nodes] if len(free) >= job.num_nodes else []

    # ------------------------------------------------------------------------------------------------------------ jobs

    def _start(self, job: Job, nodes: list[str], now: float) -> None:
        if job.id is None:
            unsplit = [one for one in self.jobs if one.array_id == job.array_id and one.id is None]
            job.id = job.array_id if len(unsplit) == 1 else next(self._ids)
        for node in nodes:
            there = [one for one in self.jobs if one.state in ("RUNNING", "COMPLETING") and node in one.nodes]
            taken = {gpu for one in there for gpu in one.gpus.get(node, [])}
            job.gpus[node] = [gpu for gpu in range(self.site.gpus) if gpu not in taken][: job.gpus_per_node]
        job.nodes, job.started, job.ended, job.reason = nodes, now, None, "None"
        job.state, job.warned, job.ending, job.steps, job.step_results = "RUNNING", False, None, {}, {}
        spool = self.folder / "spool" / f"job{job.id:05d}"
        spool.mkdir(parents=True, exist_ok=True)
        script = spool / "slurm_script"
        script.write_text(job.script)
        script.chmod(0o755)
        default = "slurm-%j.out" if job.element is None else "slurm-%A_%a.out"
        output = self._open(job, job.options.get("output") or default)
        error = self._open(job, job.options.values["error"]) if "error" in job.options else output
        environment = batch_environment(job, self.site, str(self.folder))
        try:
            job.batch = subprocess.Popen(
                [str(script)],
                cwd=job.options.get("chdir") or job.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output if output is not None else subprocess.DEVNULL,
                stderr=error if error is not None else subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            job.exit = (0, 53)
            self._finish(job, "FAILED")
        else:
            if output is None or error is None:
                job.exit = (0, 53)
                _kill([job.batch.pid], signal.SIGKILL)
                job.batch.wait()
                self._finish(job, "FAILED")
        finally:
            for handle in {output, error}:
                if handle is not None:
                    os.close(handle)

    def _open(self, job: Job, pattern: str) -> int | None:
        values = {
            "j": str(job.raw_id), "J": str(job.raw_id), "A": str(job.array_id), "a": str(job.element or 0),
            "x": job_name(job), "N": job.nodes[0], "n": "0", "t": "0", "s": "batch", "u": getpass.getuser(),
        }  # fmt: skip
        append = os.O_APPEND if (job.options.get("open-mode") or "").startswith("a") else os.O_TRUNC
        with suppress(OSError):
            path = Path(job.options.get("chdir") or job.cwd) / fill_pattern(pattern, values)
            return os.open(path, os.O_WRONLY | os.O_CREAT | append, 0o644)
        return None

    def _signal(self, job: Job, number: int, *, steps: bool, batch: bool) -> None:
        """Send a signal to the `steps`, the `batch` shell, or both. The shell's children are srun and the tasks."""
        if job.state != "RUNNING" or job.batch is None:
            return
        first = [pid for pids in job.steps.values() for pid in pids]
        if steps:
            _kill(_trees(first, self.processes(job)) if self.site.signal_everything else first, number)
        if batch:
            _kill([job.batch.pid], number)

    def _terminate(self, job: Job, ending: str) -> None:
        if job.state != "RUNNING":
            return
        job.ending, job.kill_at, job.state = ending, time.time() + self.site.kill_wait, "COMPLETING"
        processes = self.processes(job)
        _kill(processes, signal.SIGCONT)
        _kill(processes, signal.SIGTERM)

    def _put_back(self, job: Job) -> None:
        job.ended = time.time()
        self.history.append(replace(job, state="REQUEUED", batch=None))
        job.state, job.reason, job.restarts = "PENDING", "BeginTime", job.restarts + 1
        job.submitted, job.eligible = job.ended, job.ended + self.site.requeue_delay
        job.nodes, job.gpus, job.exit, job.started, job.ended = [], {}, (0, 0), None, None

    def _finish(self, job: Job, state: str) -> None:
        job.state, job.ended = state, time.time()
        job.reason = {"FAILED": "NonZeroExitCode", "TIMEOUT": "TimeLimit", "OUT_OF_MEMORY": "OutOfMemory"}.get(
            state, "None"
        )


def job_name(job: Job) -> str:
    return job.options.get("job-name") or "sbatch"


def batch_environment(job: Job, site: Site, folder: str) -> dict[str, str]:
    """Return the environment of a batch script, with names and values as in Slurm 22.05."""
    tasks, nodes = job.num_tasks, len(job.nodes)
    here = job.nodes[0]
    export = job.options.get("export") or "ALL"
    inherited = dict(job.environment)
    if export.split(",")[0] in ("NONE", "NIL"):
        inherited = {name: inherited[name] for name in ("HOME", "USER", "SHELL", "PATH") if name in inherited}
    elif export.split(",")[0] != "ALL":
        named = [word for word in export.split(",") if "=" not in word]
        inherited = {name: value for name, value in inherited.items() if name in named or name == "PATH"}
    inherited |= dict(word.split("=", 1) for word in export.split(",") if "=" in word)
    given = {
        "SLURM_CLUSTER_NAME": "fake", "SLURM_CPUS_ON_NODE": job.cpus_per_node, "SLURM_GTIDS": 0,
        "SLURM_JOBID": job.raw_id,
        "SLURM_JOB_CPUS_PER_NODE": _repeated(job.cpus_per_node, nodes), "SLURM_JOB_GID": os.getgid(),
        "SLURM_JOB_ID": job.raw_id, "SLURM_JOB_NAME": job_name(job), "SLURM_JOB_NODELIST": node_text(job.nodes),
        "SLURM_JOB_NUM_NODES": nodes, "SLURM_JOB_PARTITION": job.options.values["partition"],
        "SLURM_JOB_UID": os.getuid(),
        "SLURM_JOB_USER": getpass.getuser(), "SLURM_LOCALID": 0, "SLURM_NNODES": nodes, "SLURM_NODEID": 0,
        "SLURM_NODELIST": node_text(job.nodes), "SLURM_PROCID": 0, "SLURM_SUBMIT_DIR": job.cwd,
        "SLURM_SUBMIT_HOST": os.uname().nodename, "SLURM_TASKS_PER_NODE": _repeated(job.tasks_per_node, nodes),
        "SLURM_TOPOLOGY_ADDR": here, "SLURMD_NODENAME": here, MARK: f"{job.array_id}.{job.raw_id}",
        "FAKE_SLURM": folder,
    }  # fmt: skip
    if "ntasks" in job.options or "ntasks-per-node" in job.options:
        given |= {"SLURM_NTASKS": tasks, "SLURM_NPROCS": tasks}
    if "ntasks-per-node" in job.options:
        given["SLURM_NTASKS_PER_NODE"] = job.tasks_per_node
    if "cpus-per-task" in job.options:
        given["SLURM_CPUS_PER_TASK"] = job.options.values["cpus-per-task"]
    if "gpus-per-node" in job.options:
        given["SLURM_GPUS_PER_NODE"] = job.options.values["gpus-per-node"]
    if "open-mode" in job.options:
        given["SLURM_OPEN_MODE"] = job.options.values["open-mode"][0]
    if job.gpus_per_node:
        gpus = ",".join(map(str, job.gpus[here]))
        given |= {"SLURM_JOB_GPUS": gpus, "SLURM_GPUS_ON_NODE": job.gpus_per_node}
        # numbered from 0 in each job only if cgroups hide the others
        given |= {"CUDA_VISIBLE_DEVICES": gpus, "GPU_DEVICE_ORDINAL": gpus}
    if job.element is not None:
        given |= {
            "SLURM_ARRAY_JOB_ID": job.array_id, "SLURM_ARRAY_TASK_ID": job.element,
            "SLURM_ARRAY_TASK_COUNT": len(job.siblings), "SLURM_ARRAY_TASK_MIN": min(job.siblings),
            "SLURM_ARRAY_TASK_MAX": max(job.siblings), "SLURM_ARRAY_TASK_STEP": _step(job.siblings),
        }  # fmt: skip
    if job.restarts:
        given["SLURM_RESTART_COUNT"] = job.restarts
    if site.job_times:
        assert job.started is not None
        end = job.started + job.minutes * 60 / site.speed
        given |= {"SLURM_JOB_START_TIME": int(job.started), "SLURM_JOB_END_TIME": int(end)}
    return inherited | {name: str(value) for name, value in given.items()}


def pending_name(jobs: list[Job]) -> str:
    """Return a name such as 12_[3-5%2] for elements that wait together."""
    throttle = f"%{jobs[0].throttle}" if jobs[0].throttle else ""
    return f"{jobs[0].array_id}_[{array_text([job.element or 0 for job in jobs])}{throttle}]"


def _repeated(value: int, times: int) -> str:
    return str(value) if times == 1 else f"{value}(x{times})"


def _step(elements: list[int]) -> int:
    return elements[1] - elements[0] if len(elements) > 1 else 1


def _signal_request(options: Options) -> tuple[str | None, float, bool]:
    """Return the name of the signal, the seconds ahead of the end, and whether it is for the batch shell."""
    text = options.get("signal")
    if not text:
        return None, 0, False
    prefix, colon, rest = text.rpartition(":")
    name, _, ahead = rest.partition("@")
    return name.removeprefix("SIG"), float(ahead or 60), bool(colon) and "B" in prefix


def _dependency_verdict(kind: str, jobs: list[Job]) -> str:
    if kind == "after":
        return "wait" if any(job.state == "PENDING" for job in jobs) else "ready"
    ended = [job for job in jobs if job.state not in UNFINISHED]
    good = [job for job in ended if job.state == "COMPLETED"]
    if kind in ("afterok", "aftercorr") and len(good) < len(ended):
        return "never"
    if len(ended) < len(jobs):
        return "wait"
    if kind == "afternotok":
        return "never" if len(good) == len(jobs) else "ready"
    return "ready"


def _failed(detail: str | None, why: str) -> Refused:
    first = f"sbatch: error: {detail}\n" if detail else ""
    return Refused(f"{first}sbatch: error: Batch job submission failed: {why}")


def _kill(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _trees(roots: list[int], processes: list[int]) -> list[int]:
    """Return the roots and all their descendants among `processes`."""
    parents = {}
    for pid in processes:
        with suppress(OSError, IndexError, ValueError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)
