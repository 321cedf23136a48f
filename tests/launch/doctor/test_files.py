"""What `deg doctor` finds about the file system of a project."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from deg.launch.doctor import files
from deg.launch.doctor.files import HABITS, Unfit, try_habit
from deg.launch.doctor.machine import GIB


def habit(check: str) -> files.Habit:
    return next(habit for habit in HABITS if habit.check == check)


@pytest.mark.parametrize("check", [habit.check for habit in HABITS])
def test_an_ordinary_disk_has_all_habits(check, tmp_path):
    assert try_habit(habit(check), tmp_path).state == "ok"


def test_nothing_is_left_behind(tmp_path):
    found = files.check_project_files(tmp_path)
    assert len(found) == 2 + len(HABITS) and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_a_fault(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    found = files.check_project_files(tmp_path)[-1]
    assert found.state == "fault" and "Permission denied" in found.found


def test_a_refusal_is_told_with_how_bad_it_is(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = try_habit(habit("lock on a folder"), tmp_path)
    assert found.state == "warning" and "No locks available" in found.found


def test_a_lock_that_keeps_nobody_out_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "two had the lock" in try_habit(habit("lock on a folder"), tmp_path).found


def test_a_link_that_replaces_a_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda source, target: Path(target).write_bytes(Path(source).read_bytes()))
    assert "replaced" in try_habit(habit("hard links"), tmp_path).found


def test_a_disk_that_ignores_case_is_found(tmp_path, monkeypatch):
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: exists(path.with_name(path.name.title())))
    assert "one file" in try_habit(habit("upper and lower case"), tmp_path).found


def test_lines_that_were_lost_are_counted(tmp_path):
    path = tmp_path / "appended"
    files.append_lines(path, "one")
    files.require_lines(path, ["one"])
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(Unfit, match="lines were lost or torn"):
        files.require_lines(path, ["one"])


@pytest.mark.parametrize(("free", "state"), [(100 * GIB, "ok"), (5 * GIB, "warning"), (GIB // 2, "fault")])
def test_room_is_told(free, state):
    assert files.judge_room(Path("/project"), free, "nfs4").state == state


QUOTA = """Disk quotas for user ann (uid 1000):
     Filesystem   space   quota   limit   grace   files   quota   limit   grace
server:/home  {used}{mark}  {soft}  {hard}       0    1234       0       0       0
"""


@pytest.mark.parametrize(
    ("used", "mark", "soft", "hard", "state"),
    [
        (10 * 2**20, "", 50 * 2**20, 60 * 2**20, "ok"),
        (58 * 2**20, "", 80 * 2**20, 60 * 2**20, "warning"),
        (58 * 2**20, "*", 50 * 2**20, 90 * 2**20, "warning"),
        (58 * 2**20, "", 0, 0, "ok"),
    ],
)
def test_a_quota_that_is_nearly_used_up_is_told(used, mark, soft, hard, state):
    found = files.judge_quota(QUOTA.format(used=used, mark=mark, soft=soft, hard=hard))
    assert found.state == state and f"server:/home: {used // 2**20}.0 GiB of" in found.found


def test_no_quota_is_all_right():
    assert files.judge_quota("Disk quotas for user ann (uid 1000): none\n").found == "none"
