"""An image file: its labels, its digest, and how to fetch one.

Labels are read from the file, without Apptainer, which many login nodes do not have: a SIF file has a table of
descriptors, and one of its objects is a JSON document that holds them (sylabs/sif, pkg/sif).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from deg.data.atomic import remove_parts, replacing, write_atomically
from deg.errors import ConfigError, LaunchError, show_path
from deg.launch.image.apptainer import Tell, client, follow
from deg.version import __version__

IMAGE_GB = 4
PULL_SECONDS = 3 * 3600


def pull(uri: str, folder: Path, tell: Tell, *, sha256: str | None = None, program: str = "apptainer") -> Path:
    """Fetch an image into a folder and return its path. It appears there when it is whole and has the right digest.

    An image that is there already is verified: by `sha256`, or by the digest recorded when it came. LaunchError if it
    cannot be fetched, or is not the image asked for.
    """
    target = folder / file_name(uri)
    if target.exists():
        verify_digest(target, sha256)
        return target
    apptainer = client(program, PULL_SECONDS)
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, IMAGE_GB)
    remove_parts(target)
    with replacing(target) as part:
        _, lines = apptainer.pull(uri, name=str(part), stream=True, quiet=True)
        follow(lines, tell, f"Pulling {uri}")
        if sha256 is not None:
            verify_digest(part, sha256)
        part.chmod(0o555)
    record_digest(target)
    return target


def file_name(uri: str) -> str:
    """Return the file name for an address: deg_1.0.sif for oras://host/lab/deg:1.0. ConfigError if it is no address."""
    if not re.match(r"(oras|docker|library|https)://.", uri):
        raise ConfigError(f"{uri}: expected an address that begins with oras://, docker://, library:// or https://.")
    last = uri.partition("?")[0].rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", last).removesuffix(".sif") + ".sif"


def require_space(folder: Path, gigabytes: int) -> None:
    """Raise LaunchError if the disk of `folder` has less free space than `gigabytes` GB."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise LaunchError(
            f"{show_path(folder)}: expected {gigabytes} GB of free space, found {free:.1f} GB. Free some, or name "
            "another place: APPTAINER_TMPDIR for temporary files, --to for the image."
        )


# -------------------------------------------------------------------------------------------------------------- digests


def image_digest(image: Path) -> str:
    """Return `sha256:...` of an image file. It is computed once, then kept with the file's size and time in a cache."""
    image = image.resolve()
    state = image.stat()
    mark = [state.st_size, state.st_mtime_ns, state.st_ino]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deg" / "images.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known.get(str(image), [None])[0] != mark:
        known[str(image)] = [mark, file_sha256(image)]
        with suppress(OSError):  # no space or no permission in the home folder: it will be computed again
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache, json.dumps(known))
    return f"sha256:{known[str(image)][1]}"


def verify_digest(image: Path, sha256: str | None = None) -> str:
    """Compute the sha256 of an image. LaunchError if it is not `sha256`, by default the one recorded beside it."""
    recorded = digest_file(image)
    expected = sha256 or (recorded.read_text(encoding="utf-8").split()[0] if recorded.exists() else None)
    found = file_sha256(image)
    if expected is not None and found != expected.removeprefix("sha256:").lower():
        raise LaunchError(
            f"{show_path(image)}: expected sha256 {expected}, found {found}. It is a different image, or a damaged "
            "one: delete it and get it again."
        )
    return found


def record_digest(image: Path) -> str:
    """Record the sha256 of an image in a file beside it, for `sha256sum -c` and for later checks; return it."""
    digest = file_sha256(image)
    write_atomically(digest_file(image), f"{digest}  {image.name}\n")
    return digest


def digest_file(image: Path) -> Path:
    """Return the file in which the sha256 of an image is recorded."""
    return image.with_name(f"{image.name}.sha256")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------------------------------------------- labels


def require_same_version(image: Path) -> None:
    """Raise LaunchError if the image has another version of deg than runs here: their files may differ."""
    found = read_labels(image).get("deg.version")
    if found != __version__:
        what = "one that is not of deg" if found is None else f"one of deg {found}"
        raise LaunchError(
            f"{show_path(image)}: expected an image of deg {__version__}, which runs here, found {what}. Get the image "
            "of this version (`deg image build`, `deg image pull`), or install the image's version here."
        )


def read_labels(image: Path) -> dict[str, str]:
    """Return the labels of an image, a SIF file or a folder. LaunchError if it is no image. Needs no Apptainer."""
    try:
        if image.is_dir():
            return json.loads((image / ".singularity.d" / "labels.json").read_text(encoding="utf-8"))
        return _metadata(image)["data"]["attributes"]["labels"] or {}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise LaunchError(
            f"{show_path(image)}: expected an Apptainer image with labels, found none ({error}). `deg image build` "
            "makes one, `deg image pull` fetches one."
        ) from None


_HEADER = struct.Struct("<32s10s3s3s16sqqqqq")
"""Launch script, magic word, version, architecture, id; created, changed; descriptors: free, in all, offset."""
_DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
"""Kind, used, id, group, link; offset, length, stored length; created, changed, user, group; name, extra."""
_GENERIC_JSON = 0x4006


def _metadata(image: Path) -> dict[str, Any]:
    """Return the document that `apptainer inspect --json` prints. ValueError or struct.error if there is none."""
    with image.open("rb") as file:
        header = _HEADER.unpack(file.read(_HEADER.size))
        if header[1] != b"SIF_MAGIC\0":
            raise ValueError("not a SIF file")
        file.seek(header[9])
        for _ in range(header[8]):
            kind, used, _, _, _, offset, length, *_, name, _ = _DESCRIPTOR.unpack(file.read(_DESCRIPTOR.size))
            if used and kind == _GENERIC_JSON and name.rstrip(b"\0") == b"inspect-metadata.json":
                file.seek(offset)
                return json.loads(file.read(length))
    raise ValueError("no metadata")
