"""Checks of the file system that a project lies on: free space, and the habits that results depend on.

Each habit is tried out in a temporary folder in the project.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deg.data.atomic import replacing, write_atomically
from deg.data.json_lines import append_line
from deg.errors import show_path
from deg.launch.doctor.machine import GIB, file_system_type, gib
from deg.launch.findings import Finding, State

LITTLE_ROOM, NO_ROOM = 20 * GIB, GIB
LINES = 200
"""Number of lines that each of two processes appends."""
SECONDS = 60.0

APPEND = """
import sys
from pathlib import Path
from deg.launch.doctor.files import append_lines
append_lines(Path(sys.argv[1]), sys.argv[2])
"""


class Unfit(Exception):
    """The file system did something other than what was asked, and reported no error."""


@dataclass(frozen=True)
class Habit:
    """Something that a file system should do."""

    check: str
    attempt: Callable[[Path], None]
    """Function that tries it in a folder and raises OSError or Unfit if it does not work."""
    lacking: State
    """State of the finding if the file system does not do it."""
    expected: str
    remedy: str


def check_project_files(folder: Path) -> list[Finding]:
    """Check the file system of `folder`, which must exist."""
    room = check_room(folder)
    try:
        own = Path(tempfile.mkdtemp(prefix=".deg-doctor-", dir=folder))
    except OSError as error:
        remedy = "Ask for permission to write there, or copy the project to another folder."
        return [
            room,
            Finding("project folder", "fault", _refused(folder, error), "a folder that you can write to", remedy),
        ]
    try:
        return [room, check_quota(), *(try_habit(habit, own) for habit in HABITS)]
    finally:
        shutil.rmtree(own, ignore_errors=True)  # what cannot be removed stays there, in a hidden folder


def try_habit(habit: Habit, folder: Path) -> Finding:
    try:
        habit.attempt(folder)
    except (OSError, Unfit) as problem:
        return Finding(habit.check, habit.lacking, f"no: {problem}", habit.expected, habit.remedy)
    return Finding(habit.check, "ok", "yes")


def check_room(folder: Path) -> Finding:
    return judge_room(folder, shutil.disk_usage(folder).free, file_system_type(folder))


def judge_room(folder: Path, free: int, kind: str) -> Finding:
    """Judge the free space in bytes; `kind` is the type of the file system."""
    found = f"{show_path(folder)}: {gib(free)} free, {kind or 'unknown file system'}"
    if free >= LITTLE_ROOM:
        return Finding("project's disk", "ok", found)
    state: State = "fault" if free < NO_ROOM else "warning"
    remedy = "Free some space: results take about 4 KB per frame."
    return Finding("project's disk", state, found, f"{gib(LITTLE_ROOM)} or more", remedy)


def check_quota() -> Finding:
    if shutil.which("quota") is None:
        return Finding("quota", "not tried", "there is no command `quota` here; the site may have one of its own")
    try:
        asked = subprocess.run(["quota", "-w", "-p"], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Finding("quota", "not tried", f"`quota` gave no answer in {SECONDS:.0f} s")
    return judge_quota(asked.stdout)


def judge_quota(text: str) -> Finding:
    """Judge what `quota -w -p` prints: file system, KiB used, soft limit, hard limit, grace, files used..."""
    tight, seen = [], []
    for line in text.splitlines():
        if matched := re.match(r"\s*(\S+)\s+(\d+)(\*?)\s+(\d+)\s+(\d+)\s", line):
            place, used, over, soft, hard = matched.groups()
            limit = int(hard) or int(soft)
            said = f"{place}: {gib(int(used) * 1024)} of {gib(limit * 1024)}"
            seen.append(said)
            if over or (limit and int(used) > 0.9 * limit):
                tight.append(said)
    if tight:
        return Finding("quota", "warning", "; ".join(tight), "a tenth of it free", "Free some space or ask for more.")
    return Finding("quota", "ok", "; ".join(seen) or "none")


def _rename(folder: Path) -> None:
    target = folder / "renamed"
    for content in ("old", "new"):
        write_atomically(target, content)
    if target.read_text(encoding="utf-8") != "new":
        raise Unfit("the old content was still there after a rename")


def _hard_link(folder: Path) -> None:
    target = folder / "published"
    with replacing(target, only_new=True) as part:
        part.write_text("first")
        os.link(part, folder / "beside")
    try:
        os.link(folder / "beside", target)
    except FileExistsError:
        return
    raise Unfit("a link replaced an existing file")


def _folder_lock(folder: Path) -> None:
    with _opened(folder) as first, _opened(folder) as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise Unfit("two had the lock at once")


def _hdf5(folder: Path, *, locking: bool) -> None:
    import h5py

    path = folder / f"locking-{locking}.h5"
    with h5py.File(path, "w", locking=locking) as file:
        file["frames"] = [1, 2, 3]
    with h5py.File(path, "r", locking=locking) as file:
        if file["frames"][:].tolist() != [1, 2, 3]:
            raise Unfit("the numbers read are not those written")


def _append(folder: Path) -> None:
    path = folder / "appended"
    names = ("one", "two")
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(path), name]) for name in names]
    try:
        if any([writer.wait(SECONDS) for writer in writers]):
            raise Unfit("a process could not append")
    except subprocess.TimeoutExpired:
        raise Unfit(f"{2 * LINES} lines took longer than {SECONDS:.0f} s") from None
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    require_lines(path, names)


def append_lines(path: Path, name: str) -> None:
    """Append LINES lines `{name: number}`, each with one write."""
    for number in range(LINES):
        append_line(path, {name: number})


def require_lines(path: Path, names: Sequence[str]) -> None:
    """Raise Unfit if a line that `append_lines` wrote under one of `names` is missing or torn."""
    found = path.read_text(encoding="utf-8").splitlines()
    wanted = {json.dumps({name: number}) for name in names for number in range(LINES)}
    if lost := len(wanted - set(found)):
        raise Unfit(f"{lost} of {len(wanted)} lines were lost or torn")


def _case(folder: Path) -> None:
    (folder / "Case").write_text("upper")
    if (folder / "case").exists():
        raise Unfit("`Case` and `case` are one file")


def _refused(path: Path, error: OSError) -> str:
    return f"{show_path(path)}: {error.strerror or error}"


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


HABITS = (
    Habit(
        "rename over a file",
        _rename,
        "fault",
        "a rename to replace a file in one step",
        "Results could be left incomplete here: put the project on another file system.",
    ),
    Habit(
        "hard links",
        _hard_link,
        "warning",
        "a link to fail if the file exists, so that only the first of two workers succeeds",
        "deg works without them; a unit that two workers do at once may be written twice.",
    ),
    Habit(
        "lock on a folder",
        _folder_lock,
        "warning",
        "one process to keep another out",
        "deg works without it; do not start the same run twice at the same time.",
    ),
    Habit(
        "HDF5 with locking",
        lambda folder: _hdf5(folder, locking=True),
        "warning",
        "HDF5 files that are locked while they are open",
        "deg works without it; for other programs set HDF5_USE_FILE_LOCKING=FALSE.",
    ),
    Habit(
        "HDF5 without locking",
        lambda folder: _hdf5(folder, locking=False),
        "fault",
        "HDF5 files that can be written and read",
        "Results are HDF5 files: put the project on another file system.",
    ),
    Habit(
        "lines from two processes",
        _append,
        "warning",
        "both to append to one file without loss",
        "Lines may be missing from the logs of runs; results are not affected.",
    ),
    Habit(
        "upper and lower case",
        _case,
        "warning",
        "them to make different names",
        "Give recordings names that differ by more than case.",
    ),
)
