"""What stands in for a network on a GPU where the speed of everything else is measured."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from deg.arithmetic.units import GRAIN
from deg.infer.features import FeatureBlock
from deg.types import STREAM_FEATURES


class StandIn:
    """Takes frames as a network on a GPU would, at a given speed, while the caller writes; its results are zeros."""

    precision = "none"
    batch_size = GRAIN

    def __init__(self, frames_per_second: float, device: torch.device, num_classes: int):
        self._fps, self.device, self._classes = frames_per_second, device, num_classes

    def run(self, frames: Iterable[np.ndarray], start: int, stop: int, num_frames: int) -> Iterator[FeatureBlock]:
        """Yield the results of [start, stop), each batch when the one after it is under way. See FeatureEngine.run."""
        waiting: FeatureBlock | None = None
        first, received, free_at = start, 0, time.perf_counter()
        for block_THWC in frames:
            received += len(block_THWC)
            while first < stop and (first + self.batch_size <= start + received or start + received >= stop):
                last = min(first + self.batch_size, stop)
                ready_at, free_at = free_at, max(free_at, time.perf_counter()) + (last - first) / self._fps
                if waiting is not None:
                    _sleep_until(ready_at)
                    yield waiting
                waiting, first = self._zeros(first, last), last
        _sleep_until(free_at)
        if waiting is not None:
            yield waiting

    def _zeros(self, first: int, last: int) -> FeatureBlock:
        widths = (self._classes, self._classes, STREAM_FEATURES, STREAM_FEATURES)
        return FeatureBlock(first, last, *(np.zeros((last - first, width), np.float32) for width in widths))


def _sleep_until(moment: float) -> None:
    time.sleep(max(moment - time.perf_counter(), 0.0))
