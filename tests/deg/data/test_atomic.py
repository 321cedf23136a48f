"""A file is either the old one or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deg.data import atomic
from deg.data.atomic import ABANDONED_SECONDS, remove_all_parts, remove_parts, replacing, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_nothing_lies_beside_it(tmp_path):
    write_atomically(tmp_path / "a.txt", "größe")
    write_atomically(tmp_path / "b.bin", b"\0\1")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größe"
    assert (tmp_path / "b.bin").read_bytes() == b"\0\1"
    assert names(tmp_path) == ["a.txt", "b.bin"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        assert part.parent == tmp_path
    assert path.read_text() == "new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a.txt", "x")
    assert names(tmp_path) == []


# ---------------------------------------------------------------------------------------------------- several writers


@pytest.fixture(params=["hard links", "no hard links"])
def links(request, monkeypatch):
    """Both kinds of file systems: with and without hard links."""
    if request.param == "no hard links":

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    return request.param


def test_a_new_file_is_written_once(tmp_path, links):
    path = tmp_path / "a.txt"
    with replacing(path, only_new=True) as part:
        part.write_text("first")
    assert path.read_text() == "first" and names(tmp_path) == ["a.txt"]
    with pytest.raises(FileExistsError), replacing(path, only_new=True) as part:
        part.write_text("second")
    assert path.read_text() == "first" and names(tmp_path) == ["a.txt"]


def test_the_slower_writer_loses(tmp_path, links):
    path = tmp_path / "a.txt"
    with pytest.raises(FileExistsError), replacing(path, only_new=True) as part:
        part.write_text("slow")
        with replacing(path.with_name("b.txt")) as other:
            other.write_text("fast")
        path.with_name("b.txt").rename(path)
    assert path.read_text() == "fast" and names(tmp_path) == ["a.txt"]


def test_one_of_many_writers_wins_and_its_file_is_whole(tmp_path):
    code = (
        "import sys; from pathlib import Path; from deg.data.atomic import replacing\n"
        "try:\n"
        "    with replacing(Path(sys.argv[1]), only_new=True) as part:\n"
        "        part.write_text(sys.argv[2] * 100_000)\n"
        "except FileExistsError:\n"
        "    sys.exit(9)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.txt")]
    writers = [subprocess.Popen([*command, letter]) for letter in "abcd"]
    ended = [writer.wait(timeout=60) for writer in writers]
    assert sorted(ended) == [0, 9, 9, 9] and names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "abcd"[ended.index(0)] * 100_000


def test_writers_of_two_hosts_with_one_process_number_do_not_meet(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.txt", []
    for host in ("n1", "n2"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        with replacing(path) as part:
            part.write_text(host)
            seen.append(part)
    assert len(set(seen)) == 2


def part_of(path: Path, host: str, pid: int, age: float = 0.0) -> Path:
    """Make the unfinished file that a writer left."""
    part = path.with_name(f".{path.name}.{host}.{pid}.part")
    part.write_text("half")
    os.utime(part, (time.time() - age,) * 2)
    return part


def test_parts_that_belong_to_nobody_are_removed_and_nothing_else(tmp_path):
    path, here = tmp_path / "result.h5", socket.gethostname()
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = [
        part_of(path, here, dead.pid),
        part_of(path, here, os.getpid()),
        part_of(path, "elsewhere", 7, ABANDONED_SECONDS + 60),
        part_of(path, "elsewhere.lab.org", 8, ABANDONED_SECONDS + 60),
    ]
    kept = [
        part_of(path, here, os.getppid(), ABANDONED_SECONDS + 60),
        part_of(path, "elsewhere", dead.pid, ABANDONED_SECONDS - 60),
        part_of(tmp_path / "result.h5.old", here, dead.pid),
        part_of(tmp_path / "other.h5", here, dead.pid),
    ]
    path.write_text("whole")
    remove_parts(path)
    assert [part.exists() for part in gone] == [False] * 4
    assert [part.exists() for part in kept] == [True] * 4 and path.exists()


def test_a_name_with_wildcards_is_taken_literally(tmp_path):
    path = tmp_path / "a[1]*.h5"
    dead = subprocess.Popen(["true"])
    dead.wait()
    part = part_of(path, socket.gethostname(), dead.pid)
    other = part_of(tmp_path / "a1.h5", socket.gethostname(), dead.pid)
    remove_parts(path)
    assert not part.exists() and other.exists()


def test_a_part_that_vanishes_meanwhile_is_no_error(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    part = part_of(path, "elsewhere", 7, ABANDONED_SECONDS + 60)
    real = atomic._is_abandoned

    def slowly(found: Path, name: str) -> bool:
        found.unlink()
        return real(found, name)

    monkeypatch.setattr(atomic, "_is_abandoned", slowly)
    remove_parts(path)
    assert not part.exists()


def test_all_parts_below_a_folder(tmp_path):
    (tmp_path / "units").mkdir()
    part_of(tmp_path / "units" / "a.h5", "elsewhere", 7)
    (tmp_path / "units" / "a.h5").touch()
    remove_all_parts(tmp_path)
    assert names(tmp_path / "units") == ["a.h5"]
