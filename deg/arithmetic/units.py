"""Cuts recordings into units of work.

All recordings are laid end to end and cut into units of about equal frames:

    recording   |------ a ------|-- b --|------------- c -------------|
    unit        |----- 0 -----|----- 1 -----|----- 2 -----|---- 3 ----|

Cuts fall on multiples of GRAIN frames of a recording, so that its batches (`deg.arithmetic.windows.batches`) are the
same however it is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from deg.types import Span, Unit

GRAIN = 256
"""Spans start at multiples of this many frames. It is the largest batch size, and a multiple of every other."""

SMALLEST_UNIT = 2 * GRAIN
"""Number of frames below which a unit costs more to start than it saves."""

Lengths = Mapping[str, int] | Iterable[tuple[str, int]]


def plan_units(num_frames: Lengths, *, devices: int, units_per_device: int, whole: bool = False) -> list[Unit]:
    """Cut recordings, {key: frames} in order, into about `devices * units_per_device` units of about equal length.

    With `whole` a recording is never cut (sequence networks run over whole recordings); units are then filled one after
    another with whole recordings. Every frame is in exactly one span. Recordings of 0 frames get no span.
    """
    lengths = list(num_frames.items() if isinstance(num_frames, Mapping) else num_frames)
    if devices < 1 or units_per_device < 1:
        raise ValueError(f"expected at least one device and unit, got {devices = }, {units_per_device = }")
    total = sum(frames for _, frames in lengths)
    share = max(-(-total // (devices * units_per_device)), SMALLEST_UNIT)
    size = -(-share // GRAIN) * GRAIN  # rounded up: if rounded down, the frames left over would need one more unit
    units: list[Unit] = []
    spans: list[Span] = []
    room = size

    def close() -> None:
        nonlocal room
        if spans:
            units.append(Unit(len(units), tuple(spans)))
            spans.clear()
        room = size

    for key, frames in lengths:
        start = 0
        while start < frames:
            left = frames - start
            if room < min(left, GRAIN):
                close()
            take = left if whole else _cut(left, room)
            spans.append(Span(key, start, start + take))
            start += take
            room -= take
    close()
    return units


def _cut(left: int, room: int) -> int:
    """Return how many of the `left` frames to take into a unit with `room` for more: all, or a multiple of GRAIN."""
    # a remainder shorter than GRAIN would be a span that decodes ten extra frames for next to nothing
    if left <= room + GRAIN:
        return left
    return max(room // GRAIN, 1) * GRAIN


def missing_units(units: Sequence[Unit], done: Iterable[int]) -> list[Unit]:
    """Return the units whose index is not in `done`."""
    finished = set(done)
    return [unit for unit in units if unit.index not in finished]


def spans_by_key(units: Iterable[Unit]) -> dict[str, list[tuple[Unit, int]]]:
    """Return the spans of each recording as (unit, position of the span in it), ordered by start frame."""
    found: dict[str, list[tuple[Unit, int]]] = {}
    for unit in units:
        for position, span in enumerate(unit.spans):
            found.setdefault(span.key, []).append((unit, position))
    for places in found.values():
        places.sort(key=lambda place: place[0].spans[place[1]].start)
    return found
