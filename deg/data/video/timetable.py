"""When each frame of a video file is shown. Knowing this makes seeking exact.

A decoder that was asked for frame 5000 lands somewhere near it and does not say where; the time stamp of what it
decoded does. Where all time stamps of a file are known and different, they name the frame, and any seek can be checked:

    frame        0     1     2     3           5000
    times_T      0.0   33.3  66.7  100.0  ...  166666.7     milliseconds after the first
                                               ^ decoded: 166666.7, so this is frame 5000

MP4 and QuickTime files have the table in their header (ISO/IEC 14496-12: stts, ctts, elst). In other files all packets
are read, without decoding them: some 500 000 a second, or as fast as the disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
"""Boxes that hold other boxes, and that are searched here."""


def frame_times(path: str, num_frames: int) -> np.ndarray | None:
    """Return milliseconds after the first frame, float64 (T), increasing; None if they cannot tell frames apart."""
    with Path(path).open("rb") as file:
        is_mp4 = file.read(8)[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    times_T = _mp4_times(path, num_frames) if is_mp4 else _packet_times(path)
    if times_T is None or len(times_T) != num_frames or not np.all(np.diff(times_T) > 0):
        return None
    return times_T


def index_of_time(times_T: np.ndarray, time: float) -> int | None:
    """Return the frame shown at `time` milliseconds, or None if no frame has exactly this time."""
    after = int(np.searchsorted(times_T, time))
    near = [index for index in (after - 1, after) if 0 <= index < len(times_T)]
    index = min(near, key=lambda index: abs(times_T[index] - time))
    # Time stamps are whole ticks of at least a microsecond; anything else is another time, not rounding.
    return index if abs(times_T[index] - time) < 5e-4 else None


def _packet_times(path: str) -> np.ndarray | None:
    """Read the times of all packets of any container. Not for MP4: raw reading ignores its edit lists."""
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    times = []
    while capture.grab():
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
    return np.sort(np.array(times)) if times else None


def _mp4_times(path: str, num_frames: int) -> np.ndarray | None:
    """Read times from the sample table; None for a file in fragments, with several videos, or cut by an edit list."""
    moov = read_moov(path)
    if moov is None or num_frames > Path(path).stat().st_size:
        return None
    try:
        return _times_of_movie(moov, num_frames)
    except (KeyError, IndexError, ValueError, struct.error):
        return None  # a damaged table tells nothing


def _times_of_movie(moov: bytes, num_frames: int) -> np.ndarray | None:
    movie = {kind: body for kind, body in boxes(moov) if kind != b"trak"}
    pictures = picture_tracks(moov)
    if len(pictures) != 1 or b"mvex" in movie:
        return None
    track = pictures[0]
    if b"stts" not in track or struct.unpack_from(">I", track[b"stsd"], 4)[0] != 1:
        return None
    durations = _runs(track[b"stts"])
    if durations[:, 0].sum() != num_frames:
        return None
    ticks = np.cumsum(np.repeat(durations[:, 1], durations[:, 0])) - np.repeat(durations[:, 1], durations[:, 0])
    if b"ctts" in track:
        offsets = _runs(track[b"ctts"])
        if offsets[:, 0].sum() != num_frames:
            return None
        ticks += np.repeat(offsets[:, 1], offsets[:, 0])
    ticks.sort()
    rate, movie_rate = _ticks_per_second(track[b"mdhd"]), _ticks_per_second(movie[b"mvhd"])
    if b"elst" in track and not _shows_all(track[b"elst"], ticks, rate / movie_rate):
        return None
    return (ticks - ticks[0]) * (1000 / rate)


def picture_tracks(moov: bytes) -> list[dict[bytes, bytes]]:
    """Return the tables of each picture track, by kind."""
    tracks = []
    for kind, body in boxes(moov):
        if kind == b"trak":
            track: dict[bytes, bytes] = {}
            for name, table in _tables(body):
                track.setdefault(name, table)  # QuickTime has a second hdlr, of the data, further down
            if track.get(b"hdlr", b"")[8:12] == b"vide":
                tracks.append(track)
    return tracks


def _shows_all(edits: bytes, ticks: np.ndarray, track_ticks_per_movie_tick: float) -> bool:
    """Whether an edit list only shifts the video and hides no frame of it."""
    version, count = edits[0], struct.unpack_from(">I", edits, 4)[0]
    entry = struct.Struct(">Qqi" if version else ">Iii")  # duration in movie ticks, beginning in track ticks, speed
    entries = [entry.unpack_from(edits, 8 + number * entry.size) for number in range(count)]
    while entries and entries[0][1] == -1:  # an empty edit: the video begins later
        del entries[0]
    if len(entries) != 1:
        return not entries
    duration, begin, _ = entries[0]
    return 0 <= begin <= ticks[0] and (duration == 0 or begin + duration * track_ticks_per_movie_tick > ticks[-1])


def _runs(table: bytes) -> np.ndarray:
    """Read the (count, value) pairs of an stts or ctts box, int64 (N, 2)."""
    count = struct.unpack_from(">I", table, 4)[0]
    return np.frombuffer(table, ">i4", 2 * count, 8).reshape(count, 2).astype(np.int64)


def _ticks_per_second(header: bytes) -> int:
    """Read the time scale in an mdhd or mvhd box."""
    return struct.unpack_from(">I", header, 20 if header[0] else 12)[0]


def _tables(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    for kind, inner in boxes(body):
        if kind in CONTAINERS:
            yield from _tables(inner)
        else:
            yield kind, inner


def boxes(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, content) of the boxes that lie end to end in `body`; a box that reaches past the end is cut."""
    at = 0
    while at + 8 <= len(body):
        size, kind = struct.unpack_from(">I4s", body, at)
        if size < 8:
            return
        yield kind, body[at + 8 : at + size]
        at += size


def read_moov(path: str) -> bytes | None:
    """Read the content of the box that holds the tables of an MP4 or QuickTime file; None if there is none."""
    with Path(path).open("rb") as file:
        at, end = 0, file.seek(0, 2)
        while at + 8 <= end:
            file.seek(at)
            head = file.read(16)
            size, kind = struct.unpack_from(">I4s", head)
            header = 8
            if size == 1 and len(head) == 16:
                size, header = struct.unpack_from(">Q", head, 8)[0], 16
            if size == 0:
                size = end - at
            if size < header or at + size > end:
                return None
            if kind == b"moov":
                file.seek(at + header)
                return file.read(size - header)
            at += size
    return None
