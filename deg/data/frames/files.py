"""The decoded frames of one video in a folder: one file holds the pixels, another describes them with checksums.

    frames.bin    frame after frame: raw uint8 RGB, or one JPEG each
    index.jsonl   {"version": 1, "video": ..., ...}                  first line: what the frames are of
                  {"frames": 425, "bytes": 63974400, "crc": ...}     a block that reached the disk; "sizes" are added,
                  ...                                                the bytes of each frame, where they differ
                  {"end": 10800}                                     last line: all frames are there

The index is also the writer's journal: a block is entered once it has been flushed. If a writer is killed, the next one
continues after the last whole block.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from deg.data.atomic import flush, write_atomically
from deg.errors import DegError, show_path
from deg.types import ImageOrder

Format = Literal["raw", "jpeg"]

VERSION = 1
FRAMES, INDEX = "frames.bin", "index.jsonl"
FLUSH_BYTES, FLUSH_SECONDS = 64 << 20, 10.0
"""A block is flushed when it has grown to this size, or has waited this long."""
JPEG = [
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    # Colour at full resolution takes 4 to 25 percent more space, and has 3 dB less noise where there is colour.
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
]


class CacheError(DegError):
    """The frame cache cannot be written, or what was read there is damaged."""


@dataclass(frozen=True)
class Contents:
    """What a folder of frames holds. Frames may be used only if this equals what is wanted."""

    video: str
    size_bytes: int
    mtime_ns: int
    num_frames: int
    transform: dict[str, Any] = field(hash=False)
    """Transform that was applied to the frames before they were kept."""
    format: Format
    height: int
    width: int
    """Height and width of the frames as they are kept, in pixels."""
    image_order: ImageOrder = "deepethogram"

    @property
    def frame_bytes(self) -> int:
        """Size of a frame in memory, in bytes."""
        return self.height * self.width * 3

    def to_json(self) -> str:
        """Return the line that an index begins with. DeepEthogram's order of images is left out, as in older ones."""
        content = asdict(self)
        if self.image_order == "deepethogram":
            del content["image_order"]
        return json.dumps({"version": VERSION, **content})


@dataclass(frozen=True)
class Block:
    """Frames that were flushed to the disk together."""

    frames: int
    bytes: int
    crc: int
    sizes: tuple[int, ...] = ()
    """Size of each frame in bytes; empty if all are `frame_bytes`."""

    def to_json(self) -> str:
        sizes = {"sizes": self.sizes} if self.sizes else {}
        return json.dumps({"frames": self.frames, "bytes": self.bytes, "crc": self.crc, **sizes})


@dataclass(frozen=True)
class Index:
    """What an index file says, up to the first line that cannot be understood."""

    blocks: tuple[Block, ...]
    is_complete: bool

    @property
    def num_frames(self) -> int:
        return sum(block.frames for block in self.blocks)

    @property
    def num_bytes(self) -> int:
        return sum(block.bytes for block in self.blocks)


def read_index(folder: Path, contents: Contents) -> Index:
    """Read the index of these contents in the folder. It has no blocks if the folder holds anything else."""
    try:
        header, *lines = (folder / INDEX).read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return Index((), False)
    blocks: list[Block] = []
    if header != contents.to_json():
        return Index((), False)
    for line in lines:
        try:
            entry = json.loads(line)
            if "end" in entry:
                return Index(tuple(blocks), entry["end"] == sum(block.frames for block in blocks))
            blocks.append(Block(entry["frames"], entry["bytes"], entry["crc"], tuple(entry.get("sizes", ()))))
        except (ValueError, KeyError, TypeError):
            break  # the line was torn when the machine went down
    return Index(tuple(blocks), False)


def is_whole(folder: Path, contents: Contents) -> bool:
    """Whether all frames are there, by index and size. This is cheap, but does not notice flipped bits."""
    index = read_index(folder, contents)
    return index.is_complete and index.num_frames == contents.num_frames and index.num_bytes == _size(folder / FRAMES)


def sound_blocks(folder: Path, blocks: tuple[Block, ...]) -> Iterator[Block]:
    """Yield the blocks before the first one whose content does not agree with its checksum. Reads everything."""
    try:
        with (folder / FRAMES).open("rb") as file:
            for block in blocks:
                if zlib.crc32(file.read(block.bytes)) != block.crc:
                    return
                yield block
    except OSError:
        return


def condemn(folder: Path) -> None:
    """Make sure that nobody takes these frames for whole any more, if the disk still allows it."""
    with contextlib.suppress(OSError):
        (folder / INDEX).unlink()


