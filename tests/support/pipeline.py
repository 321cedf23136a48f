"""A model of a worker: decoders, the blocks that wait, and the engine, in simulated time.

The real Agenda says what comes next. What takes time are parameters, measured on real machines.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from deg.data.video.agenda import Agenda, Piece
from deg.data.video.packets import REORDERED
from deg.data.video.stretch import Stretch
from deg.types import VideoInfo

BLOCK = 64

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Machine:
    """What the model is told about a machine."""

    engine_fps: float
    decoders: int = 14
    decoder_fps: float = 945.0
    """Frames per second of one decoder: H.264, 256 x 256 pixels, resized to 224 x 224."""
    keys: int = 250
    """Number of frames from one key frame to the next."""
    open_seconds: float = 0.02
    """Time for opening a video."""


def recordings(span_frames: int, count: int, size: int = 224) -> list[Stretch]:
    """Return `count` whole videos of this length, of frames of `size` x `size` pixels."""
    videos = (VideoInfo(Path(f"{number}.mp4"), span_frames, size, size, 25.0, 1, 1) for number in range(count))
    return [Stretch(video, 0, span_frames) for video in videos]


class Worker:
    """One worker that does units, each a list of stretches."""

    def __init__(self, machine: Machine, units: Sequence[Sequence[Stretch]]):
        self._machine, self._units = machine, units
        self._clock = simpy.Environment()
        self._changed = self._clock.event()
        self._agenda = Agenda(machine.decoders, BLOCK)
        self._held: list[Piece] = []
        self.most_bytes = 0
        """Most bytes of decoded frames that waited at any time."""

    def frames_per_second(self) -> float:
        """Do all units; return the speed."""
        for _ in range(self._machine.decoders):
            self._clock.process(self._decoder())
        self._clock.run(self._clock.process(self._engine()))
        return sum(len(stretch) for unit in self._units for stretch in unit) / self._clock.now

    def _notify(self) -> None:
        self._changed.succeed()
        self._changed = self._clock.event()

    def _decoder(self) -> Process:
        fps, own, former = self._machine.decoder_fps, list[Piece](), None
        while True:
            while (piece := self._agenda.begin()) is None:
                yield self._changed
            self._notify()
            own = [one for one in own if one.waiting] + [piece]
            self._held = [one for one in self._held if one.waiting] + [piece]
            part = piece.part
            if former is None or former.video != part.video:
                yield self._clock.timeout(self._machine.open_seconds)
            if part.start and (former is None or (former.video, former.stop) != (part.video, part.start)):
                yield self._clock.timeout(self._vain(part.start) / fps)
            former = part
            piece.wanted.entries = self._entries(part)
            for first in range(part.start, part.stop, BLOCK):
                frames = min(BLOCK, part.stop - first)
                yield self._clock.timeout(frames / fps)
                block = np.broadcast_to(np.uint8(0), (frames, part.frame_bytes))
                while not self._agenda.has_room(_bytes(own), block.nbytes):
                    yield self._changed
                piece.waiting.append(block)
                self.most_bytes = max(self.most_bytes, _bytes(self._held))
                self._notify()
            piece.is_over = True
            self._notify()

    def _entries(self, part: Stretch) -> list[int]:
        return list(range(self._machine.keys + REORDERED, part.video.num_frames, self._machine.keys))

    def _vain(self, start: int) -> int:
        """Return the number of frames that are decoded only to reach `start`."""
        keys = self._machine.keys
        return start - max((start - REORDERED) // keys, 0) * keys

    def _engine(self) -> Process:
        self._agenda.expect(self._units[0])
        for unit, following in zip(self._units, [*self._units[1:], []], strict=True):
            self._agenda.expect(following)
            self._notify()
            for stretch in unit:
                yield from self._take(stretch)

    def _take(self, stretch: Stretch) -> Process:
        wanted, at = self._agenda.claim(stretch), stretch.start
        while at < stretch.stop:
            while not wanted.pieces:
                yield self._changed
            piece = wanted.pieces[0]
            while piece.waiting or not piece.is_over:
                if not piece.waiting:
                    yield self._changed
                    continue
                frames = len(piece.waiting.popleft())
                self._notify()
                yield self._clock.timeout(frames / self._machine.engine_fps)
            at = piece.part.stop
            wanted.pieces.popleft()
        self._agenda.drop(wanted)


def _bytes(pieces: Sequence[Piece]) -> int:
    return sum(block.nbytes for piece in pieces for block in piece.waiting)
