"""What `auto` stands for: the faster precision, the batch size that fits into memory, the best learning rate.

The first rank finds these values once per phase, with a copy of the network, and writes them beside the state. Thus all
ranks use the same ones, whatever processors they run on, and so does a resumed training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from deg.data.atomic import write_atomically
from deg.errors import ConfigError, RunError
from deg.models.device import is_out_of_memory
from deg.train.data import PhaseData
from deg.train.phase import Phase

CPU_BATCH = 32
"""Samples in a batch on a CPU: larger batches are not faster there."""
TRIAL_STEPS = 2
"""Steps of training by which a batch size is tried."""
LOWEST_LR, HIGHEST_LR, LR_STEPS = 1e-6, 1e-2, 60
"""Range of the learning rates that are tried, and their number."""
PEER_SECONDS = 3600.0
"""A rank that waits this long for the first one to choose fails."""


@dataclass(frozen=True)
class Chosen:
    """The values that training uses for options that may be `auto`."""

    batch_size: int
    """Samples of one pass through the network, all ranks together. A step has `train.accumulate` passes."""
    lr: float
    precision: str
    """Precision: fp32, bf16 or fp16."""


def choose(folder: Path, phase: Phase, data: PhaseData, note: Callable[[str], None]) -> Chosen:
    """Return what was chosen before, or choose now. Raises ConfigError if the ranks cannot share the batch."""
    file = folder / "chosen.json"
    if not phase.ranks.is_first:
        return _wait_for(file)
    known = _read(file)
    precision = known.get("precision") or phase.choose_precision()  # older runs did not record it
    batch_size = known.get("batch_size") or _batch_size(phase, data, precision, note)
    lr = known.get("lr") or phase.config.train.lr
    chosen = Chosen(batch_size, _lr(phase, data, batch_size, precision, note) if lr == "auto" else lr, precision)
    if known != asdict(chosen):
        write_atomically(file, json.dumps(asdict(chosen)))
    return chosen


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def _wait_for(file: Path) -> Chosen:
    deadline = time.monotonic() + PEER_SECONDS
    while "precision" not in (known := _read(file)):
        if time.monotonic() > deadline:
            raise RunError(
                f"Waited {PEER_SECONDS:.0f} s for the first rank to choose precision, batch size and learning rate."
            )
        time.sleep(0.2)
    return Chosen(**known)


# ---------------------------------------------------------------------------------------------------- batch size


def _batch_size(phase: Phase, data: PhaseData, precision: str, note: Callable[[str], None]) -> int:
    compute, accumulate, ranks = phase.config.compute, phase.config.train.accumulate, phase.ranks.count
    wanted = compute.batch_size
    if wanted == "auto":
        most = min(compute.max_batch_size, max(len(data.train), 1))
        if phase.device.type == "cpu":
            size = min(CPU_BATCH, most)
        else:
            size = min(_largest_that_fits(phase, data, precision, compute.min_batch_size, most // ranks) * ranks, most)
        size = max(size // ranks, 1) * ranks
        note(f"compute.batch_size=auto: {size} on {ranks} device(s).")
        return size
    size = wanted // accumulate
    if size < ranks:
        raise ConfigError(
            f"compute.batch_size={wanted} in train.accumulate={accumulate} pieces is {size} for each pass, but "
            f"{ranks} devices share it. Choose a batch of at least {ranks * accumulate}, or fewer devices."
        )
    return min(size, max(len(data.train), ranks))


def _largest_that_fits(phase: Phase, data: PhaseData, precision: str, low: int, high: int) -> int:
    """Return the largest power of two times `low`, per rank, for which two real steps fit into the GPU's memory."""
    size, fits = max(low, 1), 0
    while size <= max(high, 1):
        try:
            _try_steps(phase, data, precision, size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            torch.cuda.empty_cache()
        fits, size = size, size * 2
    if not fits:
        raise ConfigError(
            f"compute.batch_size=auto: not even compute.min_batch_size={low} fits into the memory of this GPU. "
            "Lower compute.min_batch_size or augs.resize, or set train.precision=bf16."
        )
    return fits


def _try_steps(phase: Phase, data: PhaseData, precision: str, size: int) -> None:
    task = phase.build(data, size, 1e-6, lambda message: None, alone=True)
    trainer = phase.trainer([], precision, alone=True, max_steps=TRIAL_STEPS, logger=False, limit_val_batches=0)
    trainer.fit(task, data.train_loader(size, first=lambda: 0, alone=True))


# ---------------------------------------------------------------------------------------------------- learning rate


def _lr(phase: Phase, data: PhaseData, batch_size: int, precision: str, note: Callable[[str], None]) -> float:
    """Return the learning rate at which the loss falls fastest while the rate rises step by step.

    Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
    """
    from pytorch_lightning.tuner import Tuner

    # one rank's share will do: the loss as a function of the learning rate hardly depends on the size of the batch
    share = max(batch_size // phase.ranks.count, 1)
    task = phase.build(data, share, LOWEST_LR, lambda message: None, alone=True)
    trainer = phase.trainer([], precision, alone=True, max_epochs=LR_STEPS, logger=False, limit_val_batches=0)
    loader = data.train_loader(share, first=lambda: task.batches_done, alone=True)
    found: Any = Tuner(trainer).lr_find(
        task, loader, min_lr=LOWEST_LR, max_lr=HIGHEST_LR, num_training=LR_STEPS, update_attr=False
    )
    lr = None if found is None else found.suggestion(skip_begin=5, skip_end=2)
    if lr is None:
        raise ConfigError(
            "train.lr=auto: the loss did not fall at any learning rate that was tried. Set one, such as train.lr=1e-4."
        )
    note(f"train.lr=auto: {lr:.3g}.")
    return float(lr)
