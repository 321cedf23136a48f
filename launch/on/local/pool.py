"""Does the units of an inference on this machine: one worker for each device, all fed from one list.

A worker that dies is replaced, and its unit is done again. A unit that has killed its worker three times is given up
with the reason, and the rest continues. All state is on disk: if this process is killed, its workers end by themselves,
and the next call does what is missing.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from deg.errors import LaunchError
from deg.launch.devices import Device
from deg.launch.on.local.supervisor import Supervisor, Worker, signals_to
from deg.launch.stages.place import Outcome, Progress
from deg.runs.rundir import RunDir
from deg.types import Unit
from deg.work import STOPPED, describe_exit

MOST_DEATHS = 3
"""A unit that has killed its worker this often is given up. So is a device whose workers die as often early on."""
GRACE_SECONDS = 60.0
"""Seconds that workers have to reach the end of a batch after a signal. Then they are killed."""
SILENT_SECONDS = 3600.0
"""A worker that has been silent this many seconds is taken to hang. A batch takes seconds, compiling takes minutes."""


class LocalPool:
    """The workers of one run."""

    def __init__(self, run: RunDir, units: Sequence[Unit], devices: Sequence[Device], progress: Progress):
        self._run, self._progress = run, progress
        self._waiting = deque(units)
        self._given: dict[Worker, deque[Unit]] = {}
        """Units that each worker has: it is doing the first one, and may prepare for the second one."""
        self._deaths: Counter[int] = Counter()
        self._early_deaths: Counter[int] = Counter()
        self._supervisor = Supervisor(run)
        self._devices = list(devices)[: max(len(units), 1)]
        self._failed: dict[int, str] = {}
        self._stopped = False

    def execute(self) -> Outcome:
        """Do all units. Returns when they are done or given up, or when a signal came.

        Raises DegError if no worker can start.
        """
        with signals_to(self._stop):
            try:
                for device in self._devices:
                    self._start(device)
                while self._supervisor.running and not self._stopped:
                    for worker, event in self._supervisor.events():
                        self._handle(worker, event)
                        if self._stopped:
                            break
                    self._kill_silent()
            finally:
                self._end_all()
        return Outcome(self._failed, self._stopped)

    def _stop(self, *_: Any) -> None:
        self._stopped = True

    def _start(self, device: Device) -> None:
        environment = {**os.environ, **device.environment}
        self._supervisor.start(device.index, "-", f"local-{device.index}.log", environment)

    def _handle(self, worker: Worker, event: Mapping[str, Any] | None) -> None:
        if event is None:
            self._ended(worker)
        elif event["event"] == "progress":
            self._count(event["frames"], False)
        elif event["event"] == "ready":
            self._give(worker)
        elif event["event"] in ("unit", "unit_failed"):
            if event["event"] == "unit_failed":
                self._failed[event["unit"]] = event["message"]
            self._early_deaths[worker.index] = 0
            self._given[worker].popleft()
            self._count(0, True)
            self._give(worker)

    def _count(self, frames: int, finished: bool) -> None:
        if self._progress(frames, finished):
            self._stop()

    def _give(self, worker: Worker) -> None:
        """Give a worker its next units, or an empty line if none is left.

        It gets one early, so that it decodes ahead; the last ones are kept for whichever worker is free first. If the
        worker dies before it reads the lines, `_ended` takes the units back.
        """
        if worker.status is not None:
            return  # these were its last words; another worker gets the units
        given = self._given.setdefault(worker, deque())
        while self._waiting and (not given or (len(given) == 1 and len(self._waiting) >= len(self._devices))):
            given.append(self._waiting.popleft())
            worker.say(str(given[-1].index))
        if not given:
            worker.say("")

    def _kill_silent(self) -> None:
        """Kill workers that hang. Others do their units again, as after any death."""
        for worker in self._supervisor.running:
            if time.monotonic() - worker.heard > SILENT_SECONDS:
                worker.kill()

    def _ended(self, worker: Worker) -> None:
        status, given = worker.status, self._given.pop(worker, deque())
        assert status is not None
        unit = given.popleft() if given else None
        self._waiting.extendleft(reversed(given))
        if status == 0 and unit is None:
            return
        if worker.error is not None:  # such as weights that do not fit: the next worker would fail too
            raise worker.error
        if status == STOPPED:  # the signal went to the worker alone
            self._stop()
            return
        end = describe_exit(status)
        self._run.log_event("worker_died", unit=None if unit is None else unit.index, status=status)
        if unit is None:
            self._early_deaths[worker.index] += 1
        elif not self._run.result_file(unit.index).exists():
            self._try_again(unit, f"its worker {end}; see {worker.log}")
        if self._early_deaths[worker.index] >= MOST_DEATHS:
            if self._supervisor.running or not self._waiting:
                return  # only this device is broken
            raise LaunchError(f"Workers die before they begin: the last one {end}. {worker.last_words()}")
        if self._waiting:
            self._start(next(device for device in self._devices if device.index == worker.index))

    def _try_again(self, unit: Unit, reason: str) -> None:
        """Put a unit that has killed its worker back at the head of the queue, or give it up."""
        self._deaths[unit.index] += 1
        if self._deaths[unit.index] < MOST_DEATHS:
            self._waiting.appendleft(unit)
        else:
            self._failed[unit.index] = f"{reason} ({MOST_DEATHS} times)"

    def _end_all(self) -> None:
        """End all workers. Each gets time to stop at the end of a batch, then it is killed."""
        for worker in self._supervisor.running:
            worker.signal(signal.SIGTERM)
        self._supervisor.end(GRACE_SECONDS)
