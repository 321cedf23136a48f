"""What happens between the steps of a training: saving states, judging scores, writing files, reporting progress.

The order at the end of an epoch is that of DeepEthogram: rows of the metrics file, checkpoint.pt, whether to stop, the
best and the last checkpoint, the next learning rate.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from deg.data.json_lines import append_line
from deg.data.metrics_file import MetricsFile, truncate_lines, without_tables
from deg.runs.attempts import require_current
from deg.train.checkpoint import forget_older_states, save_best, save_newest, state_path
from deg.train.ranks import any_of
from deg.train.tally import Row
from deg.train.tasks import Task
from deg.work import StopFlag, Stopped, Teller

ASK_EVERY = 4
"""Steps after which a rank asks the others again whether to stop or to save. A rank alone decides at every step."""
LONG_VALIDATION = 20.0
"""Seconds. The state is saved before a validation that may take longer than this, so that it can be repeated."""
TELL_EVERY = 1.0
"""Seconds between two events."""
LOG_EVERY = 50
"""Batches between two points of a curve."""


@dataclass
class Folders:
    """Where a phase leaves its files."""

    results: Path
    """Folder of networks and metrics: the run's folder or, for an earlier phase of a curriculum, a folder in it."""
    state: Path
    """Folder of the states from which training resumes."""

    @property
    def lines(self) -> Path:
        return self.results / "metrics.jsonl"


