"""Locks between processes, on folders: no lock file is left behind, and a lock ends with its process.

Where the file system has no locks (some NFS mounts), several processes may hold a folder at once. Files in it stay
whole all the same, because they are replaced by renaming. At worst work is done twice, or the later change wins.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deg.errors import DegError

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF)
"""Errors by which a file system says that it has no locks."""


@contextmanager
def exclusive(folder: Path, *, seconds: float, busy: DegError) -> Iterator[None]:
    """Hold a folder exclusively while the block runs. Raises `busy` if another process holds it for over `seconds`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + seconds
        while not _lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise busy
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder at this moment. A lock that another machine holds may not be visible."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
