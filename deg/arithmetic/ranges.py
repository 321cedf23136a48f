"""Frame numbers as half-open ranges, and ranges in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MOST_RANGES = 8
"""Number of ranges that are shown; more are only counted."""


def ranges_of(frames: Iterable[int]) -> tuple[range, ...]:
    """Return ascending frame numbers as ranges.

    >>> ranges_of([3, 4, 9])
    (range(3, 5), range(9, 10))
    """
    ranges: list[range] = []
    for frame in frames:
        start = ranges.pop().start if ranges and ranges[-1].stop == frame else frame
        ranges.append(range(start, frame + 1))
    return tuple(ranges)


def show_ranges(ranges: Sequence[range]) -> str:
    """Return ranges of frames in words, with the last frame of each: `117 to 249, 300`; many are cut short."""
    shown = [f"{one.start}" if len(one) == 1 else f"{one.start} to {one[-1]}" for one in ranges[:MOST_RANGES]]
    return ", ".join(shown) + (f" and {len(ranges) - MOST_RANGES} ranges more" if len(ranges) > MOST_RANGES else "")
