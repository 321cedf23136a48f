"""What a video file holds, as far as it can be found without decoding."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import dataclass

import av
import av.logging
import numpy as np

from deg.data.video.packets import Packet, PacketTable
from deg.data.video.source import UNKNOWN, Source, identity

INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "avi")
"""FFmpeg's names of containers that have a table of all packets, and state the number of frames."""
BROADCAST = ("mpeg", "mpegts")
"""Containers made for broadcasts: where packets are lost, the rest is read as if nothing had been there."""
CONSTANT_RATE = ("mpeg1video", "mpeg2video")
"""Codecs whose frames always follow one another at the same distance."""
TRIAL = 48
"""Number of packets whose times are looked at."""


@dataclass(frozen=True)
class Contents:
    """What is known of a file before anything is decoded."""

    table: PacketTable
    stated_frames: int
    """Number of frames that the container states; 0 if it states none, or counts something else."""
    fps: float
    """Frames per second; 0.0 if nothing is known."""
    has_palette: bool
    """Whether pictures are shown with colours that only the file's first packet may carry."""
    tells_order: bool | None
    """Whether times tell in what order frames are shown; None if only decoding can answer.

    AVI has no times. FFmpeg makes them up from the order of decoding, which may be another.
    """


def examine(name: str) -> Contents:
    """Examine a file, given by an absolute path. Raises av.FFmpegError or NoPicturesError as `Source` does."""
    with closing(Source(name)) as source:
        first = list(itertools.islice(source.packets(), TRIAL))
        stream, container = source.stream, source.container.format.name
        is_indexed = container in INDEXED
        return Contents(
            table=(_table_of_index(source) if is_indexed else None) or _table_by_reading(name),
            stated_frames=stream.frames if is_indexed else 0,
            fps=float(stream.guessed_rate or stream.average_rate or 0),
            has_palette=stream.codec_context.pix_fmt == "pal8",
            tells_order=_tells_order(first, may_be_made_up=container == "avi" and stream.codec_context.has_b_frames),
        )


def _tells_order(first: list[av.Packet], *, may_be_made_up: bool) -> bool | None:
    times = [packet.pts for packet in first if packet.pts is not None]
    if len(times) < len(first):
        return False
    goes_back = any(later < earlier for earlier, later in itertools.pairwise(times))
    return True if goes_back or not may_be_made_up else None


def _table_of_index(source: Source) -> PacketTable | None:
    """Return the container's own table; None if it has none, or one that does not fit the file."""
    entries = source.stream.index_entries
    table = PacketTable.of(
        Packet(entry.timestamp, entry.pos, entry.size, entry.is_keyframe, not entry.is_discard) for entry in entries
    )
    return table if len(table) and _ends_as(source, table) else None


def _ends_as(source: Source, table: PacketTable) -> bool:
    """Whether the last packet of a table can be read, and none follows. Files in fragments have more."""
    last = len(table) - 1
    try:
        source.seek(int(table.stamp_N[last]), to_any=True)
    except av.FFmpegError:
        return False
    read = [identity(packet) for packet in source.packets()]
    return bool(read) and table.is_same(last, read[-1])


def _table_by_reading(name: str) -> PacketTable:
    """Return the table of all packets, with what is wrong with the container if something is."""
    with closing(Source(name)) as source, av.logging.Capture(local=False) as said:
        packets = [(identity(packet), packet.is_corrupt) for packet in source.packets()]
        container, codec = source.container.format.name, source.codec
    read = [packet for packet, _ in packets]
    complaints = [text.strip() for level, name, text in said if level <= av.logging.ERROR and name == container]
    if any(is_corrupt for _, is_corrupt in packets):
        complaints.append("packets are torn")
    if container in BROADCAST and codec in CONSTANT_RATE and _has_gap(read):
        complaints.append("packets are missing")
    return PacketTable.of(read, complaints[0] if complaints else "")


def _has_gap(packets: list[Packet]) -> bool:
    steps = np.diff([packet.stamp for packet in packets if packet.stamp != UNKNOWN])
    return bool(len(steps)) and bool((steps > 1.5 * np.median(steps)).any())
