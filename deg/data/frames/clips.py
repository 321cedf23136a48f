"""Training clips: the 11 frames around a frame of a recording, as the networks will see them.

They are read from the frame cache or, without one, from the videos. The pixels are the same, and the same as in
inference.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from deg.arithmetic.windows import WINDOW, mean_colour, reach
from deg.data.frames.cache import FrameCache, kept
from deg.data.video.files import open_video
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError, VideoError, show_path
from deg.types import VideoInfo

CACHED_OPEN, VIDEOS_OPEN = 128, 8
"""Number of files that each loader process keeps open: of the cache, and videos. A decoder takes some 20 MB."""

Crop = tuple[float, float]
"""Position of a crop, (vertical, horizontal), from 0 (top, left) to just below 1 (bottom, right)."""


class _Frames(Protocol):
    def read(self, start: int, stop: int, out_THWC: np.ndarray | None = None) -> np.ndarray: ...
    def close(self) -> None: ...


class Clips:
    """Clips of recordings by key and frame. Picklable; each process opens its own files."""

    def __init__(
        self,
        videos: Mapping[str, VideoInfo],
        transform: FrameTransform,
        mean: Sequence[float],
        cache: FrameCache | None = None,
    ):
        """Prepare clips of `videos`, {key: video}. `mean` is the mean of each colour, 0 to 1.

        `cache` must have been filled for these videos, with this transform. Raises ConfigError if the recordings do not
        all give frames of one size.
        """
        self.videos, self.transform = dict(videos), transform
        self.height, self.width = common_size(videos, transform)
        self._colour = mean_colour(mean)
        self._cache = cache
        # What is left to do after reading.
        self._rest = transform if kept(transform) != transform else None
        self._open: OrderedDict[str, _Frames] = OrderedDict()
        self._opened_by = os.getpid()

    def clip(self, key: str, frame: int, crop: Crop | None = None, out_THWC: np.ndarray | None = None) -> np.ndarray:
        """Return the clip around a frame, uint8 (11, H, W, 3) RGB; outside the video it has the mean colour.

        `crop` says where `augs.crop_size` is cut out; None: from the centre. `out_THWC`: a contiguous array to fill.
        Raises VideoError or CacheError if the frames cannot be read.
        """
        needed = reach(frame, frame + 1, self.videos[key].num_frames)
        clip_THWC = np.empty((WINDOW, self.height, self.width, 3), np.uint8) if out_THWC is None else out_THWC
        inside = slice(needed.pad_before, WINDOW - needed.pad_after)
        clip_THWC[: inside.start] = self._colour
        clip_THWC[inside.stop :] = self._colour
        frames = self._frames(key)
        if self._rest is None:
            frames.read(needed.first, needed.last, clip_THWC[inside])
        else:
            for place, frame_HWC in enumerate(frames.read(needed.first, needed.last), start=inside.start):
                clip_THWC[place] = cropped(frame_HWC, self._rest, crop)
        if self._cache is not None:
            self._cache.sign_of_life()
        return clip_THWC

    def _frames(self, key: str) -> _Frames:
        """Return the recording, opened. If there are many, only those used last stay open."""
        if self._opened_by != os.getpid():  # a forked process must not use the decoders of its parent
            self._open, self._opened_by = OrderedDict(), os.getpid()
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        frames: _Frames
        if self._cache is not None:
            frames, most = self._cache.open(self.videos[key], self.transform), CACHED_OPEN
        else:
            frames, most = _VideoFrames(self.videos[key], kept(self.transform)), VIDEOS_OPEN
        self._open[key] = frames
        while len(self._open) > most:
            self._open.popitem(last=False)[1].close()
        return frames

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


class _VideoFrames:
    """Frames from the video itself; used like `deg.data.frames.files.CachedFrames`."""

    def __init__(self, video: VideoInfo, transform: FrameTransform):
        self._transform = transform
        self._reader = open_video(video.path, frame_count=video.num_frames, image_order=video.image_order)
        if self._reader.info != video:
            self.close()
            raise VideoError(
                video.path,
                f"it changed since the training was planned: {video} then, {self._reader.info} now",
                "Start a new training.",
            )

    def read(self, start: int, stop: int, out_THWC: np.ndarray | None = None) -> np.ndarray:
        frames_THWC = np.stack(list(self._reader.read(start, stop, self._transform)))
        if out_THWC is None:
            return frames_THWC
        out_THWC[...] = frames_THWC
        return out_THWC

    def close(self) -> None:
        self._reader.close()


def cropped(frame_HWC: np.ndarray, transform: FrameTransform, crop: Crop | None) -> np.ndarray:
    """Transform a frame, with the crop cut out at `crop` instead of the centre."""
    if crop is None or transform.crop_size is None:
        return transform(frame_HWC)
    height, width = transform.crop_size  # type: ignore[misc]
    # every possible position has the same share of [0, 1)
    top, left = (
        int(fraction * (size - part + 1))
        for fraction, size, part in zip(crop, frame_HWC.shape, (height, width), strict=False)
    )
    return replace(transform, crop_size=None)(frame_HWC[top : top + height, left : left + width])


def common_size(videos: Mapping[str, VideoInfo], transform: FrameTransform) -> tuple[int, int]:
    """Return (height, width) of all recordings' transformed frames. Raises ConfigError, naming two that differ."""
    sizes = {key: transform.output_size(video.height, video.width) for key, video in videos.items()}
    first = next(iter(sizes))
    for key, size in sizes.items():
        if size != sizes[first]:
            raise ConfigError(
                f"Frames of all recordings must have one size for training, but those of `{first}` "
                f"({show_path(videos[first].path)}) are {_by(sizes[first])} pixels (height x width), and those of "
                f"`{key}` ({show_path(videos[key].path)}) {_by(size)}. Set augs.resize to [height, width], such as "
                "augs.resize=[224,224]."
            )
    return sizes[first]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