class FrameWriter:
    """Appends frames of one video in order. It begins after the sound blocks that an earlier writer left."""

    def __init__(self, folder: Path, contents: Contents, *, before_flush: Callable[[], None] = lambda: None):
        """Open the files in `folder`. `before_flush` raises if this writer may not continue."""
        self._folder, self._contents, self._before_flush = folder, contents, before_flush
        blocks = tuple(sound_blocks(folder, read_index(folder, contents).blocks))
        write_atomically(folder / INDEX, "\n".join([contents.to_json(), *(block.to_json() for block in blocks), ""]))
        self._descriptor = os.open(folder / FRAMES, os.O_WRONLY | os.O_CREAT, 0o666)
        self._at = sum(block.bytes for block in blocks)
        os.ftruncate(self._descriptor, self._at)
        self.num_frames = sum(block.frames for block in blocks)
        """Number of frames so far, including those that wait to be flushed."""
        self._begin_block()

    def append(self, frames_THWC: np.ndarray) -> None:
        """Append frames, uint8 (T, H, W, 3) RGB. Raises OSError if the disk refuses."""
        if self._contents.format == "raw":
            self._write(np.ascontiguousarray(frames_THWC).data.cast("B"))
        else:
            for frame_HWC in frames_THWC:
                encoded = cv2.imencode(".jpg", cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR), JPEG)[1]
                self._write(encoded.ravel().data)
                self._sizes.append(encoded.size)
        self.num_frames += len(frames_THWC)
        self._pending += len(frames_THWC)
        if self._at - self._first >= FLUSH_BYTES or time.monotonic() - self._began >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make what was appended survive this process and a power cut."""
        if not self._pending:
            return
        self._before_flush()
        os.fsync(self._descriptor)
        self._enter(Block(self._pending, self._at - self._first, self._crc, tuple(self._sizes)).to_json())
        self._begin_block()

    def finish(self) -> None:
        """Flush, and mark the frames as complete."""
        self.flush()
        self._enter(json.dumps({"end": self.num_frames}))
        flush(self._folder / INDEX)

    def close(self) -> None:
        """Close the file. What was not flushed is lost."""
        os.close(self._descriptor)

    def _begin_block(self) -> None:
        self._first, self._pending, self._crc = self._at, 0, 0
        self._sizes: list[int] = []
        self._began = time.monotonic()

    def _write(self, data: memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)
        while data:
            # At an offset that we count: another process that takes itself for the writer puts the same bytes there.
            written = os.pwrite(self._descriptor, data, self._at)
            self._at, data = self._at + written, data[written:]

    def _enter(self, line: str) -> None:
        with (self._folder / INDEX).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class CachedFrames:
    """The kept frames of one video; any stretch of them is one read."""

    def __init__(self, folder: Path, contents: Contents):
        """Open the frames. Raises CacheError if not all of these contents are there."""
        self._folder, self._contents = folder, contents
        self.num_frames, self.height, self.width = contents.num_frames, contents.height, contents.width
        index = read_index(folder, contents)
        try:
            self._descriptor = os.open(folder / FRAMES, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._damaged(f"cannot be opened ({error.strerror})") from None
        size = os.fstat(self._descriptor).st_size
        if not index.is_complete or index.num_frames != self.num_frames or index.num_bytes != size:
            self.close()
            raise self._damaged("are not all there, or belong to another version of the video")
        if contents.format == "jpeg":
            sizes_T = np.concatenate([block.sizes for block in index.blocks]) if index.blocks else np.empty(0)
            self._ends = np.concatenate([[0], np.cumsum(sizes_T)]).astype(np.int64).tolist()

    def read(self, start: int, stop: int, out_THWC: np.ndarray | None = None) -> np.ndarray:
        """Read frames [start, stop), uint8 (T, H, W, 3) RGB, into `out_THWC` if it is given: contiguous, of that shape.

        Raises CacheError if they are damaged or gone; the next `FrameCache.ensure` then makes them again.
        """
        if not 0 <= start <= stop <= self.num_frames:
            raise ValueError(f"expected 0 <= start <= stop <= {self.num_frames}, got {start = }, {stop = }")
        if out_THWC is None:
            out_THWC = np.empty((stop - start, self.height, self.width, 3), np.uint8)
        if start < stop:
            fill = self._read_raw if self._contents.format == "raw" else self._read_jpeg
            fill(start, stop, out_THWC)
        return out_THWC

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> CachedFrames:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read_raw(self, start: int, stop: int, out_THWC: np.ndarray) -> None:
        self._fill(out_THWC.data.cast("B"), start * self._contents.frame_bytes)

    def _read_jpeg(self, start: int, stop: int, out_THWC: np.ndarray) -> None:
        first = self._ends[start]
        data = np.empty(self._ends[stop] - first, np.uint8)
        self._fill(data.data, first)
        for frame in range(start, stop):
            encoded = data[self._ends[frame] - first : self._ends[frame + 1] - first]
            frame_HWC = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
            if frame_HWC is None or frame_HWC.shape != (self.height, self.width, 3):
                condemn(self._folder)
                raise self._damaged(f"are damaged at frame {frame}")
            out_THWC[frame - start] = frame_HWC

    def _fill(self, buffer: memoryview, at: int) -> None:
        """Fill the buffer by reads, not through a memory map, which would kill the process if the file were gone."""
        while buffer:
            try:
                size = os.preadv(self._descriptor, [buffer], at)
            except OSError as error:
                condemn(self._folder)
                raise self._damaged(f"cannot be read ({error.strerror})") from None
            if not size:
                raise self._damaged("end too early")
            at, buffer = at + size, buffer[size:]

    def _damaged(self, how: str) -> CacheError:
        return CacheError(
            f"{show_path(self._folder)}: the kept frames of {show_path(self._contents.video)} {how}. "
            "Run the same command again: it will make them again. If this comes back, check the disk."
        )


def remove_folder(folder: Path) -> None:
    """Remove a folder: first its name, at once, then its content. Harmless if it is already gone."""
    gone = folder.with_name(f"{folder.name.partition('.')[0]}.{secrets.token_hex(8)}.gone")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder; of those still found, if it is being removed."""
    size = 0
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            size += file.stat().st_size
    return size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
