"""One run of a decoder through a video file: from a key packet on, frames in order, each known by its packet."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import av

from deg.data.video.packets import PacketTable
from deg.data.video.placing import Counter, DisorderError, Frame, Placer
from deg.data.video.source import Source, identity, is_shown

HEARTBEAT = 256
"""Number of packets decoded between two calls of `on_progress`."""

MOST_ASTRAY = 1024
"""Number of packets after a seek among which there must be one that the table knows."""


class UnprovedError(Exception):
    """After a seek, the packets that come are not those of the table."""


class Run:
    """Frames from a key packet on. `hidden` as in `Placer`; `counts` numbers frames by counting, from the beginning.

    Some programs call every packet a key packet. `marks_keys` tells whether this decoder marks pictures that need no
    other; then a picture without the mark reveals a false key packet. It is known after the first picture of a run from
    the beginning.
    """

    def __init__(
        self,
        name: str,
        table: PacketTable,
        key: int,
        *,
        hidden: int = 0,
        counts: bool = False,
        marks_keys: bool = False,
        on_progress: Callable[[int], None] = lambda frame: None,
    ):
        self._source, self._table, self._on_progress = Source(name), table, on_progress
        self.at_beginning = key == table.first_key
        self.key = key
        self._hidden, self.marks_keys = hidden, marks_keys
        self._placer = Counter() if counts else Placer(0, at_beginning=True)
        self._landed: int | None = None
        self._times: dict[int, int] = {}
        self._sent = -1
        """Number of the last packet that the decoder got."""

    @property
    def hidden(self) -> int:
        """Number of frames at the beginning that no decoder shows, known as soon as there is a frame."""
        return self._placer.hidden

    @property
    def is_damaged(self) -> bool:
        """Whether the decoder has complained."""
        return self._placer.is_damaged

    def close(self) -> None:
        self._source.close()

    def frames(self) -> Iterator[Frame]:
        """Yield the frames. Raises UnprovedError, or from the beginning DisorderError, if numbers are not certain."""
        try:
            yield from self._numbered_frames()
        except DisorderError:
            if self.at_beginning:
                raise
            raise UnprovedError from None

    def _numbered_frames(self) -> Iterator[Frame]:
        for number, packet in self._packets():
            time = number if packet.pts is None else packet.pts
            if packet.pts is None and not isinstance(self._placer, Counter):
                raise DisorderError
            self._placer.sent(number, time, is_key=self._table.is_key(number), is_shown=is_shown(packet))
            self._times[number], self._sent = time, number
            if packet.is_corrupt:
                self._placer.failed(number, time)
            self._decode(packet, number)
            yield from self._placer.take()
            if number % HEARTBEAT == 0:
                self._on_progress(number)
        self._decode(None, self._sent)
        self._placer.finished()
        yield from self._placer.take()

    def _packets(self) -> Iterator[tuple[int, av.Packet]]:
        """Yield packets with their numbers, from the run's key packet on, or from another one before it."""
        packets = self._source.packets()
        if self.at_beginning:
            yield from ((number, packet) for number, packet in enumerate(packets) if number >= self.key)
            return
        first, packet = self._land(packets)
        self._landed = first
        self._placer = Placer(self._table.shown_before(first) - self._hidden, at_beginning=False)
        yield first, packet
        for number, packet in enumerate(packets, first + 1):
            if not self._table.is_same(number, identity(packet)):
                raise UnprovedError
            yield number, packet

    def _land(self, packets: Iterator[av.Packet]) -> tuple[int, av.Packet]:
        """Seek, and return the first key packet that comes, at the run's or before it."""
        try:
            self._source.seek(int(self._table.stamp_N[self.key]))
        except av.FFmpegError:
            raise UnprovedError from None
        number = None
        for packet in itertools.islice(packets, MOST_ASTRAY):
            number = self._table.find(identity(packet)) if number is None else number + 1
            if number is None:
                continue  # in a transport stream, the end of a packet may come first
            if number > self.key or not self._table.is_same(number, identity(packet)):
                break
            if packet.is_keyframe:
                return number, packet
        raise UnprovedError

    def _decode(self, packet: av.Packet | None, number: int) -> None:
        pictures, complained = self._source.decode(packet, number)
        if complained and number in self._times:
            self._placer.failed(number, self._times[number])
        for picture in pictures:
            of = self._number_of(picture)
            self._check_key(of, picture)
            self._placer.decoded(of, self._times.pop(of, of), picture, is_whole=not picture.is_corrupt)

    def _check_key(self, number: int, picture: av.VideoFrame) -> None:
        """Compare a picture with what the table says of its packet."""
        if not self._table.is_key(number):
            return
        if number == self._table.first_key:
            self.marks_keys = picture.key_frame
        elif self.marks_keys and not picture.key_frame:
            if number == self._landed:
                raise UnprovedError
            self._placer.not_a_key(number)

    def _number_of(self, picture: av.VideoFrame) -> int:
        """Return the number of the packet that a picture came from. Some decoders lose it, and keep its time."""
        if picture.opaque in self._times:
            return picture.opaque
        of_time = [number for number, time in self._times.items() if time == picture.pts]
        if len(of_time) == 1:
            return of_time[0]
        if isinstance(self._placer, Counter):
            return self._sent
        raise DisorderError
