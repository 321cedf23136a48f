"""Several decoders for one consumer: what it will want is decoded ahead, by all of them, across the ends of videos.

    with DecoderPool(14) as pool:
        pool.expect(stretches)
        for stretch in stretches:
            for block_THWC in pool.blocks(stretch):
                ...                             # while this block is used, the next ones are decoded

Each decoder has a thread, which takes the next piece from the agenda, receives its blocks from the child process and
holds them until they are taken. A thread holds a set number of bytes at most, then it waits, and so does its child.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from types import TracebackType

import numpy as np

from deg.data.video.agenda import AHEAD_BYTES, Agenda, Piece, Wanted
from deg.data.video.decoder import Decoder
from deg.data.video.stretch import Stretch
from deg.errors import ConfigError, VideoError

END_SECONDS = 15.0
"""Seconds that all threads have to end when their decoders were killed. Only where a file system hangs, some do not."""


class DecoderPool:
    """`count` decoders. Together they give the same frames as one, for any count."""

    def __init__(self, count: int, block_frames: int = 64, *, timeout: float = 600.0, ahead_bytes: int = AHEAD_BYTES):
        """Prepare decoders; their processes start when there is work.

        `block_frames`: number of frames in a block, fewer if they are large. `timeout`: seconds without a sign of life
        after which a decoder is killed. `ahead_bytes`: most bytes that wait in the hands of each.
        """
        if count < 1 or block_frames < 1:
            raise ValueError(f"expected a count and block_frames of at least 1, got {count = }, {block_frames = }")
        self._block_frames = block_frames
        self._agenda = Agenda(count, block_frames, ahead_bytes)
        self._changed = threading.Condition()
        """Guards the agenda, its pieces and all below. Notified when any of them changed."""
        self._is_closed = False
        self._defect: Exception | None = None
        """What ended a thread."""
        self._decoders = [Decoder(timeout=timeout) for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._work, args=(decoder,), name="decoder", daemon=True)
            for decoder in self._decoders
        ]
        for thread in self._threads:
            thread.start()

    def expect(self, stretches: Iterable[Stretch]) -> None:
        """Decode these stretches ahead, in this order, after those that are expected already.

        Any thread may call this. `blocks` has to ask for the stretches in their order; what it skips is given up.
        """
        with self._changed:
            self._agenda.expect(stretches)
            self._changed.notify_all()

    def blocks(self, stretch: Stretch, damaged: set[int] | None = None) -> Iterator[np.ndarray]:
        """Yield the frames of a stretch as uint8 (T, H, W, 3) RGB arrays, in order.

        What was expected before this stretch is given up. The numbers of damaged frames, if they are kept, are put into
        `damaged`. Raises VideoError where the video is at fault, or its decoder, and ConfigError if the transform does
        not fit, after the frames before.
        """
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the pool is closed")
            wanted = self._agenda.claim(stretch)
            self._changed.notify_all()
        at = stretch.start
        try:
            while at < stretch.stop:
                piece = self._first_piece(wanted)
                while (block_THWC := self._next_block(piece)) is not None:
                    yield block_THWC
                if damaged is not None:
                    damaged.update(piece.damaged)
                at = piece.part.stop
                with self._changed:
                    wanted.pieces.popleft()
        finally:
            with self._changed:
                self._agenda.drop(wanted)
                self._changed.notify_all()

    def close(self) -> None:
        """End all processes and threads."""
        with self._changed:
            self._is_closed = True
            self._agenda.clear()
            self._changed.notify_all()
        for decoder in self._decoders:
            decoder.kill()
        deadline = time.monotonic() + END_SECONDS
        for decoder, thread in zip(self._decoders, self._threads, strict=True):
            while thread.is_alive() and time.monotonic() < deadline:
                decoder.kill()
                thread.join(0.1)
            if not thread.is_alive():
                decoder.close()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------- the consumer's side

    def _first_piece(self, wanted: Wanted) -> Piece:
        """Return the next piece of a stretch, as soon as a decoder has begun it."""
        with self._changed:
            self._wait_for(lambda: wanted.pieces, wanted)
            return wanted.pieces[0]

    def _next_block(self, piece: Piece) -> np.ndarray | None:
        """Wait for the next block of a piece, and take it. Return None after the last one, or raise what went wrong."""
        with self._changed:
            self._wait_for(lambda: piece.waiting or piece.is_over, piece.wanted)
            if piece.waiting:
                block_THWC = piece.waiting.popleft()
                self._changed.notify_all()
                return block_THWC
        if piece.error is not None:
            raise piece.error
        return None

    def _wait_for(self, condition: Callable[[], object], wanted: Wanted) -> None:
        """Wait for a change that the threads make. Raises RuntimeError if the stretch is not wanted any more."""
        self._changed.wait_for(lambda: condition() or wanted.is_dropped or self._defect)
        if self._defect is not None:
            raise self._defect
        if wanted.is_dropped:
            raise RuntimeError("the pool was closed, or asked for something else, while this stretch was being taken")

    # ------------------------------------------------------------------------------------ a decoder's side, in a thread

    def _work(self, decoder: Decoder) -> None:
        """Decode piece after piece. Even a defect must reach the consumer, who would wait for ever."""
        pieces: list[Piece] = []
        try:
            while (piece := self._begin()) is not None:
                pieces = [former for former in pieces if former.waiting] + [piece]
                self._decode(decoder, pieces)
        except Exception as defect:  # noqa: BLE001
            with self._changed:
                self._defect = defect
                self._changed.notify_all()

    def _begin(self) -> Piece | None:
        """Wait for the next piece; return None when the pool is closed."""
        with self._changed:
            while not self._is_closed:
                if (piece := self._agenda.begin()) is not None:
                    self._changed.notify_all()
                    return piece
                self._changed.wait()
        return None

    def _decode(self, decoder: Decoder, pieces: Sequence[Piece]) -> None:
        """Decode the last one of these pieces. Blocks of the others may still wait."""
        piece = pieces[-1]
        error: VideoError | ConfigError | None = None
        try:
            self._learn_entries(decoder, piece)
            block_frames = piece.part.block_frames(self._block_frames)
            with closing(decoder.blocks(piece.part, block_frames, piece.damaged)) as blocks:
                for block_THWC in blocks:
                    if not self._hold(block_THWC, pieces):
                        break
        except (VideoError, ConfigError) as found:
            error = found
        with self._changed:
            piece.error, piece.is_over = error, True
            self._changed.notify_all()

    def _learn_entries(self, decoder: Decoder, piece: Piece) -> None:
        """Learn from the first decoder of a long stretch where the later pieces begin best."""
        wanted = piece.wanted
        if piece.part.start == wanted.stretch.start and not wanted.is_cut:
            entries = decoder.entries(wanted.stretch)
            with self._changed:
                wanted.entries = entries

    def _hold(self, block_THWC: np.ndarray, pieces: Sequence[Piece]) -> bool:
        """Hold a block of the last piece until it is taken, when there is room. Return False if nobody wants it."""
        piece = pieces[-1]

        def has_room() -> bool:
            held = sum(block_THWC.nbytes for piece in pieces for block_THWC in piece.waiting)
            return self._agenda.has_room(held, block_THWC.nbytes)

        with self._changed:
            self._changed.wait_for(lambda: piece.wanted.is_dropped or has_room())
            if not piece.wanted.is_dropped:
                piece.waiting.append(block_THWC)
                self._changed.notify_all()
            return not piece.wanted.is_dropped
