"""Fills the frame cache. Several processes make frames of different videos, or wait for one another.

The process that makes the folder `<name>.part` owns these frames and signs its file `owner`. The folder gets its final
name when all frames are there. An owner touches its signature from time to time. If it is killed, another process takes
over: it renames the folder, to be sure that it is the only one, and continues after the last block that had reached the
disk. An owner that was wrongly taken for dead notices this before it writes its next block. None of this needs locks,
only that making and renaming a folder are atomic, as they are on every file system.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import queue
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deg.data.atomic import flush, write_atomically
from deg.data.frames.files import CacheError, Contents, FrameWriter, folder_bytes, is_whole, remove_folder
from deg.data.video.decoder import Decoder, idle_decoders
from deg.data.video.reader import require_unchanged
from deg.data.video.stretch import Stretch
from deg.data.video.transform import FrameTransform
from deg.errors import show_path
from deg.types import VideoInfo

PART, OWNER = ".part", "owner"
POLL = 0.5
"""Seconds between two looks at what other processes have made."""
BEAT = 20.0
"""Seconds between two touches of an owner's signature."""
ABANDONED = 180.0
"""Seconds without a touch after which an owner counts as dead. NFS may show the time of a file a minute late."""
PATIENCE = 1800.0
"""Seconds to wait for an owner that is alive but makes no progress; then CacheError."""
BLOCK_FRAMES = 32
"""Most frames that are decoded at a time."""
JPEG_SHARE = 0.15
"""Expected size of JPEGs before they are made, as a share of the raw size. Measured: 0.07 to 0.14, once 0.22."""


@dataclass(frozen=True)
class Entry:
    """The frames of one video in the cache, whether they are there or not."""

    video: VideoInfo
    transform: FrameTransform
    """Transform that is applied to frames before they are kept."""
    contents: Contents

    @property
    def name(self) -> str:
        """Name of the folder, without a dot. If a video was changed, its new frames get the same name."""
        what = json.dumps([self.contents.video, self.contents.transform, self.contents.format])
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", self.video.path.stem)[:40]
        return f"{stem}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"

    @property
    def size(self) -> int:
        """Size on the disk in bytes; an estimate for JPEGs."""
        raw = self.contents.num_frames * self.contents.frame_bytes
        return raw if self.contents.format == "raw" else int(raw * JPEG_SHARE)


class Filling:
    """One call for frames. The calling thread takes videos and watches other owners; more threads decode and write."""

    def __init__(self, folder: Path, decoders: int, now: Callable[[], float]):
        """Prepare to fill `folder` with this many decoders. `now` gives the time by the clock of its file system."""
        self._folder, self._decoders, self._now = folder, decoders, now
        self._stop = threading.Event()
        self._watched: dict[Path, tuple[int, float]] = {}

    def run(self, entries: list[Entry], on_progress: Callable[[int], None], check: Callable[[], None]) -> None:
        """Return when the frames of all entries are there. `check` is called again and again, and may raise."""
        num_frames = {entry: entry.contents.num_frames for entry in entries}
        waiting = [entry for entry in entries if not self._is_there(entry)]
        running: dict[Future[bool], tuple[Entry, _Part]] = {}
        slots = max(1, min(self._decoders, len(waiting)))
        with idle_decoders(slots) as idle, ThreadPoolExecutor(slots) as pool:
            try:
                while waiting or running:
                    check()
                    for entry in tuple(waiting):
                        if len(running) == slots:
                            break
                        if self._is_there(entry):
                            waiting.remove(entry)
                        elif part := self._take(entry):
                            waiting.remove(entry)
                            running[pool.submit(self._make, entry, part, idle)] = entry, part
                        else:
                            self._watch(entry)
                    finished, _ = wait(running, POLL, FIRST_COMPLETED)
                    if not running:
                        time.sleep(POLL)
                    for future in finished:
                        entry, _ = running.pop(future)
                        if not future.result():
                            waiting.append(entry)
                    for _, part in running.values():
                        part.beat()
                    unfinished = {*waiting, *(entry for entry, _ in running.values())}
                    there = sum(num for entry, num in num_frames.items() if entry not in unfinished)
                    on_progress(there + sum(part.frames for _, part in running.values()))
            except BaseException:
                self._stop.set()
                raise
        on_progress(sum(num_frames.values()))

    def _is_there(self, entry: Entry) -> bool:
        return is_whole(self._folder / entry.name, entry.contents)

    def _part_folder(self, entry: Entry) -> Path:
        return self._folder / f"{entry.name}{PART}"

    # ---------------------------------------------------------------------------------------- who makes what

    def _take(self, entry: Entry) -> _Part | None:
        """Become the owner of the frames to be made. Return None if another process owns them."""
        part = _Part(self._part_folder(entry))
        try:
            part.folder.mkdir()
            part.sign(part.folder)
        except FileExistsError:
            return part if self._is_abandoned(part.folder) and part.take_over() else None
        except OSError as error:
            shutil.rmtree(part.folder, ignore_errors=True)
            raise _disk_error(error, self._folder, entry) from None
        return part

    def _is_abandoned(self, folder: Path) -> bool:
        try:
            owner = _owner(folder)
            if owner is None:  # it died, or is about to sign
                return self._now() - folder.stat().st_mtime > ABANDONED
            if not owner or (owner["host"] == _host() and not _runs(owner["pid"])):
                return True
            return self._now() - (folder / OWNER).stat().st_mtime > ABANDONED
        except FileNotFoundError:
            return False  # its owner has just finished or removed it

    def _watch(self, entry: Entry) -> None:
        """Raise CacheError if another process that makes these frames has made no progress for PATIENCE seconds."""
        folder, now = self._part_folder(entry), time.monotonic()
        size = folder_bytes(folder)
        last, since = self._watched.get(folder, (-1, now))
        if size != last:
            self._watched[folder] = size, now
        elif now - since > PATIENCE:
            owner = _owner(folder) or {"pid": "?", "host": "?"}
            raise CacheError(
                f"{show_path(folder)}: process {owner['pid']} on {owner['host'].partition(':')[0]} is making the "
                f"frames of {show_path(entry.video.path)}, but has made no progress for {PATIENCE / 60:.0f} minutes. "
                "End it, or remove this folder, then run again."
            )

    # ---------------------------------------------------------------------------------------- making, in threads

    def _make(self, entry: Entry, part: _Part, idle: queue.SimpleQueue[Decoder]) -> bool:
        """Decode and write one video. Return False if another process took it over, or this one shall stop."""
        decoder = idle.get()
        try:
            if not self._write(entry, part, decoder):
                return False
            return part.publish(self._folder / entry.name)
        except (_LostError, FileNotFoundError):
            return False
        except OSError as error:
            remove_folder(part.folder)
            raise _disk_error(error, self._folder, entry) from None
        finally:
            part.leave()
            idle.put(decoder)

    def _write(self, entry: Entry, part: _Part, decoder: Decoder) -> bool:
        video, contents = entry.video, entry.contents
        require_unchanged(video)
        claimed = decoder.probe(video.path, image_order=video.image_order).num_frames
        with contextlib.closing(FrameWriter(part.folder, contents, before_flush=part.require_own)) as writer:
            stretch = Stretch(
                video,
                writer.num_frames,
                contents.num_frames,
                entry.transform,
                # if the two differ, frames were counted by decoding
                frame_count="claimed" if claimed == contents.num_frames else contents.num_frames,
            )
            with contextlib.closing(decoder.blocks(stretch, stretch.block_frames(BLOCK_FRAMES))) as blocks:
                for block_THWC in blocks:
                    part.require_own()
                    writer.append(block_THWC)
                    part.frames = writer.num_frames
                    if self._stop.is_set():
                        writer.flush()
                        return False
            require_unchanged(video)
            writer.finish()
        return True


