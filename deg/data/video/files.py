"""Videos as frames by number: files that OpenCV decodes, folders of images, HDF5.

    with open_video("mouse.mp4") as video:
        for frame_HWC in video.read(100, 200):      # uint8 RGB, exactly 100 of them, or VideoError
            ...

Frame i is the i-th frame that decoding from the beginning gives. A span in the middle is reached by a seek only if
`deg.data.video.timetable` can prove that the seek arrived, otherwise by decoding from the beginning.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from deg.data.video.faults import NOT_A_VIDEO, REENCODE, require_readable, unopened
from deg.data.video.images import FolderReader, HDF5Reader
from deg.data.video.reader import FrameCount, Transform, VideoReader, require_size
from deg.data.video.timetable import frame_times, index_of_time
from deg.errors import VideoError
from deg.types import VideoInfo

HDF5_SUFFIXES = (".h5", ".hdf5")
NEAR = 128
"""Largest distance in frames that is decoded without a seek, which would also decode, from the key frame before."""
LEAD = 16
"""Number of frames decoded before the wanted one after a seek. After a key frame of an open GOP some may be damaged."""
HEARTBEAT = 256
"""Number of frames decoded between two calls of `on_progress`."""


def open_video(
    path: Path | str,
    *,
    frame_count: FrameCount = "claimed",
    threads: int = 0,
    on_progress: Callable[[int], None] = lambda frame: None,
) -> VideoReader:
    """Open a video file, an HDF5 file (.h5, .hdf5) or a folder of images. If it cannot, VideoError says why.

    With `frame_count="decoded"` the frames that can be decoded from a damaged file count as the whole video; its labels
    must have as many rows. `threads`: number of threads that decode; 0 lets OpenCV choose. `on_progress` is told the
    frame from time to time, above all while many frames are decoded only to reach another one.
    """
    path = Path(path)
    status = require_readable(path)
    if path.is_dir():
        return FolderReader(path)
    if path.suffix in HDF5_SUFFIXES:
        return HDF5Reader(path)
    return FileReader(path, status, frame_count, threads, on_progress)


def probe(path: Path | str, *, frame_count: FrameCount = "claimed") -> VideoInfo:
    """Return what a video states about itself. Decodes one frame, so a missing codec is noticed."""
    with open_video(path, frame_count=frame_count) as video:
        return video.info


class FileReader(VideoReader):
    """A video file, decoded by OpenCV's FFmpeg.

    `_at` is the frame that was decoded last and can be retrieved, -1 before the first; `_spent` says that decoding has
    ended.
    """

    def __init__(
        self,
        path: Path,
        status: os.stat_result,
        frame_count: FrameCount,
        threads: int,
        on_progress: Callable[[int], None],
    ):
        self._path, self._threads, self._on_progress = path, threads, on_progress
        # OpenCV 5.0.0 crashes on names that are not UTF-8, so such a file is opened by the number of a descriptor.
        self._descriptor = None if _is_utf8(path) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Absolute, because libavformat takes `a:b.mp4` for a protocol.
        self._name = str(path.absolute()) if self._descriptor is None else f"/proc/self/fd/{self._descriptor}"
        self._times_T: np.ndarray | None = None
        self._times_known = False
        try:
            self._reopen()
            self._require_frames()
            self._checks_end = frame_count == "claimed"
            self.info = self._measure(status, frame_count)
        except VideoError:
            self.close()
            raise

    def close(self) -> None:
        self._capture.release()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def count_decodable(self) -> int:
        self._reopen()
        while self._grab():
            pass
        return self._at + 1

    def _measure(self, status: os.stat_result, frame_count: FrameCount) -> VideoInfo:
        capture, num_frames = self._capture, frame_count
        height, width = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        fps = capture.get(cv2.CAP_PROP_FPS)
        if frame_count == "claimed":
            num_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            if num_frames <= 0:
                raise VideoError(
                    self._path,
                    "the container does not say how many frames it holds",
                    f"{REENCODE}; or set inference.frame_count=decoded to count them by decoding.",
                )
        elif frame_count == "decoded":
            num_frames = self.count_decodable()
        assert isinstance(num_frames, int)
        fps = fps if math.isfinite(fps) and fps > 0 else 0.0
        return VideoInfo(self._path, num_frames, height, width, fps, status.st_size, status.st_mtime_ns)

    def _frames(self, start: int, stop: int, transform: Transform | None) -> Iterator[np.ndarray]:
        if (start, stop) != (0, len(self)):
            # Part of a video is read with its time stamps at hand, even if no seek is needed: if the decoder left out a
            # damaged frame, all later frames of this part would be taken for their neighbours, unnoticed.
            self._load_times()
        yield from super()._frames(start, stop, transform)
        if stop == len(self) and self._checks_end and start < stop and self._grab():
            raise VideoError(
                self._path,
                f"it claims {stop} frames but more can be decoded",
                f"{REENCODE}; or set inference.frame_count=decoded, for labels of all frames that decode.",
                frame=stop,
            )

    def _frame(self, index: int, transform: Transform | None) -> np.ndarray:
        self._advance(index)
        decoded, frame_HWC = self._capture.retrieve()
        if not decoded:
            raise VideoError(self._path, f"frame {index} cannot be converted to RGB", REENCODE + ".", frame=index)
        require_size(self.info, index, frame_HWC.shape, f"frame {index}")
        # Channels are exchanged last, when the frame is small.
        return cv2.cvtColor(transform(frame_HWC) if transform else frame_HWC, cv2.COLOR_BGR2RGB)

    def _advance(self, index: int) -> None:
        """Decode up to frame `index`."""
        if self._spent or not self._at <= index <= self._at + NEAR:
            self._load_times()
            self._seek(index)
        while self._at < index:
            if not self._grab():
                raise self._ended_early(self._at + 1)
            if self._times_T is not None and self._frame_now() != self._at:
                raise VideoError(
                    self._path,
                    f"frame {self._at} is missing or damaged: another one was decoded in its place",
                    f"{REENCODE}; or set inference.frame_count=decoded to use the frames that decode.",
                    frame=self._at,
                )

    def _ended_early(self, frame: int) -> VideoError:
        return VideoError(
            self._path,
            f"it claims {len(self)} frames but decoding ended at frame {frame}",
            f"{REENCODE}; or set inference.frame_count=decoded to use the {frame} readable frames and as many labels.",
            frame=frame,
        )

    def _seek(self, index: int) -> None:
        """Go to a frame at or before `index`: by a seek that is proved right, otherwise to the beginning."""
        for lead in (LEAD, 4 * LEAD, 16 * LEAD):
            if self._times_T is None or index <= lead:
                break
            self._capture.set(cv2.CAP_PROP_POS_MSEC, self._times_T[index - lead])
            if not self._grab():
                break
            landed = self._frame_now()
            if landed is not None and landed <= index:
                self._at = landed
                return
        self._reopen()

    def _frame_now(self) -> int | None:
        """Return the number of the frame just decoded, by its time stamp; None if that fits no frame."""
        assert self._times_T is not None
        return index_of_time(self._times_T, self._capture.get(cv2.CAP_PROP_POS_MSEC))

    def _load_times(self) -> None:
        """Find the time stamps of all frames, once. They are used only if they identify the first frame correctly."""
        if self._times_known:
            return
        self._times_known = True
        self._times_T = frame_times(self._name, len(self))
        if self._times_T is not None:
            self._reopen()
            if self._grab() and self._frame_now() != 0:
                self._times_T = None

    def _grab(self) -> bool:
        if not self._capture.grab():
            self._spent = True
            return False
        self._at += 1
        if self._at % HEARTBEAT == 0:
            self._on_progress(self._at)
        return True

    def _reopen(self) -> None:
        options = [cv2.CAP_PROP_N_THREADS, self._threads] if self._threads else []
        # FFmpeg by name: other backends would take `mouse_%04d.mp4` for a sequence of images.
        self._capture = cv2.VideoCapture(self._name, cv2.CAP_FFMPEG, options)
        self._at, self._spent = -1, False
        if not self._capture.isOpened() or self._codec() == "ansi":
            raise unopened(self._path)
        # Rotated as the file asks, and as DeepEthogram sees it: OpenCV's own default has changed between versions.
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)

    def _codec(self) -> str:
        return int(self._capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True).decode("ascii", "replace")

    def _require_frames(self) -> None:
        """Raise VideoError if not even one frame can be decoded."""
        if self._grab():
            return
        if cv2.VideoCapture(self._name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1]).grab():
            raise VideoError(
                self._path,
                f"none of its frames can be decoded: this OpenCV lacks its codec ({self._codec()}), or it is damaged",
                REENCODE + ".",
                frame=0,
            )
        raise VideoError(self._path, "it holds no frames", NOT_A_VIDEO)


def _is_utf8(path: Path) -> bool:
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
