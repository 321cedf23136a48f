"""The answers of each command: exit status and text, from the words typed and the present jobs."""

from __future__ import annotations

import getpass
import itertools
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from fake_slurm.options import SBATCH, Refused, node_names, node_text, parse_minutes, parse_words, script_options
from fake_slurm.scheduler import UNFINISHED, Job, Scheduler, job_name, pending_name

VERSION = "slurm-wlm 22.05.8"
NO_ACCOUNTING = (
    "You are not running a supported accounting_storage plugin\nOnly 'accounting_storage/slurmdbd' is supported.\n"
)
COMPACT = {
    "PENDING": "PD", "RUNNING": "R", "COMPLETING": "CG", "COMPLETED": "CD", "FAILED": "F", "CANCELLED": "CA",
    "TIMEOUT": "TO", "NODE_FAIL": "NF", "PREEMPTED": "PR", "OUT_OF_MEMORY": "OOM", "REQUEUED": "RQ",
}  # fmt: skip


@dataclass
class Asked:
    """One call of a command, with its words and input."""

    words: list[str]
    cwd: str = "/"
    environment: dict[str, str] = field(default_factory=dict)
    script: str = ""
    """The text that sbatch read from its file or standard input."""


@dataclass
class Answer:
    status: int = 0
    out: str = ""
    err: str = ""


def answer(scheduler: Scheduler, program: str, asked: Asked) -> Answer:
    if asked.words[:1] in (["--version"], ["-V"]):
        return Answer(out=VERSION + "\n")
    try:
        return COMMANDS[program](scheduler, asked)
    except Refused as refusal:
        status = 255 if "unrecognized option" in str(refusal) else 1
        return Answer(status, err=f"{refusal}\n")


def sbatch(scheduler: Scheduler, asked: Asked) -> Answer:
    given, rest = parse_words(asked.words, SBATCH, "sbatch")
    script = f"#!/bin/sh\n{given.values['wrap']}\n" if "wrap" in given else asked.script
    if not script.startswith("#!"):
        raise Refused(
            "sbatch: error: This does not look like a batch script.  The first\n"
            "sbatch: error: line must start with #! followed by the path to an interpreter.\n"
            "sbatch: error: For instance: #!/bin/sh"
        )
    options = script_options(script)
    options.values.update(given.values)
    options.values.setdefault(
        "job-name", "wrap" if "wrap" in given else rest[0].rpartition("/")[2] if rest else "sbatch"
    )
    try_only = "test-only" in options
    try:
        number = scheduler.submit(options, script, asked.cwd, asked.environment, try_only)
    except Refused as refusal:
        last = str(refusal).rpartition("Batch job submission failed: ")
        if not try_only or not last[1]:
            raise
        raise Refused(f"allocation failure: {last[2]}") from refusal
    if try_only:
        when = datetime.now().isoformat(timespec="seconds")
        return Answer(err=f"sbatch: Job {number} to start at {when} using 1 processors on nodes n1 in partition gpu\n")
    return Answer(out=f"{number}\n" if "parsable" in options else f"Submitted batch job {number}\n")


# -------------------------------------------------------------------------------------------------------------- squeue


