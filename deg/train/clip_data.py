"""What flow generators and feature extractors learn from: the clip around each frame, and that frame's labels.

data = ClipData(plan, "train", config, cache)
batches = TrainBatches(len(data), 32, seed=config.train.seed, first=lambda: task.batches_done)
for batch in make_loader(data, batches, num_workers=8, pin=True):
    ...     # {"clips": uint8 [B, 11, H, W, 3], "labels": int64 [B, K], "sample": int64 [B]}
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from deg.arithmetic.sampling import generator, share, spaced, stream
from deg.arithmetic.windows import WINDOW
from deg.data.frames.cache import FrameCache
from deg.data.frames.clips import Clips
from deg.data.video.transform import FrameTransform
from deg.errors import show_path
from deg.options.schema import Augs, Config
from deg.runs.plans import TrainingPlan
from deg.train.labels import planned_labels
from deg.work import available_cores

Item = dict[str, Any]
LOADER_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Draw(int):
    """The index of a sample, with its position in the endless stream of draws in training."""

    position: int

    def __new__(cls, sample: int, position: int) -> Draw:
        draw = super().__new__(cls, sample)
        draw.position = position
        return draw

    def __reduce__(self) -> tuple[Any, ...]:
        return Draw, (int(self), self.position)


def frame_transform(augs: Augs) -> FrameTransform:
    """Return what the options do to each frame."""
    return FrameTransform(augs.crop_size, augs.resize, augs.pad)


class ClipData(Dataset):
    """One part (train, val or test) of a plan: a sample for each frame of its recordings, in the order of the plan.

    An item is {"clips": uint8 [11, H, W, 3], "labels": int64 [K], "sample": its index}; flow generators learn without
    labels and their items have none. `augs.crop_size` is cut from the centre, or for a `Draw` from a random place.
    """

    def __init__(self, plan: TrainingPlan, part: str, config: Config, cache: FrameCache | None):
        """Open the recordings of a part. `cache` must have been filled for their videos.

        Raises RunError if labels have changed since the plan was made, LabelError if they do not fit, ConfigError if
        recordings have frames of different sizes.
        """
        keys, augs = plan.parts[part], config.augs
        self._keys, self._seed = tuple(keys), config.train.seed
        videos = {key: plan.videos[key] for key in keys}
        self._clips = Clips(videos, frame_transform(augs), augs.normalization.mean, cache)
        self._crops = augs.crop_size is not None
        self._starts = np.cumsum([0, *(video.num_frames for video in videos.values())])
        self.labels_NK: np.ndarray | None = None
        """Labels, int8 (N, K): 1, 0, or -1 where nobody has looked. None for a flow generator."""
        if plan.labels:
            self.labels_NK = np.concatenate([planned_labels(plan, key, config) for key in keys])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        clips_BTHWC = _new_batch((len(indices), WINDOW, self._clips.height, self._clips.width, 3))
        items = _Together(clips_BTHWC)
        for index, clip_THWC in zip(indices, clips_BTHWC, strict=True):
            key, frame = self._place(index)
            crop = None
            if self._crops and isinstance(index, Draw):
                crop = tuple(generator(self._seed, "crop", index.position).random(2).tolist())
            self._clips.clip(key, frame, crop, clip_THWC.numpy())
            item = {"clips": clip_THWC, "sample": int(index)}
            if self.labels_NK is not None:
                item["labels"] = torch.from_numpy(self.labels_NK[index].astype(np.int64))
            items.append(item)
        return items

    def describe(self, sample: int) -> str:
        """Name the recording and the frame of a sample, for messages."""
        key, frame = self._place(sample)
        return f"recording {show_path(key)}, frame {frame}"

    def _place(self, sample: int) -> tuple[str, int]:
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        recording = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return self._keys[recording], int(sample - self._starts[recording])


class _Together(list[Item]):
    """Items whose clips lie one after the other in memory: they already form a batch."""

    def __init__(self, clips_BTHWC: Tensor):
        super().__init__()
        self.clips_BTHWC = clips_BTHWC


def _new_batch(shape: tuple[int, ...]) -> Tensor:
    """Return an empty uint8 tensor, in a loader process in shared memory so that it is not copied on its way."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # as torch's own collate does
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(math.prod(shape))).view(shape)


