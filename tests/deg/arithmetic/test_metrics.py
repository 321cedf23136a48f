"""Counts, and the rates, thresholds and scores that are computed from them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deg.arithmetic.ethogram import apply_thresholds, with_background
from deg.arithmetic.metrics import (
    THRESHOLDS_S,
    Counts,
    ThresholdMetrics,
    binary_confusion,
    epoch_metrics,
    multiclass_confusion,
    multiclass_metrics,
    threshold_metrics,
)
from deg.errors import DegError

GOLDEN_SETS = [
    "plain",
    "ignored_rows",
    "class_without_positives",
    "class_with_tiny_probabilities",
    "hopeless_rare_class",
]


@pytest.fixture(params=GOLDEN_SETS)
def golden_set(request, golden):
    """Probabilities, labels, and what the original computes from them, such as `expected["by_threshold/f1"]`."""
    arrays, _ = golden("metrics")
    of_set = {
        key.removeprefix(f"{request.param}/"): value
        for key, value in arrays.items()
        if key.startswith(f"{request.param}/")
    }
    return of_set.pop("probabilities"), of_set.pop("labels"), of_set


def scene(seed: int, num_frames: int, num_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, a third of them exactly at thresholds or at the ends of the range, and labels of -1, 0 and 1."""
    random = np.random.default_rng(seed)
    probabilities = random.random((num_frames, num_classes))
    corners = random.choice([0.0, 1.0, *THRESHOLDS_S[:5], *THRESHOLDS_S[-5:]], probabilities.shape)
    probabilities = np.where(random.random(probabilities.shape) < 1 / 3, corners, probabilities)
    return probabilities, random.choice([0, 1, -1], probabilities.shape, p=[0.6, 0.35, 0.05])


# ----------------------------------------------------------------- counts


@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_counts_are_those_of_comparing_with_each_threshold(seed, num_frames):
    probabilities, labels = scene(seed, num_frames)
    labelled = (labels != -1).all(axis=1)
    expected = np.zeros((2, 2, 200, 3), int)
    for s, threshold in enumerate(THRESHOLDS_S):
        for true, predicted in ((0, 0), (0, 1), (1, 0), (1, 1)):
            cells = (labels == true) & ((probabilities > threshold) == predicted)
            expected[true, predicted, s] = cells[labelled].sum(axis=0)
    np.testing.assert_array_equal(Counts.of(probabilities, labels).confusion_22SK, expected)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.lists(st.integers(0, 40), max_size=5), st.randoms())
def test_counts_of_parts_add_to_counts_of_the_whole_in_any_order(seed, num_frames, cuts, random):
    probabilities, labels = scene(seed, num_frames)
    frames = list(range(num_frames))
    random.shuffle(frames)
    parts = [Counts.of(probabilities[part], labels[part]) for part in np.split(np.array(frames, int), sorted(cuts))]
    random.shuffle(parts)
    total = sum(parts, Counts.zero(3))
    np.testing.assert_array_equal(total.confusion_22SK, Counts.of(probabilities, labels).confusion_22SK)


def test_counts_are_exact_integers():
    counts = Counts.of(*scene(0, 10))
    assert counts.confusion_22SK.dtype == (counts + counts).confusion_22SK.dtype == np.int64


def test_a_float32_probability_is_compared_with_the_float64_threshold():
    """If thresholds were rounded to float32, this probability, the next above one of them, would equal it."""
    threshold = next(t for t in THRESHOLDS_S if np.float32(t) > t)
    confusion = Counts.of(np.array([[threshold]], np.float32), np.array([[1]])).confusion_22SK
    assert confusion[1, 1, :, 0].sum() == np.flatnonzero(threshold == THRESHOLDS_S)[0] + 1


def test_a_diverged_network_is_an_error_and_not_a_score():
    with pytest.raises(DegError, match="found NaN"):
        Counts.of(np.array([[np.nan]]), np.array([[1]]))


# ----------------------------------------------------------------- by threshold


def test_golden_counts_are_exact(golden_set):
    probabilities, labels, expected = golden_set
    np.testing.assert_array_equal(Counts.of(probabilities, labels).confusion_22SK, expected["by_threshold/confusion"])


def test_golden_curves_areas_and_thresholds(golden_set):
    probabilities, labels, expected = golden_set
    metrics = threshold_metrics(Counts.of(probabilities, labels))
    for field in fields(ThresholdMetrics):
        ours, theirs = getattr(metrics, field.name), expected[f"by_threshold/{field.name}"]
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, err_msg=field.name)
        assert ours.dtype == (np.int64 if field.name == "confusion" else theirs.dtype), field.name