SQUEUE_FIELDS: dict[str, tuple[str, Callable[[Scheduler, Job], object]]] = {
    "A": ("JOBID", lambda s, job: job.raw_id),
    "F": ("ARRAY_JOB_ID", lambda s, job: job.array_id),
    "K": ("ARRAY_TASK_ID", lambda s, job: "N/A" if job.element is None else job.element),
    "T": ("STATE", lambda s, job: job.state),
    "t": ("ST", lambda s, job: COMPACT[job.state]),
    "P": ("PARTITION", lambda s, job: job.options.get("partition")),
    "j": ("NAME", lambda s, job: job_name(job)),
    "u": ("USER", lambda s, job: getpass.getuser()),
    "M": ("TIME", lambda s, job: elapsed_text(_elapsed(job))),
    "l": ("TIME_LIMIT", lambda s, job: elapsed_text(job.minutes * 60)),
    "L": ("TIME_LEFT", lambda s, job: elapsed_text(max(job.minutes * 60 - _elapsed(job), 0))),
    "D": ("NODES", lambda s, job: job.num_nodes),
    "C": ("CPUS", lambda s, job: job.num_nodes * job.cpus_per_node),
    "N": ("NODELIST", lambda s, job: node_text(job.nodes)),
    "B": ("EXEC_HOST", lambda s, job: job.nodes[0] if job.nodes else "n/a"),
    "r": ("REASON", lambda s, job: job.reason),
    "R": ("NODELIST(REASON)", lambda s, job: node_text(job.nodes) if _shows_nodes(job) else f"({job.reason})"),
    "E": ("DEPENDENCY", lambda s, job: dependency_text(s, job)),
    "S": ("START_TIME", lambda s, job: when(job.started)),
    "e": ("END_TIME", lambda s, job: when(job.ended if job.ended else _projected(job))),
    "V": ("SUBMIT_TIME", lambda s, job: when(job.submitted)),
    "Q": ("PRIORITY", lambda s, job: 0 if job.held else 4294901760 - job.array_id),
    "a": ("ACCOUNT", lambda s, job: job.options.get("account", "(null)")),
    "q": ("QOS", lambda s, job: job.options.get("qos", "normal" if s.site.accounting else "(null)")),
    "b": ("TRES_PER_NODE", lambda s, job: f"gres:gpu:{job.gpus_per_node}" if job.gpus_per_node else "N/A"),
    "f": ("FEATURES", lambda s, job: job.options.get("constraint", "(null)")),
    "Z": ("WORK_DIR", lambda s, job: job.cwd),
    "k": ("COMMENT", lambda s, job: job.options.get("comment", "(null)")),
}
LONG_FIELDS = {
    "jobid": "A", "jobarrayid": "i", "arrayjobid": "F", "arraytaskid": "K", "state": "T", "statecompact": "t",
    "partition": "P", "name": "j", "username": "u", "timeused": "M", "timelimit": "l", "timeleft": "L", "numnodes": "D",
    "nodelist": "N", "reason": "r", "reasonlist": "R", "dependency": "E", "starttime": "S", "endtime": "e",
    "submittime": "V", "account": "a", "qos": "q", "numcpus": "C", "comment": "k", "batchhost": "B",
}  # fmt: skip


def squeue(scheduler: Scheduler, asked: Asked) -> Answer:
    values = _words(asked.words, "hj:u:t:o:O:p:r:n:A:w:", {
        "noheader": "h", "jobs": "j", "job": "j", "user": "u", "users": "u", "states": "t", "state": "t",
        "format": "o", "Format": "O",
        "partition": "p", "array": "r", "name": "n", "me": "me", "start": "start", "account": "A", "nodelist": "w",
    }, {"h", "r", "me", "start"})  # fmt: skip
    jobs = [job for job in scheduler.jobs if job.state in UNFINISHED]
    if "t" in values:
        wanted = {word.upper() for word in values["t"].split(",")}
        jobs = [job for job in scheduler.jobs if wanted & {"ALL", job.state, COMPACT[job.state]}]
    if "j" in values:
        words = [word for word in values["j"].split(",") if word]
        known = {id(job) for word in words for job in scheduler.find(word)}
        if not known and len(words) == 1:
            raise Refused("slurm_load_jobs error: Invalid job id specified")
        jobs = [job for job in jobs if id(job) in known]
    if "u" in values and getpass.getuser() not in values["u"].split(","):
        jobs = []
    if "p" in values:
        jobs = [job for job in jobs if job.options.get("partition") in values["p"].split(",")]
    if "n" in values:
        jobs = [job for job in jobs if job_name(job) in values["n"].split(",")]
    if "O" in values:
        columns = [word.strip().partition(":") for word in values["O"].split(",")]
        form = "".join(
            f"%-{width if width.isdecimal() else 20}{LONG_FIELDS[name.lower()]}" for name, _, width in columns
        )
    else:
        form = values.get("o", "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R")
    lines = (
        [] if "h" in values else [_fill(form, lambda letter: "JOBID" if letter == "i" else SQUEUE_FIELDS[letter][0])]
    )
    jobs.sort(key=lambda job: (job.state != "PENDING", -job.array_id if job.state != "PENDING" else job.array_id))
    for group in _rows(jobs, "r" in values):
        lines.append(_fill(form, partial(_cell, scheduler, group, each="r" in values)))
    return Answer(out="".join(f"{line}\n" for line in lines))


