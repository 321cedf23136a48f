"""What every worker process needs: a flag that signals set, a way to report events, and a log file of its own.

The process that started it reads JSON lines from its standard output, and its exit status.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

STOPPED = 75
"""Exit status of a process that stopped cleanly before its work was done."""


def describe_exit(status: int) -> str:
    """Describe the exit status of a process in words; it is negative for a signal."""
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no garbage in the block: among modules being loaded there is none, and looking for it takes a while."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def leave(status: int) -> NoReturn:
    """End this process at once, after its work: taking torch apart would need a second, Lightning two.

    No exit handler of a library runs. Every file must be closed by now.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the listener may be gone
            stream.flush()
    os._exit(status)


class Stopped(Exception):
    """A signal asked the work to stop."""


class StopFlag:
    """A flag that tells the work to stop. SIGTERM, SIGUSR2 or a deadline sets it.

    The work checks it between batches; the signal handler does nothing but set it.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        """Make a flag that is also set at `deadline`, in seconds since 1970: on some clusters no signal ever comes."""
        self._was_set, self._deadline = False, deadline

    @property
    def is_set(self) -> bool:
        return self._was_set or time.time() > self._deadline

    @is_set.setter
    def is_set(self, value: bool) -> None:
        self._was_set = value

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._set)

    def ignore(self) -> None:
        """Ignore signals from now on. Call this last: a signal while Python ends would kill the process."""
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    def _set(self, *_: Any) -> None:
        self.is_set = True

    def check(self) -> None:
        if self.is_set:
            raise Stopped


LAUNCHER = "DEG_LAUNCHER"
"""Environment variable of a process whose standard input stays open for as long as its launcher lives."""
GRACE_SECONDS = 120.0
"""Seconds that a process without its launcher has for reaching its next step; then it ends at once."""


def stop_without_launcher(stop: StopFlag) -> None:
    """Stop this process when its launcher is gone: at the next step, or after GRACE_SECONDS at the latest."""
    if LAUNCHER not in os.environ:
        return

    descriptor = sys.stdin.fileno()

    def watch() -> None:
        # not sys.stdin.read(): it holds a lock, and a forked data loader would wait for that lock for ever
        while os.read(descriptor, 4096):
            pass
        stop.is_set = True
        time.sleep(GRACE_SECONDS)
        os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()


class Teller:
    """Reports events as JSON lines on standard output, with at most one line of progress a second."""

    def __init__(self) -> None:
        self._frames, self._last = 0, time.monotonic()

    def say(self, event: str, **details: Any) -> None:
        # the listener may be gone; the work, and above all saving it, must continue
        with suppress(BrokenPipeError):
            sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
            sys.stdout.flush()

    def progress(self, frames: int) -> None:
        self._frames += frames
        if time.monotonic() - self._last >= 1.0:
            self.flush()

    def flush(self) -> None:
        if self._frames:
            self.say("progress", frames=self._frames)
        self._frames, self._last = 0, time.monotonic()


class Silent(Teller):
    """Reports nothing."""

    def say(self, event: str, **details: Any) -> None:
        pass


class log_to:
    """Also write this package's log to a file while the block runs."""

    def __init__(self, path: Path):
        self._handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def __enter__(self) -> None:
        logging.getLogger("deg").addHandler(self._handler)

    def __exit__(self, *exception: Any) -> None:
        logging.getLogger("deg").removeHandler(self._handler)
        self._handler.close()


CORES = "DEG_CORES"
"""Environment variable with the number of CPU cores that a launcher has given to a process, which may see more."""


def available_cores() -> int:
    """Return how many CPU cores this process may use: its launcher's share, or those that it is bound to."""
    bound, share = len(os.sched_getaffinity(0)), os.environ.get(CORES, "")
    return min(bound, max(int(share), 1)) if share.isdecimal() else bound