def test_golden_thresholds_are_exact(golden):
    arrays, about = golden("thresholds")
    for name in about["sets"]:
        metrics = threshold_metrics(Counts.of(arrays[f"{name}/probabilities"], arrays[f"{name}/labels"]))
        np.testing.assert_array_equal(metrics.optimum, arrays[f"{name}/optimum"])
        np.testing.assert_array_equal(metrics.optimum_info, arrays[f"{name}/optimum_info"])


def test_the_lowest_of_equally_good_thresholds_is_chosen():
    """Any threshold from 0.3 up to (not including) 0.7 separates these two frames."""
    metrics = threshold_metrics(Counts.of(np.array([[0.3], [0.7]]), np.array([[0], [1]])))
    assert metrics.optimum == metrics.optimum_info == THRESHOLDS_S[THRESHOLDS_S >= 0.3][0]


def test_nothing_counted_gives_zeros_and_thresholds_of_one_half():
    metrics = threshold_metrics(Counts.zero(2))
    assert metrics.optimum.tolist() == [0.5, 0.5]
    for field in fields(ThresholdMetrics):
        assert np.isfinite(getattr(metrics, field.name)).all()


# ----------------------------------------------------------------- of an epoch


def test_golden_epoch_metrics(golden_set):
    probabilities, labels, expected = golden_set
    thresholds = threshold_metrics(Counts.of(probabilities, labels)).optimum
    predictions = with_background(apply_thresholds(probabilities, thresholds))
    metrics = epoch_metrics(binary_confusion(predictions, labels))
    np.testing.assert_array_equal(metrics.binary_confusion, expected["epoch/binary_confusion"])
    for field in fields(metrics):
        ours, theirs = getattr(metrics, field.name), expected[f"epoch/{field.name}"]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, err_msg=field.name)


def test_class_means_of_areas_are_plain_means(golden_set):
    probabilities, labels, expected = golden_set
    metrics = threshold_metrics(Counts.of(probabilities, labels))
    assert metrics.auroc.mean() == pytest.approx(expected["epoch/auroc_class_mean"], abs=1e-6)
    assert metrics.mAP.mean() == pytest.approx(expected["epoch/mAP_class_mean"], abs=1e-6)


def test_perfect_predictions_score_one():
    labels = np.array([[1, 0], [0, 1], [1, 0]])
    metrics = epoch_metrics(binary_confusion(labels, labels))
    scores = [metrics.accuracy_overall, metrics.f1_overall, metrics.f1_class_mean, metrics.f1_class_mean_nobg]
    assert scores == [1, 1, 1, 1]
    assert metrics.binary_confusion.tolist() == [[[1, 0], [0, 2]], [[2, 0], [0, 1]]]


def test_frames_with_any_unknown_label_are_left_out():
    confusion = binary_confusion(np.array([[1, 1], [1, 1]]), np.array([[1, -1], [1, 0]]))
    assert confusion.tolist() == [[[0, 0], [0, 1]], [[0, 1], [0, 0]]]


# ----------------------------------------------------------------- one class per frame


def test_golden_multiclass(golden):
    arrays, _ = golden("metrics")
    confusion = multiclass_confusion(arrays["multiclass_probabilities"], arrays["multiclass_labels"])
    np.testing.assert_array_equal(confusion, arrays["multiclass_confusion"])
    metrics = multiclass_metrics(confusion)
    assert metrics.f1 == pytest.approx(arrays["multiclass_f1"], abs=1e-6)
    assert metrics.mean_class_accuracy == pytest.approx(arrays["multiclass_mean_class_accuracy"], abs=1e-6)
    assert metrics.accuracy == pytest.approx(np.diag(confusion).sum() / confusion.sum(), abs=1e-6)


def test_a_class_that_never_occurs_does_not_lower_the_mean():
    """Two frames have class 0, two have class 1 (one is predicted as 0), none has class 2, and one is unlabelled."""
    predicted, labels = np.array([0, 0, 1, 0, 2]), np.array([0, 0, 1, 1, -1])
    metrics = multiclass_metrics(multiclass_confusion(np.eye(3)[predicted], labels))
    assert metrics.accuracy == pytest.approx(3 / 4)
    assert metrics.mean_class_accuracy == pytest.approx((1 + 1 / 2) / 2)
    assert metrics.f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
