"""Checks of the machine itself: Python and deg, environment, cores, memory, shared memory, scratch.

Each check measures and hands the numbers to a `judge_...` function, which knows nothing of the machine.
The same checks run on a login node, on a workstation and, in the image, on the nodes of a cluster.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deg.errors import VideoError, show_path
from deg.launch.findings import Finding
from deg.version import __version__
from deg.work import available_cores

GIB = 2**30
LEAST_MEMORY = 4 * GIB
"""A worker of an inference needs 2 to 3 GiB, most of it for libraries; a training more."""
LEAST_SHARED_MEMORY = GIB
"""Loaders of a training hand each batch over in /dev/shm: some 100 MB each, several at a time."""
LEAST_SCRATCH = 10 * GIB
VIDEO_FRAMES = 30
VIDEO_SECONDS = 60.0

FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_PRELOAD", "CONDA_PREFIX", "VIRTUAL_ENV")
"""Variables that make the Python of an image load what is not in the image."""


def check_deg() -> Finding:
    python = f"Python {platform.python_version()} ({show_path(sys.executable)})"
    return Finding("deg", "ok", f"deg {__version__}, {python}, {platform.system()} {platform.release()}")


def check_environment(*, in_image: bool) -> Finding:
    own = (sys.prefix, sys.base_prefix)
    outside = [path for path in sys.path if path and path.startswith("/") and not path.startswith(own)]
    return judge_environment(os.environ, outside, in_image=in_image)


def judge_environment(environment: Mapping[str, str], outside: Sequence[str], *, in_image: bool) -> Finding:
    """Judge the variables of the environment, and the folders `outside` its installation that Python searches."""
    check = "environment"
    foreign = [name for name in FOREIGN if environment.get(name)]
    if not in_image:
        foreign = [name for name in foreign if name not in ("CONDA_PREFIX", "VIRTUAL_ENV")]
    if foreign:
        return Finding(
            check,
            "fault" if in_image else "warning",
            f"set: {', '.join(foreign)}",
            "none of the variables that bring in other libraries",
            "Remove them from cluster.environment and from the image."
            if in_image
            else "Unset them if a library has the wrong version.",
        )
    if in_image and outside:
        return Finding(
            check,
            "fault",
            f"Python also looks for modules in {', '.join(outside)}",
            "modules from the image only",
            "Set PYTHONNOUSERSITE=1, and remove what adds these folders.",
        )
    return Finding(check, "ok", "no variables that bring in other libraries")


def check_home() -> Finding:
    return judge_home(Path("~").expanduser())


def judge_home(home: Path) -> Finding:
    """Judge the home folder. Work does not need it: nodes may have none, and images should not use it."""
    if not home.is_absolute() or not home.is_dir():
        return Finding("home folder", "ok", f"{show_path(home)} is not there, and is not needed")
    writable = "writable" if os.access(home, os.W_OK) else "not writable, and need not be"
    return Finding("home folder", "ok", f"{show_path(home)}, {writable}")


def check_cores(asked: int | None = None) -> Finding:
    return judge_cores(available_cores(), os.cpu_count() or 1, asked)


def judge_cores(usable: int, present: int, asked: int | None) -> Finding:
    """Judge the number of cores. `asked` is how many this process requested from the scheduler; None outside a job."""
    found = f"{usable} of {present}"
    if asked is not None and usable < asked:
        return Finding(
            "cores",
            "warning",
            found,
            f"{asked}, as asked for",
            "The site binds tasks to fewer cores: request fewer, or ask the administrators.",
        )
    if usable < 2:
        return Finding("cores", "warning", found, "2 or more", "Decoding and computing will wait for each other.")
    return Finding("cores", "ok", found)


def check_memory(asked_gb: float | None = None) -> Finding:
    present, available = _memory()
    return judge_memory(present, available, cgroup_limit(), asked_gb)


def judge_memory(present: int, available: int, limit: int | None, asked_gb: float | None) -> Finding:
    """Judge the memory: of the machine, free on it now, and allowed by the control group of this process, in bytes.

    `asked_gb` is what was requested from the scheduler, in GiB; None outside a job.
    """
    check = "memory"
    usable = available if limit is None else min(available, limit)
    bound = "no limit on this process" if limit is None else f"limit {gib(limit)}"
    found = f"{gib(present)}, {gib(available)} free, {bound}"
    if asked_gb is not None and limit is not None and limit < asked_gb * GIB * 0.99:
        return Finding(check, "warning", found, f"{asked_gb:g} GiB, as asked for", "Check cluster.memory_flag.")
    if usable < LEAST_MEMORY:
        remedy = "Ask for more with cluster.memory_gb." if asked_gb is not None else "End other programs, or use less."
        return Finding(check, "warning", found, f"{gib(LEAST_MEMORY)} or more", remedy)
    return Finding(check, "ok", found)


def _memory() -> tuple[int, int]:
    """Return the memory of the machine in bytes: in all, and available without swapping."""
    values = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, amount = line.partition(":")
        values[name] = int(amount.split()[0]) * 1024
    return values["MemTotal"], values["MemAvailable"]


def cgroup_limit(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the lowest memory limit, in bytes, of all control groups that hold this process; None if there is none."""
    limits = []
    for file in _limit_files(process.read_text(encoding="utf-8"), root):
        if file.is_file() and (text := file.read_text(encoding="ascii").strip()).isdigit():
            limits.append(int(text))
    least = min(limits, default=2**62)
    return least if least < 2**60 else None  # version 1 writes a number near 2^63 where there is no limit


