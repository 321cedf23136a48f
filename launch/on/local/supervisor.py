"""Supervises child processes that do units: starts them, listens to them, stops them, and describes how they ended.

A worker is `python -m deg.execute RUN WHAT`. It reports what it does in JSON lines on its standard output, and writes
everything else into a log. Its standard input closes when this process ends, killed or not; then it stops by itself.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deg.errors import DegError, show_path
from deg.runs.rundir import RunDir, tail

LOOK_SECONDS = 0.05
"""Seconds between two checks for workers that have ended."""
LATE_WORDS_SECONDS = 2.0
"""Longest time that the last lines of an ended process may take to arrive, in seconds."""
KILL_SECONDS = 10.0
"""A killed process that has not ended after this many seconds is left to the kernel: a disk or GPU does not answer."""


@dataclass(eq=False)
class Worker:
    """One child process."""

    index: int
    process: subprocess.Popen[str]
    log: Path
    log_start: int
    """Position in the log at which the lines of this process begin, in bytes."""
    listener: threading.Thread = field(init=False)
    heard: float = field(default_factory=time.monotonic)
    """Time of its last line, by the monotonic clock."""
    error: DegError | None = None
    """Error that it reported before it ended."""
    status: int | None = None
    """Exit status, negative for a signal; None while it runs."""
    is_over: bool = False
    """Whether its end was told. Lines that arrive later, from what it has left behind, do not count."""

    def say(self, line: str) -> None:
        """Write a line to its standard input. If it has just died, the line is lost."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()

    def close_input(self) -> None:
        """Close its standard input, also if a line that it did not take is still there."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def signal(self, number: int) -> None:
        """Send a signal to the process itself."""
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Kill the process and all that it has started. Only the supervisor reaps it, so its number is its own."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether the process has ended. It stays a zombie, so that no other process or group gets its number."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def last_words(self) -> str:
        """Return the last lines of its log, below the name of the log."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            lines = tail(log.read().decode("utf-8", "replace"), lines=8)
        return "\n  ".join([f"The last lines of {show_path(self.log)}:", *(lines or ["(none)"])])


class Supervisor:
    """The child processes of one run."""

    def __init__(self, run: RunDir):
        self._run = run
        # not a SimpleQueue: its get() can wait for ever if its time is up while it is still being entered
        self._lines: queue.Queue[tuple[Worker, dict[str, Any]]] = queue.Queue()
        self.all: list[Worker] = []
        """Workers in the order in which they were started."""

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self.all if worker.status is None]

    def start(self, index: int, what: str, log_name: str, environment: Mapping[str, str]) -> Worker:
        """Start a worker for `what`: the index of a unit, or `-` for the units that `Worker.say` gives it."""
        folder = self._run.path / "jobs"
        folder.mkdir(exist_ok=True)
        log = folder / log_name
        with log.open("a", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "deg.execute", str(self._run.path), what],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches this process only, which passes it on in its own way
            )
            worker = Worker(index, process, log, errors.tell())
        worker.listener = threading.Thread(target=self._listen, args=(worker,), daemon=True)
        worker.listener.start()
        self.all.append(worker)
        return worker

    def events(self, seconds: float = LOOK_SECONDS) -> Iterator[tuple[Worker, dict[str, Any] | None]]:
        """Yield what workers have said, and None for each that has ended.

        Waits at most `seconds` for the first line. The last lines of a worker come before its None.
        """
        yield from self._said(seconds)
        for worker in self.running:
            if worker.has_ended():
                self._close(worker)
                yield from self._said(0.0)
                worker.is_over = True
                yield worker, None

    def end(self, seconds: float = 0.0) -> list[Worker]:
        """Wait `seconds` for the workers that still run, then kill them. Return those that were killed."""
        deadline = time.monotonic() + seconds
        while True:
            for worker in self.running:
                if worker.has_ended():
                    self._close(worker)
            if not self.running or time.monotonic() >= deadline:
                break
            time.sleep(LOOK_SECONDS)
        killed = self.running
        for worker in killed:
            worker.kill()
        for worker in killed:
            with suppress(subprocess.TimeoutExpired):
                worker.status = worker.process.wait(KILL_SECONDS)
            worker.close_input()
        return killed

    def _listen(self, worker: Worker) -> None:
        assert worker.process.stdout is not None
        with worker.process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # a library wrote to standard output
                    if isinstance(event := json.loads(line), dict) and "event" in event:
                        self._lines.put((worker, event))

    def _said(self, seconds: float) -> Iterator[tuple[Worker, dict[str, Any]]]:
        while True:
            try:
                worker, event = self._lines.get(timeout=seconds) if seconds else self._lines.get_nowait()
            except queue.Empty:
                return
            seconds, worker.heard = 0.0, time.monotonic()
            if event["event"] == "failed":
                worker.error = DegError(event["message"])
                worker.error.exit_status = event["status"]
            if not worker.is_over:
                yield worker, event

    def _close(self, worker: Worker) -> None:
        """Read the last lines and the exit status of a worker that has ended, and kill the processes that it left."""
        worker.kill()  # its data loaders keep the pipe open
        worker.listener.join(LATE_WORDS_SECONDS)
        worker.status = worker.process.wait()
        worker.close_input()


@contextmanager
def signals_to(heard: Callable[[int], None]) -> Iterator[None]:
    """Call `heard` with the number of each SIGINT, SIGTERM or SIGUSR2. Has no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    former = {number: signal.signal(number, lambda number, _: heard(number)) for number in numbers}
    # where it is ignored, children vanish by themselves and with them how they ended
    former[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
