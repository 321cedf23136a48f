"""A folder of decoded frames, made once for each video and image size, so that a training clip is one read.

    FOLDER/
        mouse_1-3f2a.../          the frames of one video, whole (see deg.data.frames.files)
        mouse_2-90bc....part/     the same, being made (see deg.data.frames.making)
        in_use/<host>.<pid>...    what frames a training needs now, and their sizes; touched while it reads

Ranks, jobs and nodes share it without talking to each other. Training also works without it, only slower.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

from deg.data.atomic import write_atomically
from deg.data.frames.files import (
    CachedFrames,
    Contents,
    Format,
    condemn,
    folder_bytes,
    is_whole,
    read_index,
    remove_folder,
    sound_blocks,
)
from deg.data.frames.making import Entry, Filling, gigabytes
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError, show_path
from deg.types import VideoInfo
from deg.work import available_cores

IN_USE = "in_use"
BEAT = 60.0
"""Seconds between two signs of life of a training."""
ENDED = 900.0
"""Seconds without a sign of life after which a training counts as ended."""


def kept(transform: FrameTransform) -> FrameTransform:
    """Return the transform to apply before frames are kept: none if frames are cropped, as training crops anywhere."""
    return FrameTransform() if transform.crop_size else transform


class FrameCache:
    """The cache in one folder, in one format, as one training uses it. Picklable; copies elsewhere only read."""

    def __init__(self, folder: Path, format: Format, limit_bytes: int):
        """Make the folder if need be. Raises ConfigError if nothing can be written there."""
        self._folder, self._format, self._limit = folder, format, limit_bytes
        self._needed: dict[str, int] = {}
        self._lease = folder / IN_USE / f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            self._lease.parent.mkdir(parents=True, exist_ok=True)
            self._sign_lease()
        except OSError as error:
            raise ConfigError(
                f"{show_path(folder)}: the frame cache cannot be written there ({error.strerror}). Set compute.cache "
                "to another folder, to scratch, or to none."
            ) from None
        weakref.finalize(self, _end_lease, self._lease, os.getpid())

    def ensure(
        self,
        videos: Mapping[str, VideoInfo],
        transform: FrameTransform,
        on_progress: Callable[[int], None] = lambda frames: None,
        check_stop: Callable[[], None] = lambda: None,
        *,
        decoders: int | None = None,
    ) -> None:
        """Return when the frames of all videos are there, made by this process or by others that call it as well.

        `on_progress` is told how many frames of all videos are there by now. `check_stop` may raise; what was decoded
        by then is kept. `decoders`: number of processes that decode; None: one for each core. Raises VideoError for a
        video that does not give as many frames as it claims, ConfigError, which says what to do, if there is no room
        for the frames, and CacheError if the disk is full all the same.
        """
        entries = list(dict.fromkeys(self._entry(info, transform) for info in videos.values()))
        self._needed |= {entry.name: entry.size for entry in entries}
        self._sign_lease()
        self._make_room()
        for entry in entries:
            with contextlib.suppress(OSError):
                os.utime(self._folder / entry.name)  # so that they count as just used

        def check() -> None:
            check_stop()
            self.sign_of_life()

        Filling(self._folder, decoders or available_cores(), self._now).run(entries, on_progress, check)

    def open(self, video: VideoInfo, transform: FrameTransform) -> CachedFrames:
        """Open the frames of a video, after `kept(transform)`.

        Raises CacheError if they are not there, or belong to another version of the video.
        """
        entry = self._entry(video, transform)
        return CachedFrames(self._folder / entry.name, entry.contents)

    def verify(self, video: VideoInfo, transform: FrameTransform) -> bool:
        """Whether every bit is as it was written. Reads everything. If not, `ensure` will make the frames again."""
        entry = self._entry(video, transform)
        folder = self._folder / entry.name
        blocks = read_index(folder, entry.contents).blocks
        if is_whole(folder, entry.contents) and tuple(sound_blocks(folder, blocks)) == blocks:
            return True
        condemn(folder)
        return False

    def sign_of_life(self) -> None:
        """Show that frames are in use, so that others do not remove them. Call it as often as you like."""
        if time.monotonic() - self._last_sign > BEAT:
            with contextlib.suppress(OSError):  # reading or writing frames will fail too, and report it
                self._now()

    def _entry(self, video: VideoInfo, transform: FrameTransform) -> Entry:
        transform = kept(transform)
        height, width = transform.output_size(video.height, video.width)
        contents = Contents(
            video=str(video.path.absolute()),
            size_bytes=video.size_bytes,
            mtime_ns=video.mtime_ns,
            num_frames=video.num_frames,
            transform=transform.as_dict(),
            format=self._format,
            height=height,
            width=width,
            image_order=video.image_order,
        )
        return Entry(video, transform, contents)

    # ---------------------------------------------------------------------------------------- who needs what

    def _sign_lease(self) -> None:
        self._last_sign = time.monotonic()
        write_atomically(self._lease, json.dumps(self._needed))

    def _now(self) -> float:
        """Return the time by the clock of the file system; this is a sign of life as well."""
        self._last_sign = time.monotonic()
        try:
            os.utime(self._lease)
        except FileNotFoundError:  # this training was silent for so long that others took it for ended
            self._sign_lease()
        return self._lease.stat().st_mtime

    def _needed_by_others(self) -> dict[str, int]:
        """Return {name of frames: size} of what other trainings need. Trainings that were killed are forgotten."""
        needed: dict[str, int] = {}
        now = self._now()
        for lease in self._lease.parent.iterdir():
            if lease == self._lease or lease.name.startswith("."):
                continue
            with contextlib.suppress(OSError, ValueError):  # the other training is just ending
                if now - lease.stat().st_mtime > ENDED:
                    lease.unlink()
                else:
                    needed |= json.loads(lease.read_text())
        return needed

    # ---------------------------------------------------------------------------------------- room

    def _make_room(self) -> None:
        """Remove the least recently used frames until all that is needed fits. Raises ConfigError if it cannot fit."""
        there = _sizes(self._folder)
        elsewhere = {name: size for name, size in self._needed_by_others().items() if name not in self._needed}
        ours = {name: max(size, there.get(name, 0)) for name, size in self._needed.items()}
        others = {name: max(size, there.get(name, 0)) for name, size in elsewhere.items()}
        needed, held = sum(ours.values()), sum(others.values())
        missing = sum(size - there.get(name, 0) for name, size in ours.items())
        unused = sorted(there.keys() - ours.keys() - others.keys(), key=self._last_use)
        spare, free = sum(map(there.__getitem__, unused)), shutil.disk_usage(self._folder).free
        for name in unused:
            if needed + held + spare <= self._limit and missing <= free:
                break
            for folder in _folders(self._folder, name):
                remove_folder(folder)
            spare, free = spare - there[name], free + there[name]
        what = f"the frames of {len(ours)} video(s) as {self._format}"
        if needed + held > self._limit:
            besides = f", and other trainings are using {gigabytes(held)} of it" if held else ""
            raise ConfigError(
                f"{show_path(self._folder)}: {what} need {gigabytes(needed)}, but the frame cache may grow to "
                f"{gigabytes(self._limit)} (compute.cache_limit){besides}. Set compute.cache_format=jpeg (about a "
                "tenth of the space), raise compute.cache_limit, or set compute.cache=none (slower)."
            )
        if missing > free:
            raise ConfigError(
                f"{show_path(self._folder)}: {what} need {gigabytes(missing)} more, but the disk has only "
                f"{gigabytes(free)} left. Make room, set compute.cache to a folder on a larger disk, or set "
                "compute.cache_format=jpeg or compute.cache=none (slower)."
            )

    def _last_use(self, name: str) -> float:
        times = [0.0]
        for folder in _folders(self._folder, name):
            with contextlib.suppress(OSError):
                times.append(folder.stat().st_mtime)
        return max(times)


def _end_lease(lease: Path, pid: int) -> None:
    if os.getpid() == pid:  # a copy in a loader process ends nothing
        lease.unlink(missing_ok=True)


def _folders(cache: Path, name: str) -> list[Path]:
    """Return the folders of frames of this name: whole, being made, or left over from a removal."""
    return [folder for folder in cache.glob(f"{name}*") if folder.name.partition(".")[0] == name]


def _sizes(cache: Path) -> dict[str, int]:
    """Return {name of frames: bytes on the disk}."""
    sizes: dict[str, int] = {}
    for folder in cache.iterdir():
        if folder.name != IN_USE and folder.is_dir():
            name = folder.name.partition(".")[0]
            sizes[name] = sizes.get(name, 0) + folder_bytes(folder)
    return sizes
