"""Shows how far the work has come: a bar on a terminal, one line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from deg.launch.say import say
from deg.runs.training import FIGURES

LINE_SECONDS = 60.0
"""Seconds between two lines in a log."""


class Due:
    """Tells when it is time for something that happens every so many seconds, starting after the first interval."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last: dict[str, float] = {}

    def __call__(self, what: str, *, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._last.setdefault(what, self._started) < seconds:
            return False
        self._last[what] = now
        return True


class Progress:
    """Counts frames and shows their number. Use as a context manager."""

    def __init__(self, total: int):
        self._total, self._frames = total, 0
        self._started = time.monotonic()
        self.due = Due()
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

    def _speed(self) -> float:
        return self._frames / max(time.monotonic() - self._started, 1e-9)

    def _line(self) -> None:
        speed = self._speed()
        left = max(self._total - self._frames, 0) / max(speed, 1e-9)
        say(f"{self._frames} of {self._total} frames, {speed:.1f} frames/s, {left / 60:.0f} min left")


def figures(row: Mapping[str, Any]) -> str:
    """Return the key figures of an epoch on one part of the data, such as `loss 0.231, F1 0.812`."""
    return ", ".join(f"{said} {row[name]:.3f}" for name, said in FIGURES.items() if row.get(name) is not None)


class TrainingProgress:
    """Shows how far a training has come: a bar or a line a minute for steps, a line for each epoch.

    Use as a context manager.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._is_due = Due()
        self._caches: dict[int, tuple[int, int]] = {}
        """Number of frames done and wanted, by rank that fills the cache."""
        self._first = self._last = 0
        """Number of steps of this epoch that were done at its first report, and that are done now."""
        self._began = 0.0

    def __enter__(self) -> TrainingProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[about]}"), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, about="")
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def hear(self, rank: int, event: Mapping[str, Any]) -> None:
        """Show what a rank says.

        Ranks work in lockstep, so the first one speaks for all. But each fills its own share of the cache.
        """
        kind = event["event"]
        if kind == "note":
            say(event["message"])
        elif kind == "cache":
            self._caches[rank] = event["done"], event["of"]
            done, total = map(sum, zip(*self._caches.values(), strict=True))
            self._show("frame cache", done, total, "", f"frame cache: {done} of {total} frames")
        elif rank == 0 and kind == "step":
            self._step(event)
        elif rank == 0 and kind == "validating" and self._bar is not None:
            self._bar.reset(self._task, total=None, description="validating", about="")
        elif rank == 0 and kind == "epoch":
            best = ", the best so far" if event["best"] else ""
            say(f"epoch {event['epoch'] + 1}: {figures(event['train'])}; validation: {figures(event['val'])}{best}")

    def _step(self, event: Mapping[str, Any]) -> None:
        done, total = event["batch"], event["of"]
        if done <= self._last or not self._last:
            self._first, self._began = done, time.monotonic()
        self._last = done
        title = f"epoch {event['epoch'] + 1} of {event['epochs']}"
        about = f"loss {event['loss']:.4f}, {event['samples_per_second']:.1f} samples/s"
        left = ""
        if done > self._first:
            seconds = (time.monotonic() - self._began) / (done - self._first) * (total - done)
            left = f", {seconds / 60:.0f} min left of this epoch"
        self._show(title, done, total, about, f"{title}, step {done} of {total}: {about}{left}")

    def _show(self, title: str, done: int, total: int, about: str, line: str) -> None:
        if self._bar is not None:
            if self._bar.tasks[0].description != title:
                self._bar.reset(self._task, description=title)
            self._bar.update(self._task, completed=done, total=total, about=about)
        elif self._is_due("line", seconds=LINE_SECONDS):
            say(line)
