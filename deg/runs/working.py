"""What is being worked on at this moment, as the processes at work tell in lines of JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deg.data.json_lines import read_lines
from deg.runs.attempts import Attempt

AtWork = Mapping[int, Attempt]
"""The attempts that still run, by unit."""
OutputOf = Callable[[Attempt], Path]
"""Finds the file in which the process of an attempt tells of its work."""


@dataclass(frozen=True)
class Working:
    """What is being worked on at this moment."""

    units: tuple[int, ...] = ()
    recordings: int = 0
    frames: int = 0
    """Number of frames of these units that their workers have told of."""
    speed: float | None = None
    """Speed of all workers together, in frames/s; of a training, in samples/s."""
    ends: float | None = None
    """When the run is done at this speed, in seconds since 1970; of a training, at the latest."""


def told_frames(output: Path, attempt: Attempt) -> tuple[int, float | None]:
    """Frames of its unit that a worker has told of, and its speed in frames/s."""
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
