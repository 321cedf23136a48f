"""A rank that trains nothing: it sends the messages of a rank, steps together with the others, and dies by a script.

The script is JSON in the environment variable SCRIPT; all keys but `folder` are optional:

    folder    where ranks leave their marks: one file for each step done, one when they end
    steps     number of steps, with `pause` seconds for each
    at        {rank: [step, what, ...]}: what happens to a rank in that step: `kill`; `raise`, words of the exception;
              `fail`, message, status; `hang`
    late      {rank: seconds} before it listens to signals
    deaf      [rank, ...]: these never listen to signals
    bereaved  ranks that wait for a dead one wait for ever; else they fail, as with gloo
    children  each rank leaves a process behind that holds its standard output open
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

SCRIPT = json.loads(os.environ["SCRIPT"])
FOLDER = Path(SCRIPT["folder"])
RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
SHOWN = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


def say(event, **details):
    with suppress(BrokenPipeError):  # the launcher is gone
        print(json.dumps({"event": event, **details}), flush=True)


def mark(name):
    (FOLDER / name).touch()


def marked(name):
    return (FOLDER / name).exists()


def main(run, unit):
    if SCRIPT.get("children"):
        subprocess.Popen(["sleep", "61.25"])
    time.sleep(SCRIPT.get("late", {}).get(str(RANK), 0))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN if RANK in SCRIPT.get("deaf", []) else lambda *_: stop.set())
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    say("ready", unit=int(unit), environment={name: os.environ.get(name) for name in SHOWN})
    print("words of a library")
    for step in range(SCRIPT.get("steps", 3)):
        time.sleep(SCRIPT.get("pause", 0))
        happen(step)
        if stop.is_set() or marked(f"stop.{step}"):
            mark(f"stop.{step}")
        mark(f"{RANK}.{step}")
        wait_for_others(step)
        say(
            "step", epoch=0, epochs=1, batch=step + 1, of=SCRIPT.get("steps", 3), loss=1.0, lr=0.1, samples_per_second=1
        )
        if marked(f"stop.{step}"):
            sys.exit(75)
    if RANK == 0:
        done = Path(run) / "units" / f"{int(unit):05d}" / "done.json"
        done.parent.mkdir(parents=True, exist_ok=True)
        done.write_text("{}")
    say("unit", unit=int(unit))


def happen(step):
    at, what, *more = SCRIPT.get("at", {}).get(str(RANK), [-1, None])
    if at != step:
        return
    if what == "hang":
        time.sleep(600)
    mark(f"gone.{RANK}")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise ValueError(more[0])
    say("failed", message=more[0], status=more[1])
    sys.exit(more[1])


def wait_for_others(step):
    deadline = time.monotonic() + 60
    while not all(marked(f"{other}.{step}") for other in range(RANKS)):
        time.sleep(0.01)
        if time.monotonic() > deadline:
            raise RuntimeError("the others did not come")
        if not SCRIPT.get("bereaved") and any(marked(f"gone.{other}") for other in range(RANKS)):
            raise RuntimeError("Connection closed by peer")


if __name__ == "__main__":
    main(*sys.argv[1:])
