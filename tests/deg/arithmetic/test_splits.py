"""Drawing a split ends and is repeatable with its seed; parts share nothing, and validation can be scored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deg.arithmetic.splits import PARTS, make_split, part_fractions, part_sizes, update_split, usable_parts

KEYS = [f"mouse_{i:02d}" for i in range(10)]

keys = st.lists(st.text("abcdef", min_size=1, max_size=4), unique=True, max_size=25)
shares = st.sampled_from([(0.8, 0.2, 0.0), (0.6, 0.3, 0.1), (1 / 3, 1 / 3, 1 / 3), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
classes = st.frozensets(st.sampled_from(["background", "groom", "rear", "jump"]))


@st.composite
def labelled_recordings(draw):
    """Keys of recordings; labelled ones come with the classes that have positive frames in them."""
    every = draw(keys)
    return every, {key: draw(classes) for key in every if draw(st.booleans())}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def flat(parts) -> list[str]:
    return [key for name in PARTS for key in parts[name]]


# ---- sizes


SIZES = [
    ((0.8, 0.2, 0.0), 10, (8, 2, 0)),
    ((0.6, 0.3, 0.1), 10, (6, 3, 1)),
    ((0.7, 0.2, 0.1), 10, (7, 2, 1)),
    ((0.8, 0.2, 0.0), 7, (5, 2, 0)),
    ((0.333, 0.333, 0.334), 3, (0, 1, 2)),
    ((1.0, 0.0, 0.0), 10, (10, 0, 0)),
    ((0, 1, 0), 10, (0, 10, 0)),
    ((6, 2, 1), 10, (6, 2, 1)),
    ((-1, 2, 1), 10, (7, 2, 1)),
    ((5.0, -1.0, 0.0), 10, (5, 5, 0)),
    ((1, -1, 0), 10, (1, 9, 0)),
    ((0.8, 0.2, 0.0), 0, (0, 0, 0)),
]
"""Requested shares or counts, the number of recordings, and the number that each part gets."""


def test_sizes():
    found = [(wanted, n, part_sizes(wanted, n)) for wanted, n, _ in SIZES]
    wrong = [f"{row}, not {right[-1]}" for row, right in zip(found, SIZES, strict=True) if row != right]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "wanted", [(0.8, 0.3, 0.0), (0.8, 0.2), (-1, -1, 0), (-2, 1, 1), (0.5, 2, 1), (float("nan"), 1, 0)]
)
def test_sizes_that_mean_nothing(wanted):
    with pytest.raises(ValueError, match="three shares with sum 1, or three counts"):
        part_sizes(wanted, 10)


def test_more_than_there_are():
    with pytest.raises(ValueError, match="asks for 12 recordings, but only 10"):
        part_sizes((10, 2, 0), 10)


def test_counts_become_shares_for_recordings_added_later():
    assert part_fractions((6, -1, 0), 8) == (0.75, 0.25, 0.0)
    assert part_fractions((0.6, 0.3, 0.1), 8) == (0.6, 0.3, 0.1)


# ---- a new split


@given(labelled_recordings(), shares, st.integers(0, 5))
def test_every_recording_is_in_one_part_only(recordings, wanted, seed):
    every, positives = recordings
    parts, _ = make_split(every, wanted, rng(seed), positives)
    assert sorted(flat(parts)) == sorted(every)


@given(labelled_recordings(), shares, st.integers(0, 5))
def test_the_seed_and_the_keys_decide_and_nothing_else(recordings, wanted, seed):
    every, positives = recordings
    assert make_split(every, wanted, rng(seed), positives) == make_split(every[::-1], wanted, rng(seed), positives)


@given(labelled_recordings(), shares, st.integers(0, 5))
def test_training_and_validation_are_never_empty(recordings, wanted, seed):
    every, positives = recordings
    parts, _ = make_split(every, wanted, rng(seed), positives)
    if len(every) >= 2:
        assert parts["train"] and parts["val"]
    if len(positives) >= 2:
        assert set(parts["train"]) & set(positives) and set(parts["val"]) & set(positives)


@given(keys, shares, st.integers(0, 5))
def test_labels_need_not_be_known(every, wanted, seed):
    parts, notes = make_split(every, wanted, rng(seed))
    assert sorted(flat(parts)) == sorted(every)
    assert not [note for note in notes if "positive" in note]


def test_seeds_differ():
    assert make_split(KEYS, (0.8, 0.2, 0.0), rng(1))[0] != make_split(KEYS, (0.8, 0.2, 0.0), rng(2))[0]


def test_three_recordings_are_three_different_ones():
    for seed in range(20):
        parts, _ = make_split("abc", (1 / 3, 1 / 3, 1 / 3), rng(seed))
        assert sorted(flat(parts)) == ["a", "b", "c"]


def test_counts_take_the_first_recordings():
    parts, _ = make_split(KEYS, (4, 2, 0), rng())
    assert sorted(flat(parts)) == KEYS[:6]


def test_every_part_gets_every_class_if_it_can():
    positives = {key: {"background"} for key in KEYS} | {
        KEYS[0]: {"background", "jump"},
        KEYS[1]: {"background", "jump"},
        KEYS[2]: {"jump"},
    }
    for seed in range(20):
        parts, notes = make_split(KEYS, (0.6, 0.2, 0.2), rng(seed), positives)
        assert notes == []
        assert all(any("jump" in positives[key] for key in parts[name]) for name in PARTS)


def test_a_class_of_one_recording_goes_into_training_and_is_told():
    positives = {key: {"background", "jump"} if key == KEYS[3] else {"background"} for key in KEYS}
    for seed in range(20):
        parts, notes = make_split(KEYS, (0.6, 0.4, 0.0), rng(seed), positives)
        assert KEYS[3] in parts["train"]
        assert notes == ["val has no positive frame of `jump` (in 1): too few recordings have one. Label more that do"]


def test_two_labelled_of_many():
    positives = {"r042": {"groom"}, "r777": {"groom"}}
    parts, _ = make_split([f"r{i:03d}" for i in range(1000)], (0.999, 0.001, 0.0), rng(), positives)
    assert len(parts["val"]) == 1
    assert parts["val"][0] in positives


def test_a_split_without_validation_is_given_one_and_told():
    parts, notes = make_split(KEYS, (1.0, 0.0, 0.0), rng())
    assert len(parts["val"]) == 1
    assert "9 for training, 1 for validation" in notes[0]


# ---- an existing split


@given(labelled_recordings(), keys, st.integers(0, 5))
def test_recordings_stay_where_they_are_and_new_ones_join(recordings, old, seed):
    every, positives = recordings
    existing = {"train": old[::3], "val": old[1::3], "test": old[2::3]}
    parts, notes = update_split(existing, every, (0.6, 0.3, 0.1), rng(seed), positives)
    assert sorted(flat(parts)) == sorted({*old, *every})
    moved = [key for name in PARTS for key in existing[name] if key not in parts[name]]
    assert len(moved) == sum("moved" in note for note in notes)
    if len(set(every) & set(positives)) >= 2:
        assert set(parts["val"]) & set(positives) & set(every)
        assert set(parts["train"]) & set(positives) & set(every)


def test_new_recordings_join_by_the_shares():
    parts, _ = update_split({}, [str(i) for i in range(1000)], (0.5, 0.5, 0.0), rng())
    assert 420 < len(parts["train"]) < 580
    assert parts["test"] == []


def test_recordings_that_are_gone_keep_their_place():
    parts, notes = update_split({"train": ["a", "gone"], "val": ["b"], "test": []}, ["a", "b"], (0.8, 0.2, 0), rng())
    assert parts == {"train": ["a", "gone"], "val": ["b"], "test": []}
    assert notes == []
    assert usable_parts(parts, {"a", "b"}) == {"train": ["a"], "val": ["b"], "test": []}


def test_a_recording_in_two_parts_stays_in_training_only():
    parts, notes = update_split({"train": ["a"], "val": ["b"], "test": ["a"]}, ["a", "b"], (0.8, 0.2, 0), rng())
    assert parts == {"train": ["a"], "val": ["b"], "test": []}
    assert "`a` was in train and in test" in notes[0]


def test_validation_without_labels_gets_a_labelled_recording_and_that_is_told():
    """The flow generator's split may have been made before anything was labelled."""
    existing = {"train": ["a", "b", "c"], "val": ["d"], "test": []}
    parts, notes = update_split(existing, "abcd", (0.8, 0.2, 0), rng(), {"a": {"groom"}, "b": {"groom"}})
    (moved,) = set(parts["val"]) - {"d"}
    assert moved in ("a", "b")
    assert f"`{moved}` moved from train to val" in notes[0]


def test_new_recordings_are_moved_rather_than_old_ones():
    existing = {"train": ["a", "b"], "val": ["gone"], "test": []}
    parts, notes = update_split(existing, ["a", "b", "new"], (1.0, 0.0, 0.0), rng())
    assert parts == {"train": ["a", "b"], "val": ["gone", "new"], "test": []}
    assert notes == []
