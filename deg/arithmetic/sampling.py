"""Which samples a training step sees, and in what order. Pure: a function of the seed and of the position.

Training draws from an endless stream of positions; step n takes the n-th batch of it. A stopped training can therefore
resume from the number of its step alone, and several ranks together draw what one rank would.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator, default_rng


def generator(seed: int, purpose: str, number: int) -> Generator:
    """Return the random generator for one purpose and one block, batch or sample of it, independent of all others."""
    return default_rng([seed, number, *purpose.encode()])


def stream(seed: int, start: int, stop: int, size: int, weights_N: np.ndarray | None = None) -> np.ndarray:
    """Return positions [start, stop) of the endless stream over range(size), int64 [stop - start].

    The stream is one block of `size` draws after the other. A block is a permutation of all samples or, with
    `weights_N` (each sample's share of the draws, with any sum), is drawn with replacement. A block is always drawn
    whole, so ask for an epoch rather than for a batch.
    """
    if not 0 <= start <= stop or size < 1:
        raise ValueError(f"expected 0 <= start <= stop and a sample or more, got [{start}, {stop}) of {size} samples")
    if weights_N is not None and len(weights_N) != size:
        raise ValueError(f"expected a weight for each of {size} samples, got {len(weights_N)}")
    blocks = [np.empty(0, dtype=np.int64)]
    for number in range(start // size, -(-stop // size)):
        rng = generator(seed, "order of samples", number)
        block = rng.permutation(size) if weights_N is None else rng.choice(size, size, p=weights_N / weights_N.sum())
        first = number * size
        blocks.append(block[max(start - first, 0) : stop - first])
    return np.concatenate(blocks)


def rarity_weights(labels_NK: np.ndarray, exponent: float) -> np.ndarray:
    """Return how often to draw each frame relative to others, so that rare behaviours are seen more often: float64 [N].

    The weight of a frame is the sum, over its behaviours, of (share of the behaviour) ** -exponent. The share is taken
    among all positive labels. Labels are 1, 0, or -1 (not known). A frame without a positive label gets 0 and is never
    drawn.
    """
    positive_NK = np.asarray(labels_NK) == 1
    counts_K = positive_NK.sum(axis=0)
    share_K = counts_K / max(counts_K.sum(), 1)
    rarity_K = np.where(counts_K > 0, share_K, 1.0) ** -exponent
    return positive_NK @ rarity_K


def share(count: int, rank: int, ranks: int) -> range:
    """Return one rank's part of range(count). Parts are contiguous and differ in size by one at most.

    All parts together are exactly range(count), without duplicates, so a rank may have nothing to do.
    """
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def spaced(count: int, most: int) -> np.ndarray:
    """Return at most `most` of range(count), ascending and evenly spaced: the middle of each interval; int64."""
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return (2 * np.arange(most, dtype=np.int64) + 1) * count // (2 * most)
