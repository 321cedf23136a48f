"""The supervisor of child processes: their last lines come before their end, and nothing counts after it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from scenes.run import make_plan, make_run

from deg.launch.devices import Device
from deg.launch.on.local.pool import LocalPool
from deg.launch.on.local.supervisor import Supervisor, Worker


@pytest.fixture
def plan(tmp_path):
    return make_plan(tmp_path, {"a": 1100}, units=2)


@pytest.fixture
def run(tmp_path, plan):
    return make_run(tmp_path, plan)


@pytest.fixture
def program(monkeypatch, tmp_path):
    """`program(shell)` makes workers that are started from now on run these lines of shell."""

    def write(shell: str) -> None:
        path = tmp_path / "worker"
        path.write_text(f"#!/bin/sh\n{shell}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return write


def dead_worker(supervisor: Supervisor) -> Worker:
    """Start a worker and wait until it has ended, unheard."""
    worker = supervisor.start(0, "-", "local-0.log", {})
    deadline = time.monotonic() + 20
    while not worker.has_ended():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return worker


def test_the_last_lines_come_before_the_end_and_the_status_is_known_by_then(run, program):
    failed = '{"event": "failed", "message": "no", "status": 2}'
    program(f"""echo '{{"event": "unit", "unit": 3}}'; echo noise; echo '{failed}'; exit 9""")
    supervisor = Supervisor(run)
    worker = dead_worker(supervisor)
    told = [event and event["event"] for _, event in supervisor.events()]
    assert told == ["unit", "failed", None]
    assert worker.status == 9 and str(worker.error) == "no" and supervisor.running == []


def test_a_line_after_the_end_does_not_count(run, program):
    program("exit 1")
    supervisor = Supervisor(run)
    worker = dead_worker(supervisor)
    assert [event for _, event in supervisor.events()] == [None]
    supervisor._lines.put((worker, {"event": "ready"}))
    assert list(supervisor.events()) == []


def test_a_worker_whose_last_word_asks_for_a_unit_gets_none(run, plan, program):
    program("exit 1")
    pool = LocalPool(run, plan.units, [Device(0, {})], lambda *_: False)
    worker = dead_worker(pool._supervisor)
    list(pool._supervisor.events())
    pool._handle(worker, {"event": "ready"})
    assert list(pool._waiting) == list(plan.units)


def test_a_process_that_ended_in_time_is_not_called_killed(run, program):
    program("exit 0")
    supervisor = Supervisor(run)
    worker = dead_worker(supervisor)
    assert supervisor.end() == [] and worker.status == 0


def test_what_a_worker_leaves_behind_is_killed(run, program, tmp_path):
    program(f"sleep 600 & echo $! > {tmp_path}/left; exit 0")
    supervisor = Supervisor(run)
    dead_worker(supervisor)
    list(supervisor.events())
    left = Path(f"/proc/{(tmp_path / 'left').read_text().strip()}/stat")

    def is_gone() -> bool:
        try:
            return left.read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    deadline = time.monotonic() + 20
    while not is_gone():
        assert time.monotonic() < deadline
        time.sleep(0.01)
