"""Executes the units of a run on this machine: one process for each device, all fed from one queue.

Workers are `python -m deg.execute RUN -`. A worker that dies is replaced and its unit done again; a unit that kills its
worker three times is put aside with the reason, and the rest goes on. State is on disk alone: when this process is
killed too, its workers end by themselves, and the next run does what is missing.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deg.errors import DegError, LaunchError
from deg.launch.devices import Device
from deg.runs.rundir import RunDir, tail
from deg.types import Unit
from deg.work import STOPPED

MOST_DEATHS = 3
"""A unit that has killed its worker this often is given up, and a device whose workers died as often at the start."""
GRACE_SECONDS = 60.0
"""How long workers may take to reach the end of a batch after a signal."""
KILL_SECONDS = 10.0
SILENT_SECONDS = 3600.0
"""Seconds after its last sign of life at which a worker is taken to hang. A batch takes seconds; compiling, minutes."""


@dataclass
class Outcome:
    """What became of the units."""

    failed: dict[int, str] = field(default_factory=dict)
    """Units that could not be done, each with its reason."""
    stopped: bool = False
    """A signal ended the work early."""


@dataclass
class _Worker:
    device: Device
    process: subprocess.Popen[str]
    log: str
    unit: Unit | None = None
    failure: tuple[str, int] | None = None
    """What the worker itself said before it gave up: message and exit status."""
    heard: float = field(default_factory=time.monotonic)
    """When it last said something."""


Progress = Callable[[int, bool], None]
"""Called with the number of frames done since the last call, and whether a unit has just been finished."""


class LocalPool:
    """The workers of one run."""

    def __init__(self, run: RunDir, units: Sequence[Unit], devices: Sequence[Device], progress: Progress):
        self._run, self._progress = run, progress
        self._waiting = deque(units)
        self._deaths: Counter[int] = Counter()
        self._early_deaths: Counter[int] = Counter()
        self._events: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._devices = list(devices)[: max(len(units), 1)]
        self._outcome = Outcome()
        self._stop = threading.Event()

    def execute(self) -> Outcome:
        """Do all units; returns when they are done, put aside, or a signal came. DegError if no worker can start."""
        with self._signals():
            try:
                for device in self._devices:
                    self._start(device)
                while self._workers and not self._stop.is_set():
                    self._handle_next()
                self._outcome.stopped = self._stop.is_set()
            finally:
                self._end_all()
        return self._outcome

    def stop(self) -> None:
        """Let workers stop at the next batch, as if a signal had come."""
        self._stop.set()

    def _start(self, device: Device) -> None:
        folder = self._run.path / "jobs"
        folder.mkdir(exist_ok=True)
        log = folder / f"local-{device.index}.log"
        with log.open("a", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "deg.execute", str(self._run.path), "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **device.environment},
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C goes to this process, which passes it on in its own way
            )
        worker = _Worker(device, process, str(log))
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            with suppress(ValueError):  # a library wrote to standard output
                if isinstance(event := json.loads(line), dict) and "event" in event:
                    self._events.put((worker, event))
        worker.process.wait()
        self._events.put((worker, None))

    def _handle_next(self) -> None:
        try:
            worker, event = self._events.get(timeout=0.5)
        except queue.Empty:
            self._kill_silent()
            return
        worker.heard = time.monotonic()
        if event is None:
            self._ended(worker)
        elif event["event"] == "progress":
            self._progress(event["frames"], False)
        elif event["event"] == "failed":
            worker.failure = (event["message"], event["status"])
        elif event["event"] == "ready":
            self._give(worker)
        elif event["event"] in ("unit", "unit_failed"):
            if event["event"] == "unit_failed":
                self._outcome.failed[event["unit"]] = event["message"]
            worker.unit, self._early_deaths[worker.device.index] = None, 0
            self._progress(0, True)
            self._give(worker)

    def _give(self, worker: _Worker) -> None:
        """The next unit for a worker, or the end of its input."""
        assert worker.process.stdin is not None
        worker.unit = self._waiting.popleft() if self._waiting else None
        with suppress(BrokenPipeError):  # it has died; `_ended` follows and takes the unit back
            worker.process.stdin.write("\n" if worker.unit is None else f"{worker.unit.index}\n")
            worker.process.stdin.flush()

    def _kill_silent(self) -> None:
        """A worker that hangs counts as one that died: its unit is done again by another."""
        for worker in self._workers:
            if time.monotonic() - worker.heard > SILENT_SECONDS:
                worker.process.kill()

    def _ended(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        status, unit = worker.process.returncode, worker.unit
        if status == 0 and unit is None:
            return
        if worker.failure is not None:  # weights that do not fit, say: the next worker would say the same
            message, exit_status = worker.failure
            error = DegError(message)
            error.exit_status = exit_status
            raise error
        if status == STOPPED:  # the signal went to the worker alone
            self._stop.set()
            return
        reason = f"its worker {describe_exit(status)}; see {worker.log}"
        self._run.log_event("worker_died", unit=None if unit is None else unit.index, status=status)
        if unit is None:
            self._early_deaths[worker.device.index] += 1
        elif not self._run.result_file(unit.index).exists():
            self._deaths[unit.index] += 1
            if self._deaths[unit.index] < MOST_DEATHS:
                self._waiting.appendleft(unit)
            else:
                self._outcome.failed[unit.index] = f"{reason} ({MOST_DEATHS} times)"
        if self._early_deaths[worker.device.index] >= MOST_DEATHS:
            if self._workers or not self._waiting:
                return  # only this device is broken
            last = "\n  ".join(tail(Path(worker.log).read_text(encoding="utf-8", errors="replace")))
            raise LaunchError(f"Workers die before they begin: {reason}. Its last words:\n  {last}")
        if self._waiting:
            self._start(worker.device)

    def _end_all(self) -> None:
        """Nobody is left behind: workers get time to stop at the end of a batch, then none."""
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                with suppress(subprocess.TimeoutExpired):  # in the kernel's hands: a disk or GPU that does not answer
                    worker.process.wait(KILL_SECONDS)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {
            number: signal.signal(number, lambda *_: self._stop.set())
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
        }
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def describe_exit(status: int) -> str:
    """An exit status of a process in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
