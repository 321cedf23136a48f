"""How the learning rate falls and when training ends, decided once per epoch by the score of validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deg.options.schema import Train

COSINE_PERIOD, COSINE_DECAY, COSINE_FLOOR = 25, 0.5, 1e-7
"""Epochs of a wave, height of each wave relative to the one before, and lowest learning rate."""


def cosine(epoch: int, lr: float) -> float:
    """Return the learning rate of an epoch, counted from 0.

    It falls in waves of 25 epochs from a crest to the floor; each crest is half as high as the one before. Source:
    Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.
    """
    wave, place = divmod(epoch, COSINE_PERIOD)
    crest = max(lr * COSINE_DECAY**wave, COSINE_FLOOR)
    return COSINE_FLOOR + (crest - COSINE_FLOOR) * (1 + math.cos(math.pi * place / COSINE_PERIOD)) / 2


def multistep(epoch: int, lr: float, milestones: Sequence[int], factor: float) -> float:
    """Return the learning rate of an epoch, counted from 0: multiplied by `factor` at each milestone."""
    return lr * factor ** sum(epoch >= milestone for milestone in milestones)


class Course:
    """The learning rate of each epoch, the best score so far, and whether to stop."""

    def __init__(self, options: Train, optimizer: Optimizer, mode: Literal["min", "max"]):
        self._options, self._optimizer, self._mode = options, optimizer, mode
        self.best: float | None = None
        self.worse_epochs = 0
        """Number of epochs in a row that scored worse than the best; a tie resets it."""
        self.epochs_done = 0
        self._start = self.lr
        self._plateau = ReduceLROnPlateau(
            optimizer, mode, options.reduction_factor, options.patience, min_lr=options.min_lr, threshold=1e-4
        )

    @property
    def lr(self) -> float:
        return self._optimizer.param_groups[0]["lr"]

    def judge(self, score: float) -> bool:
        """Record an epoch's score and return whether it is the best so far. NaN is worse than any number."""
        if math.isnan(score):
            score = self._worst
        if self.best is None or (score < self.best if self._mode == "min" else score > self.best):
            self.best, self.worse_epochs = score, 0
            return True
        self.worse_epochs = 0 if score == self.best else self.worse_epochs + 1
        return False

    def reason_to_stop(self, epochs_done: int) -> str | None:
        """Return why training ends after this many epochs, or None. Call it before `next_epoch`."""
        options = self._options
        falls_for_good = options.scheduler != "cosine"
        if epochs_done >= options.num_epochs:
            return f"train.num_epochs={options.num_epochs} is reached"
        if (
            falls_for_good
            and epochs_done > 1
            and options.stopping_type == "learning_rate"
            and self.lr < options.min_lr + 1e-8
        ):
            return f"the learning rate fell to train.min_lr={options.min_lr:g}"
        waited = self.worse_epochs >= max(options.patience, 1) and epochs_done > options.early_stopping_begins
        if options.stopping_type == "early" and waited:
            return f"validation did not improve for train.patience={options.patience} epochs"
        return None

    def next_epoch(self, score: float) -> None:
        """Set the learning rate of the next epoch."""
        self.epochs_done += 1
        options = self._options
        if options.scheduler == "plateau":
            # a NaN would leave the schedule where it is, for ever
            self._plateau.step(score if not math.isnan(score) else self._worst)
        elif options.scheduler == "multistep":
            self._set(multistep(self.epochs_done, self._start, options.milestones, options.reduction_factor))
        elif options.scheduler == "cosine":
            self._set(cosine(self.epochs_done, self._start))

    def _set(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    @property
    def _worst(self) -> float:
        return math.inf if self._mode == "min" else -math.inf

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the optimizer's own state."""
        plateau = {"best": self._plateau.best, "num_bad_epochs": self._plateau.num_bad_epochs}
        return {
            "best": self.best,
            "worse_epochs": self.worse_epochs,
            "epochs_done": self.epochs_done,
            "start": self._start,
            "plateau": plateau,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.worse_epochs = state["best"], state["worse_epochs"]
        self.epochs_done, self._start = state["epochs_done"], state["start"]
        self._plateau.load_state_dict(state["plateau"])
