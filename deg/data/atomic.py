"""Files that are either whole or not there: written under a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import errno
import glob
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
ABANDONED_SECONDS = 3600.0
"""Seconds after which a part that another host has not written to counts as abandoned."""


@contextmanager
def replacing(path: Path, *, only_new: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to. When the block ends, that file is flushed to disk and renamed to `path`.

    If the block or the disk fails (OSError, for instance ENOSPC), `path` stays as it was and nothing is left beside it.
    With `only_new`, raises FileExistsError if another writer, on any host, was first.
    """
    part = path.with_name(f".{path.name}.{_writer()}{PART}")
    try:
        yield part
        flush(part)
        if only_new:
            _publish(part, path)
        else:
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(path.parent)


def _writer() -> str:
    """Return a name for this process that is unique among all hosts that share a folder."""
    return f"{socket.gethostname()}.{os.getpid()}"


def _publish(part: Path, path: Path) -> None:
    """Rename, but never over another file: making a hard link fails if there is one, on this host or another."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        part.replace(path)
    else:
        part.unlink()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file; a reader sees the old one or the new one, never a part. Raises OSError if that fails."""
    with replacing(path) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(path: Path) -> None:
    """Remove what killed writers of `path` left behind, but nothing that another process may still be writing."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
        if _is_abandoned(part, path.name):
            part.unlink(missing_ok=True)


def _is_abandoned(part: Path, name: str) -> bool:
    """Whether a part's writer is dead. On this host its process tells; on others, only the time of the last write."""
    host, _, pid = part.name.removeprefix(f".{name}.").removesuffix(PART).rpartition(".")
    if host == socket.gethostname() and pid.isdecimal():
        return int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()
    with suppress(FileNotFoundError):
        return time.time() - part.stat().st_mtime > ABANDONED_SECONDS
    return False


def remove_all_parts(folder: Path) -> None:
    """Remove what killed writers left anywhere below `folder`. Call this only when nobody writes there any more."""
    for part in folder.rglob(f".*{PART}"):
        part.unlink(missing_ok=True)