def _cell(scheduler: Scheduler, group: list[Job], letter: str, *, each: bool) -> object:
    """Return one column of one row; elements that never ran share a row unless `each` has its own."""
    job = group[0]
    together = not each and job.element is not None and job.id is None
    if letter == "i":
        return pending_name(group) if together else job.name
    if letter == "K" and together:
        return re.sub(r".*\[(.*)\]", r"\1", pending_name(group))
    return SQUEUE_FIELDS[letter][1](scheduler, job)


def _rows(jobs: list[Job], each: bool) -> list[list[Job]]:
    """Group jobs into rows: elements that never ran and wait for the same reason share one row."""

    def key(job: Job) -> object:
        together = not each and job.state == "PENDING" and job.id is None
        return (job.array_id, job.reason) if together else id(job)

    return [list(group) for _, group in itertools.groupby(jobs, key)]


# ---------------------------------------------------------------------------------------------------- scontrol, scancel


def scontrol(scheduler: Scheduler, asked: Asked) -> Answer:
    words = [word for word in asked.words if word not in ("-o", "--oneliner", "-d", "--details", "-Q")]
    one_line = len(words) < len(asked.words)
    verb = words[0].lower() if words else "ping"
    if verb == "ping":
        return Answer(out="Slurmctld(primary) at fake is UP\n")
    if verb in ("requeue", "hold", "release", "uhold"):
        jobs = [job for word in words[1:] for each in word.split(",") for job in _known(scheduler, each)]
        for job in jobs:
            if verb == "requeue":
                scheduler.requeue(job)
            else:
                job.held = verb != "release"
        return Answer()
    if verb == "update":
        return _update(scheduler, words[1:])
    if verb in ("show", "list") and len(words) > 1:
        what = words[1].lower()
        if what.startswith("conf"):
            return Answer(out=_config_text(scheduler))
        if what.startswith("hostname"):
            return Answer(out="".join(f"{name}\n" for name in node_names(words[2])))
        if what.startswith("hostlist"):
            return Answer(out=node_text(words[2].split(",")) + "\n")
        if what.startswith("job"):
            jobs = scheduler.find(words[2]) if len(words) > 2 else scheduler.jobs
            if not jobs:
                raise Refused("slurm_load_jobs error: Invalid job id specified")
            end, between = (" ", "\n") if one_line else ("\n   ", "\n\n")
            return Answer(out=between.join(end.join(_job_lines(scheduler, job)) for job in jobs) + between)
        if what.startswith("part"):
            return Answer(out="\n".join(_partition_text(scheduler, name) for name in scheduler.site.partitions))
        if what.startswith("node"):
            return Answer(out="\n".join(_node_text(scheduler, name) for name in words[2:] or scheduler.site.nodes))
    return Answer(1, err=f"invalid keyword: {' '.join(words)}\n")


def _known(scheduler: Scheduler, word: str) -> list[Job]:
    jobs = scheduler.find(word)
    if not jobs:
        raise Refused(
            f"Invalid job id specified for job {word}" if word.partition("_")[0].isdecimal() else f"Bad job {word}"
        )
    return jobs


def _update(scheduler: Scheduler, words: list[str]) -> Answer:
    values = {name.lower(): value for name, _, value in (word.partition("=") for word in words)}
    jobs = [
        job for word in (values.pop("jobid", "") or values.pop("job", "")).split(",") for job in _known(scheduler, word)
    ]
    for job in jobs:
        for name, value in values.items():
            if name == "dependency":
                scheduler.set_dependency(job, value)
            elif name == "excnodelist":
                if job.state != "PENDING":
                    raise Refused(f"Job is no longer pending execution for job {job.name}")
                job.excluded = node_names(value)
            elif name == "timelimit":
                job.minutes = parse_minutes(value)
            elif name == "arraytaskthrottle":
                job.throttle = int(value) or None
            elif name in ("partition", "comment"):
                job.options.values[name] = value
            else:
                raise Refused(f"Update of this parameter is not supported: {name}={value}\nRequest aborted")
    return Answer()


