"""Keypoints of a mouse drawn on squared paper, whose angles and distances can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracks import MOUSE, turned, walk, write_csv

from deg.data.keypoints import NUM_KEYPOINT_FEATURES, PARTS, KeypointReader, expand, interpolate, read_keypoints
from deg.errors import ProjectError

CENTROID = (4, 0)
OWN_VIEW = slice(16, 44)
"""Features that do not depend on where the mouse is."""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "m1DLC_resnet50.csv"


# ----------------------------------------------------------------- the file


def test_points_and_likelihoods_are_read(file):
    points, likelihood = walk(12), np.random.default_rng(1).random((12, 7))
    found_points, found_likelihood = read_keypoints(write_csv(file, points, likelihood))
    np.testing.assert_allclose(found_points, points)
    np.testing.assert_allclose(found_likelihood, likelihood)


def test_parts_are_found_by_their_names(file):
    points, order = walk(12), [3, 0, 6, 5, 4, 2, 1]
    write_csv(file, points[:, order], parts=[PARTS[p] for p in order])
    np.testing.assert_allclose(read_keypoints(file)[0], points)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (["nose", *PARTS[1:6], "tail"], "hindpaw_r, nose, tail, tailbase"),
        ([*PARTS, "left_ear"], "left_ear, nose"),
        (PARTS[:6], "nose, tailbase"),
    ],
)
def test_other_parts_are_refused_and_named(file, parts, found):
    write_csv(file, np.zeros((3, len(parts), 2)), parts=parts)
    with pytest.raises(ProjectError, match=f"expected the parts nose, .* tailtip, found .*{found}"):
        read_keypoints(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("coords", "individuals"), "Export each animal to a file of its own"),
        (lambda text: "", "expected rows that begin with scorer, bodyparts, coords"),
        (lambda text: "\n".join(text.splitlines()[:3]), "no row of keypoints"),
        (lambda text: text.replace("8.0", "far"), "not a table of numbers"),
        (lambda text: text.replace("likelihood", "p", 1), "nose likelihood missing"),
        (lambda text: text.encode("utf-16").decode("latin-1"), "expected rows|not a table"),
    ],
)
def test_what_is_no_file_of_deeplabcut_is_refused_by_name(file, change, message):
    write_csv(file, MOUSE[None])
    file.write_text(change(file.read_text()))
    with pytest.raises(ProjectError, match=rf"{file.name}: .*({message})"):
        read_keypoints(file)


def test_a_missing_file_is_named(file):
    with pytest.raises(ProjectError, match=f"{file.name}: cannot be read"):
        read_keypoints(file)


# ----------------------------------------------------------------- points that the tracker was not sure of


def test_unsure_points_lie_between_the_sure_ones_around_them(file):
    """The nose moves by 1 per frame; in frames 2 and 3 it is mistaken for the tail. All other parts stay in place."""
    truth = np.repeat(MOUSE[None], 6, axis=0)
    truth[:, 0, 0] += np.arange(6)
    tracked, likelihood = truth.copy(), np.ones((6, 7))
    tracked[2:4, 0], likelihood[2:4, 0] = (-90, 90), 0.89
    np.testing.assert_allclose(interpolate(tracked, likelihood, file), truth)


def test_before_the_first_sure_point_and_after_the_last_they_stand_there(file):
    tracked, likelihood = walk(6), np.ones((6, 7))
    likelihood[[0, 1, 5], 4] = 0.1
    repaired = interpolate(tracked, likelihood, file)
    np.testing.assert_array_equal(repaired[:, 4], tracked[[2, 2, 2, 3, 4, 4], 4])


def test_points_near_the_picture_s_edge_are_believed(file):
    """DeepEthogram compares the coordinate with 0.9 pixels, not the likelihood."""
    tracked = walk(6)
    tracked[2, 0] = 0.5
    np.testing.assert_array_equal(interpolate(tracked, np.full((6, 7), 0.9), file), tracked)


def test_cells_that_are_empty_count_as_unsure(file):
    tracked, likelihood = walk(5), np.ones((5, 7))
    tracked[2, 3] = likelihood[2, 3] = np.nan
    np.testing.assert_allclose(interpolate(tracked, likelihood, file)[2, 3], tracked[[1, 3], 3].mean(axis=0))


def test_a_part_that_is_never_sure_is_an_error(file):
    likelihood = np.ones((5, 7))
    likelihood[:, 6] = 0.5
    with pytest.raises(ProjectError, match=r"tailtip has no frame with a likelihood of 0.9 or more"):
        interpolate(walk(5), likelihood, file)


# ----------------------------------------------------------------- geometry


def test_features_of_a_mouse_on_squared_paper():
    """The mouse lies straight along x, so that the camera and the mouse see the same."""
    (features,) = expand(MOUSE[None])
    assert len(features) == NUM_KEYPOINT_FEATURES
    positions = [*MOUSE.ravel(), *CENTROID]
    np.testing.assert_allclose(features[:16], positions)
    np.testing.assert_allclose(features[16:32], positions)
    tail_angle, *paw_angles = features[32:37]
    assert tail_angle == pytest.approx(-3 / 4 * np.pi)
    # as seen from (4, 0): two along x and one to the side; two back and two to the side
    expected = [np.arctan2(1, 2), np.arctan2(-1, 2), np.pi * 3 / 4, -np.pi * 3 / 4]
    np.testing.assert_allclose(paw_angles, expected)
    root5, root17 = np.sqrt(5), np.sqrt(17)  # from nose to forepaw, from forepaw to hindpaw
    np.testing.assert_allclose(features[37:43], [8, np.sqrt(18), root17, root5, 2, 4])
    # areas of the outline: 4 between tailbase and hindpaws, 12 up to the forepaws, 2 up to the nose
    assert features[43] == pytest.approx(4 + 12 + 2)


@given(angle=st.floats(-np.pi, np.pi), x=st.floats(-500, 500), y=st.floats(-500, 500))
def test_how_the_mouse_sees_itself_does_not_depend_on_where_it_is(angle, x, y):
    (here,), (there,) = expand(MOUSE[None]), expand(turned(MOUSE[None], angle) + np.array([x, y]))
    np.testing.assert_allclose(there[OWN_VIEW], here[OWN_VIEW], atol=1e-6)


# ----------------------------------------------------------------- what a network reads


def test_each_feature_is_on_its_own_scale(file):
    with KeypointReader(write_csv(file, walk(40))) as read:
        assert (read.num_frames, read.num_features) == (40, NUM_KEYPOINT_FEATURES)
        features = read(0, 40)
        np.testing.assert_array_equal(read(7, 9), features[7:9])
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
    constant = [17, 26, 27]  # in the mouse's own coordinates, the tailbase and the nose's y are 0
    np.testing.assert_allclose(np.delete(features, constant, axis=1).std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(features[:, constant], 0, atol=1e-5)


def test_neither_the_size_of_the_picture_nor_the_lens_matters(file, tmp_path):
    """The video need not be opened, although DeepEthogram divides by its size first."""
    near, far = walk(40), 0.001 * walk(40) - 1
    with KeypointReader(write_csv(file, near)) as one, KeypointReader(write_csv(tmp_path / "far.csv", far)) as other:
        np.testing.assert_allclose(one(0, 40), other(0, 40), atol=1e-5)


def test_a_mouse_that_does_not_move_gives_zeros(file):
    with KeypointReader(write_csv(file, np.repeat(walk(1), 5, axis=0))) as read:
        np.testing.assert_allclose(read(0, 5), 0, atol=1e-5)
