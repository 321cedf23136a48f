"""Runs one phase of a training on this machine: one process for each device, all of them at the same unit.

The ranks are `python -m deg.execute RUN UNIT`, told who they are by torchrun's variables. They work in lockstep, so one
that dies or fails ends all of them, and the error names the cause, not what the others then died of. A signal to this
process is passed on: the ranks stop together after a step, with their state saved. When this process is killed, their
standard input ends, and they stop in the same way.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deg.errors import ConfigError, DegError, LaunchError, show_path
from deg.launch.devices import Device, visible_gpus
from deg.launch.on.local.pool import describe_exit
from deg.options import schema
from deg.runs.rundir import RunDir, tail
from deg.work import LAUNCHER, STOPPED, available_cores

STOP_SIGNAL = signal.SIGUSR2
"""Asks ranks to stop. Not SIGTERM, at which Lightning would talk to the other ranks within the signal handler."""
GRACE_SECONDS = 300.0
"""How long ranks may take to end a step and to save their state after a signal: a step may be in the middle of
validation, and disks of clusters are slow."""
FOLLOW_SECONDS = 60.0
"""How long the other ranks may take once one has stopped, which they do after the same step."""
COLLATERAL_SECONDS = 5.0
"""How long the other ranks may live once one has died: they wait for it in vain."""
LATE_WORDS_SECONDS = 2.0
"""How long to wait for the last lines of a process that has ended."""
SILENT_SECONDS = 3600.0
"""Seconds after a rank's last sign of life at which all are taken to hang. A step takes seconds; compiling, minutes."""
LOOK_SECONDS = 0.05

BEREAVED = re.compile(r"(closed|reset) by peer|remote process exited|Dist(Backend|Network)Error|Broken pipe", re.I)
"""What a rank dies with that has lost another, in words of gloo, NCCL and PyTorch."""

GO_ON = "What was learned up to the last checkpoint is kept: run the same command again to go on."

OnEvent = Callable[[int, Mapping[str, Any]], None]
"""Called with the rank and what it said."""


@dataclass(frozen=True)
class Outcome:
    """What became of a phase."""

    stopped: bool = False
    """A signal ended the work early, or came when it was just done."""


