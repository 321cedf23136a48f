"""The child's side of `deg.data.video.decoder`: a process that decodes what it is asked for, and may crash.

Requests come as lines of JSON on standard input, each after the last answer to the former one. Answers, JSON after its
length in four bytes (little endian), go to standard output:

    {"do": "probe", "path": ..., "image_order": "natural",
     "frame_count": ...}                                    -> {"info": {...}}
    {"do": "inspect", "path": ..., "image_order": ...}      -> {"inspection": {...}}
    {"do": "entries", "path": ..., "image_order": ...,
     "frame_count": ..., "keep_damaged": false}             -> {"entries": [266, 516]}
    {"do": "frames", "path": ..., "image_order": ...,
     "frame_count": ..., "keep_damaged": false,
     "start": 0, "stop": 70, "block": 32, "transform": {}}  -> {"block": [32, H, W, 3], "offset": 0, "damaged": [12]}
                                                               ...
                                                               {"end": true}
    {"do": "reuse"}                                         the parent has copied a block
    any                                                     -> {"error": {...}}          instead of the rest
                                                               {"at": 5120}              a sign of life, at any time

Blocks are uint8 and lie, at their offset, in a memory file that both processes map; there is room for BUFFERS of them.
Paths are the bytes of the name in base64. The process ends when its standard input ends, which is when its parent ends.
"""

from __future__ import annotations

import base64
import json
import math
import mmap
import os
import queue
import select
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deg.data.video.faults import require_readable
from deg.data.video.files import open_video
from deg.data.video.reader import VideoReader
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError, VideoError
from deg.types import VideoInfo

PARENT_CHECK = 5.0
"""Seconds between two checks that the parent is alive, in case other processes hold our standard input open."""
BUFFERS = 3
"""Number of blocks in memory: one being filled, one being copied by the parent, one in between."""

REUSE = {"do": "reuse"}


class Answers:
    """The way to the parent: words in a pipe, frames in memory that it shares."""

    def __init__(self, pipe: int, memory: int):
        self._pipe, self._memory = pipe, memory

    def say(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        rest = memoryview(len(text).to_bytes(4, "little") + text)
        try:
            while rest:
                rest = rest[os.write(self._pipe, rest) :]
        except BrokenPipeError:
            os._exit(0)

    def buffers(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return room for BUFFERS blocks of this shape; the memory grows if it must."""
        size = BUFFERS * math.prod(shape)
        if os.fstat(self._memory).st_size < size:
            os.ftruncate(self._memory, size)
        return np.ndarray((BUFFERS, *shape), np.uint8, mmap.mmap(self._memory, size))


class Server:
    """Does requests, and keeps the last video open for the next one."""

    def __init__(self, answers: Answers, requests: queue.SimpleQueue[bytes]):
        self._answers, self._requests = answers, requests
        self._damaged: set[int] = set()
        self._open: VideoReader | None = None
        self._open_as: tuple[Any, ...] = ()

    def serve(self) -> None:
        """Do one request after another. VideoError and ConfigError are answers; else a defect ends this process."""
        while True:
            request = json.loads(self._requests.get())
            if request != REUSE:  # said of the last blocks of the former request
                self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        path = decode_path(request["path"])
        try:
            getattr(self, "_" + request["do"])(path, request)
        except VideoError as error:
            self._answers.say({"error": {"problem": error.problem, "remedy": error.remedy, "frame": error.frame}})
        except ConfigError as error:
            self._answers.say({"error": {"config": str(error)}})

    def _probe(self, path: Path, request: dict[str, Any]) -> None:
        info = self._reader(path, request).info
        self._answers.say({"info": info_as_dict(info)})

    def _inspect(self, path: Path, request: dict[str, Any]) -> None:
        video = self._reader(path, request)
        count, damaged = video.survey()
        self._answers.say({"inspection": {"info": info_as_dict(video.info), "count": count, "damaged": damaged}})

    def _entries(self, path: Path, request: dict[str, Any]) -> None:
        self._answers.say({"entries": self._reader(path, request).entries()})

    def _frames(self, path: Path, request: dict[str, Any]) -> None:
        video = self._reader(path, request)
        transform = FrameTransform(**request["transform"])
        start, stop, size = request["start"], request["stop"], request["block"]
        size_HW = transform.output_size(video.info.height, video.info.width)
        buffers = self._answers.buffers((size, *size_HW, 3))
        frames = video.read(start, stop, transform)
        for number, first in enumerate(range(start, stop, size)):
            if number >= BUFFERS:
                self._wait_for_reuse()
            block_THWC = buffers[number % BUFFERS, : stop - first]
            for position in range(len(block_THWC)):
                block_THWC[position] = next(frames)
            damaged = [frame for frame in range(first, first + len(block_THWC)) if frame in self._damaged]
            offset = number % BUFFERS * buffers[0].nbytes
            self._answers.say({"block": block_THWC.shape, "offset": offset, "damaged": damaged})
        for _ in frames:  # none is left, but this checks the end of the video
            pass
        self._answers.say({"end": True})

    def _wait_for_reuse(self) -> None:
        """Wait until the parent has copied one more block."""
        request = json.loads(self._requests.get())
        if request != REUSE:
            raise RuntimeError(f"expected {REUSE}, got {request}")

    def _reader(self, path: Path, request: dict[str, Any]) -> VideoReader:
        """Return a reader, the last request's if it fits: spans of one video often follow one another."""
        status = require_readable(path)
        how = {"frame_count": request.get("frame_count", "claimed"), "image_order": request["image_order"]}
        keep_damaged = request.get("keep_damaged", False)
        as_what = (path, how, keep_damaged, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._open is None or self._open_as != as_what:
            if self._open is not None:
                self._open.close()
            self._open = None
            self._damaged = set()
            damaged = self._damaged if keep_damaged else None
            self._open = open_video(path, **how, damaged=damaged, on_progress=self._at)
            self._open_as = as_what
        return self._open

    def _at(self, frame: int) -> None:
        self._answers.say({"at": frame})


def encode_path(path: Path | str) -> str:
    """Return any file name as ASCII, even one that is not UTF-8."""
    return base64.b64encode(os.fsencode(path)).decode("ascii")


def decode_path(text: str) -> Path:
    """Return the path that `encode_path` encoded."""
    return Path(os.fsdecode(base64.b64decode(text)))


def info_as_dict(info: VideoInfo) -> dict[str, Any]:
    """Return `info` without its path, which the parent knows."""
    return {name: value for name, value in asdict(info).items() if name != "path"}


WARNINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a child ignores: Ctrl-C and a scheduler's warnings reach all processes of a job; the parent decides."""


def main(parent: int, memory: int) -> None:
    """Serve the process `parent`; `memory` is the descriptor of the memory file."""
    for warning in WARNINGS:
        signal.signal(warning, signal.SIG_IGN)
    # What a library prints must not get among the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    cv2.setNumThreads(1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(requests, parent), daemon=True).start()
    Server(Answers(answers, memory), requests).serve()


def listen(requests: queue.SimpleQueue[bytes], parent: int) -> None:
    """Pass on requests, and end the process with its parent, even in the middle of decoding."""
    received = b""
    while True:
        ready, _, _ = select.select([0], [], [], PARENT_CHECK)
        chunk = os.read(0, 65536) if ready else None
        if chunk == b"" or os.getppid() != parent:
            os._exit(0)
        *lines, received = (received + (chunk or b"")).split(b"\n")
        for line in lines:
            requests.put(line)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
