"""The input of a sequence network: features or keypoints, their version, and whether it can learn from them."""

from __future__ import annotations

import os

import numpy as np
import pytest

from deg.data.results import Mark, write_group
from deg.data.sequence_input import ROWS, describe_mark, keypoints_of, open_input, require_all_finite, require_finite
from deg.errors import ProjectError, ResultError
from deg.types import Record


def write_features(path, features_TD, *, settings="a"):
    num_frames, width = features_TD.shape
    write_group(
        path,
        "resnet18",
        num_frames=num_frames,
        columns={"spatial_features": width, "flow_features": width},
        blocks=[{"spatial_features": features_TD, "flow_features": -features_TD}],
        class_names=["background", "groom"],
        thresholds_K=np.zeros(2),
        mark=Mark(num_frames, {}, settings, 0, 0),
        provenance={},
    )
    return path


def test_features_are_those_of_both_streams(tmp_path):
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    path = write_features(tmp_path / "m_outputs.h5", features)
    with open_input(path, "resnet18") as read:
        assert (read.num_frames, read.num_features) == (4, 6)
        np.testing.assert_array_equal(read(1, 3), np.concatenate([features, -features], axis=1)[1:3])


def test_features_made_anew_are_another_version(tmp_path):
    path, features = tmp_path / "m_outputs.h5", np.zeros((4, 3), np.float32)
    before = describe_mark(write_features(path, features), "resnet18")
    assert describe_mark(write_features(path, features), "resnet18") == before
    assert describe_mark(write_features(path, features, settings="b"), "resnet18") != before


def test_results_of_another_network_beside_them_change_nothing(tmp_path):
    """They rewrite the file, so its modification time would not be enough."""
    path = write_features(tmp_path / "m_outputs.h5", np.zeros((4, 3), np.float32))
    before = describe_mark(path, "resnet18")
    rows = dict.fromkeys(("logits", "P"), np.zeros((4, 2), np.float32))
    write_group(
        path,
        "tgmj",
        num_frames=4,
        columns=dict.fromkeys(rows, 2),
        blocks=[rows],
        class_names=["background", "groom"],
        thresholds_K=np.zeros(2),
        mark=Mark(4, {}, "", 0, 0),
        provenance={},
    )
    assert describe_mark(path, "resnet18") == before


def test_keypoints_are_known_by_size_and_time(tmp_path):
    path = tmp_path / "mDLC.csv"
    path.write_text("scorer")
    before = describe_mark(path, "")
    os.utime(path, ns=(1, 1))
    assert describe_mark(path, "") != before
    path.unlink()
    with pytest.raises(ProjectError, match=r"mDLC.csv: keypoints cannot be read"):
        describe_mark(path, "")


def test_a_recording_without_keypoints_is_told_what_it_lacks(tmp_path):
    with pytest.raises(ProjectError, match=r"there are no keypoints. Put the .csv of DeepLabCut"):
        keypoints_of(Record("m", tmp_path / "m"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_feature_that_is_no_number_is_named(value):
    features = np.zeros((5, 3), np.float32)
    features[2, 1] = features[4, 0] = value
    with pytest.raises(ResultError, match=f"recording m: feature 1 of frame 12 is {value}"):
        require_finite(features, "recording m", first=10)


def test_long_recordings_are_looked_through_to_their_end():
    features = np.zeros((2 * ROWS + 5, 1), np.float32)
    require_all_finite(lambda start, stop: features[start:stop], len(features), "m")
    features[-1] = np.nan
    with pytest.raises(ResultError, match=f"feature 0 of frame {2 * ROWS + 4} is nan"):
        require_all_finite(lambda start, stop: features[start:stop], len(features), "m")