def scancel(scheduler: Scheduler, asked: Asked) -> Answer:
    words, cancelled = [], []
    values: dict[str, str] = {}
    queue = list(asked.words)
    takes = {"s": "signal", "u": "user", "t": "state", "n": "name", "p": "partition"}
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            words += word.split(",")
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = takes.get(name, name)
        if name in takes.values():
            values[name] = value if equals else queue.pop(0)
        elif name in ("b", "batch", "f", "full", "me", "Q", "quiet", "v", "verbose"):
            values[name[0] if name != "me" else "me"] = ""
        else:
            raise Refused(f"scancel: unrecognized option '{word}'")
    for word in words:
        cancelled += scheduler.find(word)
    if not words:
        if not values.keys() & {"me", "user", "name", "state", "partition"}:
            raise Refused("scancel: error: No job identification provided")
        cancelled = list(scheduler.jobs)
    if "name" in values:
        cancelled = [job for job in cancelled if job_name(job) == values["name"]]
    if "state" in values:
        cancelled = [job for job in cancelled if job.state == values["state"].upper()]
    number = None
    if "signal" in values:
        text = values["signal"].upper().removeprefix("SIG")
        number = int(text) if text.isdecimal() else int(getattr(signal, f"SIG{text}"))
    scheduler.cancel(cancelled, number, "b" in values, "f" in values)
    return Answer()  # also for unknown and ended jobs, silently


def _config_text(scheduler: Scheduler) -> str:
    site = scheduler.site
    storage = "accounting_storage/slurmdbd" if site.accounting else "accounting_storage/none"
    lines = {
        "AccountingStorageType": storage, "AuthInfo": "cred_expire=5", "ClusterName": "fake",
        "GresTypes": "gpu" if site.gpus else "(null)",
        "JobRequeue": int(site.requeue), "KillWait": f"{site.kill_wait:.0f} sec", "MaxArraySize": site.max_array_size,
        "MaxJobCount": 10000, "MinJobAge": "3600 sec", "PreemptMode": "REQUEUE", "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CORE", "SLURM_VERSION": VERSION.split()[1],
    }  # fmt: skip
    now = datetime.now().isoformat(timespec="seconds")
    return f"Configuration data as of {now}\n" + "".join(f"{name:<23} = {value}\n" for name, value in lines.items())


def _job_lines(scheduler: Scheduler, job: Job) -> list[str]:
    array = "" if job.element is None else f" ArrayJobId={job.array_id} ArrayTaskId={job.element}"
    return [
        f"JobId={job.raw_id}{array} JobName={job_name(job)}",
        f"UserId={getpass.getuser()} Account={job.options.get('account', '(null)')} QOS={job.options.get('qos')}",
        f"JobState={job.state} Reason={job.reason} Dependency={dependency_text(scheduler, job)}",
        f"Requeue={int(scheduler.may_requeue(job))} Restarts={job.restarts} ExitCode={job.exit[0]}:{job.exit[1]}",
        f"RunTime={clock_text(_elapsed(job))} TimeLimit={clock_text(job.minutes * 60)} TimeMin=N/A",
        f"SubmitTime={when(job.submitted)} EligibleTime={when(job.eligible)}",
        f"StartTime={when(job.started, 'Unknown')} EndTime={when(job.ended or _projected(job), 'Unknown')}",
        f"Partition={job.options.get('partition')} AllocNode:Sid=localhost:1",
        f"ReqNodeList={job.options.get('nodelist', '(null)')} ExcNodeList={','.join(job.excluded) or '(null)'}",
        f"NodeList={node_text(job.nodes)}",
        f"NumNodes={job.num_nodes} NumCPUs={job.num_nodes * job.cpus_per_node} NumTasks={job.num_tasks}",
        f"WorkDir={job.cwd}",
    ]