class _LostError(Exception):
    """Another process took this one for dead and continues in its place."""


class _Part:
    """Frames being made that this process owns, or tries to own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.frames = 0
        """Number of frames made so far."""
        self._signature = {"host": _host(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        self._last_beat = time.monotonic()

    def sign(self, folder: Path) -> None:
        write_atomically(folder / OWNER, json.dumps(self._signature))

    def take_over(self) -> bool:
        """Take the frames over from a dead owner, if no other process is faster: only one can rename the folder."""
        mine = self.folder.with_name(f"{self.folder.name}.{self._signature['token']}")
        try:
            self.folder.rename(mine)
            self.sign(mine)
            mine.rename(self.folder)
        except OSError:
            shutil.rmtree(mine, ignore_errors=True)
            return False
        return True

    def require_own(self) -> None:
        """Raise _LostError if another process took over because this one showed no sign of life for too long."""
        if _owner(self.folder) != self._signature:
            raise _LostError

    def beat(self) -> None:
        if time.monotonic() - self._last_beat > BEAT:
            self._last_beat = time.monotonic()
            with contextlib.suppress(OSError):  # it may just have got its final name
                os.utime(self.folder / OWNER)

    def publish(self, final: Path) -> bool:
        """Give the finished frames their final name. Return False if another process was faster."""
        self.require_own()
        remove_folder(final)  # frames of an earlier version of the video, or damaged ones
        (self.folder / OWNER).unlink()
        try:
            self.folder.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(self.folder, ignore_errors=True)
            return False
        flush(final.parent)
        return True

    def leave(self) -> None:
        """Let other processes continue at once, if anything is left to do and the frames are still ours."""
        with contextlib.suppress(_LostError, OSError):
            self.require_own()
            write_atomically(self.folder / OWNER, "{}")


def _owner(folder: Path) -> dict[str, Any] | None:
    """Return who signed: empty if the owner left, None if nobody signed."""
    try:
        return json.loads((folder / OWNER).read_text())
    except (OSError, ValueError):
        return None


def _host() -> str:
    """Return where a process number is valid: this host and, because of containers, this PID namespace on it."""
    try:
        return f"{socket.gethostname()}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, but belongs to another user
    return True


def _disk_error(error: OSError, cache: Path, entry: Entry) -> CacheError:
    problem = f"{show_path(cache)}: the frames of {show_path(entry.video.path)} could not be written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CacheError(
            f"{problem}: the disk, or your quota on it, is full. They need {gigabytes(entry.size)}. Make room, set "
            "compute.cache to a folder on a larger disk, or set compute.cache_format=jpeg or compute.cache=none."
        )
    return CacheError(f"{problem} ({error.strerror}). Check the disk, or set compute.cache to another folder.")


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
