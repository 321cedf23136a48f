"""Windows hold the 11 frames around each label, mean colour outside the video, and batches that no cut can change."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deg.arithmetic.windows import AFTER, BEFORE, WINDOW, batches, mean_colour, reach


@st.composite
def labels(draw):
    """(start, stop, num_frames) of labels in a video."""
    num_frames = draw(st.integers(1, 300))
    start = draw(st.integers(0, num_frames - 1))
    return start, draw(st.integers(start + 1, num_frames)), num_frames


def test_a_window_is_five_frames_before_the_label_and_five_after():
    assert (WINDOW, BEFORE, AFTER) == (11, 5, 5)


@given(labels())
def test_every_label_gets_the_frames_around_it_and_padding_only_outside_the_video(scene):
    start, stop, num_frames = scene
    needed = reach(start, stop, num_frames)
    held = [None] * needed.pad_before + list(range(needed.first, needed.last)) + [None] * needed.pad_after
    windows = [held[i : i + WINDOW] for i in range(len(held) - WINDOW + 1)]
    expected = [
        [frame if 0 <= frame < num_frames else None for frame in range(label - 5, label + 6)]
        for label in range(start, stop)
    ]
    assert windows == expected


def test_a_video_of_one_frame_is_padded_on_both_sides():
    needed = reach(0, 1, 1)
    assert (needed.first, needed.last, needed.pad_before, needed.pad_after) == (0, 1, 5, 5)


@pytest.mark.parametrize(("start", "stop", "num_frames"), [(0, 0, 5), (-1, 2, 5), (3, 6, 5), (4, 3, 5), (0, 1, 0)])
def test_labels_outside_the_video_are_refused(start, stop, num_frames):
    with pytest.raises(ValueError, match="0 <= start < stop <= num_frames"):
        reach(start, stop, num_frames)


def test_the_colour_of_padding_is_truncated_as_in_the_original():
    colour = mean_colour((0.5, 0.999, 1.0))
    assert colour.dtype == np.uint8
    assert colour.tolist() == [127, 254, 255]


@given(labels(), st.integers(1, 64))
def test_batches_cover_the_range_and_are_cut_at_multiples_of_their_size(scene, size):
    start, stop, _ = scene
    found = list(batches(start, stop, size))
    assert [frame for first, last in found for frame in range(first, last)] == list(range(start, stop))
    assert all(last - first <= size for first, last in found)
    assert all(last % size == 0 for _, last in found[:-1])


@given(st.integers(1, 500), st.sampled_from([1, 2, 4, 8, 16]), st.sets(st.integers(0, 31)))
def test_cutting_a_video_at_multiples_of_the_size_leaves_its_batches_as_they_are(num_frames, size, cuts):
    edges = sorted({0, num_frames, *(16 * cut for cut in cuts if 16 * cut < num_frames)})
    sharded = [batch for first, last in pairwise(edges) for batch in batches(first, last, size)]
    assert sharded == list(batches(0, num_frames, size))


def test_an_empty_range_has_no_batches():
    assert list(batches(7, 7, 4)) == []
