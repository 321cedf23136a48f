"""Probabilities become an ethogram."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deg.arithmetic.ethogram import (
    Postprocessor,
    apply_thresholds,
    bout_lengths,
    bouts,
    most_probable,
    remove_short_bouts,
    with_background,
)
from deg.errors import ConfigError

traces = st.lists(st.integers(0, 1), max_size=60)


def trace(text: str) -> np.ndarray:
    return np.array([int(letter) for letter in text if letter != " "], np.uint8)


def remove_slowly(values: list[int], bout_length: int) -> list[int]:
    """Follow the definition literally: for each length first the gaps, then the bouts, frame by frame."""
    values = list(values)
    for length in range(1, bout_length + 1):
        for value in (0, 1):
            before, start = list(values), 0
            for stop in range(1, len(before) + 1):
                if stop == len(before) or before[stop] != before[start]:
                    if before[start] == value and stop - start == length:
                        values[start:stop] = [1 - value] * length
                    start = stop
    return values


# ----------------------------------------------------------------- thresholds and background


def test_a_probability_at_its_threshold_is_not_above_it():
    probabilities = np.array([[0.5, 0.5000001, 0.4999999]], np.float32).T
    assert apply_thresholds(probabilities, np.array([0.5])).ravel().tolist() == [0, 1, 0]


def test_a_threshold_below_one_percent_counts_as_one_percent():
    probabilities = np.array([[0.005], [0.011]], np.float32)
    assert apply_thresholds(probabilities, np.array([0.0])).ravel().tolist() == [0, 1]


def test_a_float32_threshold_compares_in_float32():
    """The float32 0.3 of an outputs file is not a training run's float64 0.3: each is compared as it was chosen."""
    probability = np.array([[0.3]], np.float32)
    assert apply_thresholds(probability, np.array([0.3], np.float32)) == [[0]]
    assert apply_thresholds(probability, np.array([0.3], np.float64)) == [[1]]


def test_the_thresholds_given_stay_as_they_are():
    thresholds = np.array([0.001, 0.5])
    apply_thresholds(np.zeros((3, 2), np.float32), thresholds)
    assert thresholds.tolist() == [0.001, 0.5]


def test_background_is_where_nothing_else_is():
    predictions = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 1]], np.uint8)
    assert with_background(predictions)[:, 0].tolist() == [1, 1, 0, 0]


def test_the_first_of_equally_probable_classes_is_taken():
    probabilities = np.array([[0.1, 0.45, 0.45], [0.2, 0.2, 0.6]])
    assert most_probable(probabilities).tolist() == [[0, 1, 0], [0, 0, 1]]


# ----------------------------------------------------------------- bouts


def test_bouts_are_half_open_and_may_touch_both_ends():
    labels = np.stack([trace("1100111"), trace("0000000")], axis=1)
    first, second = bouts(labels)
    assert (first.starts.tolist(), first.ends.tolist(), first.lengths.tolist()) == ([0, 4], [2, 7], [2, 3])
    assert len(first) == 2 and len(second) == 0


def test_unlabelled_frames_end_a_bout():
    (found,) = bouts(np.array([[1], [-1], [1]], np.int8))
    assert found.lengths.tolist() == [1, 1]


@given(traces)
def test_bouts_make_the_trace_again(values):
    (found,) = bouts(np.array(values, np.int8).reshape(-1, 1))
    rebuilt = np.zeros(len(values), int)
    for start, end in zip(found.starts, found.ends, strict=True):
        rebuilt[start:end] = 1
    assert rebuilt.tolist() == values


def test_bout_lengths_round_half_to_even():
    """Bouts of 2 and 3 frames have the median 2.5, bouts of 3 and 4 the median 3.5."""
    labels = np.stack([trace("0000 0000 0000"), trace("0110 1110 0000"), trace("0111 0111 1000")], axis=1)
    assert bout_lengths([labels], 3, 50).tolist() == [1, 2, 4]


def test_bout_lengths_are_pooled_over_fully_labelled_recordings_only():
    short, long = trace("0100").reshape(-1, 1), trace("0111").reshape(-1, 1)
    unfinished = np.array([[1], [1], [1], [-1]])
    assert bout_lengths([short, unfinished, long], 1, 100).tolist() == [3]
    assert bout_lengths([short, unfinished, long], 1, 0).tolist() == [1]


def test_without_a_fully_labelled_recording_bout_lengths_are_one_and_it_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert bout_lengths([np.array([[-1, 1]])], 2, 50).tolist() == [1, 1]
    assert "No recording is fully labelled" in caplog.text


# ----------------------------------------------------------------- short bouts


