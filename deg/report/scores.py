"""Compute the tables of scores in a report, in which each class is compared with its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deg.arithmetic.metrics import (
    Counts,
    Rates,
    binary_confusion,
    epoch_metrics,
    multiclass_confusion,
    threshold_metrics,
)
from deg.report.figures import Picture


@dataclass(frozen=True)
class ClassScores:
    """How well one class was found. A score is None if it is undefined, such as recall without positive frames."""

    k: int
    name: str
    positives: int
    """Number of frames labelled as this class."""
    threshold: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    ap: float | None
    confusion: tuple[tuple[int, int], tuple[int, int]]
    """Number of frames by [labelled][predicted], yes before no."""
    curve: Picture | None = None


@dataclass(frozen=True)
class Table:
    """Scores of all classes on one part of the data."""

    title: str
    frames: int
    classes: tuple[ClassScores, ...]
    mean_f1: float
    """Mean F1 without background; classes that never occur count as 0, as in DeepEthogram."""
    confusion_KK: tuple[tuple[int, ...], ...] | None = None
    """Number of frames by [labelled class][most probable class]; None unless classes exclude each other."""


def make_table(
    title: str,
    class_names: Sequence[str],
    confusion_K22: np.ndarray,
    auroc_K: np.ndarray,
    ap_K: np.ndarray,
    thresholds_K: np.ndarray | None = None,
    curves: Sequence[Picture] = (),
    confusion_KK: np.ndarray | None = None,
) -> Table:
    """Compute the scores of each class from its confusion, int64 (K, 2, 2) by [labelled][predicted], no before yes."""
    scores, rates = epoch_metrics(confusion_K22), Rates.of(confusion_K22.transpose(1, 2, 0))
    classes = []
    for k, name in enumerate(class_names):
        (negatives, false_alarms), (missed, found) = confusion_K22[k].tolist()
        occurs, absent, predicted = missed + found > 0, negatives + false_alarms > 0, false_alarms + found > 0
        classes.append(
            ClassScores(
                k=k,
                name=str(name),
                positives=missed + found,
                # background is predicted where nothing else is, not by its threshold
                threshold=float(thresholds_K[k]) if thresholds_K is not None and k > 0 else None,
                precision=float(rates.precision[k]) if predicted else None,
                recall=float(rates.recall[k]) if occurs else None,
                f1=float(rates.f1[k]) if occurs or predicted else None,
                auroc=float(auroc_K[k]) if occurs and absent else None,
                ap=float(ap_K[k]) if occurs else None,
                confusion=((found, missed), (false_alarms, negatives)),
                curve=curves[k] if curves else None,
            )
        )
    return Table(
        title=title,
        frames=int(confusion_K22[0].sum()),
        classes=tuple(classes),
        mean_f1=scores.f1_class_mean_nobg,
        confusion_KK=None if confusion_KK is None else tuple(map(tuple, confusion_KK.tolist())),
    )


@dataclass
class Agreement:
    """How the results of a part of the split agree with the labels, summed over its recordings."""

    counts: Counts
    confusion_K22: np.ndarray
    confusion_KK: np.ndarray
    exclusive: bool = True
    recordings: int = 0

    @classmethod
    def zero(cls, num_classes: int) -> Agreement:
        """Return the agreement of no recordings."""
        square = np.zeros((num_classes, num_classes), np.int64)
        return cls(Counts.zero(num_classes), np.zeros((num_classes, 2, 2), np.int64), square)

    def add(
        self, probabilities_TK: np.ndarray, predictions_TK: np.ndarray, labels_TK: np.ndarray, *, exclusive: bool
    ) -> None:
        """Add one recording. `exclusive` tells whether its results are of a softmax network."""
        self.counts += Counts.of(probabilities_TK, labels_TK)
        self.confusion_K22 = self.confusion_K22 + binary_confusion(predictions_TK, labels_TK)
        single_T = ((labels_TK == 1).sum(axis=1) == 1) & (labels_TK != -1).all(axis=1)
        labels_T = np.where(single_T, labels_TK.argmax(axis=1), -1)
        self.confusion_KK = self.confusion_KK + multiclass_confusion(probabilities_TK, labels_T)
        self.exclusive &= exclusive
        self.recordings += 1

    def table(self, title: str, class_names: Sequence[str]) -> Table:
        """Return the table of scores. The number of recordings is added to `title`."""
        title = f"{title}: {self.recordings} recording{'' if self.recordings == 1 else 's'}"
        curves = threshold_metrics(self.counts)
        square = self.confusion_KK if self.exclusive else None
        return make_table(title, class_names, self.confusion_K22, curves.auroc, curves.mAP, confusion_KK=square)
