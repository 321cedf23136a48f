"""Trainings of real networks that take seconds: in this process, or in others that are stopped and killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from deg.runs.rundir import RunDir
from deg.work import StopFlag, Teller


class StopAfter(StopFlag):
    """A stop flag that is set between two batches, after this many looks at it."""

    def __init__(self, looks: int):
        self._looks = looks

    def install(self) -> None:
        pass

    @property
    def is_set(self) -> bool:
        self._looks -= 1
        return self._looks < 0


class Quiet(Teller):
    """A teller that keeps all messages."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[dict[str, Any]] = []

    def say(self, event: str, **details: Any) -> None:
        self.said.append({"event": event, **details})


def train_here(run: RunDir, *, unit: int = 0, stop: StopFlag | None = None) -> Quiet:
    """Train one phase in this process, with one rank."""
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


class Rank:
    """`python -m deg.execute RUN UNIT`, as a process of its own.

    It is forked from a process that has imported all libraries: importing them takes ten times as long as the training.
    """

    def __init__(self, run: RunDir, unit: int, environment: dict[str, str]):
        self._folder = Path(tempfile.mkdtemp(prefix="rank-", dir=run.path.parent.parent))
        for name in "12":
            (self._folder / name).touch()
        words = ["deg.execute", str(run.path), str(unit)]
        self._process = FORKS.Process(target=_execute, args=(words, environment, self._folder))
        self._process.start()

    def poll(self) -> int | None:
        """Return its exit status, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float = 300.0) -> int | None:
        self._process.join(seconds)
        return self.poll()

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield its messages until it ends."""
        with (self._folder / "1").open() as lines:
            while True:
                ended = self.poll() is not None
                while (line := lines.readline()).endswith("\n"):
                    yield json.loads(line)
                if ended:
                    return
                time.sleep(0.01)

    @property
    def complaints(self) -> str:
        """Text of its standard error."""
        return (self._folder / "2").read_text()


def start_rank(run: RunDir, *, unit: int = 0, **environment: str) -> Rank:
    return Rank(run, unit, environment)


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["deg.execute", "deg.train.fit"])


def _execute(words: list[str], environment: dict[str, str], folder: Path) -> None:
    os.environ.update(environment)
    files = [os.open(os.devnull, os.O_RDONLY), *(os.open(folder / name, os.O_WRONLY) for name in "12")]
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, 1) for number, mode in enumerate("rww"))
    torch.set_num_threads(1)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def kill_when(process: Rank, condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Send SIGKILL as soon as the condition holds. Raise TimeoutError if it never does."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what should come before the kill did not come")
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
