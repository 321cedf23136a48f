"""Decoding in other processes: a decoder that crashes does not end the run, and frames are decoded ahead.

    with Decoder() as decoder:
        info = decoder.probe(path)
        for block_THWC in decoder.blocks(path, 0, info.num_frames, FrameTransform(resize=(224, 224))):
            ...                                  # while this block is used, the next ones are decoded

    this process                       child: python -m deg.data.video.child
    blocks() <- queue <- thread  <==== pipe, 1 MiB ==== decode, transform

The pipes are plain ones: nothing is left behind, whichever process is killed. A child ends with its parent.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from deg.arithmetic.ranges import ranges_of
from deg.data.video.child import encode_path
from deg.data.video.faults import REENCODE, damage
from deg.data.video.process import ChildProcess, DecoderKilledError
from deg.data.video.reader import FrameCount
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError, VideoError
from deg.types import ImageOrder, VideoInfo
from deg.work import available_cores

AHEAD = 3
"""Number of decoded blocks that may wait to be taken."""
PIECE = 1024
"""Number of frames that a decoder of a pool decodes at a stretch.

This is far more than it has to decode and throw away after a seek (a group of pictures commonly has 250 frames). Frames
of 224 x 224 take 150 MB for each decoder.
"""

VIDEOS_PER_PROCESS = 4
"""Number of videos below which another process costs more to start than it saves."""

MOST_KILLS = 3
"""When a decoder was killed this many times in a row it is not replaced any more, and the error is raised."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Inspection:
    """What a video claims to hold, and what it does hold."""

    path: Path
    info: VideoInfo | None
    """Claims of the video; None if it could not be opened."""
    decodable: int
    """Number of frames, from the first on, that can be decoded."""
    damaged: tuple[range, ...]
    """Frames that are damaged, in ranges."""
    error: VideoError | None
    """Reason why the video cannot be used as it is; None if it can."""
    is_complete: bool = True
    """Whether all frames that it claims are there, damaged or not."""


