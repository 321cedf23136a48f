"""srun within a job: start the tasks of a step, wait for them, and pass signals on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fake_slurm.client import ask, folder_of_server
from fake_slurm.options import SRUN, Options, Refused, fill_pattern, node_names, node_text, parse_words

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGCONT)


def srun(words: list[str]) -> int:
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise SystemExit("fake srun: only within a job")
    try:
        options, command = parse_words(words, SRUN, "srun")
    except Refused as refusal:
        raise SystemExit(str(refusal)) from None
    if not command:
        raise SystemExit("srun: fatal: No command given to execute.")
    nodes = node_names(options.get("nodelist") or os.environ["SLURM_JOB_NODELIST"])
    count = options.number("nodes", 0)
    nodes = nodes[: count or len(nodes)]
    per_node = options.number("ntasks-per-node", 0) or int(os.environ.get("SLURM_NTASKS_PER_NODE") or 0)
    default = int(os.environ.get("SLURM_NTASKS") or len(nodes)) if not count else len(nodes) * (per_node or 1)
    tasks = options.number("ntasks", default)
    if tasks < len(nodes):
        nodes = nodes[:tasks]
    per_node = -(-tasks // len(nodes))
    server = folder_of_server()
    step = ask(server, ask="step began", job=int(job))["step"]
    running: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: Any) -> None:
        for task in running:
            with suppress(ProcessLookupError):
                task.send_signal(number)

    for number in FORWARDED:
        signal.signal(number, forward)
    for rank in range(tasks):
        running.append(_start(options, command, nodes, rank, tasks, per_node, step))
    ask(server, ask="step runs", job=int(job), step=step, pids=[task.pid for task in running])
    status = _wait(options, running, nodes, per_node)
    ask(server, ask="step ended", job=int(job), step=step, status=status)
    return status


def _start(
    options: Options, command: list[str], nodes: list[str], rank: int, tasks: int, per_node: int, step: int
) -> subprocess.Popen[bytes]:
    node = rank // per_node
    on_node = [other for other in range(tasks) if other // per_node == node]
    each = str(per_node) if len(nodes) == 1 else f"{per_node}(x{len(nodes)})"
    given = {
        "SLURM_PROCID": rank, "SLURM_LOCALID": rank - on_node[0], "SLURM_NODEID": node, "SLURM_NTASKS": tasks,
        "SLURM_NPROCS": tasks, "SLURM_NNODES": len(nodes), "SLURMD_NODENAME": nodes[node], "SLURM_STEP_ID": step,
        "SLURM_STEPID": step, "SLURM_STEP_NODELIST": node_text(nodes), "SLURM_STEP_NUM_NODES": len(nodes),
        "SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_TASKS_PER_NODE": each, "SLURM_TASKS_PER_NODE": each,
        "SLURM_GTIDS": ",".join(map(str, on_node)), "SLURM_TASK_PID": os.getpid(), "SLURM_TOPOLOGY_ADDR": nodes[node],
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_DISTRIBUTION": "block",
    }  # fmt: skip
    if "ntasks-per-node" in options:
        given["SLURM_NTASKS_PER_NODE"] = per_node
    if "cpus-per-task" in options:
        given["SLURM_CPUS_PER_TASK"] = options.values["cpus-per-task"]
    environment = os.environ | {name: str(value) for name, value in given.items()}
    output = _open(options.get("output"), options, rank, node, nodes, step)
    error = _open(options.get("error"), options, rank, node, nodes, step) if "error" in options else output
    try:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=error, cwd=options.get("chdir")
        )
    except OSError as failure:
        # as with slurmstepd, the task ends with 2 and says why on its own standard error
        words = f"slurmstepd: error: execve(): {command[0]}: {failure.strerror}"
        return subprocess.Popen(["/bin/sh", "-c", 'echo "$1" >&2; exit 2', "sh", words], stdout=output, stderr=error)


def _open(pattern: str | None, options: Options, rank: int, node: int, nodes: list[str], step: int) -> IO[bytes] | None:
    if pattern is None:
        return None
    job = os.environ["SLURM_JOB_ID"]
    values = {
        "j": job, "J": f"{job}.{step}", "A": os.environ.get("SLURM_ARRAY_JOB_ID", job), "s": str(step), "t": str(rank),
        "a": os.environ.get("SLURM_ARRAY_TASK_ID", "4294967294"), "n": str(node), "N": nodes[node],
        "x": os.environ["SLURM_JOB_NAME"], "u": os.environ["SLURM_JOB_USER"],
    }  # fmt: skip
    append = (options.get("open-mode") or os.environ.get("SLURM_OPEN_MODE") or "t").startswith("a")
    # several tasks that write to one file append: otherwise they would overwrite each other
    path = Path(fill_pattern(pattern, values))
    if not append and rank == 0:
        path.unlink(missing_ok=True)
    return path.open("ab")


def _wait(options: Options, running: list[subprocess.Popen[bytes]], nodes: list[str], per_node: int) -> int:
    """Wait for all tasks and return their greatest status, which is 128 + n for a signal n."""
    kill_on_bad_exit = options.get("kill-on-bad-exit", "0") != "0"
    patience = options.number("wait", 0)
    status, since = 0, None
    seen: set[int] = set()
    while len(seen) < len(running):
        time.sleep(0.01)
        for rank, task in enumerate(running):
            if rank in seen or task.poll() is None:
                continue
            seen.add(rank)
            since = since or time.monotonic()
            code = task.returncode
            status = max(status, 128 - code if code < 0 else code)
            if code:
                what = f"Exited with exit code {code}" if code > 0 else signal.strsignal(-code)
                print(f"srun: error: {nodes[rank // per_node]}: task {rank}: {what}", file=sys.stderr, flush=True)
            if (code and kill_on_bad_exit) or (patience and time.monotonic() - since > patience):
                _end(running)
        if patience and since and time.monotonic() - since > patience:
            _end(running)
    return status


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    for task in running:
        if task.poll() is None:
            task.kill()
