"""How far the work has come: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from deg.launch.arguments import say

LINE_SECONDS = 60.0


class Progress:
    """Counts frames. Use as a context manager."""

    def __init__(self, total: int):
        self._total, self._frames = total, 0
        self._started = self._told = time.monotonic()
        self._due: dict[str, float] = {}
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and self._total:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("frames", total=self._total, speed="")
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._frames:
            self._line()

    def add(self, frames: int) -> None:
        """Count `frames` more."""
        self._frames += frames
        if self._bar is not None:
            self._bar.update(self._task, advance=frames, speed=f"{self._speed():.1f}/s")
        elif frames and self.due("line", seconds=LINE_SECONDS):
            self._line()

    def due(self, what: str, *, seconds: float) -> bool:
        """Whether it is time for something that happens every so many seconds, the first time after as many."""
        now = time.monotonic()
        if now - self._due.setdefault(what, self._started) < seconds:
            return False
        self._due[what] = now
        return True

    def _speed(self) -> float:
        return self._frames / max(time.monotonic() - self._started, 1e-9)

    def _line(self) -> None:
        speed = self._speed()
        left = max(self._total - self._frames, 0) / max(speed, 1e-9)
        say(f"{self._frames} of {self._total} frames, {speed:.1f} frames/s, {left / 60:.0f} min left")
