"""What an epoch adds up to, over any number of ranks: means of the losses, and scores of the predictions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deg.arithmetic.ethogram import apply_thresholds, with_background
from deg.arithmetic.metrics import Counts, binary_confusion, epoch_metrics, threshold_metrics
from deg.data.metrics_file import classification_row
from deg.train.ranks import gathered, summed

Row = dict[str, Any]
"""One row of a metrics file, by the names of its datasets."""


class Tally:
    """The batches of one epoch of one part (train, val or test) on this rank, added up."""

    def __init__(self, losses: Sequence[str], num_classes: int | None):
        """Average the losses of these names. If `num_classes` is None, there is nothing else."""
        self.names, self.num_classes = tuple(losses), num_classes
        self.reset()

    def reset(self) -> None:
        self._losses: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.float64) for name in self.names}
        self._samples, self._batches, self._speed = 0, 0, 0.0
        self._last = time.perf_counter()
        classes = self.num_classes or 0
        self._probabilities_NK = [torch.empty((0, classes))]
        self._labels_NK = [torch.empty((0, classes), dtype=torch.int8)]

    def start_clock(self) -> None:
        """Count time from now on as that of the next batch."""
        self._last = time.perf_counter()

    def add(
        self,
        losses: Mapping[str, Tensor | float],
        samples: int,
        probabilities_NK: Tensor | None = None,
        labels_NK: Tensor | None = None,
    ) -> None:
        """Add a batch: means of its losses over `samples`, and predictions for rows, whose labels may be -1."""
        for name in self.names:
            # added up on the device in float64: nothing waits for the GPU, and the order of batches hardly matters
            value = torch.as_tensor(losses[name]).detach().double() * samples
            self._losses[name] = self._losses[name].to(value.device) + value
        self._samples, self._batches = self._samples + samples, self._batches + 1
        now = time.perf_counter()
        self._speed, self._last = self._speed + samples / max(now - self._last, 1e-9), now
        if probabilities_NK is not None and labels_NK is not None:
            self._probabilities_NK.append(probabilities_NK.detach().float())
            self._labels_NK.append(labels_NK.to(torch.int8))

    @property
    def speed(self) -> float:
        """Samples per second of this rank, mean over the batches."""
        return self._speed / max(self._batches, 1)

    def row(self, device: torch.device, thresholds_K: np.ndarray | None = None) -> Row:
        """Return the row of a metrics file, the same on every rank. Every rank must call it.

        Predictions use `thresholds_K` or, if it is None, the thresholds that are best for these very frames.
        """
        local = np.array([*map(float, self._losses.values()), self._samples, self.speed], np.float64)
        *sums, samples, speed = summed(local, device)
        row: Row = {name: value / max(samples, 1) for name, value in zip(self.names, sums, strict=True)}
        row["fps"] = float(speed)
        if self.num_classes is None:
            return row
        probabilities_NK, labels_NK = (rows.numpy() for rows in self._rows())
        curves = threshold_metrics(Counts(summed(Counts.of(probabilities_NK, labels_NK).confusion_22SK, device)))
        thresholds_K = curves.optimum if thresholds_K is None else thresholds_K
        predictions_NK = with_background(apply_thresholds(probabilities_NK, thresholds_K))
        scores = epoch_metrics(summed(binary_confusion(predictions_NK, labels_NK), device))
        return classification_row(curves, scores) | row

    def _rows(self) -> tuple[Tensor, Tensor]:
        probabilities = torch.cat([rows.cpu() for rows in self._probabilities_NK])
        labels = torch.cat([rows.cpu() for rows in self._labels_NK])
        known_N = (labels != -1).all(dim=1)  # padding and context do not count
        probabilities, labels = probabilities[known_N], labels[known_N]
        self._probabilities_NK, self._labels_NK = [probabilities], [labels]
        return probabilities, labels

    def state(self, device: torch.device) -> dict[str, Any]:
        """Return all ranks' batches so far, for a checkpoint within an epoch. Every rank must call it."""
        local = np.array([*map(float, self._losses.values()), self._samples, self._batches, self._speed], np.float64)
        *sums, samples, batches, speed = summed(local, device)
        probabilities, labels = self._rows()
        return {
            "losses": dict(zip(self.names, map(float, sums), strict=True)),
            "samples": int(samples),
            "batches": int(batches),
            "speed": float(speed),
            "probabilities": gathered(probabilities),
            "labels": gathered(labels),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a state; on one rank only, or everything would count several times."""
        self.reset()
        self._losses = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["losses"].items()}
        self._samples, self._batches, self._speed = state["samples"], state["batches"], state["speed"]
        self._probabilities_NK, self._labels_NK = [state["probabilities"]], [state["labels"]]