def _collate(items: list[Item]) -> Item:
    """Collate as torch does by default, without copying clips again, which took most of the time of reading."""
    if not isinstance(items, _Together):
        return default_collate(items)
    others = [{name: value for name, value in item.items() if name != "clips"} for item in items]
    return {"clips": items.clips_BTHWC, **default_collate(others)}


class TrainBatches(Sampler[list[Draw]]):
    """One epoch of one rank: its share of each batch, from where training stands to the end of the epoch.

    Batch n of the training is [n * B, (n + 1) * B) of an endless stream of draws, and always full. Therefore R ranks
    draw what one rank would, and a resumed training draws what it would have drawn without the interruption.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        first: Callable[[], int],
        steps: int | None = None,
        weights_N: np.ndarray | None = None,
        rank: int = 0,
        ranks: int = 1,
    ):
        """Draw from `size` samples, `batch_size` at a time on all ranks together.

        `first()` returns the number of batches done so far. `steps` is the number of batches of an epoch; None means as
        many as it takes to see every sample. `weights_N` says how often each sample is drawn, compared to others.
        """
        if not 1 <= ranks <= batch_size or size < 1:
            raise ValueError(
                f"expected samples, and one at least for each rank: {size = }, {batch_size = }, {ranks = }"
            )
        self._size, self._batch_size, self._seed, self._first = size, batch_size, seed, first
        self._weights_N, self._share = weights_N, share(batch_size, rank, ranks)
        self._steps = steps or -(-size // batch_size)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._steps

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self._first()
        stop = (first // self._steps + 1) * self._steps
        begin = first * self._batch_size
        samples = stream(self._seed, begin, stop * self._batch_size, self._size, self._weights_N)
        for start in range(begin, stop * self._batch_size, self._batch_size):
            yield [Draw(int(samples[start + i - begin]), start + i) for i in self._share]


class PartBatches(Sampler[list[int]]):
    """Validation or test on one rank: its share of all samples in fixed order, without duplicates."""

    def __init__(self, size: int, batch_size: int, *, most: int | None = None, rank: int = 0, ranks: int = 1):
        """Share out `size` samples, `batch_size` at a time on all ranks together.

        `most` limits the number of batches: their samples are evenly spaced over all, and always the same.
        """
        samples = np.arange(size) if most is None else spaced(size, most * batch_size)
        mine = share(len(samples), rank, ranks)
        self._samples = samples[mine.start : mine.stop].tolist()
        self._batch_size = -(-batch_size // ranks)

    def __len__(self) -> int:
        return -(-len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self._samples), self._batch_size):
            yield self._samples[start : start + self._batch_size]


def make_loader(data: Dataset, batches: Sampler[list[Any]], *, num_workers: int, pin: bool) -> DataLoader:
    """Make a loader with `num_workers` processes, at most one per core, that live as long as the loader.

    With 0, it loads in this process. `pin` puts batches into memory from which a GPU reads directly.
    """
    workers = min(num_workers, available_cores())
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        worker_init_fn=_begin_worker if workers else None,
        persistent_workers=workers > 0,
    )


def _begin_worker(worker: int) -> None:
    """Prepare a loader process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, LOADER_SIGNALS)
    threading.Thread(target=_heed_rank, args=(os.getppid(),), daemon=True).start()
    cv2.setNumThreads(0)  # threads of the parent's pool do not exist after a fork, and there is one process per core


def _heed_rank(rank: int) -> None:
    """Absorb the signals that a scheduler sends to every process of a job: the rank decides what to do about them.

    The rank itself ends its loaders with SIGTERM: if that were ignored as well, a failing rank would wait for them for
    ever. Torch notices a rank that was killed.
    """
    while True:
        came = signal.sigwaitinfo(LOADER_SIGNALS)
        if came.si_signo == signal.SIGTERM and came.si_pid == rank:
            os._exit(0)
