"""The parent's side of `deg.data.video.child`: starts the child, talks to it, and notices when it hangs or dies."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deg.data.video.child import REUSE, WARNINGS
from deg.data.video.faults import REENCODE
from deg.errors import ConfigError, VideoError

FROM_OUTSIDE = (signal.SIGKILL, signal.SIGBUS)
"""Signals that no video causes. SIGBUS comes when the file system that holds the programs is gone."""


class DecoderKilledError(VideoError):
    """A user killed the decoder, or the system did when memory ran out. The video need not be at fault."""


@contextlib.contextmanager
def _born_deaf() -> Iterator[None]:
    """Start processes in the block so that they never receive a scheduler's warnings, which are for this process.

    A warning would end a child that is too young to ignore it, and its video would be taken to be at fault.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class ChildProcess:
    """The child process, its two pipes and its memory, and what its silence or death means."""

    def __init__(self, timeout: float):
        self._timeout = timeout
        # the libraries' own complaints are kept off the terminal; our messages say the same in plain words
        quiet = {"OPENCV_LOG_LEVEL": "SILENT"}
        self._memory = os.memfd_create("deg frames")  # gone with its last process, however that ends
        self._frames: mmap.mmap | None = None
        command = [sys.executable, "-P", "-m", "deg.data.video.child", str(os.getpid()), str(self._memory)]
        try:
            with _born_deaf():
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    pass_fds=(self._memory,),
                    env={**os.environ, **quiet},
                )
        except BaseException:
            os.close(self._memory)
            raise
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._readable = select.poll()  # select() cannot watch descriptors from 1024 on
        self._readable.register(self._answers, select.POLLIN)

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self, patience: float = 10.0) -> None:
        """Kill the process and wait until it is gone, for `patience` seconds at most: it may hang in the kernel, on a
        file system that is gone."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience)

    def close(self) -> None:
        """Kill the process; close the pipes and the memory. Do not call this while a thread reads from it."""
        self.kill()
        self._requests.close()
        self._answers.close()
        os.close(self._memory)

    def send(self, request: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # reading the answer will tell more
            self._requests.write(json.dumps(request).encode() + b"\n")

    def answer(self, path: Path, at: int = 0) -> dict[str, Any]:
        """Return the next answer other than a sign of life. Raises the child's VideoError, or one if it is gone."""
        while True:
            size = int.from_bytes(self._read(bytearray(4), path, at), "little")
            answer = json.loads(self._read(bytearray(size), path, at))
            if "at" not in answer:
                break
            at = answer["at"]
        if "error" in answer:
            error = answer["error"]
            if "config" in error:
                raise ConfigError(error["config"])
            raise VideoError(path, error["problem"], error["remedy"], frame=error["frame"])
        return answer

    def read_block(self, shape: Sequence[int], offset: int) -> np.ndarray:
        """Return a copy of a block of frames, and let the child use its place again."""
        stop = offset + math.prod(shape)
        if self._frames is None or len(self._frames) < stop:
            self._frames = mmap.mmap(self._memory, 0, prot=mmap.PROT_READ)
        block_THWC = np.ndarray(shape, np.uint8, self._frames, offset).copy()
        self.send(REUSE)
        return block_THWC

    def _read(self, buffer: bytearray, path: Path, at: int) -> bytearray:
        """Fill the buffer."""
        rest = memoryview(buffer)
        while rest:
            rest = rest[self._read_some(rest, path, at) :]
        return buffer

    def _read_some(self, buffer: memoryview, path: Path, at: int) -> int:
        if not self._readable.poll(self._timeout * 1000):
            self.kill()
            raise VideoError(
                path,
                f"the decoder said nothing for {self._timeout:g} seconds near frame {at}",
                "Check the file system that holds the video, then run again. If this comes back, the video may be at "
                f"fault. {REENCODE}.",
                frame=at,
            )
        size = self._answers.readinto(buffer)  # type: ignore[attr-defined]
        if not size:
            raise self._death(path, at)
        return size

    def _death(self, path: Path, at: int) -> VideoError:
        status = self._process.wait()
        if -status in FROM_OUTSIDE:
            return DecoderKilledError(
                path,
                f"the decoder was killed ({signal.Signals(-status).name}) near frame {at}",
                "Memory may have run out: give the job more memory.",
                frame=at,
            )
        if status < 0:
            how, remedy = f"crashed ({signal.Signals(-status).name})", REENCODE + "."
        else:
            how, remedy = f"ended with status {status}", "This is a defect of deg: the log has its traceback."
        return VideoError(path, f"the decoder {how} near frame {at}", remedy, frame=at)