def _partition_text(scheduler: Scheduler, name: str) -> str:
    site = scheduler.site
    default = "YES" if name == next(iter(site.partitions)) else "NO"
    return (
        f"PartitionName={name}\n   Default={default} MaxTime={clock_text(site.partitions[name] * 60)}\n"
        f"   Nodes={node_text(site.nodes)}\n   State=UP TotalNodes={len(site.nodes)}\n"
    )


def _node_text(scheduler: Scheduler, name: str) -> str:
    site = scheduler.site
    return (
        f"NodeName={name} Arch=x86_64\n   CPUTot={site.cpus} RealMemory={site.memory_mb}\n   Gres={_gres(scheduler)}\n"
        f"   State={_node_state(scheduler, name).upper()}\n"
    )


# ---------------------------------------------------------------------------------------------- sinfo, sacct, sacctmgr


def sinfo(scheduler: Scheduler, asked: Asked) -> Answer:
    values = _words(asked.words, "hNo:p:t:n:e", {
        "noheader": "h", "Node": "N", "format": "o", "partition": "p", "states": "t", "nodes": "n", "exact": "e",
    }, {"h", "N", "e"})  # fmt: skip
    site = scheduler.site
    heads = {
        "P": "PARTITION", "R": "PARTITION", "a": "AVAIL", "l": "TIMELIMIT", "D": "NODES", "t": "STATE", "T": "STATE",
        "N": "NODELIST", "G": "GRES", "c": "CPUS", "m": "MEMORY", "f": "AVAIL_FEATURES", "n": "HOSTNAMES",
        "X": "SOCKETS",
    }  # fmt: skip
    form = values.get("o", "%#N %.6D %#P %6t" if "N" in values else "%9P %.5a %.10l %.6D %.6t %N").replace("#", "")
    lines = [] if "h" in values else [_fill(form, lambda letter: heads[letter])]
    default = next(iter(site.partitions))
    for partition, minutes in site.partitions.items():
        if "p" in values and partition not in values["p"].split(","):
            continue
        by_state: dict[str, list[str]] = {}
        for node in site.nodes:
            key = node if "N" in values or "%n" in form else _node_state(scheduler, node)
            if "t" not in values or _node_state(scheduler, node) in values["t"].split(","):
                by_state.setdefault(
                    key if "%t" in form or "%T" in form or "N" in values or "%n" in form else "", []
                ).append(node)
        for nodes in by_state.values():
            state = _node_state(scheduler, nodes[0])
            cells = {
                "P": partition + "*" * (partition == default), "R": partition, "a": "up",
                "l": elapsed_text(minutes * 60),
                "D": len(nodes), "t": state[:5].replace("mixed", "mix"), "T": state,
                "N": node_text(nodes),
                "G": _gres(scheduler), "c": site.cpus, "m": site.memory_mb, "f": "(null)", "n": nodes[0],
                "X": site.cpus,
            }  # fmt: skip
            lines.append(_fill(form, cells.__getitem__))
    return Answer(out="".join(f"{line}\n" for line in lines))


def _gres(scheduler: Scheduler) -> str:
    return f"gpu:{scheduler.site.gpus}" if scheduler.site.gpus else "(null)"


def _node_state(scheduler: Scheduler, node: str) -> str:
    if node in scheduler.down:
        return "down"
    there = [job for job in scheduler.jobs if job.state in ("RUNNING", "COMPLETING") and node in job.nodes]
    cpus = sum(job.cpus_per_node for job in there)
    return "idle" if not there else "allocated" if cpus == scheduler.site.cpus else "mixed"


