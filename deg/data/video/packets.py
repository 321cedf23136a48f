"""The packets of a video: how many frames they show, and where decoding may begin.

    packet        0      1      2      3    ...   250    251
    stamp         0      512    1024   1536       128000 128512     when it is decoded, in units of the stream
    position      48     9104   9431   9877       812331 830417     of its first byte in the file
    is_key        yes    -      -      -          yes    -          decoding may begin here
    is_shown      yes    yes    yes    yes        yes    yes        an edit list may hide frames

MP4, QuickTime and AVI files have such a table of their own. It is believed if the last packet is where it says and none
follows. In other files all packets are read, without decoding them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

REORDERED = 16
"""Largest number of frames that are shown before a key frame although their packets come after it."""


class Packet(NamedTuple):
    """What identifies a packet of a stream, and what it is for."""

    stamp: int
    position: int
    size: int
    is_key: bool
    is_shown: bool


@dataclass(frozen=True)
class PacketTable:
    """All packets of a stream in the order of the file. Arrays have one entry for each packet, N."""

    stamp_N: np.ndarray
    position_N: np.ndarray
    size_N: np.ndarray
    is_key_N: np.ndarray
    is_shown_N: np.ndarray
    fault: str = ""
    """What is wrong with the container itself, as far as reading it told; empty if nothing."""

    @classmethod
    def of(cls, packets: Iterable[Packet], fault: str = "") -> PacketTable:
        """Make a table. What comes before the first key packet cannot be decoded, so it shows nothing."""
        stamp_N, position_N, size_N, is_key_N, is_shown_N = np.array(list(packets), np.int64).reshape(-1, 5).T
        begun_N = np.logical_or.accumulate(is_key_N.astype(bool))
        return cls(stamp_N, position_N, size_N, is_key_N.astype(bool), is_shown_N.astype(bool) & begun_N, fault)

    def __len__(self) -> int:
        return len(self.stamp_N)

    def __getitem__(self, number: int) -> Packet:
        return Packet(
            int(self.stamp_N[number]),
            int(self.position_N[number]),
            int(self.size_N[number]),
            bool(self.is_key_N[number]),
            bool(self.is_shown_N[number]),
        )

    @property
    def num_shown(self) -> int:
        """Number of frames that the packets show."""
        return int(self.is_shown_N.sum())

    @property
    def first_key(self) -> int | None:
        """Number of the packet with which decoding begins; None if there is none."""
        keys = np.flatnonzero(self.is_key_N)
        return int(keys[0]) if len(keys) else None

    def shown_before(self, number: int) -> int:
        """Return the number of frames that the packets before this one show."""
        return int(self.is_shown_N[:number].sum())

    def key_before(self, frame: int) -> int:
        """Return the last key packet from which `frame` can surely be decoded."""
        position = int(np.searchsorted(self._first_frames(), frame, side="right")) - 1
        return int(np.flatnonzero(self.is_key_N)[max(position, 0)])

    def entries(self, distance: int) -> list[int]:
        """Return the first frame that can surely be decoded from each key packet, none nearer than `distance` to the
        one before."""
        found = [0]
        for frame in self._first_frames().tolist():
            if found[-1] + distance <= frame < self.num_shown:
                found.append(frame)
        return found[1:]

    def _first_frames(self) -> np.ndarray:
        """Return the first frame that can surely be decoded from each key packet."""
        return np.concatenate([[0], np.cumsum(self.is_shown_N)])[np.flatnonzero(self.is_key_N)] + REORDERED

    def key_before_key(self, key: int) -> int:
        """Return the key packet before this one, or the first one."""
        keys = np.flatnonzero(self.is_key_N)
        return int(keys[max(int(np.searchsorted(keys, key)) - 1, 0)])

    def is_key(self, number: int) -> bool:
        """Whether the table has this packet, as a key packet. Some decoders of packets know less than the table."""
        return number < len(self) and bool(self.is_key_N[number])

    def is_same(self, number: int, packet: Packet) -> bool:
        """Whether this packet was read in the place `number`."""
        if number >= len(self):
            return False
        known = self[number]
        return (known.stamp, known.size) == (packet.stamp, packet.size) and packet.position in (known.position, -1)

    def find(self, packet: Packet) -> int | None:
        """Return the number of a packet that was read after a seek; None unless exactly one is like it."""
        alike = np.flatnonzero((self.stamp_N == packet.stamp) & (self.size_N == packet.size))
        return int(alike[0]) if len(alike) == 1 else None
