"""Compare the processor time that our reader takes for a frame with that of a bare loop over OpenCV's.

    python tests/bench/decoding.py VIDEO... [--rounds 5]

Both read the whole video with one thread, resize each frame to 224 x 224 and exchange its channels. They take turns,
each in a process of its own; the table has medians. The bare loop proves nothing about its frames.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import cv2

from deg.data.video.files import open_video
from deg.data.video.transform import FrameTransform

SMALL = FrameTransform(resize=(224, 224))


def by_opencv(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), 0
    while capture.grab():
        cv2.cvtColor(SMALL(capture.retrieve()[1]), cv2.COLOR_BGR2RGB)
        count += 1
    return count


def by_deg(path: Path) -> int:
    with open_video(path) as video:
        return sum(1 for _ in video.read(0, len(video), SMALL))


READERS = {"opencv": by_opencv, "deg": by_deg}


def measure(reader: str, path: Path) -> float:
    """Return microseconds of processor time for one frame, opening included."""
    cv2.setNumThreads(1)
    began = time.process_time()
    count = READERS[reader](path)
    return (time.process_time() - began) / count * 1e6


def compare(path: Path, rounds: int) -> None:
    times: dict[str, list[float]] = {reader: [] for reader in READERS}
    for _ in range(rounds):
        for reader, measured in times.items():
            words = [sys.executable, __file__, str(path), "--reader", reader]
            measured.append(float(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    opencv, deg = (statistics.median(measured) for measured in times.values())
    print(f"{path.name:36} {opencv:8.0f} {deg:8.0f} {deg / opencv:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.reader:
        print(measure(words.reader, words.videos[0]))
        return
    print(f"{'us a frame':36} {'opencv':>8} {'deg':>8} {'ratio':>8}")
    for path in words.videos:
        compare(path, words.rounds)


if __name__ == "__main__":
    main()
