"""Stretches of real videos."""

from __future__ import annotations

from pathlib import Path

from deg.data.video.files import probe
from deg.data.video.reader import FrameCount
from deg.data.video.stretch import Stretch
from deg.data.video.transform import FrameTransform
from deg.types import ImageOrder

UNCHANGED = FrameTransform()


def stretch_of(
    path: Path,
    start: int = 0,
    stop: int | None = None,
    transform: FrameTransform = UNCHANGED,
    *,
    frame_count: FrameCount = "claimed",
    image_order: ImageOrder = "natural",
    keep_damaged: bool = False,
) -> Stretch:
    """Return frames [start, stop) of a video, by default all of them."""
    video = probe(path, frame_count=frame_count, image_order=image_order)
    stop = video.num_frames if stop is None else stop
    return Stretch(video, start, stop, transform, frame_count=frame_count, keep_damaged=keep_damaged)
