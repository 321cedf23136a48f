"""Many videos are probed or inspected side by side, each by one of several decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from deg.data.video.decoder import Decoder, Inspection, idle_decoders
from deg.data.video.reader import FrameCount
from deg.errors import VideoError
from deg.types import ImageOrder, VideoInfo
from deg.work import available_cores

VIDEOS_PER_PROCESS = 4
"""Number of videos below which another process costs more to start than it saves."""

Result = TypeVar("Result")


def probe_all(
    paths: Iterable[Path | str],
    *,
    processes: int | None = None,
    frame_count: FrameCount = "claimed",
    image_order: ImageOrder = "natural",
) -> list[VideoInfo | VideoError]:
    """Do `Decoder.probe` for many videos, in the order given. A fault of one video does not stop the others."""

    def probe(decoder: Decoder, path: Path | str) -> VideoInfo | VideoError:
        try:
            return decoder.probe(path, frame_count=frame_count, image_order=image_order)
        except VideoError as error:
            return error

    return _with_decoders(probe, paths, processes)


def inspect_all(
    paths: Iterable[Path | str], *, processes: int | None = None, image_order: ImageOrder = "natural"
) -> list[Inspection]:
    """Do `Decoder.inspect` for many videos, in the order given."""
    return _with_decoders(partial(Decoder.inspect, image_order=image_order), paths, processes)


def _with_decoders(
    do: Callable[[Decoder, Path | str], Result], paths: Iterable[Path | str], processes: int | None
) -> list[Result]:
    paths = list(paths)
    if processes is None:
        processes = max(1, min(available_cores(), len(paths) // VIDEOS_PER_PROCESS))
    with idle_decoders(processes) as idle, ThreadPoolExecutor(processes) as pool:

        def with_decoder(path: Path | str) -> Result:
            decoder = idle.get()
            try:
                return do(decoder, path)
            finally:
                idle.put(decoder)

        return list(pool.map(with_decoder, paths))
