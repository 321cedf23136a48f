"""How well predictions agree with labels.

Everything is computed from counts (int64), which add exactly over batches, shards and ranks in any order. A rank makes
`Counts.of(...)` from what it has, the counts are added, and only the sum is turned into rates: `threshold_metrics`.
With the thresholds chosen there a second count, `binary_confusion`, gives the metrics of the epoch: `epoch_metrics`.

Frames with a label of -1 in any class are left out. Numbers equal those of DeepEthogram 0.5.0; undefined rates are 0.
Additional letter in the names of arrays: S thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from deg.arithmetic.ethogram import LOWEST_THRESHOLD
from deg.errors import DegError

THRESHOLDS_S = np.linspace(1e-4, 1, 200)
HOPELESS = 0.05
"""A class that scores less than this even at its best threshold gets the threshold 0.5."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Confusion of each class at each threshold: int64 [2, 2, 200, K], in the order [true][predicted], 0 first."""

    confusion_22SK: np.ndarray

    @classmethod
    def zero(cls, num_classes: int) -> Counts:
        """Return counts of no frames, to which the counts of parts are added."""
        return cls(np.zeros((2, 2, len(THRESHOLDS_S), num_classes), np.int64))

    @classmethod
    def of(cls, probabilities_TK: np.ndarray, labels_TK: np.ndarray) -> Counts:
        """Count the frames that are labelled. Raises DegError if a probability is NaN."""
        labelled_T = (labels_TK != -1).all(axis=1)
        probabilities_TK, labels_TK = probabilities_TK[labelled_T], labels_TK[labelled_T]
        if np.isnan(probabilities_TK).any():
            raise DegError(
                "Expected probabilities from 0 to 1, found NaN: the network has diverged. "
                "Train it again with a lower train.lr."
            )
        num_classes, num_bins = probabilities_TK.shape[1], len(THRESHOLDS_S) + 1
        # The bin of a probability is the number of thresholds strictly below it, so one histogram serves all.
        bins_TK = np.searchsorted(THRESHOLDS_S, probabilities_TK, side="left")
        cells_TK = ((labels_TK == 1) * num_bins + bins_TK) * num_classes + np.arange(num_classes)
        histogram = np.bincount(cells_TK.ravel(), minlength=2 * num_bins * num_classes)
        histogram = histogram.reshape(2, num_bins, num_classes)  # true, bin, class
        predicted_0 = histogram.cumsum(axis=1)[:, :-1]
        predicted_1 = histogram.sum(axis=1, keepdims=True) - predicted_0
        return cls(np.stack([predicted_0, predicted_1], axis=1).astype(np.int64, copy=False))

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.confusion_22SK + other.confusion_22SK)


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """Divide in float64, by a float32 denominator of at least 1e-7 as in DeepEthogram."""
    return np.asarray(numerator) / np.maximum(np.asarray(denominator, np.float32), np.float32(1e-7))


@dataclass(frozen=True, eq=False)
class Rates:
    """The rates of a confusion matrix, in float64 arrays of any shape."""

    accuracy: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    fbeta_2: np.ndarray
    informedness: np.ndarray
    """Sensitivity + specificity - 1."""

    @classmethod
    def of(cls, confusion: np.ndarray) -> Rates:
        """Compute rates from `confusion`, [2, 2, ...] in the order [true][predicted]; rates have the shape [...]."""
        (true_negatives, false_positives), (false_negatives, true_positives) = confusion
        precision = _ratio(true_positives, true_positives + false_positives)
        recall = _ratio(true_positives, true_positives + false_negatives)
        specificity = _ratio(true_negatives, true_negatives + false_positives)
        return cls(
            accuracy=_ratio(true_positives + true_negatives, confusion.sum(axis=(0, 1))),
            precision=precision,
            recall=recall,
            f1=_f_score(precision, recall, beta=1),
            fbeta_2=_f_score(precision, recall, beta=2),
            informedness=recall + specificity - 1,
        )


def _f_score(precision: np.ndarray, recall: np.ndarray, beta: float) -> np.ndarray:
    return _ratio((1 + beta**2) * precision * recall, beta**2 * precision + recall)


@dataclass(frozen=True, eq=False)
class ThresholdMetrics:
    """Rates of each class at each threshold, float64 [200, K], and the areas and best thresholds of these curves.

    The fields have the names and dtypes of the datasets in the group `metrics_by_threshold` of a metrics file.
    """

    thresholds: np.ndarray
    """float64 [200]"""
    confusion: np.ndarray
    """int64 [2, 2, 200, K]"""
    accuracy: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    fbeta_2: np.ndarray
    informedness: np.ndarray
    tpr: np.ndarray
    fpr: np.ndarray
    auroc: np.ndarray
    """float32 [K], area under (fpr, tpr) by trapezoids over the 200 points: a little below the exact value."""
    mAP: np.ndarray
    """float32 [K], area under (recall, precision), in the same way."""
    optimum: np.ndarray
    """float64 [K], the decision thresholds: those with the best F1."""
    optimum_info: np.ndarray
    """float64 [K], the thresholds with the best informedness."""