def _limit_files(groups: str, root: Path) -> Iterator[Path]:
    """Yield the files that may hold limits, for lines `number:controllers:path` of either version of control groups.

    In a container the group's path on the host may not exist below `root`; then `root` is the group itself.
    """
    for line in groups.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        yield base / name
        while folder != base and base in folder.parents:
            yield folder / name
            folder = folder.parent


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    if not folder.is_dir():
        return judge_shared_memory(0, 0)
    usage = shutil.disk_usage(folder)
    return judge_shared_memory(usage.total, usage.free)


def judge_shared_memory(total: int, free: int) -> Finding:
    """Judge the size of /dev/shm, in bytes."""
    found = f"{gib(free)} free of {gib(total)}"
    if free < LEAST_SHARED_MEMORY:
        return Finding(
            "shared memory",
            "warning",
            found,
            f"{gib(LEAST_SHARED_MEMORY)} or more in /dev/shm",
            "Train with compute.num_workers=0 or smaller batches, remove what lies in /dev/shm, or give the container "
            "more (--shm-size of Docker; no --contain for Apptainer).",
        )
    return Finding("shared memory", "ok", found)


def scratch_folder(named: str | None) -> Path:
    """Return the folder for files that only this machine needs: cluster.scratch, $SLURM_TMPDIR or Python's choice."""
    if named is not None:
        return Path(os.path.expandvars(named))
    given = os.environ.get("SLURM_TMPDIR")
    return Path(given) if given and Path(given).is_dir() else Path(tempfile.gettempdir())


def check_scratch(folder: Path) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return judge_scratch(folder, None, "", error.strerror or str(error))
    return judge_scratch(folder, free, file_system_type(folder), None)


def judge_scratch(folder: Path, free: int | None, kind: str, refusal: str | None) -> Finding:
    """Judge the scratch folder: its free space in bytes, and the type of its file system.

    `free` is None if no file could be written; then `refusal` is what the system said.
    """
    check = "scratch"
    if free is None:
        return Finding(
            check,
            "fault",
            f"{show_path(folder)} cannot be written to ({refusal})",
            "a folder on this machine's own disk",
            "Name one with cluster.scratch, or with TMPDIR on this machine.",
        )
    found = f"{show_path(folder)}: {gib(free)} free, {kind or 'unknown file system'}"
    if free < LEAST_SCRATCH:
        return Finding(
            check,
            "warning",
            found,
            f"{gib(LEAST_SCRATCH)} or more",
            "Name a larger one with cluster.scratch or TMPDIR.",
        )
    if kind in ("tmpfs", "ramfs"):
        return Finding(
            check,
            "warning",
            found,
            "a disk",
            "What is written there counts as memory of the job: name a folder on a disk.",
        )
    return Finding(check, "ok", found)


def check_video(scratch: Path) -> Finding:
    """Write a short video and decode it as the work does, in a process of its own."""
    from deg.data.video.decoder import Decoder
    from deg.projects.shapes import write_shapes_video

    try:
        with tempfile.TemporaryDirectory(dir=scratch) as folder, Decoder(timeout=VIDEO_SECONDS) as decoder:
            video = Path(folder) / "shapes.mp4"
            write_shapes_video(video, num_frames=VIDEO_FRAMES, height=96, width=128, seed=0)
            return judge_video(decoder.inspect(video).decodable)
    except (OSError, VideoError) as error:
        return judge_video(0, str(error))


def judge_video(decoded: int, refusal: str = "") -> Finding:
    if decoded == VIDEO_FRAMES:
        return Finding("video", "ok", f"{decoded} frames of a generated mp4 decoded")
    found = refusal or f"{decoded} frames of a generated mp4 decoded"
    remedy = "FFmpeg is broken here: reinstall the package av, or work in the image."
    return Finding("video", "fault", found, f"{VIDEO_FRAMES} frames", remedy)


def file_system_type(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the type of the file system, such as ext4, nfs4 or lustre, that holds the folder; empty if unknown."""
    real, point, kind = str(folder.resolve()), "", ""
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        mounted = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4])
        if len(mounted) >= len(point) and f"{real}/".startswith(mounted.rstrip("/") + "/"):
            point, kind = mounted, rest.split()[0]  # the last of several mounts at one place lies on top
    return kind


def gib(size: float) -> str:
    """Format a number of bytes in GiB."""
    return f"{size / GIB:.0f} GiB" if size >= 100 * GIB else f"{size / GIB:.1f} GiB"
