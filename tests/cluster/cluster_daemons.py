"""Programs that run beside the tests, and that are found again by a file with their process id."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

START_SECONDS = 60.0


class ClusterError(Exception):
    """Raised when the small cluster does not do what it should; the message says where to look."""


def until(what: str, happened: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise ClusterError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.1)


def run(*words: str | Path, check: bool = True, environment: Mapping[str, str] = {}, timeout: float = 120) -> str:
    """Run a command and return its standard output. Raise ClusterError with its standard error if it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode:
        raise ClusterError(f"{' '.join(map(str, words))} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Daemon:
    """One program that should run; `folder` holds NAME.pid and NAME.log."""

    def __init__(self, folder: Path, name: str):
        self.name = name
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._pid_file = folder / f"{name}.pid"

    @property
    def pid(self) -> int | None:
        """Its process id. None if it does not run, or has ended but was not reaped yet."""
        try:
            pid, born = self._pid_file.read_text().split()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        return int(pid) if fields[0] != "Z" and fields[19] == born else None

    def start(self, words: Sequence[str | Path], environment: Mapping[str, str] = {}) -> None:
        if self.pid is not None:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        # with its start time, because ids are used again
        pid = self._process.pid
        born = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        self._pid_file.write_text(f"{pid} {born}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        pid = self.pid
        if pid is None:
            return
        os.kill(pid, number)
        until(f"the end of {self.name} (process {pid})", self._has_ended, 30)

    def _has_ended(self) -> bool:
        if self._process is not None:
            self._process.poll()  # reap it, if it is our child
        return self.pid is None
