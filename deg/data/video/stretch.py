"""Stretches of videos: what is asked of decoders, and how one is cut into pieces that decoders share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from deg.data.video.reader import FrameCount
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError
from deg.types import VideoInfo

BLOCK_BYTES = 16 << 20
"""Largest block of frames that a decoder hands over at a time, in bytes, unless a single frame is larger."""


@dataclass(frozen=True)
class Stretch:
    """Frames [start, stop) of a video, each put through a transform."""

    video: VideoInfo
    start: int
    stop: int
    transform: FrameTransform = field(default_factory=FrameTransform)
    frame_count: FrameCount = "claimed"
    """Number of frames that the video is taken to have. In place of `decoded`, give the number that was counted:
    otherwise each decoder decodes the whole video once more to count."""
    keep_damaged: bool = False
    """Whether damaged frames are kept and listed; otherwise they are an error."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"expected 0 <= start <= stop, got {self.start = }, {self.stop = }")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def frame_bytes(self) -> int:
        """Size of a transformed frame in bytes."""
        size_HW = (self.video.height, self.video.width)
        try:
            height, width = self.transform.output_size(*size_HW)
        except ConfigError:  # the decoder will say that the frames are too small for this transform
            height, width = size_HW
        return 3 * height * width

    def block_frames(self, most: int) -> int:
        """Return how many frames make a block: `most`, but fewer if they are large."""
        return max(1, min(most, BLOCK_BYTES // self.frame_bytes))

    def part(self, start: int, stop: int) -> Stretch:
        """Return frames [start, stop) of the same video, of which none may lie outside this stretch."""
        if not self.start <= start <= stop <= self.stop:
            raise ValueError(f"expected a part of [{self.start}, {self.stop}), got [{start}, {stop})")
        return replace(self, start=start, stop=stop)
