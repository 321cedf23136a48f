"""Frames are cropped, resized and padded as DeepEthogram does, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError

SIDE = st.integers(1, 60)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_resizing_equals_the_original(golden):
    arrays, _ = golden("frames")
    expected = {name: array for name, array in arrays.items() if name.startswith("resize_")}
    assert expected
    for name, array in expected.items():
        resized = FrameTransform(resize=array.shape[1:])(arrays["image"])
        np.testing.assert_array_equal(resized.transpose(2, 0, 1), array, err_msg=name)


def test_no_settings_change_nothing():
    frame = noise(7, 9)
    assert np.array_equal(FrameTransform()(frame), frame)


@pytest.mark.parametrize(("height", "crop", "top"), [(10, 4, 3), (11, 4, 4), (9, 4, 2), (13, 4, 4), (5, 5, 0)])
def test_crop_is_from_the_centre_with_halves_rounded_to_even(height, crop, top):
    frame = noise(height, 20)
    assert np.array_equal(FrameTransform(crop_size=(crop, 20))(frame), frame[top : top + crop])


def test_one_number_crops_a_square():
    assert FrameTransform(crop_size=6)(noise(10, 20)).shape == (6, 6, 3)


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (240, 320)), ((641, 480), (320, 240)), ((50, 50), (240, 240))]
)
def test_one_number_is_the_shorter_side(size, expected):
    assert FrameTransform(resize=240).output_size(*size) == expected


def test_padding_is_left_right_top_bottom_and_black():
    frame = np.full((4, 5, 3), 9, np.uint8)
    padded = FrameTransform(pad=[1, 2, 3, 4])(frame)
    assert padded.shape == (4 + 3 + 4, 5 + 1 + 2, 3)
    assert np.array_equal(padded[3:7, 1:6], frame)
    assert padded.sum() == frame.sum()


def test_crop_comes_before_resize_and_resize_before_padding():
    frame = noise(40, 40)
    by_hand = np.pad(FrameTransform(resize=(10, 10))(frame[10:30, 10:30]), ((1, 1), (1, 1), (0, 0)))
    assert np.array_equal(FrameTransform(crop_size=20, resize=[10, 10], pad=1)(frame), by_hand)


@given(
    height=SIDE,
    width=SIDE,
    crop=st.none() | SIDE,
    resize=st.none() | SIDE | st.tuples(SIDE, SIDE),
    pad=st.integers(0, 3),
)
def test_output_size_is_the_size_of_the_output(height, width, crop, resize, pad):
    transform = FrameTransform(crop and min(crop, height, width), resize, pad)
    assert transform(noise(height, width)).shape == (*transform.output_size(height, width), 3)


def test_a_transform_survives_json():
    transform = FrameTransform(crop_size=[200, 300], resize=128, pad=(1, 2, 3, 4))
    assert FrameTransform(**transform.as_dict()) == transform


def test_crop_larger_than_the_frame_is_refused():
    with pytest.raises(ConfigError, match=r"100 x 100 \(height x width\) but a frame is only 48 x 64"):
        FrameTransform(crop_size=100).output_size(48, 64)


@pytest.mark.parametrize(
    "setting", [{"resize": 0}, {"resize": [1, 2, 3]}, {"pad": [1, 2]}, {"pad": -1}, {"crop_size": "9"}]
)
def test_nonsense_is_refused(setting):
    with pytest.raises(ConfigError, match=f"augs.{next(iter(setting))}"):
        FrameTransform(**setting)
