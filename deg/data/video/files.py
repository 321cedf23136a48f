"""Videos as frames by number: files that FFmpeg decodes, folders of images, HDF5.

    with open_video("mouse.mp4") as video:
        for frame_HWC in video.read(100, 200):      # uint8 RGB, exactly 100 of them, or VideoError
            ...

Frame i is the i-th frame that decoding from the beginning gives. A span in the middle is decoded from a key frame
before it, and each picture is known by the number of its packet (`deg.data.video.placing`). Where that cannot be
proved, all is decoded from the beginning.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import av
import cv2
import numpy as np

from deg.data.video.contents import TRIAL, examine
from deg.data.video.faults import COPY_AGAIN, NOT_A_VIDEO, REENCODE, NoPicturesError, damage, require_readable, unopened
from deg.data.video.images import FolderReader, HDF5Reader
from deg.data.video.picture import Converter
from deg.data.video.placing import DisorderError, Frame
from deg.data.video.reader import ENTRY_DISTANCE, FrameCount, Transform, VideoReader
from deg.data.video.run import Run, UnprovedError
from deg.errors import VideoError
from deg.types import ImageOrder, VideoInfo

HDF5_SUFFIXES = (".h5", ".hdf5")
NEAR = 128
"""Largest distance in frames that is decoded without a seek, which would also decode, from the key frame before."""


def open_video(
    path: Path | str,
    *,
    frame_count: FrameCount = "claimed",
    damaged: set[int] | None = None,
    image_order: ImageOrder = "natural",
    on_progress: Callable[[int], None] = lambda frame: None,
) -> VideoReader:
    """Open a video file, an HDF5 file (.h5, .hdf5) or a folder of images. If it cannot, VideoError says why.

    With `frame_count="decoded"` the frames that can be decoded from a damaged file count as the whole video; its labels
    must have as many rows. A damaged frame is a VideoError; but if `damaged` is given, the frame is what the decoder
    made of it, black if it made nothing, and its number is put into the set. `image_order` says which images of a
    folder are its frames; that of its VideoInfo gives the same ones again. `on_progress` is told the frame from time to
    time, above all while many frames are decoded only to reach another one.
    """
    path = Path(path)
    status = require_readable(path)
    if path.is_dir():
        return FolderReader(path, image_order)
    if path.suffix in HDF5_SUFFIXES:
        return HDF5Reader(path)
    return FileReader(path, status, frame_count, damaged, on_progress)


def probe(path: Path | str, *, frame_count: FrameCount = "claimed", image_order: ImageOrder = "natural") -> VideoInfo:
    """Return what a video states about itself. Decodes one frame, so a missing codec is noticed."""
    with open_video(path, frame_count=frame_count, image_order=image_order) as video:
        return video.info


class FileReader(VideoReader):
    """A video file, decoded by FFmpeg."""

    def __init__(
        self,
        path: Path,
        status: os.stat_result,
        frame_count: FrameCount,
        damaged: set[int] | None,
        on_progress: Callable[[int], None],
    ):
        self._path, self._damaged, self._on_progress = path, damaged, on_progress
        # PyAV takes names in UTF-8 only, so another one is opened by the number of a descriptor
        self._descriptor = None if _is_utf8(path) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._name = str(path.absolute()) if self._descriptor is None else f"/proc/self/fd/{self._descriptor}"
        self._convert = Converter().bgr
        self._run: Run | None = None
        self._frames_of_run: Iterator[Frame] = iter(())
        self._frame_now: Frame | None = None
        self._hidden = 0
        self._counts = self._marks_keys = self._complained = False
        try:
            self._open(frame_count)
            self.info = self._measure(status, frame_count)
        except VideoError:
            self.close()
            raise

    def close(self) -> None:
        self._end_run()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def entries(self) -> list[int]:
        return [] if self._begins_only_at_first else self._table.entries(ENTRY_DISTANCE)

    def survey(self) -> tuple[int, list[int]]:
        count, damaged = self._survey()
        return self._survey() if damaged and self._is_whole_if_counted() else (count, damaged)

    def _survey(self) -> tuple[int, list[int]]:
        self._begin(self._first_key)
        count, damaged = 0, []
        while (frame := self._next()) is not None:
            count = frame.index + 1
            if not frame.is_whole:
                damaged.append(frame.index)
        return count, damaged

    def _open(self, frame_count: FrameCount) -> None:
        """Find the packets and the first frame."""
        try:
            self._contents = examine(self._name)
        except (av.FFmpegError, NoPicturesError) as error:
            raise unopened(self._path, error) from error
        self._table = self._contents.table
        if self._table.first_key is None:
            raise VideoError(self._path, "it holds no frames", NOT_A_VIDEO)
        self._first_key = self._table.first_key
        self._counts = not self._times_are_true()
        self._checks_end = frame_count == "claimed"
        if self._checks_end and self._table.fault and not self._contents.stated_frames:
            raise VideoError(
                self._path,
                f"the file is damaged, and it is not certain how many frames it had ({self._table.fault})",
                f"{COPY_AGAIN} Or set inference.frame_count=decoded to use the frames that can be decoded.",
            )

    def _measure(self, status: os.stat_result, frame_count: FrameCount) -> VideoInfo:
        self._begin(self._first_key)
        while (first := self._next()) is not None and first.picture is None:
            pass
        if first is None:
            raise VideoError(self._path, "none of its frames can be decoded: it is damaged", REENCODE + ".", frame=0)
        assert self._run is not None
        self._hidden, self._marks_keys = self._run.hidden, self._run.marks_keys
        height, width = self._convert(first.picture).shape[:2]
        if frame_count == "claimed":
            num_frames = self._contents.stated_frames or self._table.num_shown - self._hidden
        else:
            num_frames = self.count_decodable() if frame_count == "decoded" else frame_count
        return VideoInfo(self._path, num_frames, height, width, self._contents.fps, status.st_size, status.st_mtime_ns)

    def _times_are_true(self) -> bool:
        """Whether frames can be numbered by the times of their packets: decodes some if these may be made up."""
        if self._contents.tells_order is not None:
            return self._contents.tells_order
        try:
            with closing(self._run_from(self._first_key)) as run:
                for _ in itertools.islice(run.frames(), TRIAL):
                    pass
        except DisorderError:
            return False
        return True

    def _frames(self, start: int, stop: int, transform: Transform | None) -> Iterator[np.ndarray]:
        yield from super()._frames(start, stop, transform)
        if stop == len(self) and self._checks_end and start < stop and self._next() is not None:
            raise VideoError(
                self._path,
                f"it claims {stop} frames but more can be decoded",
                f"{REENCODE}; or set inference.frame_count=decoded, for labels of all frames that decode.",
                frame=stop,
            )

    def _frame(self, index: int, transform: Transform | None) -> np.ndarray:
        frame = self._advance(index)
        while not (frame.is_whole or frame.is_settled):
            assert self._run is not None
            self._begin(self._table.key_before_key(self._run.key))
            frame = self._advance(index)
        if not frame.is_whole and self._is_whole_if_counted():
            frame = self._advance(index)
        if not frame.is_whole:
            if self._damaged is None:
                raise self._damage(frame)
            self._damaged.add(index)
        if frame.picture is None:
            black_HWC = np.zeros((self.info.height, self.info.width, 3), np.uint8)
            return transform(black_HWC) if transform else black_HWC
        frame_HWC = self._convert(frame.picture)
        # channels are exchanged last, when the frame is small
        return cv2.cvtColor(transform(frame_HWC) if transform else frame_HWC, cv2.COLOR_BGR2RGB)

    @property
    def _begins_only_at_first(self) -> bool:
        """Whether frames in the middle cannot be known, or not decoded, after a seek."""
        return self._counts or self._contents.has_palette

    def _advance(self, index: int) -> Frame:
        """Decode up to frame `index`."""
        now = self._frame_now
        if self._run is None or (now is not None and not now.index <= index <= now.index + NEAR):
            self._begin(self._first_key if self._begins_only_at_first else self._table.key_before(index))
        reached = self._frame_now
        while reached is None or reached.index < index:
            before = reached
            try:
                reached = self._next()
            except UnprovedError:
                self._begin(self._first_key)
                continue
            if reached is None:
                raise self._ended_early(before.index + 1 if before else 0)
        return reached

    def _next(self) -> Frame | None:
        """Decode the next frame; None at the end."""
        before = self._frame_now
        try:
            self._frame_now = next(self._frames_of_run, None)
        except DisorderError:
            if not self._is_whole_if_counted():
                raise VideoError(
                    self._path,
                    "its pictures do not come in the order of their time stamps, so they cannot be numbered",
                    REENCODE + ".",
                ) from None
            return self._advance(before.index + 1 if before else 0)
        frame = self._frame_now
        if frame is None:
            self._end_run()
        return frame

    def _is_whole_if_counted(self) -> bool:
        """Whether every packet gives a whole picture, so that what seems damage is only a time stamp that is wrong.

        If so, frames are counted from now on. This is tried once, and not if the decoder has complained.
        """
        self._note_complaints()
        if self._counts or self._complained:
            return False
        self._end_run()
        with closing(self._run_from(self._first_key, counts=True)) as run:
            count = sum(1 for _ in itertools.takewhile(lambda frame: frame.is_whole, run.frames()))
        self._counts = count == self._table.num_shown
        self._complained = not self._counts
        return self._counts

    def _begin(self, key: int) -> None:
        """Begin to read from a key packet."""
        self._end_run()
        self._run = self._run_from(key, counts=self._counts)
        self._frames_of_run = self._run.frames()

    def _run_from(self, key: int, *, counts: bool = False) -> Run:
        try:
            return Run(
                self._name,
                self._table,
                key,
                hidden=self._hidden,
                counts=counts,
                marks_keys=self._marks_keys,
                on_progress=self._on_progress,
            )
        except (av.FFmpegError, NoPicturesError) as error:
            raise unopened(self._path, error) from error

    def _note_complaints(self) -> None:
        """Note if the decoder has complained. After a seek it does so about what it missed, too."""
        if self._run is not None and self._run.at_beginning:
            self._complained |= self._run.is_damaged

    def _end_run(self) -> None:
        self._note_complaints()
        if self._run is not None:
            self._run.close()
        self._run, self._frames_of_run, self._frame_now = None, iter(()), None

    def _damage(self, frame: Frame) -> VideoError:
        """Return the error for a frame that is not whole; it names all that are damaged with it."""
        self._advance(frame.index)
        after = frame.index + 1
        while (later := self._next()) is not None and not later.is_whole:
            after = later.index + 1
        if later is None and after < len(self):
            return self._ended_early(frame.index)
        return damage(self._path, [range(frame.index, after)])

    def _ended_early(self, frame: int) -> VideoError:
        return VideoError(
            self._path,
            f"it claims {len(self)} frames but decoding ended at frame {frame}",
            f"{REENCODE}; or set inference.frame_count=decoded to use the {frame} readable frames and as many labels.",
            frame=frame,
        )


def _is_utf8(path: Path) -> bool:
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
