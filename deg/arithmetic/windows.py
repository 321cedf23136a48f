"""Which frames a label needs.

The networks see 11 frames around the frame they label (DeepEthogram paper, "Windows"; 5 before, 5 after):

    frame      t-5 t-4 t-3 t-2 t-1  t  t+1 t+2 t+3 t+4 t+5
    position     0   1   2   3   4  5    6   7   8   9  10

Where a window reaches beyond the video, each missing frame is an image of the dataset's mean colour; nothing is
repeated or mirrored. All ranges are half-open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 11
BEFORE = WINDOW // 2
AFTER = WINDOW - 1 - BEFORE


@dataclass(frozen=True)
class Reach:
    """The frames that the windows of labels [start, stop) touch in a video of `num_frames` frames.

    `[first, last)` must be decoded; `pad_before` and `pad_after` frames of mean colour stand in for what lies outside.

        pad_before + (last - first) + pad_after == (stop - start) + WINDOW - 1
    """

    first: int
    last: int
    pad_before: int
    pad_after: int


def reach(start: int, stop: int, num_frames: int) -> Reach:
    """Return the frames needed for the labels [start, stop), which must lie within [0, num_frames)."""
    if not 0 <= start < stop <= num_frames:
        raise ValueError(f"expected 0 <= start < stop <= num_frames, got {start = }, {stop = }, {num_frames = }")
    first, last = max(start - BEFORE, 0), min(stop + AFTER, num_frames)
    return Reach(first, last, first - (start - BEFORE), (stop + AFTER) - last)


def mean_colour(mean: Sequence[float]) -> np.ndarray:
    """Return the colour, uint8 (C), that stands in for frames outside the video: the channel means, truncated.

    Means are in [0, 1]. DeepEthogram truncates instead of rounding (0.5 becomes 127), so after normalisation the
    padding is only nearly 0.
    """
    return np.trunc(np.asarray(mean, dtype=np.float64) * 255).astype(np.uint8)


def batches(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut [start, stop) at the multiples of `size`, counted from frame 0 of the video.

    The same frame always falls into the same batch at the same place, however the video was cut into spans (at
    multiples of `size`). Therefore sharded results equal unsharded ones bit for bit.

        >>> list(batches(4, 11, 4))
        [(4, 8), (8, 11)]
    """
    while start < stop:
        end = min((start // size + 1) * size, stop)
        yield start, end
        start = end
