"""Which frame of a video a decoded picture is, and whether it can be trusted.

A decoder takes packets in one order and gives pictures in another; a damaged packet gives a wrong picture or none:

    packet (in the file)   0    1    2    3    4        "key" packets can be decoded without those before them
    kind                   key  P    B    B    P
    time                   0    3    1    2    4        when it is shown
    pictures come as       0    2    3    1    4
    frame number           0    1    2    3    4

Each picture carries the number of its packet, so its frame number follows from the times of the packets before it: no
picture is taken for its neighbour because one was left out. What is damaged spoils the frames that may be predicted
from it: those of later packets, up to the next key packet.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Frame:
    """A frame whose number is known."""

    index: int
    picture: Any
    """The decoder's picture; None if it gave none."""
    is_whole: bool
    """Whether neither it nor a frame that it may be predicted from is damaged."""
    is_settled: bool = True
    """Whether a run that began earlier would say the same. After a seek, a decoder may miss what came before."""


class Place(NamedTuple):
    """Where a packet's frame is shown among others."""

    time: int
    packet: int


class DisorderError(Exception):
    """Pictures do not come in the order of their times: the times in the file are wrong."""


class Placer:
    """Numbers the frames of one run of a decoder, which begins with a key packet.

    `first` is the number of frames shown before that packet's group. At the beginning of a video, pictures that need an
    earlier group are not shown by any decoder, and `hidden` counts them; elsewhere they have numbers, but this run
    cannot decode them.
    """

    def __init__(self, first: int, *, at_beginning: bool):
        self._next, self._at_beginning = first, at_beginning
        self._waiting: list[Place] = []
        """Places of packets whose pictures are still to come, a heap."""
        self._unresolved: list[int] = []
        """Packets of which it is not known yet whether their pictures are whole; a heap with some that are known."""
        self._resolved: set[int] = set()
        self._held: deque[tuple[int, Place, Any]] = deque()
        self._keys: list[Place] = []
        """The last key packets, as far back as a frame that is still to come may be predicted from."""
        self._faults: list[tuple[int, int | None]] = []
        """Damaged packets since then, each with the key packet that it is leading for (read after, shown before)."""
        self._last: Place | None = None
        self.is_damaged = False
        """Whether anything was told to be damaged. If nothing was, a picture that is missing may have another time."""
        self._begins: int | None = None
        self.hidden = 0

    def sent(self, packet: int, time: int, *, is_key: bool, is_shown: bool = True) -> None:
        """Note that the decoder gets a packet."""
        if is_key:
            self._keys.append(Place(time, packet))
        if self._begins is None:
            self._begins = packet
        if is_shown:
            heapq.heappush(self._waiting, Place(time, packet))
            heapq.heappush(self._unresolved, packet)

    def not_a_key(self, packet: int) -> None:
        """Note that a packet was called a key packet wrongly."""
        self._keys = [key for key in self._keys if key.packet != packet]

    def failed(self, packet: int, time: int) -> None:
        """Note that something in a packet is damaged, whatever pictures come of it."""
        self.is_damaged = True
        self._spoil(packet, time)

    def _spoil(self, packet: int, time: int) -> None:
        self._faults.append((packet, self._leading_of(Place(time, packet))))

    def decoded(self, packet: int, time: int, picture: Any, *, is_whole: bool) -> None:
        """Note a picture of the decoder. Raises DisorderError if it should have come earlier, or not at all."""
        place = Place(time, packet)
        if self._last is not None and place <= self._last:
            if self.is_damaged:
                return  # it was given up already, and is worth nothing
            raise DisorderError
        while self._waiting and self._waiting[0] < place:
            self._lost(heapq.heappop(self._waiting))
        if not self._waiting or self._waiting[0] != place:
            raise DisorderError
        heapq.heappop(self._waiting)
        self._last = place
        if not is_whole:
            self.failed(packet, time)
        self._resolve(place, picture)

    def finished(self) -> None:
        """Note that the decoder has given all pictures."""
        while self._waiting:
            self._lost(heapq.heappop(self._waiting))

    def take(self) -> Iterator[Frame]:
        """Yield, in order, the frames of which everything is known by now."""
        while self._held:
            index, place, picture = self._held[0]
            if self._first_unresolved() < place.packet:
                return  # this frame may be predicted from that one
            self._held.popleft()
            is_settled = self._at_beginning or self._group(place) not in (None, self._begins)
            yield Frame(index, picture, picture is not None and not self._is_spoilt(place), is_settled)

    def _lost(self, place: Place) -> None:
        """Note that the picture of a packet will not come."""
        needs_earlier = self._group(place) is None
        if needs_earlier and self._at_beginning and self._last is None:
            self.hidden += 1
            self._resolved.add(place.packet)
            return
        if not needs_earlier:
            self._spoil(place.packet, place.time)
        self._resolve(place, None)

    def _resolve(self, place: Place, picture: Any) -> None:
        self._resolved.add(place.packet)
        self._held.append((self._next, place, picture))
        self._next += 1

    def _first_unresolved(self) -> float:
        while self._unresolved and self._unresolved[0] in self._resolved:
            self._resolved.discard(heapq.heappop(self._unresolved))
        return self._unresolved[0] if self._unresolved else math.inf

    def _leading_of(self, place: Place) -> int | None:
        key = self._key(place.packet)
        return key.packet if key is not None and place.time < key.time else None

    def _is_spoilt(self, place: Place) -> bool:
        group, leading_of = self._group(place), self._leading_of(place)
        if group is None:
            return not self._at_beginning
        self._forget(group)
        # frames shown after a key frame are never predicted from those shown before it
        return any(
            group <= fault <= place.packet and fault_leading_of in (None, leading_of)
            for fault, fault_leading_of in self._faults
        )

    def _group(self, place: Place) -> int | None:
        """Return the key packet from which on a frame may be predicted; None if that is before this run."""
        leading_of = self._leading_of(place)
        key = self._key(place.packet if leading_of is None else leading_of - 1)
        return None if key is None else key.packet

    def _key(self, packet: int) -> Place | None:
        """Return the last key packet up to this one."""
        return next((key for key in reversed(self._keys) if key.packet <= packet), None)

    def _forget(self, group: int) -> None:
        """Drop what cannot matter any more to this and later frames: what is more than one group back."""
        while len(self._keys) > 2 and self._keys[1].packet < group:
            del self._keys[0]
        if self._faults and self._faults[0][0] < self._keys[0].packet:
            self._faults = [fault for fault in self._faults if fault[0] >= self._keys[0].packet]


class Counter(Placer):
    """Numbers frames by counting them, from the beginning of a video whose packets do not tell when they are shown.

    A picture that is left out is noticed only at the end, by the number of frames.
    """

    def __init__(self) -> None:
        super().__init__(0, at_beginning=True)

    def sent(self, packet: int, time: int, *, is_key: bool, is_shown: bool = True) -> None:
        if is_key:
            self._keys.append(Place(packet, packet))

    def decoded(self, packet: int, time: int, picture: Any, *, is_whole: bool) -> None:
        if not is_whole:
            self.failed(packet, packet)
        self._resolve(Place(packet, packet), picture)

    def failed(self, packet: int, time: int) -> None:
        super().failed(packet, packet)

    def finished(self) -> None:
        pass
