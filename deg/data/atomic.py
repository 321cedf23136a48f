"""Files that are either whole or not there: written beside, flushed to disk, renamed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; when the block ends it becomes `path`, at once and for good.

    If the block or the disk fails (OSError, for instance ENOSPC) what stood at `path` stays as it was, with nothing
    left beside it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        yield part
        flush(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file; a reader sees the old one or the new one, never a part. OSError if the disk refuses."""
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
    """Remove what killed writers of `path` left behind. Only for whoever alone may write it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*{PART}"):
        part.unlink(missing_ok=True)


def remove_all_parts(folder: Path) -> None:
    """Remove what killed writers left anywhere below `folder`. Only when nobody writes there any more."""
    for part in folder.rglob(f".*{PART}"):
        part.unlink(missing_ok=True)
