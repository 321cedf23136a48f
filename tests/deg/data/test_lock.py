"""A lock keeps other processes out, ends with its process, and never waits for ever."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys

import pytest

from deg.data.lock import exclusive, is_held
from deg.errors import RunError

BUSY = RunError("somebody is at it")
HOLD = """
import sys, time
from pathlib import Path
from deg.data.lock import exclusive
from deg.errors import RunError
with exclusive(Path(sys.argv[1]), seconds=0, busy=RunError("")):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_waits_a_while_and_is_told(tmp_path, holder):
    with pytest.raises(RunError, match="somebody is at it"), exclusive(tmp_path, seconds=0.2, busy=BUSY):
        pytest.fail("two hold the same folder")


def test_a_lock_ends_with_its_process(tmp_path, holder):
    assert is_held(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_held(tmp_path)
    with exclusive(tmp_path, seconds=0, busy=BUSY):
        assert is_held(tmp_path)


def test_a_lock_ends_with_its_block_and_leaves_nothing(tmp_path):
    with exclusive(tmp_path, seconds=0, busy=BUSY):
        pass
    assert not is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_on_the_disk_nobody_is_kept_out(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with exclusive(tmp_path, seconds=0, busy=BUSY):
        assert not is_held(tmp_path)


def test_other_refusals_are_told(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="input/output"), exclusive(tmp_path, seconds=0, busy=BUSY):
        pytest.fail("held all the same")
