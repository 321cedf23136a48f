"""`deg image build`: make the image from its definition, the locked wheels and the files of the deg that runs here."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deg.containers import Flavour, definition
from deg.data.atomic import remove_parts, replacing
from deg.errors import ConfigError, show_path
from deg.launch.image.apptainer import Tell, client, follow
from deg.launch.image.file import IMAGE_GB, record_digest, require_space
from deg.version import __version__

BASE = "docker://debian:bookworm-slim"
"""Default base of an image. Its Python 3.11 is the one for which the wheels are locked."""
REGISTRIES = ("docker", "oras", "library")

COMPRESSIONS = {"gzip": "-comp gzip", "zstd": "-comp zstd -Xcompression-level 3", "lz4": "-comp lz4"}
"""Options of mksquashfs. Every Apptainer reads gzip; zstd is written twenty times faster, at the same size; lz4 is
larger, and jobs read it with the least processor time."""

BUILD_GB = 18
"""Temporary space that a build takes, in GB: both stages unpacked, and the wheels."""
SECONDS = 3 * 3600

PACKAGES = {"deg": "", "deg.launch": "launch", "deg.configs": "configs", "deg.containers": "containers"}
"""Packages of deg, and where each lies below `deg` when it is installed; in a checkout they lie elsewhere."""
COMMAND = "#!/opt/deg/bin/python\nfrom deg.launch.cli import main\n\nmain()\n"


@dataclass(frozen=True)
class Build:
    """An image to build."""

    kind: Flavour
    target: Path
    base: str = BASE
    compression: str = "gzip"
    files: tuple[tuple[Path, str], ...] = ()
    """Files and folders of this host for the building stage, each with its place there. The image has none."""

    def bootstrap(self) -> tuple[str, str]:
        """Return kind and address of the base for Apptainer. ConfigError if it is neither a file nor an address."""
        scheme, separator, name = self.base.partition("://")
        if separator and scheme in REGISTRIES:
            return scheme, name
        if not separator and Path(self.base).exists():
            return "localimage", str(Path(self.base).resolve())
        raise ConfigError(
            f"--base {self.base}: expected an existing folder or image file, or an address that begins with "
            f"{', '.join(f'{scheme}://' for scheme in REGISTRIES)}, such as {BASE}."
        )

    def arguments(self) -> dict[str, str]:
        """Return the values of the definition's arguments, except `context`."""
        bootstrap, base = self.bootstrap()
        revision, seconds = _revision()
        return {
            "bootstrap": bootstrap,
            "base": base,
            "digest": base.partition("@")[2] or "unknown",
            "flavour": self.kind.name,
            "version": __version__,
            "revision": revision,
            "source": source_sha256(),
            "created": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds"),
            "torch": self.kind.torch,
            "cuda": self.kind.cuda,
            "driver": str(self.kind.min_driver),
            "capability": self.kind.compute_capability,
            "lock": self.kind.lock_sha256,
        }

    def describe(self) -> list[str]:
        """Describe what building it means, in lines for people."""
        kind = self.kind
        who = "root" if os.geteuid() == 0 else "you: no root is needed where this machine allows user namespaces"
        lines = [
            f"{show_path(self.target)}: deg {__version__} with torch {kind.torch} for CUDA {kind.cuda} ({kind.name})",
            f"  needs     NVIDIA driver {kind.min_driver}, compute capability {kind.compute_capability}, or newer",
            f"  base      {self.base}",
            f"  takes     5 to 20 minutes, 3 GB of download, {BUILD_GB} GB in {_temporary_folder()}",
            f"  makes     a file of {IMAGE_GB} GB, compressed by {self.compression}",
            f"  built as  {who}",
        ]
        if "://" in self.base and "@sha256:" not in self.base:
            lines.append("  Note: this base may change; name it as NAME@sha256:... to keep it the same.")
        if self.compression != "gzip":
            lines.append(f"  Note: an old Apptainer may not read {self.compression}.")
        return lines


def build(order: Build, tell: Tell, program: str = "apptainer") -> str:
    """Build an image, which appears under its name when it is whole and has passed its test; return its sha256.

    LaunchError if Apptainer is missing or fails, or if the disk has too little space.
    """
    _, seconds = _revision()
    apptainer = client(program, SECONDS, merged=True, environment={"SOURCE_DATE_EPOCH": str(seconds)})
    require_space(_temporary_folder(), BUILD_GB)
    order.target.parent.mkdir(parents=True, exist_ok=True)
    require_space(order.target.parent, IMAGE_GB)
    remove_parts(order.target)
    with _context(order) as context, replacing(order.target) as part:
        options = ["--mksquashfs-args", COMPRESSIONS[order.compression]]
        for name, value in {**order.arguments(), "context": str(context)}.items():
            options += ["--build-arg", f"{name}={value}"]
        recipe = str(context / "deg.def")
        _, lines = apptainer.build(recipe, str(part), sudo=False, stream=True, quiet=True, options=options)
        follow(lines, tell, "Building the image")
        part.chmod(0o555)
    return record_digest(order.target)


@contextmanager
def _context(order: Build) -> Iterator[Path]:
    """Make a temporary folder with everything that the build takes from this host."""
    with tempfile.TemporaryDirectory(prefix="deg-image-") as folder:
        context = Path(folder)
        (context / "deg.def").write_text(definition(), encoding="utf-8")
        (context / "requirements.txt").write_text(order.kind.lock, encoding="utf-8")
        (context / "command").write_text(COMMAND, encoding="utf-8")
        for name, source in _sources().items():
            _copy(source, context / "package" / "deg" / name)
        (context / "root").mkdir()
        for source, place in order.files:
            _copy(source, context / "root" / place.lstrip("/"))
        yield context


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def source_sha256() -> str:
    """Compute the sha256 of the files of deg that would go into an image."""
    digest = hashlib.sha256()
    for name, path in sorted(_sources().items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _sources() -> dict[str, Path]:
    """Return {name below `deg` when installed: file} for deg as it runs here."""
    found = {}
    for package, place in PACKAGES.items():
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found[str(Path(place) / path.relative_to(folder))] = path
    return found


def _revision() -> tuple[str, int]:
    """Return the commit of this checkout and its time; outside a checkout `unknown` and the newest file's time."""
    sources = _sources()
    checkout = sources["__init__.py"].parents[1]
    if (checkout / ".git").exists() and shutil.which("git") is not None:
        git = ["git", "-C", str(checkout)]
        asked = subprocess.run([*git, "log", "-1", "--format=%H %ct"], capture_output=True, text=True, timeout=60)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=60)
        if asked.returncode == 0:
            commit, seconds = asked.stdout.split()
            return commit + ("-changed" if changed.stdout else ""), int(seconds)
    return "unknown", int(max(path.stat().st_mtime for path in sources.values()))


def _temporary_folder() -> Path:
    """Return the folder in which Apptainer unpacks."""
    return Path(os.environ.get("APPTAINER_TMPDIR") or tempfile.gettempdir())
