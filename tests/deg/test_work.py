"""How a worker process loads its libraries, which cores it uses, and how it leaves."""

import gc
import os
import subprocess
import sys

import pytest

from deg.work import CORES, available_cores, collector_paused

LEAVES = """
import atexit, logging, sys
from deg.work import leave, log_to

atexit.register(print, "an exit handler ran")
logging.getLogger("deg").setLevel(logging.INFO)
with log_to(sys.argv[1]):
    logging.getLogger("deg").info("logged")
print("said")
print("complained", file=sys.stderr)
leave(75)
"""


def test_a_process_leaves_with_its_status_and_everything_it_said(tmp_path):
    left = subprocess.run([sys.executable, "-c", LEAVES, tmp_path / "log.txt"], capture_output=True, text=True)
    assert (left.returncode, left.stdout, left.stderr) == (75, "said\n", "complained\n")
    assert (tmp_path / "log.txt").read_text().endswith("logged\n")


def test_a_process_leaves_though_nobody_listens(tmp_path):
    code = "import os, sys; from deg.work import leave; print('said'); os.close(1); leave(0)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0


def test_the_collector_rests_only_in_the_block():
    with pytest.raises(ImportError), collector_paused():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_rested_before_is_not_woken():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(("share", "cores"), [(None, 4), ("3", 3), ("9", 4), ("0", 1), ("all", 4)])
def test_a_process_uses_its_share_of_the_cores_that_it_is_bound_to(monkeypatch, share, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 7})
    monkeypatch.delenv(CORES, raising=False)
    if share is not None:
        monkeypatch.setenv(CORES, share)
    assert available_cores() == cores
