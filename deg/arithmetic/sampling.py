"""Which samples a training step sees, and in what order. Pure: a function of the seed and of the position.

Training draws from an endless stream of positions; step n takes the n-th batch of it. So nothing has to be remembered
to go on where a job was stopped, and several ranks together draw what one would.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator, default_rng


def generator(seed: int, purpose: str, number: int) -> Generator:
    """Random numbers for one purpose and one block, batch or sample of it, independent of those for any other."""
    return default_rng([seed, number, *purpose.encode()])


def stream(seed: int, start: int, stop: int, size: int, weights_N: np.ndarray | None = None) -> np.ndarray:
    """Positions [start, stop) of the endless stream over range(size), int64 [stop - start].

    The stream is one block of `size` draws after the other: a permutation of all samples, or with `weights_N` (each
    sample's share of the draws, of any sum) drawn with replacement. A block is drawn whole, however little of it is
    asked for: ask for an epoch rather than for a batch.
    """
    if not 0 <= start <= stop or size < 1:
        raise ValueError(f"expected 0 <= start <= stop and a sample at least, got [{start}, {stop}) of {size} samples")
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
    """How often each frame is drawn compared to others, so that rare behaviours are seen more often; float64 [N].

    The sum, over the frame's behaviours, of (share of the behaviour) ** -exponent, the share being of all positive
    labels. Labels are 1, 0, or -1: not known; a frame without a positive one gets 0, and is never drawn.
    """
    positive_NK = np.asarray(labels_NK) == 1
    counts_K = positive_NK.sum(axis=0)
    share_K = counts_K / max(counts_K.sum(), 1)
    rarity_K = np.where(counts_K > 0, share_K, 1.0) ** -exponent
    return positive_NK @ rarity_K


def share(count: int, rank: int, ranks: int) -> range:
    """What one rank does of range(count): contiguous, all ranks together exactly that, sizes differing by one at most.

    Without duplicates, and so not always equally many: a rank may have nothing to do.
    """
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of range(count), ascending and evenly spaced, the middle of each interval; int64."""
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return (2 * np.arange(most, dtype=np.int64) + 1) * count // (2 * most)
