"""What every working process needs: a flag that signals set, a voice, and a log of its own.

Whoever started it reads JSON lines on its standard output, and its exit status.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

STOPPED = 75
"""Exit status: stopped cleanly before the work was done."""


class Stopped(Exception):
    """A signal asked the work to stop."""


class StopFlag:
    """Set by SIGTERM or SIGUSR2, any number of times, or when it is time.

    It is looked at between batches; nothing is done within a handler.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        """`deadline`: in seconds since 1970, when it is set without a signal, which on some clusters never comes."""
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


def stop_without_launcher(stop: StopFlag) -> None:
    """Stop when whoever started this process is gone: at the next step if that comes soon, else at once."""
    if LAUNCHER not in os.environ:
        return

    descriptor = sys.stdin.fileno()

    def watch() -> None:
        # not sys.stdin.read(): it holds a lock that a forked loader of data would wait for, for ever
        while os.read(descriptor, 4096):
            pass
        stop.is_set = True
        time.sleep(GRACE_SECONDS)
        os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()


class Teller:
    """Says on standard output, as JSON lines, what happens; at most one line of progress a second."""

    def __init__(self) -> None:
        self._frames, self._last = 0, time.monotonic()

    def say(self, event: str, **details: Any) -> None:
        # whoever listened may be gone; the work, and above all saving it, goes on
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


def available_cores() -> int:
    """CPU cores that this process may use; a scheduler may have bound it to fewer than the machine has."""
    return len(os.sched_getaffinity(0))
