"""An epoch adds up to the same row, however it is cut into batches and wherever it is stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deg.arithmetic.metrics import Counts, threshold_metrics
from deg.train.tally import Tally

CPU = torch.device("cpu")


def predictions(frames=200, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((frames, classes)) < 0.4).astype(np.int64)
    labels[rng.random(frames) < 0.1] = -1
    noisy = np.clip(0.3 + 0.4 * (labels == 1) + rng.normal(0, 0.15, labels.shape), 0, 1)
    return torch.tensor(noisy, dtype=torch.float32), torch.tensor(labels)


def filled(cuts, probabilities, labels):
    tally = Tally(["loss"], probabilities.shape[1])
    for start, stop in zip([0, *cuts], [*cuts, len(labels)], strict=True):
        losses = {"loss": probabilities[start:stop].mean()}
        tally.add(losses, stop - start, probabilities[start:stop], labels[start:stop])
    return tally


@given(st.lists(st.integers(1, 199), max_size=6, unique=True).map(sorted))
def test_batches_of_any_size_give_the_same_row(cuts):
    probabilities, labels = predictions()
    row = filled(cuts, probabilities, labels).row(CPU)
    assert row["loss"] == pytest.approx(float(probabilities.mean()), rel=1e-6)
    expected = threshold_metrics(Counts.of(probabilities.numpy(), labels.numpy()))
    assert np.array_equal(row["metrics_by_threshold/confusion"], expected.confusion)
    assert np.array_equal(row["metrics_by_threshold/optimum"], expected.optimum)


def test_thresholds_of_another_part_can_be_given():
    probabilities, labels = predictions()
    tally = filled([], probabilities, labels)
    own, strict = tally.row(CPU), tally.row(CPU, np.array([0.99, 0.99, 0.99]))
    assert own["f1_class_mean_nobg"] > 0.5 > strict["f1_class_mean_nobg"]
    assert np.array_equal(own["metrics_by_threshold/optimum"], strict["metrics_by_threshold/optimum"])


def test_a_part_without_any_batch_has_a_row_too():
    row = Tally(["loss"], 2).row(CPU)
    assert row["loss"] == 0 and row["binary_confusion"].sum() == 0


def test_without_classes_there_are_losses_only():
    tally = Tally(["loss", "SSIM"], None)
    tally.add({"loss": torch.tensor(2.0), "SSIM": torch.tensor(1.0), "other": torch.tensor(9.0)}, 3)
    tally.add({"loss": torch.tensor(5.0), "SSIM": torch.tensor(1.0)}, 1)
    row = tally.row(CPU)
    assert row.keys() == {"loss", "SSIM", "fps"} and row["loss"] == 2.75


def test_a_tally_resumed_from_a_state_ends_in_the_same_row():
    probabilities, labels = predictions()
    whole = filled([120], probabilities, labels).row(CPU)
    first, second = Tally(["loss"], 3), Tally(["loss"], 3)
    first.add({"loss": probabilities[:120].mean()}, 120, probabilities[:120], labels[:120])
    second.restore(first.state(CPU))
    second.add({"loss": probabilities[120:].mean()}, 80, probabilities[120:], labels[120:])
    resumed = second.row(CPU)
    for name in whole.keys() - {"fps"}:
        assert np.array_equal(whole[name], resumed[name], equal_nan=True), name