class Bookkeeping(pl.Callback):
    """The callback that saves, judges, reports and stops. All ranks decide alike; the first one writes."""

    def __init__(
        self,
        folders: Folders,
        metrics: MetricsFile,
        *,
        phase: str,
        batches_per_epoch: int,
        accumulate: int,
        checkpoint_seconds: float,
        stop: StopFlag,
        tell: Teller,
        about: Callable[[np.ndarray | None], dict[str, Any]],
    ):
        """Set up the callback. `about` turns thresholds, if there are any, into the description inside a checkpoint."""
        self._folders, self._metrics, self._phase = folders, metrics, phase
        self._batches, self._accumulate = batches_per_epoch, accumulate
        self._checkpoint_seconds = checkpoint_seconds
        self._stop, self._tell, self._about = stop, tell, about
        self._saved = self._started = self._told = time.monotonic()
        self._validation_started = self._validation_seconds = 0.0
        self._long_validation = True
        """Whether validation takes long on any rank or has not been timed yet; the same value on all ranks."""
        self.reason = ""
        """Reason why training ended, once it has."""

    # --------------------------------------------------------------------------------------- steps

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._stop.install()  # again: Lightning has installed its own handler, which talks to other ranks at once
        self._saved = time.monotonic()
        assert isinstance(task, Task)
        epochs_done = task.batches_done // self._batches
        if trainer.is_global_zero and self._metrics.num_epochs > epochs_done:
            # written for epochs that no state included yet when training was killed
            self._metrics.truncate(epochs_done)
            truncate_lines(self._folders.lines, epochs_done)

    def on_train_batch_end(self, trainer: pl.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._tell_step(trainer, task, outputs, batch_idx)
        steps = batch_idx + 1
        if steps % self._accumulate or steps == self._batches:
            return  # neither between the pieces of a batch nor before the validation that belongs to this epoch
        before_validation = steps == self._batches - self._accumulate and self._long_validation
        if trainer.world_size > 1 and (steps // self._accumulate) % ASK_EVERY and not before_validation:
            return
        due = time.monotonic() - self._saved > self._checkpoint_seconds
        stop, save = any_of([self._stop.is_set, due or before_validation], task.device)
        if stop or save:
            self._save(trainer, task)
        if stop:
            raise Stopped

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._validation_started = time.monotonic()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero and time.monotonic() - self._told >= TELL_EVERY:
            self._told = time.monotonic()
            self._tell.say("validating")
        if self._long_validation:  # a short one is finished first, so that its epoch counts
            self._stop.check()  # the state was saved before this validation

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._validation_seconds = time.monotonic() - self._validation_started

    def on_test_batch_end(self, *_: Any) -> None:
        self._stop.check()

    # --------------------------------------------------------------------------------------- epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, Task) and task.course is not None
        epoch = task.batches_done // self._batches - 1
        train, val = task.row("train"), task.row("val")
        train["lr"] = task.course.lr
        score = float(val[task.key_metric])
        is_best = task.course.judge(score)
        reason = task.course.reason_to_stop(epoch + 1)
        if trainer.is_global_zero:
            self._write(trainer, task, epoch, train, val, is_best)
        task.course.next_epoch(score)
        due = time.monotonic() - self._saved > self._checkpoint_seconds
        long = self._validation_seconds > LONG_VALIDATION
        stop, save, self._long_validation = any_of([self._stop.is_set, due, long], task.device)
        if reason:
            self.reason = reason
            trainer.should_stop = True
        elif stop or save:
            self._save(trainer, task)
        if stop and not reason:
            raise Stopped

    def _write(self, trainer: pl.Trainer, task: Task, epoch: int, train: Row, val: Row, is_best: bool) -> None:
        require_current(self._folders.state.parent)
        folder, step = self._folders.results, trainer.global_step
        state = task.model.state_dict()
        about = self._about(val.get("metrics_by_threshold/optimum"))
        self._metrics.append(train, val)
        append_line(
            self._folders.lines,
            {
                "epoch": epoch,
                "phase": self._phase,
                "step": step,
                "seconds": round(time.monotonic() - self._started, 3),
                "train": without_tables(train),
                "val": without_tables(val),
            },
            alone=True,
        )
        save_newest(folder, state, epoch=epoch, step=step, about=about)
        if is_best:
            save_best(folder, state, epoch=epoch, step=step, about=about)
        for part, row in (("train", train), ("val", val)):
            _draw(trainer, {f"{part}/{name}": value for name, value in without_tables(row).items()}, step)
        self._tell.say("epoch", epoch=epoch, best=is_best, train=_numbers(train), val=_numbers(val))

    def _save(self, trainer: pl.Trainer, task: Task) -> None:
        """Save the state from which training resumes. Every rank must call it."""
        if trainer.is_global_zero:
            require_current(self._folders.state.parent)
        trainer.save_checkpoint(state_path(self._folders.state, task.batches_done))
        if trainer.is_global_zero:
            forget_older_states(self._folders.state)
        self._saved = time.monotonic()

    # --------------------------------------------------------------------------------------- telling

    def _tell_step(self, trainer: pl.Trainer, task: Task, outputs: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            return
        draws = task.batches_done % LOG_EVERY == 0
        if time.monotonic() - self._told < TELL_EVERY and not draws:
            return
        assert task.course is not None
        loss = float(outputs["loss"]) * self._accumulate  # Lightning's is already its share of the whole batch's
        speed = task.tallies["train"].speed * trainer.world_size
        if draws:
            values = {"step/loss": loss, "step/lr": task.course.lr, "step/samples_per_second": speed}
            _draw(trainer, values | _gpu_use(task.device), trainer.global_step)
        if time.monotonic() - self._told >= TELL_EVERY:
            self._told = time.monotonic()
            self._tell.say(
                "step",
                epoch=(task.batches_done - 1) // self._batches,
                epochs=task.config.train.num_epochs,
                batch=batch_idx + 1,
                of=self._batches,
                loss=loss,
                lr=task.course.lr,
                samples_per_second=round(speed, 2),
            )


def _draw(trainer: pl.Trainer, values: dict[str, Any], step: int) -> None:
    """Add points to TensorBoard's curves; a list has one for each class."""
    points: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list):
            points |= {f"{name}/{index}": item for index, item in enumerate(value) if isinstance(item, float)}
        elif value is not None:
            points[name] = value
    for logger in trainer.loggers:
        logger.log_metrics(points, step)


def _gpu_use(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {"step/cpu_load": os.getloadavg()[0]}
    return {"step/gpu_memory_GB": torch.cuda.max_memory_allocated(device) / 1e9}


def _numbers(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if "/" not in name and np.ndim(value) == 0}