def threshold_metrics(counts: Counts) -> ThresholdMetrics:
    """Compute all curves, areas and best thresholds from the counts of a whole set."""
    confusion = counts.confusion_22SK
    (true_negatives, false_positives), (false_negatives, true_positives) = confusion
    rates = Rates.of(confusion)
    tpr = true_positives / (true_positives + false_negatives + 1e-9)
    fpr = false_positives / (false_positives + true_negatives + 1e-9)
    return ThresholdMetrics(
        thresholds=THRESHOLDS_S,
        confusion=confusion,
        **vars(rates),
        tpr=tpr,
        fpr=fpr,
        auroc=_area(fpr, tpr).astype(np.float32),
        mAP=_area(rates.recall, rates.precision).astype(np.float32),
        optimum=_best_thresholds(rates.f1),
        optimum_info=_best_thresholds(rates.informedness),
    )


def _area(x_SK: np.ndarray, y_SK: np.ndarray) -> np.ndarray:
    """Return the area under each curve by trapezoids; x falls as the threshold rises."""
    return ((x_SK[:-1] - x_SK[1:]) * (y_SK[:-1] + y_SK[1:]) / 2).sum(axis=0)


def _best_thresholds(scores_SK: np.ndarray) -> np.ndarray:
    """Return each class's first threshold with its best score: at least 0.01, or 0.5 if the score is below HOPELESS."""
    best_K = np.maximum(THRESHOLDS_S[scores_SK.argmax(axis=0)], LOWEST_THRESHOLD)
    return np.where(scores_SK.max(axis=0) < HOPELESS, 0.5, best_K)


def binary_confusion(predictions_TK: np.ndarray, labels_TK: np.ndarray) -> np.ndarray:
    """Count the confusion of each class: int64 [K, 2, 2] in the order [true][predicted]. Counts of parts add up.

    The predictions (0 or 1) are thresholded probabilities with the background rule, see `deg.arithmetic.ethogram`.
    """
    labelled_T = (labels_TK != -1).all(axis=1)
    true_TK, predicted_TK = labels_TK[labelled_T] == 1, predictions_TK[labelled_T] == 1
    cells = [[(t & p).sum(axis=0) for p in (~predicted_TK, predicted_TK)] for t in (~true_TK, true_TK)]
    return np.array(cells, np.int64).transpose(2, 0, 1)


@dataclass(frozen=True, eq=False)
class EpochMetrics:
    """Scores of one pass over a set at the chosen thresholds. The fields are named as in a metrics file."""

    accuracy_overall: float
    """Accuracy of the confusion summed over classes; f1_overall is taken from that sum too."""
    f1_overall: float
    f1_class_mean: float
    f1_class_mean_nobg: float
    """Mean without class 0, the background; NaN if that is the only class."""
    accuracy_by_class: np.ndarray
    f1_by_class: np.ndarray
    binary_confusion: np.ndarray
    """int64 [K, 2, 2]"""


def epoch_metrics(confusion_K22: np.ndarray) -> EpochMetrics:
    """Compute scores from `binary_confusion`, summed over the whole set."""
    by_class = Rates.of(confusion_K22.transpose(1, 2, 0))
    overall = Rates.of(confusion_K22.sum(axis=0))
    return EpochMetrics(
        accuracy_overall=float(overall.accuracy),
        f1_overall=float(overall.f1),
        f1_class_mean=float(by_class.f1.mean()),
        f1_class_mean_nobg=float(by_class.f1[1:].mean()) if len(confusion_K22) > 1 else float("nan"),
        accuracy_by_class=by_class.accuracy,
        f1_by_class=by_class.f1,
        binary_confusion=confusion_K22,
    )


@dataclass(frozen=True, eq=False)
class MulticlassMetrics:
    """Scores where each frame has one class only."""

    accuracy: float
    """Share of the frames whose most probable class is the true one."""
    mean_class_accuracy: float
    """Share of a class's frames that were found, averaged over the classes that occur."""
    f1: float
    """F1 averaged over the classes that occur or are predicted."""


def multiclass_confusion(probabilities_TK: np.ndarray, labels_T: np.ndarray) -> np.ndarray:
    """Count frames by [true class, most probable class]: int64 [K, K]. Counts of parts add up.

    Frames labelled -1 are left out.
    """
    num_classes = probabilities_TK.shape[1]
    labelled_T = labels_T != -1
    predicted_T = probabilities_TK[labelled_T].argmax(axis=1)
    cells = np.bincount(labels_T[labelled_T] * num_classes + predicted_T, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def multiclass_metrics(confusion_KK: np.ndarray) -> MulticlassMetrics:
    """Compute scores from `multiclass_confusion`; all are 0 if nothing was counted."""
    found_K, predicted_K, occurring_K = np.diag(confusion_KK), confusion_KK.sum(axis=0), confusion_KK.sum(axis=1)
    precision, recall = _ratio(found_K, predicted_K), _ratio(found_K, occurring_K)
    # Both are 0 for the classes that do not enter the means, so only the divisors need to leave them out.
    return MulticlassMetrics(
        accuracy=float(_ratio(found_K.sum(), confusion_KK.sum())),
        mean_class_accuracy=float(_ratio(recall.sum(), np.count_nonzero(occurring_K))),
        f1=float(_ratio(_f_score(precision, recall, beta=1).sum(), np.count_nonzero(occurring_K + predicted_K))),
    )