class Decoder:
    """One child process that decodes, started when needed and again after a crash. For use by one thread at a time."""

    def __init__(self, *, timeout: float = 600.0):
        """Prepare a decoder; its process is started later.

        `timeout`: seconds without a sign of life after which the child is killed.
        """
        self._timeout = timeout
        self._child: ChildProcess | None = None
        self._stream: BlockStream | None = None

    def probe(
        self, path: Path | str, *, frame_count: FrameCount = "claimed", image_order: ImageOrder = "natural"
    ) -> VideoInfo:
        """Return what the video states about itself. Raises VideoError if it, or its first frame, cannot be read."""
        answer = self._ask({"do": "probe", "frame_count": frame_count, "image_order": image_order}, Path(path))
        return VideoInfo(path=Path(path), **answer["info"])

    def inspect(self, path: Path | str, *, image_order: ImageOrder = "natural") -> Inspection:
        """Decode the whole video, damaged or not. This raises no VideoError: `error` tells what is wrong."""
        path = Path(path)
        try:
            answer = self._ask({"do": "inspect", "image_order": image_order}, path)["inspection"]
        except VideoError as error:
            return Inspection(path, None, 0, (), error, is_complete=False)
        info, count, damaged = VideoInfo(path=path, **answer["info"]), answer["count"], answer["damaged"]
        decodable, ranges = damaged[0] if damaged else count, ranges_of(damaged)
        fault = None
        if count != info.num_frames:
            fault = VideoError(
                path,
                f"it claims {info.num_frames} frames but {decodable} can be decoded",
                f"{REENCODE}; or set inference.frame_count=decoded to use the {decodable} frames, with as many labels.",
                frame=min(decodable, info.num_frames),
            )
        elif ranges:
            fault = damage(path, ranges)
        return Inspection(path, info, decodable, ranges, fault, count == info.num_frames)

    def blocks(
        self,
        path: Path | str,
        start: int,
        stop: int,
        transform: FrameTransform | None = None,
        block_frames: int = 32,
        *,
        frame_count: FrameCount = "claimed",
        damaged: set[int] | None = None,
        image_order: ImageOrder = "natural",
        ahead: int = AHEAD,
    ) -> BlockStream:
        """Decode frames [start, stop) into uint8 (T, H, W, 3) RGB arrays of `block_frames`, the last one shorter.

        A damaged frame is a VideoError; if `damaged` is given, it is kept, and its number is put into the set. Decoding
        begins at once. The next request to this decoder drops the blocks that were not taken yet. Instead of
        `frame_count="decoded"`, give the number from `probe`; otherwise the whole video is decoded once more to count.
        Give `image_order` from `probe`, too.
        """
        if not 0 <= start <= stop or block_frames < 1:
            raise ValueError(
                f"expected 0 <= start <= stop and block_frames >= 1, got {start = }, {stop = }, {block_frames = }"
            )
        request = {
            "do": "frames",
            "path": encode_path(path),
            "frame_count": frame_count,
            "image_order": image_order,
            "start": start,
            "stop": stop,
            "block": block_frames,
            "transform": (transform or FrameTransform()).as_dict(),
            "keep_damaged": damaged is not None,
        }
        self._stream = BlockStream(self._idle_child(), Path(path), request, ahead, damaged)
        return self._stream

    def close(self) -> None:
        """End the child."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any], path: Path) -> dict[str, Any]:
        kills = 0
        while True:
            child = self._idle_child()
            child.send({**request, "path": encode_path(path)})
            try:
                return child.answer(path)
            except DecoderKilledError:
                kills += 1
                if kills == MOST_KILLS:
                    raise

    def _idle_child(self) -> ChildProcess:
        if self._stream is not None:
            if not self._stream.finished:
                self._stream.close()
            self._stream = None
        if self._child is None or not self._child.alive():
            self.close()
            self._child = ChildProcess(self._timeout)
        return self._child


class BlockStream(Iterator[np.ndarray]):
    """Blocks of frames, decoded ahead. To stop before the end, `close` it: that kills the child; another one starts."""

    def __init__(
        self, child: ChildProcess, path: Path, request: dict[str, Any], ahead: int, damaged: set[int] | None = None
    ):
        self._child, self._path, self._request = child, path, request
        self._damaged = set() if damaged is None else damaged
        self._waiting: queue.Queue[np.ndarray | Exception | None] = queue.Queue(ahead)
        self._closed = threading.Event()
        self.finished = False
        """Whether the last block, or the error, was taken."""
        self._thread = threading.Thread(target=self._receive, name=f"decode {path.name!r}", daemon=True)
        self._thread.start()

    def __next__(self) -> np.ndarray:
        if self.finished or self._closed.is_set():
            raise StopIteration
        item = self._waiting.get()
        if isinstance(item, np.ndarray):
            return item
        self.finished = True
        self._thread.join()
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """Stop decoding; blocks not taken are lost."""
        if self.finished or self._closed.is_set():
            return
        self._closed.set()
        self._child.kill()
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        self._thread.join()

    def __enter__(self) -> BlockStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> None:
        """Move blocks from the pipe to the queue, in a thread. The last item is None, or the error."""
        at, last = self._request["start"], None
        try:
            self._child.send(self._request)
            while "block" in (answer := self._child.answer(self._path, at)):
                block_THWC = self._child.read_block(answer["block"], self._path, at)
                self._damaged.update(answer["damaged"])
                at += len(block_THWC)
                if not self._put(block_THWC):
                    return
        except (VideoError, ConfigError) as error:
            last = error
        self._put(last)

    def _put(self, item: np.ndarray | Exception | None) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._waiting.put(item, timeout=0.2)
                return True
        return False


class DecoderPool:
    """`count` decoders for one video at a time: a span is cut into pieces of `piece_frames`, decoded side by side.

        piece     0 1 2 3 4 5 6 ...
        decoder   0 1 2 0 1 2 0 ...       delivered in order

    Gives the same blocks as one Decoder, for any count.
    """

    def __init__(self, count: int, *, timeout: float = 600.0, piece_frames: int = PIECE):
        if count < 1 or piece_frames < 1:
            raise ValueError(f"expected a count and piece_frames of at least 1, got {count = }, {piece_frames = }")
        self._decoders = [Decoder(timeout=timeout) for _ in range(count)]
        self._piece_frames = piece_frames

    def blocks(
        self,
        path: Path | str,
        start: int,
        stop: int,
        transform: FrameTransform | None = None,
        block_frames: int = 32,
        *,
        frame_count: FrameCount = "claimed",
        damaged: set[int] | None = None,
        image_order: ImageOrder = "natural",
    ) -> Iterator[np.ndarray]:
        """Decode like `Decoder.blocks`. If a decoder is killed, another one continues after the last block taken."""
        kills = 0
        while True:
            try:
                with contextlib.closing(
                    self._blocks(path, start, stop, transform, block_frames, frame_count, damaged, image_order)
                ) as blocks:
                    for block_THWC in blocks:
                        yield block_THWC
                        start, kills = start + len(block_THWC), 0
                return
            except DecoderKilledError:
                kills += 1
                if kills == MOST_KILLS:
                    raise

    def _blocks(
        self,
        path: Path | str,
        start: int,
        stop: int,
        transform: FrameTransform | None,
        block_frames: int,
        frame_count: FrameCount,
        damaged: set[int] | None,
        image_order: ImageOrder,
    ) -> Generator[np.ndarray, None, None]:
        if len(self._decoders) == 1:
            decoder = self._decoders[0]
            yield from decoder.blocks(
                path,
                start,
                stop,
                transform,
                block_frames,
                frame_count=frame_count,
                damaged=damaged,
                image_order=image_order,
            )
            return
        piece_blocks = -(-self._piece_frames // block_frames)
        pieces = iter(range(start, stop, piece_blocks * block_frames))
        idle, busy = deque(self._decoders), deque[tuple[Decoder, BlockStream]]()
        try:
            while True:
                while idle and (first := next(pieces, None)) is not None:
                    decoder, last = idle.popleft(), min(first + piece_blocks * block_frames, stop)
                    stream = decoder.blocks(
                        path,
                        first,
                        last,
                        transform,
                        block_frames,
                        frame_count=frame_count,
                        damaged=damaged,
                        image_order=image_order,
                        ahead=piece_blocks,
                    )
                    busy.append((decoder, stream))
                if not busy:
                    return
                yield from busy[0][1]
                idle.append(busy.popleft()[0])
        finally:
            for _, stream in busy:
                stream.close()

    def close(self) -> None:
        """End all children."""
        for decoder in self._decoders:
            decoder.close()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def probe_all(
    paths: Iterable[Path | str],
    *,
    processes: int | None = None,
    frame_count: FrameCount = "claimed",
    image_order: ImageOrder = "natural",
) -> list[VideoInfo | VideoError]:
    """Do `Decoder.probe` for many videos, in the order given. A fault of one video does not stop the others."""

    def probe(decoder: Decoder, path: Path | str) -> VideoInfo | VideoError:
        try:
            return decoder.probe(path, frame_count=frame_count, image_order=image_order)
        except VideoError as error:
            return error

    return _with_decoders(probe, paths, processes)


def inspect_all(
    paths: Iterable[Path | str], *, processes: int | None = None, image_order: ImageOrder = "natural"
) -> list[Inspection]:
    """Do `Decoder.inspect` for many videos, in the order given."""
    return _with_decoders(partial(Decoder.inspect, image_order=image_order), paths, processes)


def _with_decoders(
    do: Callable[[Decoder, Path | str], Result], paths: Iterable[Path | str], processes: int | None
) -> list[Result]:
    paths = list(paths)
    if processes is None:
        processes = max(1, min(available_cores(), len(paths) // VIDEOS_PER_PROCESS))
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for _ in range(processes):
            idle.put(stack.enter_context(Decoder()))

        def with_decoder(path: Path | str) -> Result:
            decoder = idle.get()
            try:
                return do(decoder, path)
            finally:
                idle.put(decoder)

        with ThreadPoolExecutor(processes) as pool:
            return list(pool.map(with_decoder, paths))
