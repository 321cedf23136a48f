"""Compare ways to hand decoded frames over to the process that needs them, in processor time for a frame.

    python tests/bench/handing_over.py VIDEO... [--rounds 5]

    thread          decoded by a thread of the same process: a crash of the decoder ends the worker
    pipe            decoded by a child process and sent through a pipe of 1 MiB: a prototype, in this file
    shared memory   decoded by a child process into memory that both have, and copied from there, as deg does it

All decode the whole video and resize each frame to 224 x 224. They take turns, each in a process of its own; times are
those of all its processes, and in brackets of the parent alone, user and system, without starting up. The table has
medians.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing
import os
import queue
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np

from deg.data.video.files import open_video, probe
from deg.data.video.pool import DecoderPool
from deg.data.video.stretch import Stretch
from deg.data.video.transform import FrameTransform

SMALL = FrameTransform(resize=(224, 224))
BLOCK = (64, 224, 224, 3)


def decode_into(path: str, frames: int, blank: Callable[[], np.ndarray]) -> Iterator[np.ndarray]:
    """Decode blocks into the arrays that `blank` gives."""
    with open_video(path) as video:
        pictures = video.read(0, frames, SMALL)
        for first in range(0, frames, BLOCK[0]):
            block_THWC = blank()[: frames - first]
            for position in range(len(block_THWC)):
                block_THWC[position] = next(pictures)
            yield block_THWC


def by_thread(path: Path, frames: int) -> int:
    waiting: queue.Queue[np.ndarray | None] = queue.Queue(20)

    def work() -> None:
        for block_THWC in decode_into(str(path), frames, lambda: np.empty(BLOCK, np.uint8)):
            waiting.put(block_THWC)
        waiting.put(None)

    threading.Thread(target=work, daemon=True).start()
    count = 0
    while (block_THWC := waiting.get()) is not None:
        count += len(block_THWC)
    return count


def by_shared_memory(path: Path, frames: int) -> int:
    with DecoderPool(1, BLOCK[0]) as pool:
        return sum(len(block_THWC) for block_THWC in pool.blocks(Stretch(probe(path), 0, frames, SMALL)))


def send_blocks(path: str, frames: int, pipe: Connection) -> None:
    """Decode and send: the child's side. One thread decodes while another one writes."""
    cv2.setNumThreads(1)
    waiting: queue.Queue[np.ndarray | None] = queue.Queue(2)

    def write() -> None:
        while (block_THWC := waiting.get()) is not None:
            rest = block_THWC.data.cast("B")
            while rest:
                rest = rest[os.write(pipe.fileno(), rest) :]

    writer = threading.Thread(target=write)
    writer.start()
    for block_THWC in decode_into(path, frames, lambda: np.empty(BLOCK, np.uint8)):
        waiting.put(block_THWC)
    waiting.put(None)
    writer.join()


def by_pipe(path: Path, frames: int) -> int:
    spawning = multiprocessing.get_context("spawn")
    receive, send = spawning.Pipe(duplex=False)
    fcntl.fcntl(send.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
    child = spawning.Process(target=send_blocks, args=(str(path), frames, send))
    child.start()
    with open(receive.fileno(), "rb", buffering=0, closefd=False) as file:
        for first in range(0, frames, BLOCK[0]):
            rest = np.empty((min(BLOCK[0], frames - first), *BLOCK[1:]), np.uint8).data.cast("B")
            while rest:
                rest = rest[file.readinto(rest) :]
    child.join()
    return frames


WAYS = {"thread": by_thread, "pipe": by_pipe, "shared memory": by_shared_memory}


def processor_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def measure(way: str, path: Path, frames: int) -> str:
    """Return the processor time of this process, and of it and its children, in seconds."""
    cv2.setNumThreads(1)
    assert WAYS[way](path, frames) == frames
    own = processor_seconds(resource.RUSAGE_SELF)
    return f"{own} {own + processor_seconds(resource.RUSAGE_CHILDREN)}"


def run_alone(way: str, path: Path, frames: int) -> np.ndarray:
    words = [sys.executable, __file__, str(path), "--way", way, "--frames", str(frames)]
    return np.array(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split(), float)


def compare(path: Path, rounds: int) -> None:
    frames = probe(path).num_frames
    times: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, measured in times.items():
            spent = run_alone(way, path, frames) - run_alone(way, path, 1)
            measured.append(spent / (frames - 1) * 1e6)
    medians = (np.median(each, axis=0) for each in times.values())
    print(f"{path.name:36}" + "".join(f"{together:9.0f} ({own:4.0f})" for own, together in medians), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        print(measure(chosen.way, chosen.videos[0], chosen.frames))
        return
    print(f"{'microseconds a frame':36}" + "".join(f"{way:>16}" for way in WAYS))
    for path in chosen.videos:
        compare(path, chosen.rounds)


if __name__ == "__main__":
    main()
