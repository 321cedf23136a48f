"""The interface of every video, however it is stored: frames by number, uint8 RGB, of one size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal

import numpy as np

from deg.errors import VideoError
from deg.types import VideoInfo

FrameCount = Literal["claimed", "decoded"] | int
"""Number of frames that a video is taken to have.

`claimed`: what its container claims. `decoded`: as many as can be decoded; counting them decodes the whole video once.
A number: that many, counted before.
"""

ENTRY_DISTANCE = 64
"""Smallest distance of two frames that `VideoReader.entries` names."""

Transform = Callable[[np.ndarray], np.ndarray]


class VideoReader(ABC):
    """One open video. Frames are uint8 (H, W, 3) RGB; frame i is always the same pixels, however it was reached."""

    info: VideoInfo

    def read(self, start: int, stop: int, transform: Transform | None = None) -> Iterator[np.ndarray]:
        """Yield frames [start, stop), each put through `transform`: exactly stop - start of them, or VideoError.

        `transform` must treat all channels alike.
        """
        if not 0 <= start <= stop <= self.info.num_frames:
            raise ValueError(f"expected 0 <= start <= stop <= {self.info.num_frames}, got {start = }, {stop = }")
        return self._read_unchanged(start, stop, transform)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self.info.num_frames:
            raise IndexError(f"frame {index} of a video of {self.info.num_frames} frames")
        return self._frame(index, None)

    def __len__(self) -> int:
        return self.info.num_frames

    def _read_unchanged(self, start: int, stop: int, transform: Transform | None) -> Iterator[np.ndarray]:
        yield from self._frames(start, stop, transform)
        require_unchanged(self.info)

    def _frames(self, start: int, stop: int, transform: Transform | None) -> Iterator[np.ndarray]:
        for index in range(start, stop):
            yield self._frame(index, transform)

    @abstractmethod
    def _frame(self, index: int, transform: Transform | None) -> np.ndarray: ...

    @abstractmethod
    def survey(self) -> tuple[int, list[int]]:
        """Decode everything; return the number of frames, whatever is claimed, and which of them are damaged."""

    def count_decodable(self) -> int:
        """Count the frames, from the first on, that can be decoded, whatever is claimed. Decodes everything."""
        count, damaged = self.survey()
        return damaged[0] if damaged else count

    def entries(self) -> list[int]:
        """Return frames with which reading can begin without many others being decoded first, ascending.

        They are at least ENTRY_DISTANCE frames apart. There are none in images and HDF5, where reading can begin
        anywhere, and in files that are always decoded from the first frame.
        """
        return []

    def close(self) -> None:  # noqa: B027 - most readers hold nothing
        """Release what the reader holds. Harmless if done twice."""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_unchanged(info: VideoInfo) -> None:
    """Raise VideoError if the file was written to or replaced since `info` was taken."""
    try:
        now = info.path.stat()
    except OSError as error:
        raise VideoError(
            info.path, f"it disappeared while it was read ({error.strerror})", "Put it back, then run again."
        ) from error
    same_size = info.path.is_dir() or now.st_size == info.size_bytes
    if now.st_mtime_ns != info.mtime_ns or not same_size:
        raise VideoError(
            info.path,
            f"it changed while it was read ({info.size_bytes} bytes when opened, {now.st_size} now)",
            "Wait until the recording or the copy is finished, then run again.",
        )


def require_size(info: VideoInfo, index: int, shape: tuple[int, ...], name: str) -> None:
    """Raise VideoError if the image `name`, frame `index`, does not have the size of the first frame."""
    if shape != (info.height, info.width, 3):
        raise VideoError(
            info.path,
            f"{name} is {shape[0]} x {shape[1]} pixels (height x width), the first frame {info.height} x {info.width}",
            "All frames of a video must have one size: resize or remove the odd ones.",
            frame=index,
        )
