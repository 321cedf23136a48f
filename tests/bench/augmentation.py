"""Time a batch of clips from uint8 frames to a network's input in training: deg beside kornia's VideoSequential.

    python tests/bench/augmentation.py [--clips 16] [--size 224] [--threads 2] [--batches 4] [--runs 3] [--device cpu]

Both do the same with the same settings (a new project's, and flips upside down): kornia's pipeline is DeepEthogram's,
in the kornia that is installed here. They take turns on a few batches, each with its own random draws. Each is repeated
several times and the fastest counts. Processor time is shown beside clock time, because other programs on the machine
change it less. deg trains with freed memory kept (`deg.models.device`), DeepEthogram without: both are shown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import kornia.augmentation as K
import torch

from deg.models.device import keep_freed_memory
from deg.options.schema import Augs
from deg.train.augment import augment, draw, normalise, stack_frames

AUGS = Augs(UD=0.5)


def by_deg(frames_BTHWC: torch.Tensor, number: int) -> torch.Tensor:
    clips = frames_BTHWC.permute(0, 4, 1, 2, 3).float().div_(255)
    clips = augment(clips, draw(AUGS, len(clips), seed=0, batch=number))
    return stack_frames(normalise(clips, AUGS.normalization.mean, AUGS.normalization.std))


def by_kornia(device: torch.device) -> Callable[[torch.Tensor, int], torch.Tensor]:
    pipeline = K.VideoSequential(
        K.RandomHorizontalFlip(p=AUGS.LR),
        K.RandomVerticalFlip(p=AUGS.UD),
        K.RandomRotation(AUGS.degrees),
        K.ColorJitter(AUGS.brightness, AUGS.contrast, AUGS.saturation, AUGS.hue, p=AUGS.color_p),
        K.RandomGrayscale(p=AUGS.grayscale),
        data_format="BCTHW",
        same_on_frame=True,
    )
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1, 1)
        for values in (AUGS.normalization.mean, AUGS.normalization.std)
    )

    def prepare(frames_BTHWC: torch.Tensor, number: int) -> torch.Tensor:
        torch.manual_seed(number)
        clips = pipeline(frames_BTHWC.permute(0, 4, 1, 2, 3).contiguous().float() / 255)
        return ((clips - mean) / std).transpose(1, 2).flatten(1, 2)

    return prepare


def measure(
    prepare: Callable[[torch.Tensor, int], torch.Tensor], frames: torch.Tensor, number: int
) -> tuple[float, float]:
    """Return clock seconds and processor seconds."""
    started, worked = time.perf_counter(), time.process_time()
    with torch.no_grad():
        prepare(frames, number)
    if frames.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - worked


def compare(frames: torch.Tensor, batches: int, runs: int, what: str) -> None:
    ways = {"kornia": by_kornia(frames.device), "deg": by_deg}
    best = {name: [(float("inf"), float("inf"))] * batches for name in ways}
    for _ in range(runs):
        for number in range(batches):
            for name, prepare in ways.items():
                taken = measure(prepare, frames, number)
                best[name][number] = tuple(map(min, best[name][number], taken))
    print(what)
    for name, taken in best.items():
        clock, processor = (sum(values) / batches / len(frames) * 1e3 for values in zip(*taken, strict=True))
        print(f"    {name:7} {clock:8.2f} ms a clip by the clock, {processor:8.2f} ms of the processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frames = torch.randint(0, 256, (options.clips, 11, options.size, options.size, 3), dtype=torch.uint8)
    frames = frames.to(options.device)
    size = options.size
    print(f"{options.clips} clips of 11 frames, {size} x {size}, {options.threads} threads, {frames.device}")
    compare(frames, options.batches, options.runs, "memory as the system gives it")
    if frames.device.type == "cpu":
        keep_freed_memory()
        compare(frames, options.batches, options.runs, "freed memory kept")


if __name__ == "__main__":
    main()
