"""The small frozen values that stages pass to each other. Ranges are half-open: [start, stop).

Letters in the names of arrays: B batch, T time (frames), C channel, H height, W width, K classes (background included),
D features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

STREAM_FEATURES = 512
"""Number of features per frame in each stream of a two-stream network."""
NUM_FEATURES = 2 * STREAM_FEATURES
"""Number of features per frame that a sequence network reads: first the spatial stream's, then the flow stream's."""

ImageOrder = Literal["natural", "deepethogram"]
"""Rule by which the images of a folder are found and put into the order of frames, see `deg.data.video.images`."""


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
        """Path of the results file, whether it exists or not: `<video without extension>_outputs.h5`."""
        if self.video is None:
            return self.folder / f"{self.key}_outputs.h5"
        return self.video.with_name(self.video.stem + "_outputs.h5")


@dataclass(frozen=True)
class VideoInfo:
    """What a video states about itself, before all of it is decoded."""

    path: Path
    num_frames: int
    """Number of frames that the container claims; only decoding can confirm it."""
    height: int
    width: int
    fps: float
    """Frames per second; 0.0 where the container states none (images, HDF5)."""
    size_bytes: int
    mtime_ns: int
    """Modification time in nanoseconds since 1970; it reveals that a file was replaced."""
    image_order: ImageOrder = "deepethogram"
    """Rule that gives these frames; `deepethogram` wherever both rules give the same, as for all other videos."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as plan.json holds them. DeepEthogram's order of images is left out, as in old plans."""
        plain = asdict(self) | {"path": str(self.path)}
        if self.image_order == "deepethogram":
            del plain["image_order"]
        return plain


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
    """`error` if the recording cannot be used for the purpose at hand, `warning` if it can but should be checked."""
    message: str

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "severity": self.severity, "message": self.message}
