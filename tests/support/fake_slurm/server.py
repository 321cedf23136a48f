"""The process that holds all jobs: `python -m fake_slurm.server FOLDER`. It ends when its standard input ends.

Each connection carries one question, a line of JSON, and its answer, a line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fake_slurm.answers import Asked, answer
from fake_slurm.scheduler import Scheduler
from fake_slurm.site import Site

TICK_SECONDS = 0.02
PR_SET_CHILD_SUBREAPER = 36


def respond(scheduler: Scheduler, question: dict[str, Any]) -> dict[str, Any]:
    kind = question.pop("ask")
    if kind == "command":
        said = answer(scheduler, question.pop("program"), Asked(**question))
        return vars(said)
    if kind == "step began":
        job = _job(scheduler, question["job"])
        number = len(job.steps) + len(job.step_results)
        job.steps[number] = []
        return {"step": number}
    if kind == "step runs":
        _job(scheduler, question["job"]).steps[question["step"]] = question["pids"]
    elif kind == "step ended":
        job = _job(scheduler, question["job"])
        job.steps.pop(question["step"], None)
        job.step_results[question["step"]] = question["status"]
    elif kind == "configure":
        for name, value in question["changes"].items():
            setattr(scheduler.site, name, value)
    elif kind == "kill_node":
        scheduler.kill_node(question["node"])
    elif kind == "start_node":
        scheduler.down.discard(question["node"])
    elif kind == "on_jobs":
        for job in scheduler.find(question["job"]):
            getattr(scheduler, question["what"])(job)
    elif kind == "jobs":
        return {"jobs": [_shown(job) for job in [*scheduler.history, *scheduler.jobs]]}
    return {}


def _job(scheduler: Scheduler, number: int) -> Any:
    return next(job for job in scheduler.jobs if job.id == number)


def _shown(job: Any) -> dict[str, Any]:
    names = (
        "array_id",
        "element",
        "state",
        "reason",
        "restarts",
        "nodes",
        "started",
        "ended",
        "exit",
        "excluded",
        "dependency",
    )
    return {"name": job.name, "options": job.options.values, "script": job.script} | {
        name: getattr(job, name) for name in names
    }


def serve(folder: Path) -> None:
    scheduler = Scheduler(folder, Site(**json.loads((folder / "site.json").read_text())))
    # a job's orphans become our children, so that none is left as a zombie of another process
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        _answer_until_told(scheduler, folder)
    finally:
        scheduler.end_everything()


def _answer_until_told(scheduler: Scheduler, folder: Path) -> None:
    os.chdir(folder)  # the name of a socket may have at most 107 bytes
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket.new")
    listener.listen(64)
    Path("socket.new").rename("socket")  # between bind and listen, connections are refused
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        ticked = 0.0
        while True:
            for key, _ in selector.select(TICK_SECONDS):
                if key.fileobj is not listener:
                    return
                connection, _ = listener.accept()
                # a request may kill its sender: `scontrol requeue` within the job
                with connection, suppress(ConnectionError), connection.makefile("rw") as stream:
                    line = stream.readline()
                    if line:
                        stream.write(json.dumps(respond(scheduler, json.loads(line))) + "\n")
            if time.monotonic() - ticked > TICK_SECONDS:
                scheduler.tick()
                _reap_orphans({job.batch.pid for job in scheduler.jobs if job.batch is not None})
                ticked = time.monotonic()


def _reap_orphans(ours: set[int]) -> None:
    """Reap ended processes, except batch scripts, whose status Popen needs."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in ours:
            return
        os.waitpid(ended.si_pid, 0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
