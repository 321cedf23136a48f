"""The child's side of `deg.data.video.decoder`: a process that decodes what it is asked for, and may crash.

Requests come as lines of JSON on standard input, one at a time. Answers, JSON after its length in four bytes (little
endian), go to standard output:

    {"do": "probe", "path": ..., "image_order": "natural",
     "frame_count": ...}                                    -> {"info": {...}}
    {"do": "inspect", "path": ..., "image_order": ...}      -> {"inspection": {...}}
    {"do": "entries", "path": ..., "image_order": ...,
     "frame_count": ..., "keep_damaged": false}             -> {"entries": [266, 516]}
    {"do": "frames", "path": ..., "image_order": ...,
     "frame_count": ..., "keep_damaged": false,
     "start": 0, "stop": 70, "block": 32, "transform": {}}  -> {"block": [32, H, W, 3], "damaged": [12]} and as many
                                                               bytes of uint8; ...
                                                               {"end": true}
    any                                                     -> {"error": {...}}          instead of the rest
                                                               {"at": 5120}              a sign of life, at any time

Paths are the bytes of the name in base64. The process ends when its standard input ends, which is when its parent ends.
"""

from __future__ import annotations

import base64
import json
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
"""Number of blocks in memory: one being filled, one being written, one in between."""

Blocks = queue.SimpleQueue[np.ndarray]


class Answers:
    """Writes answers, in order, while the next ones are made."""

    def __init__(self, pipe: int):
        self._pipe = pipe
        self._waiting: queue.SimpleQueue[tuple[bytes, np.ndarray | None, Blocks | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def say(self, answer: dict[str, Any], block_THWC: np.ndarray | None = None, written: Blocks | None = None) -> None:
        """Queue the answer and the block that belongs to it, which is put into `written` when it may be used again."""
        text = json.dumps(answer).encode()
        self._waiting.put((len(text).to_bytes(4, "little") + text, block_THWC, written))

    def _run(self) -> None:
        while True:
            text, block_THWC, written = self._waiting.get()
            self._write(text)
            if block_THWC is not None and written is not None:
                self._write(block_THWC.data.cast("B"))
                written.put(block_THWC)

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._pipe, rest) :]
        except BrokenPipeError:
            os._exit(0)


class Server:
    """Does requests, and keeps the last video open for the next one."""

    def __init__(self, answers: Answers):
        self._answers = answers
        self._damaged: set[int] = set()
        self._open: VideoReader | None = None
        self._open_as: tuple[Any, ...] = ()

    def answer(self, request: dict[str, Any]) -> None:
        """Do one request. VideoError and ConfigError are answers; anything else is a defect and ends this process."""
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
        spare: Blocks = queue.SimpleQueue()
        for _ in range(BUFFERS):
            spare.put(np.empty((size, *size_HW, 3), np.uint8))
        frames = video.read(start, stop, transform)
        for first in range(start, stop, size):
            block_THWC = spare.get()[: stop - first]
            for position in range(len(block_THWC)):
                block_THWC[position] = next(frames)
            damaged = [frame for frame in range(first, first + len(block_THWC)) if frame in self._damaged]
            self._answers.say({"block": block_THWC.shape, "damaged": damaged}, block_THWC, spare)
        for _ in frames:  # none is left, but this checks the end of the video
            pass
        self._answers.say({"end": True})

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


def main(parent: int) -> None:
    for warning in WARNINGS:
        signal.signal(warning, signal.SIG_IGN)
    # What a library prints must not get among the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    cv2.setNumThreads(1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(requests, parent), daemon=True).start()
    server = Server(Answers(answers))
    while True:
        server.answer(json.loads(requests.get()))


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
    main(int(sys.argv[1]))