@pytest.mark.parametrize(
    ("bout_length", "expected"),
    [
        (0, "0 0 0 1 1 1 0 0 1 1 1 1 1 1 1 0 1 1 0 0 0 0 1 0"),
        (1, "0 0 0 1 1 1 0 0 1 1 1 1 1 1 1 1 1 1 0 0 0 0 1 1"),
        (2, "0 0 0 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 0 0 0 0 0 0"),
        (3, "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 0 0 0 0 0 0"),
    ],
)
def test_gaps_are_filled_before_bouts_are_removed(bout_length, expected):
    given_trace = trace("0 0 0 1 1 1 0 0 1 1 1 1 1 1 1 0 1 1 0 0 0 0 1 0")
    assert remove_short_bouts(given_trace, bout_length).tolist() == trace(expected).tolist()


@given(traces, st.integers(0, 65))
def test_short_bouts_are_removed_as_defined(values, bout_length):
    assert remove_short_bouts(np.array(values, np.uint8), bout_length).tolist() == remove_slowly(values, bout_length)


@pytest.mark.parametrize("values", [[], [0], [1], [0, 1], [1, 0, 0]])
def test_traces_shorter_than_the_bout_length_work(values):
    assert remove_short_bouts(np.array(values, np.uint8), 5).tolist() == remove_slowly(values, 5)


def test_only_the_noise_goes_from_hours_of_video_with_a_long_bout_length():
    """Two million frames in bouts of 40 frames and gaps of 60, with a single wrong frame in the middle of each gap."""
    clean = np.tile(np.repeat([1, 0], [40, 60]).astype(np.uint8), 20_000)
    noisy = clean.copy()
    noisy[70::100] = 1
    np.testing.assert_array_equal(remove_short_bouts(noisy, 39), clean)


def test_golden_traces(golden):
    arrays, _ = golden("postprocessing")
    for j, bout_length in enumerate(arrays["trace_bout_lengths"]):
        for i, values in enumerate(arrays["traces"]):
            assert remove_short_bouts(values, bout_length).tolist() == arrays["traces_out"][i, j].tolist()


# ----------------------------------------------------------------- the whole


def golden_case(arrays, name):
    labels = [array for key, array in arrays.items() if key.startswith("labels_")]
    kind, value = name.rsplit("_", 1) if "_" in name else (None, 0)
    kind = {"per_behavior": "min_bout_per_behavior"}.get(kind, kind)
    return Postprocessor.from_labels(kind, float(value), labels, num_classes=len(arrays["thresholds"]))


def test_golden_predictions(golden):
    arrays, about = golden("postprocessing")
    for name in about["cases"]:
        predictions = golden_case(arrays, name)(arrays["probabilities"], arrays["thresholds"])
        np.testing.assert_array_equal(predictions, arrays[f"{name}/predictions"], err_msg=name)


def test_golden_bout_lengths(golden):
    arrays, about = golden("postprocessing")
    names = [name for name in about["cases"] if name.startswith("per_behavior")]
    assert names
    for name in names:
        assert golden_case(arrays, name).bout_lengths_K == tuple(arrays[f"{name}/bout_lengths"])


def test_predictions_of_a_real_project_equal_the_originals(shared_data):
    """The project has the default settings: the first percentile of each behaviour's bouts."""
    h5py = pytest.importorskip("h5py")
    recordings = sorted((shared_data("data/deg_project_original") / "DATA").glob("field_*"))
    labels = [
        pd.read_csv(path, index_col=0).to_numpy() for folder in recordings for path in folder.glob("*_labels.csv")
    ]
    postprocess = Postprocessor.from_labels("min_bout_per_behavior", 1, labels, num_classes=4)
    assert len(recordings) == 4
    for folder in recordings:
        with h5py.File(folder / f"{folder.name}_outputs.h5") as file:
            predictions = postprocess(file["tgmj/P"][:], file["tgmj/thresholds"][:])
        expected = pd.read_csv(folder / f"{folder.name}_predictions.csv", index_col=0).to_numpy()
        np.testing.assert_array_equal(predictions, expected)


@pytest.mark.parametrize("num_frames", [0, 1, 2])
def test_very_short_videos_work(num_frames):
    predictions = Postprocessor((5, 5))(np.full((num_frames, 2), 0.9, np.float32), np.array([0.5, 0.5], np.float32))
    assert predictions.shape == (num_frames, 2) and predictions.dtype == np.uint8


def test_argmax_takes_one_class_per_frame_whatever_the_thresholds():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    predictions = Postprocessor((0, 0, 0), argmax=True)(probabilities, np.full(3, 0.99))
    assert predictions.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_argmax_works_on_an_empty_video():
    assert Postprocessor((1, 1), argmax=True)(np.zeros((0, 2)), np.zeros(2)).shape == (0, 2)


@pytest.mark.parametrize(
    ("kind", "length", "message"),
    [
        ("min_bouts", 1, "expected null, min_bout or min_bout_per_behavior, got 'min_bouts'"),
        ("min_bout", 1.5, "got 1.5"),
        ("min_bout", -1, "got -1"),
        ("min_bout_per_behavior", 101, "expected 0 to 100, got 101"),
    ],
)
def test_options_that_make_no_sense_are_refused(kind, length, message):
    with pytest.raises(ConfigError, match=message):
        Postprocessor.from_labels(kind, length, [np.zeros((3, 2))], num_classes=2)
