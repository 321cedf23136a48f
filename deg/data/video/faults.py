"""Why a video cannot be read: FFmpeg says little more than that it cannot."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from deg.arithmetic.ranges import show_ranges
from deg.errors import VideoError, show_path

REENCODE = "Re-encode it: ffmpeg -i IN -c:v libx264 -crf 18 -pix_fmt yuv420p OUT.mp4"
COPY_AGAIN = "Copy it again from where it was recorded."
NOT_A_VIDEO = "Put the recording there, or take the entry out of the project."


class NoPicturesError(Exception):
    """A file holds no pictures that can be decoded."""


def require_readable(path: Path) -> os.stat_result:
    """Return the status of a file or folder. Raises VideoError if it cannot be opened for reading."""
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            if not stat.S_ISREG(status.st_mode):
                raise VideoError(path, "it is neither a file nor a folder", NOT_A_VIDEO)
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            if status.st_size == 0:
                raise VideoError(path, "the file is empty (0 bytes)", COPY_AGAIN)
        return status
    except OSError as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: Path, error: OSError) -> VideoError:
    if error.errno == errno.ELOOP:
        return VideoError(path, "the link leads back to itself", "Make the link again, to the recording itself.")
    if error.errno == errno.EACCES:
        return VideoError(
            path, "permission denied", "Make the file and its folders readable (chmod u+r, or ask its owner)."
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if path.is_symlink():
            target = show_path(path.readlink())
            return VideoError(path, f"the link leads to {target}, which does not exist", "Make the link again.")
        return VideoError(path, "the file does not exist", "Correct the path, or put the file back.")
    return VideoError(path, f"it cannot be opened ({error.strerror})", "Check the disk and the file system.")


def unopened(path: Path, error: Exception) -> VideoError:
    """Return the error for a file that can be read but that FFmpeg does not open as a video, with `error`."""
    if isinstance(error, NoPicturesError):
        return VideoError(path, str(error), NOT_A_VIDEO)
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] in (b"OggS", b"fLaC") or head[:3] == b"ID3" or (head[:4] == b"RIFF" and head[8:12] == b"WAVE"):
        return VideoError(path, "it is a sound file", NOT_A_VIDEO)
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return VideoError(path, "it is an HDF5 file under another name", "Give it a name that ends in .h5.")
    if is_text(head):
        return VideoError(path, "it is a text file, not a video", NOT_A_VIDEO)
    if "moov atom not found" in str(getattr(error, "log", "")):
        return VideoError(
            path,
            "its index (the moov atom) is missing: the recording or the copy was cut off before the end",
            COPY_AGAIN + " If the recording itself is cut off, a tool such as untrunc may rescue it.",
        )
    return VideoError(path, "it is not a video that FFmpeg can open: damaged, or of an unknown kind", REENCODE + ".")


def damage(path: Path, ranges: Sequence[range]) -> VideoError:
    """Return the error for a video with damaged frames."""
    is_one = len(ranges) == 1 and len(ranges[0]) == 1
    return VideoError(
        path,
        f"{'frame' if is_one else 'frames'} {show_ranges(ranges)} {'is' if is_one else 'are'} damaged",
        f"{COPY_AGAIN} Or set inference.damaged_frames=keep to infer all the same; the result lists these frames.",
        frame=ranges[0].start,
    )


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are plain text."""
    control = set(range(32)) - {7, 8, 9, 10, 12, 13, 27}
    return not control.intersection(head)
