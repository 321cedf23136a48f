"""Runs one phase of a training on this machine, with one process for each device.

The ranks are `python -m deg.execute RUN UNIT`, and torchrun's variables tell them who they are. All do the same unit in
lockstep, so one that dies or fails ends all of them. The error names the cause, not what the others then died of. A
signal to this process is passed on: the ranks stop together after a step, with their state saved. If this process is
killed, their standard input closes, and they stop in the same way.
"""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence

from deg.errors import ConfigError, DegError, LaunchError
from deg.launch.devices import Device, free_port, visible_gpus
from deg.launch.on.local.supervisor import Supervisor, Worker, signals_to
from deg.launch.stages.place import Hear, Outcome
from deg.options import schema
from deg.runs.rundir import RunDir
from deg.work import LAUNCHER, STOPPED, available_cores, describe_exit

STOP_SIGNAL = signal.SIGUSR2
"""Signal that asks ranks to stop. Not SIGTERM: Lightning would talk to the other ranks within its signal handler."""
GRACE_SECONDS = 300.0
"""Seconds that ranks have to end a step and save their state after a signal. They may be in the middle of validation,
and the disks of clusters are slow."""
FOLLOW_SECONDS = 60.0
"""Seconds that the other ranks have to stop once one has stopped. They stop after the same step."""
COLLATERAL_SECONDS = 5.0
"""Seconds that the other ranks may live once one has died. They could only wait for it."""
SILENT_SECONDS = 3600.0
"""Ranks that have all been silent for this long are taken to hang. A step takes seconds, compiling takes minutes."""

BEREAVED = re.compile(r"(closed|reset) by peer|remote process exited|Dist(Backend|Network)Error|Broken pipe", re.I)
"""Words of gloo, NCCL and PyTorch in the log of a rank that died because it had lost another one."""

RESUME = "What was learned up to the last checkpoint is kept: run the same command again to resume."


def rank_devices(compute: schema.Compute, environment: Mapping[str, str] = os.environ) -> list[Device]:
    """Return a device for each rank: one per GPU or a single one on the CPU, or as many as `compute.devices` says.

    Each rank sees all GPUs and picks its own: only then does NCCL connect them directly. Raises ConfigError if there
    are fewer GPUs than the options ask for.
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


def run_ranks(run: RunDir, unit: int, devices: Sequence[Device], hear: Hear) -> Outcome:
    """Do a unit with one rank for each device. Returns when it is done or a signal has stopped it.

    Raises the DegError of the first rank that failed, or LaunchError if one died or all hang.
    """
    return _Ranks(run, unit, devices, hear).execute()


class _Ranks:
    """The ranks of one unit."""

    def __init__(self, run: RunDir, unit: int, devices: Sequence[Device], hear: Hear):
        self._run, self._unit, self._devices, self._hear = run, unit, devices, hear
        self._supervisor = Supervisor(run)
        self._troubled: list[Worker] = []
        """Ranks that failed or died, in the order in which this was noticed."""
        self._asked = False
        """Whether this process has received a signal."""
        self._told = False
        """Whether the ranks have been asked to stop."""
        self._deadline = math.inf
        """Time at which ranks that still run are killed, by the monotonic clock."""

    def execute(self) -> Outcome:
        with signals_to(self._ask):
            try:
                port = free_port()
                for device in self._devices:
                    self._start(device, port)
                while self._supervisor.running and time.monotonic() < self._deadline:
                    self._look()
            finally:
                self._kill_all()
        if self._troubled:
            raise self._cause()
        return Outcome(stopped=self._asked or any(rank.status == STOPPED for rank in self._supervisor.all))

    def _ask(self, number: int) -> None:
        if self._asked and number == signal.SIGINT:  # a second Ctrl-C: the user does not want to wait
            self._deadline = 0.0
        self._asked = True

    def _start(self, device: Device, port: int) -> None:
        environment = {
            **os.environ,
            **device.environment,
            "RANK": str(device.index),
            "LOCAL_RANK": str(device.index),
            "WORLD_SIZE": str(len(self._devices)),
            "LOCAL_WORLD_SIZE": str(len(self._devices)),
            "NODE_RANK": "0",
            LAUNCHER: str(os.getpid()),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        environment.pop("GROUP_RANK", None)  # Lightning would take it for the node
        self._supervisor.start(device.index, str(self._unit), f"rank-{device.index}.log", environment)

    def _look(self) -> None:
        """Handle what ranks say and which have ended, pass on a signal, and check whether they hang."""
        for rank, event in self._supervisor.events():
            if event is None:
                self._ended(rank)
            elif event["event"] == "failed":
                self._in_trouble(rank)
            else:
                self._hear(rank.index, event)
        if self._asked and not self._told:
            self._stop_within(GRACE_SECONDS)
        if time.monotonic() - max(rank.heard for rank in self._supervisor.all) > SILENT_SECONDS:
            raise LaunchError(
                f"No rank has said anything for {SILENT_SECONDS / 60:.0f} minutes: they hang and were killed. "
                f"{self._supervisor.all[0].last_words()}\n{RESUME}"
            )

    def _ended(self, rank: Worker) -> None:
        self._run.log_event("rank_ended", unit=self._unit, rank=rank.index, status=rank.status)
        if self._told and rank.status == -STOP_SIGNAL:  # it came before the rank handled it, or when it no longer did
            self._stop_within(COLLATERAL_SECONDS)
        elif rank.status == STOPPED:
            self._stop_within(FOLLOW_SECONDS)
        elif rank.status != 0:
            self._in_trouble(rank)

    def _in_trouble(self, rank: Worker) -> None:
        if rank not in self._troubled:
            self._troubled.append(rank)
            self._stop_within(COLLATERAL_SECONDS)

    def _stop_within(self, seconds: float) -> None:
        """Ask all running ranks to stop, once. Those that still run after `seconds` are killed."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        for rank in self._supervisor.running if not self._told else ():
            rank.signal(STOP_SIGNAL)
        self._told = True

    def _kill_all(self) -> None:
        """Kill all ranks that still run."""
        for rank in self._supervisor.end():
            self._run.log_event("rank_killed", unit=self._unit, rank=rank.index)
            if self._asked and not self._troubled:
                message = f"Rank {rank.index} did not stop and was killed; {rank.log.name} may tell why. {RESUME}"
                self._hear(rank.index, {"event": "note", "message": message})

    def _cause(self) -> DegError:
        """Return why the training ended.

        It is what a rank reported itself, else the first that was killed, else the first that died by itself.
        """
        for rank in self._troubled:
            if rank.error is not None:
                return rank.error
        first = min(self._troubled, key=lambda rank: (not _was_killed(rank), bool(BEREAVED.search(rank.last_words()))))
        assert first.status is not None
        return LaunchError(
            f"Rank {first.index} of {len(self._devices)} {describe_exit(first.status)}, which ends the training. "
            f"{first.last_words()}\n{RESUME}"
        )


def _was_killed(rank: Worker) -> bool:
    """Whether a rank was killed by a signal that is neither ours nor that of a library that waited for a dead rank."""
    return rank.status is not None and rank.status < 0 and rank.status not in (-signal.SIGABRT, -STOP_SIGNAL)
