"""What is being worked on at this moment, as the processes at work report it in JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deg.data.json_lines import read_lines
from deg.runs.attempts import Attempt

AtWork = Mapping[int, Attempt]
"""Attempts that still run, by unit."""
OutputOf = Callable[[Attempt], Path]
"""Function that finds the file in which the process of an attempt reports its work."""


@dataclass(frozen=True)
class Working:
    """What is being worked on at this moment."""

    units: tuple[int, ...] = ()
    recordings: int = 0
    frames: int = 0
    """Number of frames of these units that their workers have reported as done."""
    speed: float | None = None
    """Speed of all workers together, in frames/s; for a training, in samples/s."""
    ends: float | None = None
    """Time when the run will be done at this speed, in seconds since 1970; for a training, the latest time."""


def told_frames(output: Path, attempt: Attempt) -> tuple[int, float | None]:
    """Return the number of frames of its unit that a worker has reported as done, and its speed in frames/s."""
    frames = 0
    for line in read_lines(output):
        if line.get("event") == "progress":
            frames += line["frames"]
        elif line.get("event") in ("ready", "unit", "unit_failed"):
            frames = 0
    if not frames:
        return 0, None
    elapsed = output.stat().st_mtime - attempt.time
    return frames, frames / elapsed if elapsed > 1.0 else None
