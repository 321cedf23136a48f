"""The data of a phase on one rank: its frames decoded once into the cache, its parts opened, its batches in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from deg.arithmetic.sampling import rarity_weights
from deg.data.frames.cache import FrameCache
from deg.options import schema
from deg.runs.plans import SCRATCH, TrainingPlan
from deg.train.clip_data import ClipData, PartBatches, TrainBatches, frame_transform, make_loader
from deg.train.ranks import Ranks
from deg.train.sequence_data import SequenceData
from deg.work import StopFlag, Teller, available_cores

GIGABYTE = 10**9
TELL_EVERY = 1.0
"""Seconds between two events."""


class Part(Protocol):
    """One part of a plan as samples."""

    @property
    def labels_NK(self) -> np.ndarray | None:
        """Labels (N, K) of all its frames, each once; None if nothing is learned from labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def describe(self, sample: int) -> str:
        """Say where a sample is from, for messages."""


@dataclass(frozen=True)
class PhaseData:
    """The parts of a plan, and loaders of this rank's share of them."""

    config: schema.Config
    ranks: Ranks
    parts: dict[str, Part]

    @property
    def train(self) -> Part:
        return self.parts["train"]

    @property
    def num_features(self) -> int | None:
        return getattr(self.train, "num_features", None)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return how many passes of `batch_size` samples, all ranks together, an epoch has: always whole steps."""
        accumulate, most = self.config.train.accumulate, self.config.train.steps_per_epoch.train
        steps = -(-len(self.train) // (batch_size * accumulate))
        return (steps if most is None else min(steps, most)) * accumulate

    def train_loader(self, batch_size: int, first: Callable[[], int], *, alone: bool = False) -> DataLoader:
        """Load from batch `first()` of the training to the end of its epoch.

        With `alone`, it loads as if there were no other ranks.
        """
        train = self.config.train
        exponent, labels_NK = train.oversampling_exp, self.train.labels_NK
        oversamples = exponent >= 1e-4 and labels_NK is not None and self.num_features is None
        batches = TrainBatches(
            len(self.train),
            batch_size,
            steps=self.batches_per_epoch(batch_size),
            seed=train.seed,
            first=first,
            weights_N=rarity_weights(labels_NK, exponent) if oversamples and labels_NK is not None else None,
            rank=0 if alone else self.ranks.rank,
            ranks=1 if alone else self.ranks.count,
        )
        return self._loader(self.train, batches)

    def loader(self, part: str, batch_size: int) -> DataLoader:
        """Load all of `val` or `test`, or evenly spaced samples of it, in fixed order."""
        most = getattr(self.config.train.steps_per_epoch, part)
        batches = PartBatches(
            len(self.parts[part]), batch_size, most=most, rank=self.ranks.rank, ranks=self.ranks.count
        )
        return self._loader(self.parts[part], batches)

    def _loader(self, part: Part, batches: Any) -> DataLoader:
        cores = self.ranks.share_of(available_cores())
        # with two cores loaders only take turns with the network, and cost a copy; features are in memory
        workers = 0 if cores <= 2 or self.num_features is not None else min(self.config.compute.num_workers, cores - 1)
        return make_loader(part, batches, num_workers=workers, pin=torch.cuda.is_available())  # type: ignore[arg-type]


@contextmanager
def open_data(
    plan: TrainingPlan,
    config: schema.Config,
    ranks: Ranks,
    *,
    stop: StopFlag,
    tell: Teller,
    note: Callable[[str], None],
) -> Iterator[PhaseData]:
    """Open the data of a plan. All ranks together first decode the frames that are not cached yet."""
    parts = [part for part in ("train", "val", "test") if plan.parts.get(part)]
    if plan.stage == "sequence":
        yield PhaseData(config, ranks, {part: SequenceData(plan, part, config) for part in parts})
        return
    cache = None
    if plan.cache is None:
        note("compute.cache=none: each clip is decoded from its video, which is slow.")
    else:
        limit = int(config.compute.cache_limit * GIGABYTE)
        cache = FrameCache(cache_folder(plan.cache), config.compute.cache_format, limit)
        total = sum(video.num_frames for video in plan.videos.values())
        progress = _CacheProgress(tell, total) if ranks.is_first else lambda frames: None
        cache.ensure(
            plan.videos,
            frame_transform(config.augs),
            progress,
            stop.check,
            decoders=ranks.share_of(available_cores()),
        )
    yield PhaseData(config, ranks, {part: ClipData(plan, part, config, cache) for part in parts})


def cache_folder(planned: str) -> Path:
    """Return the folder of the frame cache on this node. All ranks of a node fill and share it."""
    if planned != SCRATCH:
        return Path(planned)
    if (of_job := os.environ.get("DEG_SCRATCH")) is not None:
        return Path(of_job) / "frame_cache"
    disk = os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(disk) / f"deg-frame-cache-{os.getuid()}"


class _CacheProgress:
    """A callback that reports, at most once a second, how many frames are cached."""

    def __init__(self, tell: Teller, total: int):
        self._tell, self._total, self._told = tell, total, 0.0

    def __call__(self, frames: int) -> None:
        if time.monotonic() - self._told > TELL_EVERY or frames == self._total:
            self._told = time.monotonic()
            self._tell.say("cache", done=frames, of=self._total)
