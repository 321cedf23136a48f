"""Trainings of real networks, seconds long: in this process, or in others that are stopped and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import torch

from deg.rundir import RunDir
from deg.work import StopFlag, Teller


class StopAfter(StopFlag):
    """A signal that comes between two batches: after so many looks at the flag."""

    def __init__(self, looks: int):
        self._looks = looks

    def install(self) -> None:
        pass

    @property
    def is_set(self) -> bool:
        self._looks -= 1
        return self._looks < 0


class Quiet(Teller):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[dict[str, Any]] = []

    def say(self, event: str, **details: Any) -> None:
        self.said.append({"event": event, **details})


def train_here(run: RunDir, *, unit: int = 0, stop: StopFlag | None = None) -> Quiet:
    """A phase, in this process, by one rank."""
    from deg.train.fit import train_phase

    plan, tell = run.load_training_plan(), Quiet()
    threads = torch.get_num_threads()
    try:
        train_phase(run, plan, plan.units[unit], stop or StopAfter(10**9), tell)
    finally:
        torch.set_num_threads(threads)
    return tell


def weights_of(run: RunDir) -> dict[str, torch.Tensor]:
    return torch.load(run.path / "checkpoint.pt", weights_only=True)["state_dict"]


def start_rank(run: RunDir, *, unit: int = 0, **environment: str) -> subprocess.Popen[str]:
    """`python -m deg.execute RUN UNIT`, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "deg.execute", str(run.path), str(unit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def kill_when(process: subprocess.Popen[str], condition, seconds: float = 120.0) -> None:
    """SIGKILL as soon as the condition holds; TimeoutError if it never does."""
    done = threading.Event()
    timer = threading.Timer(seconds, done.set)
    timer.start()
    try:
        while process.poll() is None and not condition():
            if done.is_set():
                raise TimeoutError("what should come before the kill did not come")
            done.wait(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finally:
        timer.cancel()