def rank_devices(compute: schema.Compute, environment: Mapping[str, str] = os.environ) -> list[Device]:
    """The share of each rank: one for each GPU, or a single one on the CPU; or as many as `compute.devices`.

    Each rank sees all GPUs, for NCCL connects them directly only then, and picks its own. ConfigError if there are
    fewer than wanted.
    """
    gpus = visible_gpus(environment)
    count = max(len(gpus), 1) if compute.devices == "auto" else int(compute.devices)
    if gpus and count > len(gpus):
        raise ConfigError(
            f"compute.devices = {count}: this machine has {len(gpus)} GPU(s). Set it to at most that, or to auto."
        )
    threads = max(available_cores() // count, 1) if compute.threads == "auto" else int(compute.threads)
    if gpus and count == 1 and compute.gpu_id >= len(gpus):
        raise ConfigError(f"compute.gpu_id = {compute.gpu_id}: this machine has GPUs 0 to {len(gpus) - 1}.")
    return [Device(index, {"OMP_NUM_THREADS": str(threads)}) for index in range(count)]


def run_ranks(run: RunDir, unit: int, devices: Sequence[Device], on_event: OnEvent) -> Outcome:
    """Do a unit by one rank for each device; returns when it is done or a signal stopped it.

    Raises a DegError with what the first rank that failed had to say, LaunchError if one died or all hang.
    """
    return _Ranks(run, unit, devices, on_event).execute()


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[str]
    log: Path
    log_start: int
    """Where in the log the lines of this process begin."""
    listener: threading.Thread | None = None
    failure: tuple[str, int] | None = None
    """What it said itself before it gave up: message and exit status."""
    status: int | None = None
    """What it ended with; negative for a signal; None while it runs."""

    @property
    def was_killed(self) -> bool:
        """By a signal that is not one with which libraries end a process that waits for a dead one."""
        return self.status is not None and self.status < 0 and self.status not in (-signal.SIGABRT, -STOP_SIGNAL)


@dataclass
class _Ranks:
    run: RunDir
    unit: int
    devices: Sequence[Device]
    on_event: OnEvent
    ranks: list[_Rank] = field(default_factory=list)
    troubled: list[_Rank] = field(default_factory=list)
    """Those that failed or died, in the order in which that was seen."""
    asked: bool = False
    """A signal came to this process."""
    told: bool = False
    """The ranks have been asked to stop."""
    deadline: float = math.inf
    """When those that still run are killed."""

    def execute(self) -> Outcome:
        self._events: queue.SimpleQueue[tuple[_Rank, dict[str, Any]]] = queue.SimpleQueue()
        self._heard = time.monotonic()
        with self._signals():
            try:
                port = free_port()
                for device in self.devices:
                    self._start(device, port)
                self._wait()
            finally:
                self._kill_all()
        if self.troubled:
            raise self._cause()
        return Outcome(stopped=self.asked or any(rank.status == STOPPED for rank in self.ranks))

    def _start(self, device: Device, port: int) -> None:
        folder = self.run.path / "jobs"
        folder.mkdir(exist_ok=True)
        log = folder / f"rank-{device.index}.log"
        environment = {
            **os.environ,
            **device.environment,
            "RANK": str(device.index),
            "LOCAL_RANK": str(device.index),
            "WORLD_SIZE": str(len(self.devices)),
            "LOCAL_WORLD_SIZE": str(len(self.devices)),
            "NODE_RANK": "0",
            LAUNCHER: str(os.getpid()),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        environment.pop("GROUP_RANK", None)  # Lightning would take it for the node
        with log.open("a", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "deg.execute", str(self.run.path), str(self.unit)],
                stdin=subprocess.PIPE,  # nothing is written; its end tells them that this process is gone
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C goes to this process, which passes it on in its own way
            )
            rank = _Rank(device.index, process, log, errors.tell())
        rank.listener = threading.Thread(target=self._listen, args=(rank,), daemon=True)
        rank.listener.start()
        self.ranks.append(rank)

    def _listen(self, rank: _Rank) -> None:
        assert rank.process.stdout is not None
        with rank.process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # a library wrote to standard output
                    if isinstance(event := json.loads(line), dict) and "event" in event:
                        self._events.put((rank, event))

    def _wait(self) -> None:
        """Until no rank runs any more, or those that do have had their time."""
        while self._running() and time.monotonic() < self.deadline:
            self._take_events(LOOK_SECONDS)
            for rank in self._running():
                if _has_ended(rank.process):
                    self._ended(rank)
            if self.asked and not self.told:
                self._stop_within(GRACE_SECONDS)
            if time.monotonic() - self._heard > SILENT_SECONDS:
                raise LaunchError(
                    f"No rank has said anything for {SILENT_SECONDS / 60:.0f} minutes: they hang, and are ended. "
                    f"{_last_words(self.ranks[0])}\n{GO_ON}"
                )

    def _take_events(self, seconds: float) -> None:
        """All that the ranks have said; waits for the first line at most so long."""
        while True:
            try:
                rank, event = self._events.get(timeout=seconds)
            except queue.Empty:
                return
            seconds, self._heard = 0.0, time.monotonic()
            if event["event"] == "failed":
                rank.failure = (event["message"], event["status"])
                self._in_trouble(rank)
            else:
                self.on_event(rank.number, event)

    def _ended(self, rank: _Rank) -> None:
        """Take the last words and the exit status of a rank, and end what it has left behind."""
        assert rank.listener is not None and rank.process.stdin is not None
        _kill_group(rank)  # loaders of data keep the pipe open
        rank.listener.join(LATE_WORDS_SECONDS)
        rank.status = rank.process.wait()
        rank.process.stdin.close()
        self._take_events(0.0)
        self.run.log_event("rank_ended", unit=self.unit, rank=rank.number, status=rank.status)
        if self.told and rank.status == -STOP_SIGNAL:  # it came when the rank did not heed it yet, or no more
            self._stop_within(COLLATERAL_SECONDS)
        elif rank.status == STOPPED:
            self._stop_within(FOLLOW_SECONDS)
        elif rank.status != 0:
            self._in_trouble(rank)

    def _in_trouble(self, rank: _Rank) -> None:
        if rank not in self.troubled:
            self.troubled.append(rank)
            self._stop_within(COLLATERAL_SECONDS)

    def _stop_within(self, seconds: float) -> None:
        """Ask all that run to stop, once; those that do not are killed."""
        self.deadline = min(self.deadline, time.monotonic() + seconds)
        for rank in self._running() if not self.told else ():
            os.kill(rank.process.pid, STOP_SIGNAL)
        self.told = True

    def _running(self) -> list[_Rank]:
        return [rank for rank in self.ranks if rank.status is None]

    def _kill_all(self) -> None:
        """Nobody is left behind."""
        for rank in self._running():
            _kill_group(rank)
            with suppress(subprocess.TimeoutExpired):  # in the kernel's hands: a disk or GPU that does not answer
                rank.process.wait(LATE_WORDS_SECONDS)
            self.run.log_event("rank_killed", unit=self.unit, rank=rank.number)
            if self.asked and not self.troubled:
                message = f"Rank {rank.number} did not stop and was killed; {rank.log.name} may tell why. {GO_ON}"
                self.on_event(rank.number, {"event": "note", "message": message})

    def _cause(self) -> DegError:
        """Why it ended: what a rank said itself, else the first that was killed, else the first that died by itself."""
        for rank in self.troubled:
            if rank.failure is not None:
                message, status = rank.failure
                error = DegError(message)
                error.exit_status = status
                return error
        first = min(self.troubled, key=lambda rank: (not rank.was_killed, bool(BEREAVED.search(_last_words(rank)))))
        assert first.status is not None
        return LaunchError(
            f"Rank {first.number} of {len(self.ranks)} {describe_exit(first.status)}, which ends the training. "
            f"{_last_words(first)}\n{GO_ON}"
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: Any) -> None:
            if self.asked and number == signal.SIGINT:  # whoever presses Ctrl-C again does not want to wait
                self.deadline = 0.0
            self.asked = True

        former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def free_port() -> int:
    """A TCP port of this machine that nobody uses at this moment."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether a child has ended. It stays a zombie, so that its number still means it and its group alone."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(rank: _Rank) -> None:
    """End a rank that was not waited for yet, and the processes that it has started."""
    os.killpg(rank.process.pid, signal.SIGKILL)


def _last_words(rank: _Rank) -> str:
    with rank.log.open("rb") as log:
        log.seek(rank.log_start)
        lines = tail(log.read().decode("utf-8", "replace"), lines=8)
    return "\n  ".join([f"The last lines of {show_path(rank.log)}:", *(lines or ["(none)"])])
