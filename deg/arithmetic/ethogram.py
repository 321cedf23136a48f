"""From probabilities to an ethogram: thresholds, short bouts, the background column.

Class 0 is the background: it is never detected by itself, but marks every frame that no other class marks. Frames are
rows. Numbers equal those of DeepEthogram 0.5.0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from deg.errors import ConfigError

log = logging.getLogger(__name__)

LOWEST_THRESHOLD = 0.01
"""Lowest threshold in use. A lower one comes only from a class that was never learned, and would mark every frame."""


def apply_thresholds(probabilities_TK: np.ndarray, thresholds_K: np.ndarray) -> np.ndarray:
    """Return 1 where a probability is above (not at) its class's threshold, else 0, as uint8.

    A threshold below 0.01 counts as 0.01. The thresholds keep their own dtype, float32 as read from an outputs file or
    float64 as chosen in training, so that a probability that equals its threshold falls on the same side as in
    DeepEthogram.
    """
    thresholds_K = np.asarray(thresholds_K)
    floor = np.asarray(LOWEST_THRESHOLD, dtype=thresholds_K.dtype)
    return (probabilities_TK > np.maximum(thresholds_K, floor)).astype(np.uint8)


def most_probable(probabilities_TK: np.ndarray) -> np.ndarray:
    """Mark one class per frame, the first of the most probable, as uint8 columns: for mutually exclusive classes."""
    predictions_TK = np.zeros(probabilities_TK.shape, np.uint8)
    predictions_TK[np.arange(len(probabilities_TK)), probabilities_TK.argmax(axis=1)] = 1
    return predictions_TK


def with_background(predictions_TK: np.ndarray) -> np.ndarray:
    """Return a copy whose column 0 is 1 exactly where no other column is."""
    predictions_TK = predictions_TK.copy()
    predictions_TK[:, 0] = ~predictions_TK[:, 1:].any(axis=1)
    return predictions_TK


@dataclass(frozen=True, eq=False)
class Bouts:
    """The bouts of one class: bout i covers the frames [starts[i], ends[i])."""

    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Number of frames of each bout."""
        return self.ends - self.starts


def bouts(labels_TK: np.ndarray) -> list[Bouts]:
    """Return the bouts of each class: its unbroken stretches of 1. Frames without a label (-1) belong to no bout."""
    edges_TK = np.diff((np.asarray(labels_TK) == 1).astype(np.int8), axis=0, prepend=0, append=0)
    return [Bouts(np.flatnonzero(edges_T == 1), np.flatnonzero(edges_T == -1)) for edges_T in edges_TK.T]


def bout_lengths(labels: Iterable[np.ndarray], num_classes: int, percentile: float) -> np.ndarray:
    """Return this percentile (0 to 100) of each class's bout lengths, in frames, rounded half to even: int64 [K].

    `labels` holds one labels_TK for each recording; recordings with any -1 are skipped. A class without bouts gets 1.
    Raises ConfigError if the percentile is out of range.
    """
    if not 0 <= percentile <= 100:
        raise ConfigError(
            "postprocessor.min_bout_length is a percentile of bout lengths with postprocessor.type="
            f"min_bout_per_behavior: expected 0 to 100, got {percentile:g}. For a length in frames set "
            "postprocessor.type=min_bout."
        )
    complete = [labels_TK for labels_TK in labels if not (np.asarray(labels_TK) == -1).any()]
    if not complete:
        log.warning(
            "No recording is fully labelled, so the usual lengths of bouts are not known: only bouts of 1 frame are "
            "removed, for every class."
        )
    pooled: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    for labels_TK in complete:
        for lengths, found in zip(pooled, bouts(labels_TK), strict=True):
            lengths.append(found.lengths)
    shortest_K = np.ones(num_classes, np.int64)
    for k, lengths in enumerate(pooled):
        if sum(map(len, lengths)):
            shortest_K[k] = np.round(np.percentile(np.concatenate(lengths), percentile))
    return shortest_K


def remove_short_bouts(trace_T: np.ndarray, bout_length: int) -> np.ndarray:
    """Return a 0/1 trace without its gaps and bouts of up to `bout_length` frames; 0 leaves it as it is.

    For each length 1, 2, ..., bout_length: first every gap of exactly that length is filled, then every bout of exactly
    that length is removed. Stretches at the ends count like any other. Because gaps come first, `0 0 1 0` at the end of
    a trace becomes `0 0 1 1`.
    """
    trace_T = np.asarray(trace_T)
    if trace_T.size == 0:
        return trace_T.copy()
    starts = np.flatnonzero(np.diff(trace_T, prepend=trace_T[0] + 1))
    values, lengths = trace_T[starts], np.diff(starts, append=trace_T.size)
    length = 0
    # Lengths that no stretch has are skipped; afterwards every stretch is longer, or is the whole trace.
    while (longer := lengths[lengths > length]).size and (length := longer.min()) <= bout_length:
        for value in (0, 1):
            values = np.where((values == value) & (lengths == length), 1 - value, values)
            starts = np.flatnonzero(np.diff(values, prepend=values[0] + 1))
            values, lengths = values[starts], np.add.reduceat(lengths, starts)
    return np.repeat(values, lengths).astype(trace_T.dtype)


@dataclass(frozen=True)
class Postprocessor:
    """Turns probabilities into predictions: thresholds, then removal of short bouts, then the background."""

    bout_lengths_K: tuple[int, ...]
    """Longest gap and bout that is removed, in frames, for each class; 0 removes nothing."""
    argmax: bool = False
    """Whether each frame gets its most probable class, for softmax networks. (DeepEthogram always uses thresholds.)"""

    @classmethod
    def from_labels(
        cls,
        kind: str | None,
        min_bout_length: float,
        labels: Iterable[np.ndarray],
        num_classes: int,
        *,
        argmax: bool = False,
    ) -> Postprocessor:
        """Make the postprocessor of the options `postprocessor.type` and `postprocessor.min_bout_length`.

        None or `null`: no removal. `min_bout`: the same length for all classes. `min_bout_per_behavior`: from labels
        of the project's recordings, see `bout_lengths`; only this kind reads `labels`. Raises ConfigError for another
        kind, and for a length that does not suit the kind.
        """
        match kind:
            case None | "null":
                lengths = [0] * num_classes
            case "min_bout":
                if min_bout_length < 0 or min_bout_length != int(min_bout_length):
                    raise ConfigError(
                        "postprocessor.min_bout_length is a number of frames with postprocessor.type=min_bout: "
                        f"expected 0, 1, 2, ..., got {min_bout_length:g}."
                    )
                lengths = [int(min_bout_length)] * num_classes
            case "min_bout_per_behavior":
                lengths = bout_lengths(labels, num_classes, min_bout_length).tolist()
            case _:
                raise ConfigError(
                    f"postprocessor.type: expected null, min_bout or min_bout_per_behavior, got {kind!r}. "
                    "Set one of the three."
                )
        return cls(tuple(lengths), argmax)

    def __call__(self, probabilities_TK: np.ndarray, thresholds_K: np.ndarray) -> np.ndarray:
        """Return predictions, 0 or 1, as uint8 [T, K], for any T. With `argmax`, `thresholds_K` is not used."""
        if self.argmax:
            predictions_TK = most_probable(probabilities_TK)
        else:
            predictions_TK = apply_thresholds(probabilities_TK, thresholds_K)
        for k, length in enumerate(self.bout_lengths_K):
            predictions_TK[:, k] = remove_short_bouts(predictions_TK[:, k], length)
        return with_background(predictions_TK)