SACCT_FIELDS: dict[str, Callable[[Job], object]] = {
    "jobid": lambda job: job.name,
    "jobidraw": lambda job: job.raw_id,
    "jobname": job_name,
    "partition": lambda job: job.options.get("partition"),
    "account": lambda job: job.options.get("account", ""),
    "user": lambda job: getpass.getuser(),
    "state": lambda job: "CANCELLED by 0" if job.state == "CANCELLED" else job.state,
    "exitcode": lambda job: f"{job.exit[0]}:{job.exit[1]}",
    "derivedexitcode": lambda job: f"{max(job.step_results.values(), default=0)}:0",
    "elapsed": lambda job: clock_text(_elapsed(job)),
    "elapsedraw": lambda job: int(_elapsed(job)),
    "start": lambda job: when(job.started, "Unknown"),
    "end": lambda job: when(job.ended, "Unknown"),
    "submit": lambda job: when(job.submitted),
    "timelimit": lambda job: clock_text(job.minutes * 60),
    "timelimitraw": lambda job: int(job.minutes),
    "nodelist": lambda job: node_text(job.nodes) or "None assigned",
    "nnodes": lambda job: job.num_nodes,
    "ncpus": lambda job: job.num_nodes * job.cpus_per_node,
    "alloccpus": lambda job: job.num_nodes * job.cpus_per_node,
    "ntasks": lambda job: "",
    "reason": lambda job: job.reason,
    "reqmem": lambda job: job.options.get("mem", ""),
    "maxrss": lambda job: "",
    "qos": lambda job: job.options.get("qos", "normal"),
    "restarts": lambda job: job.restarts,
}
DEFAULT_SACCT = "jobid,jobname,partition,account,alloccpus,state,exitcode"


def sacct(scheduler: Scheduler, asked: Asked) -> Answer:
    if not scheduler.site.accounting:
        return Answer(1, err="Slurm accounting storage is disabled\n")
    values = _words(asked.words, "XPpnj:o:S:E:s:u:D", {
        "allocations": "X", "parsable2": "P", "parsable": "p", "noheader": "n", "jobs": "j", "job": "j", "format": "o",
        "starttime": "S", "endtime": "E", "state": "s", "user": "u", "duplicates": "D",
    }, {"X", "P", "p", "n", "D"})  # fmt: skip
    jobs = [*scheduler.history, *scheduler.jobs] if "D" in values else list(scheduler.jobs)
    if "j" in values:
        known = {job.name for word in values["j"].split(",") for job in scheduler.find(word)}
        jobs = [job for job in jobs if job.name in known]
    names = [name.partition("%")[0] for name in values.get("o", DEFAULT_SACCT).split(",")]
    if wrong := [name for name in names if name.lower() not in SACCT_FIELDS]:
        return Answer(1, err=f'Invalid field requested: "{wrong[0]}"\n')
    rows = []
    for group in _rows(jobs, False):
        job = group[0]
        row = [str(SACCT_FIELDS[name.lower()](job)) for name in names]
        if len(group) > 1:
            row = [
                pending_name(group) if name.lower() == "jobid" else cell for name, cell in zip(names, row, strict=True)
            ]
        rows.append(row)
        if "X" not in values and job.started is not None:
            steps = [("batch", job.exit[0]), *((str(step), status) for step, status in job.step_results.items())]
            rows += [[_step_cell(name.lower(), job, step, status) for name in names] for step, status in steps]
    if "n" not in values:
        rows.insert(0, names)
    if values.keys() & {"P", "p"}:
        lines = ["|".join(row) + "|" * ("p" in values) for row in rows]
    else:
        lines = [" ".join(f"{cell:>12.12}" for cell in row) for row in rows]
    return Answer(out="".join(f"{line}\n" for line in lines))


def _step_cell(name: str, job: Job, step: str, status: int) -> str:
    special = {
        "jobid": f"{job.name}.{step}", "jobidraw": f"{job.raw_id}.{step}", "jobname": step, "user": "", "partition": "",
        "state": "RUNNING" if job.state == "RUNNING" else "FAILED" if status else "COMPLETED",
        "exitcode": f"{status}:0",
        "maxrss": "1024K", "reqmem": "", "timelimit": "", "qos": "",
    }  # fmt: skip
    return special[name] if name in special else str(SACCT_FIELDS[name](job))


