"""What decoders do next: stretches that will be wanted, cut into pieces, in the order in which they will be taken.

    stretches   a              b      c             those that follow one another in the plan, across units
    pieces      0   1   2   3  4   5  6   7 ...     a decoder that is free begins the next one
    taken       ^                                   block after block, by one consumer

This says what comes next and how long a piece is. Processes and threads are the business of `deg.data.video.pool`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from deg.data.video.stretch import Stretch

AHEAD_BYTES, ALL_AHEAD_BYTES = 192 << 20, 4 << 30
"""Most bytes of decoded frames that wait in the hands of one decoder, 1300 frames of 224 x 224; and of all together."""
SHORTEST, LONGEST = 256, 1024
"""Number of frames in the first pieces, which give work to all decoders at once, and the most in later ones.

Before its piece a decoder decodes frames in vain, from the key frame before: up to 250 in most videos, unless the piece
begins where little comes before.
"""


@dataclass(eq=False)
class Wanted:
    """A stretch that will be wanted, or that is being taken."""

    stretch: Stretch
    uncut: int
    """First frame that belongs to no piece yet."""
    pieces: deque[Piece] = field(default_factory=deque)
    """Pieces that were begun, without those that were taken."""
    entries: Sequence[int] = ()
    """Frames with which a decoder can begin at little cost, ascending, as far as they are known."""
    is_claimed: bool = False
    """Whether its consumer has come."""
    is_dropped: bool = False
    """Whether nobody wants it any more."""

    @property
    def is_cut(self) -> bool:
        return self.uncut == self.stretch.stop

    def drop(self) -> None:
        self.is_dropped = True
        for piece in self.pieces:
            piece.waiting.clear()
        self.pieces.clear()


@dataclass(eq=False)
class Piece:
    """A part of a stretch that one decoder decodes."""

    wanted: Wanted
    part: Stretch
    waiting: deque[np.ndarray] = field(default_factory=deque)
    """Blocks that were decoded and not yet taken."""
    damaged: set[int] = field(default_factory=set)
    is_over: bool = False
    """Whether its decoder is done with it."""
    error: Exception | None = None
    """Reason why it ended early."""


class Agenda:
    """The stretches that will be wanted, the next one first."""

    def __init__(self, decoders: int, block_frames: int, ahead_bytes: int = AHEAD_BYTES):
        self._decoders, self._block_frames = decoders, block_frames
        self._ahead_bytes = min(ahead_bytes, ALL_AHEAD_BYTES // decoders)
        self._line: deque[Wanted] = deque()
        self._uncut: deque[Wanted] = deque()
        """Those that have frames which belong to no piece yet."""
        self._begun = 0
        """Number of pieces begun since there was nothing to do."""

    def expect(self, stretches: Iterable[Stretch]) -> None:
        """Expect these stretches, in this order, after those that are expected already."""
        if not self._line:
            self._begun = 0
        for stretch in stretches:
            wanted = Wanted(stretch, stretch.start)
            self._line.append(wanted)
            if not wanted.is_cut:
                self._uncut.append(wanted)

    def claim(self, stretch: Stretch) -> Wanted:
        """Return the next stretch, which has to be this one. What was expected before it is dropped."""
        while self._line and (self._line[0].is_claimed or self._line[0].stretch != stretch):
            self.drop(self._line[0])
        if not self._line:
            self.expect([stretch])
        self._line[0].is_claimed = True
        return self._line[0]

    def drop(self, wanted: Wanted) -> None:
        """Forget a stretch, which is the next one, or was forgotten already."""
        for line in (self._line, self._uncut):
            if line and line[0] is wanted:
                line.popleft()
        wanted.drop()

    def clear(self) -> None:
        """Forget all stretches."""
        while self._line:
            self.drop(self._line[0])

    def begin(self) -> Piece | None:
        """Return the next piece to decode, which counts as begun; None if there is nothing to do."""
        if not self._uncut:
            return None
        wanted = self._uncut[0]
        start = wanted.uncut
        wanted.uncut = self._cut(wanted)
        if wanted.is_cut:
            self._uncut.popleft()
        self._begun += 1
        wanted.pieces.append(Piece(wanted, wanted.stretch.part(start, wanted.uncut)))
        return wanted.pieces[-1]

    def has_room(self, held_bytes: int, block_bytes: int) -> bool:
        """Whether a decoder whose blocks take `held_bytes` may add another one."""
        return not held_bytes or held_bytes + block_bytes <= self._ahead_bytes

    def _cut(self, wanted: Wanted) -> int:
        """Return where the next piece ends.

        Pieces become longer with each round of the decoders, up to what one decoder may hold. A piece ends earlier, but
        not before its middle, where the next one can begin at little cost. A last rest of less than a block is added.
        """
        rounds = min(self._begun // self._decoders, 8)
        block = wanted.stretch.block_frames(self._block_frames)
        longest = min(LONGEST, SHORTEST << rounds, self._ahead_bytes // wanted.stretch.frame_bytes)
        length = max(longest // block, 1) * block
        stop = wanted.uncut + length
        if stop + block > wanted.stretch.stop:
            return wanted.stretch.stop
        entry = bisect_right(wanted.entries, stop) - 1
        return wanted.entries[entry] if entry >= 0 and wanted.entries[entry] > stop - length / 2 else stop
