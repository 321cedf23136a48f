"""Compare ways to hand decoded frames over to the process that needs them, in processor time for a frame.

    python tests/bench/handing_over.py VIDEO... [--rounds 5]

    thread          decoded by a thread of the same process: a crash of the decoder ends the worker
    pipe            decoded by a child process, as deg does it
    shared memory   decoded by a child process into memory that both have: a prototype, in this file

All decode the whole video and resize each frame to 224 x 224. They take turns, each in a process of its own; times are
those of all its processes, user and system, without starting up. The table has medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import resource
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deg.data.video.files import open_video, probe
from deg.data.video.pool import DecoderPool
from deg.data.video.stretch import Stretch
from deg.data.video.transform import FrameTransform

SMALL = FrameTransform(resize=(224, 224))
BLOCK = (64, 224, 224, 3)
SLOTS = 20


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
    waiting: queue.Queue[np.ndarray | None] = queue.Queue(SLOTS)

    def work() -> None:
        for block_THWC in decode_into(str(path), frames, lambda: np.empty(BLOCK, np.uint8)):
            waiting.put(block_THWC)
        waiting.put(None)

    threading.Thread(target=work).start()
    return sum(len(block_THWC) for block_THWC in iter(waiting.get, None))


def by_pipe(path: Path, frames: int) -> int:
    with DecoderPool(1, BLOCK[0]) as pool:
        return sum(len(block_THWC) for block_THWC in pool.blocks(Stretch(probe(path), 0, frames, SMALL)))


def fill_slots(path: str, frames: int, name: str, free: Any, filled: Any) -> None:
    """Decode into the slots of a shared memory: the child's side."""
    cv2.setNumThreads(1)
    memory = shared_memory.SharedMemory(name)
    taken: list[int] = []

    def blank() -> np.ndarray:
        taken.append(free.recv())
        return np.ndarray(BLOCK, np.uint8, memory.buf, taken[-1] * int(np.prod(BLOCK)))

    for block_THWC in decode_into(path, frames, blank):
        filled.send((taken[-1], len(block_THWC)))
    filled.send(None)


def by_shared_memory(path: Path, frames: int) -> int:
    spawning = multiprocessing.get_context("spawn")
    memory = shared_memory.SharedMemory(create=True, size=SLOTS * int(np.prod(BLOCK)))
    (free, give_back), (receive, filled) = spawning.Pipe(duplex=False), spawning.Pipe(duplex=False)
    child = spawning.Process(target=fill_slots, args=(str(path), frames, memory.name, free, filled))
    child.start()
    for slot in range(SLOTS):
        give_back.send(slot)
    count = 0
    while (message := receive.recv()) is not None:
        slot, length = message
        count += length
        give_back.send(slot)
    child.join()
    memory.close()
    memory.unlink()
    return count


WAYS = {"thread": by_thread, "pipe": by_pipe, "shared memory": by_shared_memory}


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(way: str, path: Path, frames: int) -> float:
    """Return the processor time of everything in this process and its children, in seconds."""
    cv2.setNumThreads(1)
    assert WAYS[way](path, frames) == frames
    return processor_seconds()


def run_alone(way: str, path: Path, frames: int) -> float:
    words = [sys.executable, __file__, str(path), "--way", way, "--frames", str(frames)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def compare(path: Path, rounds: int) -> None:
    frames = probe(path).num_frames
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, measured in times.items():
            spent = run_alone(way, path, frames) - run_alone(way, path, 1)
            measured.append(spent / (frames - 1) * 1e6)
    print(f"{path.name:36}" + "".join(f"{statistics.median(each):15.0f}" for each in times.values()), flush=True)


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
    print(f"{'microseconds a frame':36}" + "".join(f"{way:>15}" for way in WAYS))
    for path in chosen.videos:
        compare(path, chosen.rounds)


if __name__ == "__main__":
    main()
