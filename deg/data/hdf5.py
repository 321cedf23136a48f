"""New HDF5 files on disks that may be full.

When HDF5 cannot write what it holds in memory, closing the file fails too, and what is left open crashes the process
when it ends. So a file that is given up is closed over memory instead of its disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file to fill, closed when the block ends; whoever calls removes it if that raises.

    Nobody else may know of `path`, as nothing is locked. OSError if the disk refuses.
    """
    file = h5py.File(path, "w", locking=False)
    try:
        yield file
        file.close()
    except BaseException as error:
        _give_up(file)
        refused = re.search(r"errno = (\d+)", str(error)) if isinstance(error, RuntimeError) else None
        if refused:
            raise OSError(int(refused[1]), os.strerror(int(refused[1])), str(path)) from error
        raise


def _give_up(file: h5py.File) -> None:
    if not file.id.valid:
        return
    memory = os.memfd_create("given up")
    try:
        os.dup2(memory, file.id.get_vfd_handle())
    finally:
        os.close(memory)
    with suppress(RuntimeError, OSError):  # a limit on the size of files holds in memory as well
        file.close()
