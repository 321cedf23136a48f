"""The order of samples depends on seed and position alone: any cut, on any number of ranks, gives the same stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deg.arithmetic.sampling import generator, rarity_weights, share, spaced, stream

seeds = st.integers(0, 2**40)
sizes = st.integers(1, 40)


@st.composite
def cuts(draw):
    """(start, middle, stop) of a stretch of the stream."""
    return tuple(sorted(draw(st.tuples(*[st.integers(0, 200)] * 3))))


# ---- the stream


@given(seeds, sizes, st.integers(0, 5))
def test_each_block_has_every_sample_once(seed, size, block):
    drawn = stream(seed, block * size, (block + 1) * size, size)
    assert drawn.dtype == np.int64
    assert sorted(drawn) == list(range(size))


@given(seeds, sizes, cuts(), st.booleans())
def test_a_stream_cut_anywhere_is_the_whole(seed, size, cut, weighted):
    start, middle, stop = cut
    weights = np.arange(1, size + 1) if weighted else None
    parts = [stream(seed, a, b, size, weights) for a, b in ((start, middle), (middle, stop))]
    assert np.array_equal(np.concatenate(parts), stream(seed, 0, stop, size, weights)[start:])


@given(seeds, sizes, st.integers(1, 4), st.integers(1, 6))
def test_ranks_together_draw_what_one_draws(seed, size, batch, ranks):
    """Each rank has a contiguous share of each batch."""
    shares = [share(batch, rank, ranks) for rank in range(ranks)]
    n = 3
    drawn = [stream(seed, n * batch + part.start, n * batch + part.stop, size) for part in shares]
    assert np.array_equal(np.concatenate(drawn), stream(seed, n * batch, (n + 1) * batch, size))


def test_blocks_and_seeds_have_orders_of_their_own():
    orders = [stream(seed, block * 50, (block + 1) * 50, 50) for seed in (0, 1) for block in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_with_weights_samples_are_drawn_as_often_as_they_weigh():
    drawn = stream(0, 0, 20_000, 4, np.array([0.0, 1.0, 2.0, 5.0]))
    assert np.bincount(drawn, minlength=4) / 20_000 == pytest.approx([0, 1 / 8, 2 / 8, 5 / 8], abs=0.02)
    assert 0 not in drawn


@pytest.mark.parametrize(
    ("start", "stop", "size", "weights"), [(0, 5, 0, None), (-1, 5, 3, None), (5, 4, 3, None), (0, 5, 3, np.ones(4))]
)
def test_what_makes_no_stream_is_refused(start, stop, size, weights):
    with pytest.raises(ValueError, match="expected"):
        stream(0, start, stop, size, weights)


def test_generators_repeat_and_differ_by_seed_purpose_and_number():
    def first(*key):
        return generator(*key).integers(2**62)

    assert first(3, "crop", 7) == first(3, "crop", 7)
    assert len({first(3, "crop", 7), first(4, "crop", 7), first(3, "crop", 8), first(3, "crops", 7)}) == 4


# ---- oversampling


def test_rarity_is_the_sum_over_the_behaviours_of_a_frame():
    """5 of 8 positive labels are background, 2 groom, 1 rear; one frame has groom and rear, one is not labelled."""
    labels_NK = np.array([[1, 0, 0]] * 5 + [[0, 1, 0], [0, 1, 1], [-1, -1, -1]])
    assert rarity_weights(labels_NK, 1.0) == pytest.approx([8 / 5] * 5 + [8 / 2, 8 / 2 + 8, 0])
    assert rarity_weights(labels_NK, 0.5)[5] == pytest.approx(2.0)


def test_with_exponent_1_each_behaviour_is_drawn_equally_often():
    labels_NK = np.repeat(np.eye(3, dtype=np.int8), [900, 90, 10], axis=0)
    weights_N = rarity_weights(labels_NK, 1.0)
    assert weights_N @ labels_NK / weights_N.sum() == pytest.approx([1 / 3] * 3)


def test_a_behaviour_that_never_occurs_changes_nothing():
    labels_NK = np.array([[1, 0], [0, 1], [0, 1]])
    with_silent = np.insert(labels_NK, 1, 0, axis=1)
    assert np.array_equal(rarity_weights(with_silent, 0.7), rarity_weights(labels_NK, 0.7))


# ---- shares of ranks, and of frames


@given(st.integers(0, 1000), st.integers(1, 20))
def test_shares_are_a_partition(count, ranks):
    shares = [share(count, rank, ranks) for rank in range(ranks)]
    assert [index for part in shares for index in part] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 5000), st.integers(1, 300))
def test_spaced_is_ascending_within_range_and_even(count, most):
    chosen = spaced(count, most)
    assert chosen.dtype == np.int64
    assert len(chosen) == min(count, most)
    edges = np.concatenate([[-1], chosen, [count]])
    steps = np.diff(edges)
    assert (steps >= 1).all()
    if count > most:
        assert np.ptp(steps[1:-1]) <= 1 if most > 1 else True
        assert steps[[0, -1]].max() <= count / most / 2 + 1