def sacctmgr(scheduler: Scheduler, asked: Asked) -> Answer:
    if not scheduler.site.accounting:
        return Answer(1, err=NO_ACCOUNTING)
    words = [word for word in asked.words if not word.startswith("-")]
    columns = next((word.partition("=")[2].split(",") for word in words if word.lower().startswith("format=")), [])
    limits = scheduler.site.max_jobs
    rows = {
        "assoc": {"cluster": "fake", "account": "lab", "user": getpass.getuser(), "partition": "", "qos": "normal"},
        "qos": {"name": "normal"},
        "user": {"user": getpass.getuser(), "account": "lab", "admin": "None"},
    }
    what = next((row for name, row in rows.items() if len(words) > 1 and words[1].lower().startswith(name)), None)
    if what is None:
        return Answer(1, err=f"Unknown keyword: {' '.join(words)}\n")
    what["maxsubmit"] = what["maxsubmitjobs"] = what["maxsubmitjobspu"] = str(limits or "")
    row = [what.get(column.partition("%")[0].lower(), "") for column in columns or what]
    return Answer(out="|".join(row) + "\n")


# --------------------------------------------------------------------------------------------------------------- words


def when(moment: float | None, unknown: str = "N/A") -> str:
    return unknown if moment is None else datetime.fromtimestamp(int(moment)).isoformat()


def elapsed_text(seconds: float) -> str:
    """Format seconds as squeue does: 0:05, 1:02:03, 2-00:00:00."""
    days, rest = divmod(int(seconds), 86400)
    hours, minutes, seconds = rest // 3600, rest // 60 % 60, rest % 60
    if days:
        return f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def clock_text(seconds: float) -> str:
    """Format seconds as sacct does: 00:00:05, 1-02:03:04."""
    days, rest = divmod(int(seconds), 86400)
    return f"{days}-" * bool(days) + f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"


def dependency_text(scheduler: Scheduler, job: Job) -> str:
    if job.state != "PENDING" or not job.dependency:
        return "(null)"
    mark = "failed" if job.reason == "DependencyNeverSatisfied" else "unfulfilled"
    parts = []
    for part in job.dependency.split(","):
        kind, _, rest = part.partition(":")
        jobs = [f"{kind}:{_in_dependency(scheduler, word)}({mark})" for word in rest.split(":") if rest]
        parts += jobs or [f"{kind}({mark})"]
    return ",".join(parts)


def _in_dependency(scheduler: Scheduler, word: str) -> str:
    return f"{word}_*" if any(job.element is not None for job in scheduler.find(word)) and "_" not in word else word


def _elapsed(job: Job) -> float:
    return 0.0 if job.started is None else (job.ended or time.time()) - job.started


def _projected(job: Job) -> float | None:
    return None if job.started is None else job.started + job.minutes * 60


def _shows_nodes(job: Job) -> bool:
    return job.state in ("RUNNING", "COMPLETING", "COMPLETED", "CANCELLED")


def _fill(form: str, value: Callable[[str], object]) -> str:
    """Fill a format such as `%.18i %-9P %T`: a dot pads on the left, and a width also cuts."""

    def put(found: re.Match[str]) -> str:
        dot, width, letter = found.groups()
        text = str(value(letter))
        if not width:
            return text
        size = int(width)
        return text[:size].rjust(size) if dot == "." else text[:size].ljust(size)

    return re.sub(r"%([.-]?)(\d*)([a-zA-Z])", put, form)


def _words(words: list[str], short: str, names: dict[str, str], flags: set[str]) -> dict[str, str]:
    """Return options by their short letter; `-hj12`, `-j 12`, `--jobs=12` and `--jobs 12` are all understood."""
    values: dict[str, str] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name not in names:
                raise Refused(f"unrecognized option '--{name}'")
            letter = names[name]
            values[letter] = "" if letter in flags else value if equals else queue.pop(0)
        elif word.startswith("-") and len(word) > 1:
            letter, rest = word[1], word[2:]
            if letter not in short:
                raise Refused(f"invalid option -- '{letter}'")
            if letter in flags:
                values[letter] = ""
                if rest:
                    queue.insert(0, f"-{rest}")
            else:
                values[letter] = rest.removeprefix("=") or queue.pop(0)
        else:
            raise Refused(f"Unknown word: {word}")
    return values


COMMANDS: dict[str, Callable[[Scheduler, Asked], Answer]] = {
    "sbatch": sbatch,
    "squeue": squeue,
    "scontrol": scontrol,
    "scancel": scancel,
    "sinfo": sinfo,
    "sacct": sacct,
    "sacctmgr": sacctmgr,
}
