"""The small frozen values that travel between stages. Ranges are half-open: [start, stop).

Letters in the names of arrays: B batch, T time (frames), C channel, H height, W width, K classes (background included),
D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

STREAM_FEATURES = 512
"""Features of a frame in each stream of every two-stream network."""
NUM_FEATURES = 2 * STREAM_FEATURES
"""What a sequence network reads of a frame: those of the spatial stream, then those of the flow stream."""


@dataclass(frozen=True)
class Record:
    """One recording of a project: a folder under DATA/ and the files found in it."""

    key: str
    """Name of the folder; identifies the recording in splits, plans and reports."""
    folder: Path
    video: Path | None = None
    """Video file, HDF5 video, or folder of images."""
    labels: Path | None = None
    outputs: Path | None = None
    keypoints: Path | None = None

    @property
    def outputs_path(self) -> Path:
        """Where results of this recording are written, present or not: `<video without extension>_outputs.h5`."""
        if self.video is None:
            return self.folder / f"{self.key}_outputs.h5"
        return self.video.with_name(self.video.stem + "_outputs.h5")


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself, without decoding it."""

    path: Path
    num_frames: int
    """Frames claimed by the container; only decoding can confirm it."""
    height: int
    width: int
    fps: float
    """0.0 where the container has none (images, HDF5)."""
    size_bytes: int
    mtime_ns: int
    """Modification time, for noticing that a file was replaced."""


@dataclass(frozen=True)
class Span:
    """Frames [start, stop) of the recording `key`."""

    key: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Unit:
    """The smallest piece of work: done once, by one process, with one result file."""

    index: int
    spans: tuple[Span, ...]

    @property
    def num_frames(self) -> int:
        return sum(len(span) for span in self.spans)


@dataclass(frozen=True)
class Issue:
    """One fault of one recording, and what to do about it."""

    key: str
    severity: str
    """`error`: the recording cannot be used for the purpose at hand; `warning`: it can, but look at it."""
    message: str

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "severity": self.severity, "message": self.message}
