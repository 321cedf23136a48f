"""Decoding in another process: a decoder that crashes does not end the run.

    with Decoder() as decoder:
        video = decoder.probe(path)
        for block_THWC in decoder.blocks(Stretch(video, 0, video.num_frames, FrameTransform(resize=(224, 224)))):
            ...                                  # while this block is used, the next ones are decoded

    this process                   child: python -m deg.data.video.child
    blocks()  <==== shared memory, 3 blocks ==== decode, transform
              ----- pipe: what is asked for ---->
              <---- pipe: what is ready ---------

Neither the pipes nor the memory have a name: nothing is left behind, whichever process is killed. A child ends with its
parent.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from deg.arithmetic.ranges import ranges_of
from deg.data.video.child import encode_path
from deg.data.video.faults import REENCODE, damage
from deg.data.video.process import ChildProcess, DecoderKilledError
from deg.data.video.reader import FrameCount
from deg.data.video.stretch import Stretch
from deg.errors import ConfigError, VideoError
from deg.types import ImageOrder, VideoInfo

MOST_KILLS = 3
"""When a decoder was killed this many times in a row it is not replaced any more, and the error is raised."""


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
        self._is_busy = False
        """Whether blocks of a request are still to come."""
        self._is_ended = False

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

    def entries(self, stretch: Stretch) -> list[int]:
        """Return frames of a stretch with which decoding can begin at little cost, ascending; see VideoReader.entries.

        Raises VideoError if the video cannot be opened.
        """
        request = {"do": "entries", **_how_to_open(stretch)}
        entries = self._ask(request, stretch.video.path)["entries"]
        return [entry for entry in entries if stretch.start < entry < stretch.stop]

    def blocks(
        self, stretch: Stretch, block_frames: int = 32, damaged: set[int] | None = None
    ) -> Generator[np.ndarray, None, None]:
        """Decode a stretch into uint8 (T, H, W, 3) RGB arrays of `block_frames` frames, the last one shorter.

        The numbers of damaged frames, if they are kept, are put into `damaged`. Close this before its end to give up
        the rest. If the process is killed, another one continues. Raises VideoError or ConfigError, after the frames
        before.
        """
        if block_frames < 1:
            raise ValueError(f"expected block_frames >= 1, got {block_frames = }")
        kills = 0
        while True:
            try:
                with contextlib.closing(self._blocks(stretch, block_frames)) as blocks:
                    for block_THWC, frames in blocks:
                        if damaged is not None:
                            damaged.update(frames)
                        yield block_THWC
                        stretch, kills = stretch.part(stretch.start + len(block_THWC), stretch.stop), 0
                return
            except DecoderKilledError:
                kills += 1
                if self._is_ended or kills == MOST_KILLS:
                    raise

    def _blocks(self, stretch: Stretch, block_frames: int) -> Generator[tuple[np.ndarray, list[int]], None, None]:
        """Yield blocks, and which of their frames are damaged."""
        child, path, at = self._idle_child(), stretch.video.path, stretch.start
        self._is_busy = True
        child.send(
            {
                "do": "frames",
                "path": encode_path(path),
                **_how_to_open(stretch),
                "start": stretch.start,
                "stop": stretch.stop,
                "block": block_frames,
                "transform": stretch.transform.as_dict(),
            }
        )
        try:
            while "block" in (answer := child.answer(path, at)):
                block_THWC = child.read_block(answer["block"], answer["offset"])
                at += len(block_THWC)
                yield block_THWC, answer["damaged"]
            self._is_busy = False
        except (VideoError, ConfigError):
            self._is_busy = False  # the process waits for the next request, or is gone
            raise
        finally:
            if self._is_busy:
                child.kill()
                self._is_busy = False

    def kill(self) -> None:
        """End the process, from any thread, and let no other take its place: what is being read ends with an error."""
        self._is_ended = True
        if (child := self._child) is not None:
            child.kill(patience=0)

    def close(self) -> None:
        """End the process. The next request starts another one."""
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
                if self._is_ended or kills == MOST_KILLS:
                    raise

    def _idle_child(self) -> ChildProcess:
        if self._is_busy:
            raise RuntimeError("the blocks of the former request were neither taken to the end nor closed")
        if self._child is None or not self._child.alive():
            self.close()
            self._child = ChildProcess(self._timeout)
        return self._child


@contextlib.contextmanager
def idle_decoders(count: int) -> Iterator[queue.SimpleQueue[Decoder]]:
    """Give a queue of decoders for threads that take one each and put it back; all are closed at the end."""
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for _ in range(count):
            idle.put(stack.enter_context(Decoder()))
        yield idle


def _how_to_open(stretch: Stretch) -> dict[str, Any]:
    return {
        "frame_count": stretch.frame_count,
        "image_order": stretch.video.image_order,
        "keep_damaged": stretch.keep_damaged,
    }
