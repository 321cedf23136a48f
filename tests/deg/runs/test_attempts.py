"""Attempts at a unit: what is recorded about them, and when a unit is given up."""

from __future__ import annotations

import json
import time

import pytest

from deg.errors import RunError, VideoError
from deg.runs.attempts import (
    Attempt,
    Superseded,
    ThisJob,
    attempt,
    give_new_chance,
    note,
    read_attempts,
    read_exit,
    require_current,
    why_given_up,
)
from deg.work import Stopped


@pytest.fixture
def in_job(monkeypatch):
    """`in_job("12_3", restart=1)` makes this process part of that job."""

    def become(name: str, restart: int = 0, most: int = 10, ends: float | None = None) -> None:
        for variable, value in ThisJob(name, restart, most, ends).to_environment().items():
            monkeypatch.setenv(variable, value)

    return become


def test_nothing_is_noted_without_a_scheduler(tmp_path):
    with attempt(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_told_by_its_environment(in_job):
    in_job("12_3", 2, 7, 100.5)
    assert ThisJob.from_environment() == ThisJob("12_3", 2, 7, 100.5)


def test_how_attempts_ended(tmp_path, in_job):
    in_job("1")
    with pytest.raises(Stopped), attempt(tmp_path, progress=5):
        raise Stopped
    in_job("1", restart=1, ends=time.time() + 30)
    with pytest.raises(Stopped), attempt(tmp_path, progress=8):
        raise Stopped
    in_job("2")
    with pytest.raises(VideoError), attempt(tmp_path, progress=8):
        raise VideoError("a.mp4", "it is torn", "Cut it again.")
    in_job("2", restart=1)
    with attempt(tmp_path, progress=9):
        pass
    found = [(a.job, a.restart, a.progress, a.end, a.why) for a in read_attempts(tmp_path)]
    assert found == [
        ("1", 0, 5, "stopped", "signal"),
        ("1", 1, 8, "stopped", "time limit"),
        ("2", 0, 8, "failed", "a.mp4: it is torn. Cut it again."),
        ("2", 1, 9, "done", ""),
    ]


def test_what_the_host_saw_belongs_to_its_attempt(tmp_path):
    note(tmp_path, "started", job="1", restart=0, host="n1", progress=3)
    note(tmp_path, "exited", job="1", restart=0, host="n1", status=137, oom_kills=1)
    note(tmp_path, "exited", job="2", restart=0, host="n2", status=255)
    killed, never_began = read_attempts(tmp_path)
    assert (killed.status, killed.oom_kills, killed.end) == (137, 1, None)
    assert (never_began.host, never_began.status, never_began.progress) == ("n2", 255, 3)


def test_a_torn_line_is_passed_over(tmp_path):
    note(tmp_path, "started", job="1", restart=0, host="n1", progress=0)
    with (tmp_path / "attempts.jsonl").open("a") as file:
        file.write('{"event": "stop')
    assert len(read_attempts(tmp_path)) == 1


def test_an_exit_is_read(tmp_path):
    assert read_exit(tmp_path) is None
    exit = {"job": "1", "restart": 0, "host": "n1", "status": 143, "oom_kills": None, "time": 5.0}
    (tmp_path / "exit.json").write_text(json.dumps(exit))
    assert vars(read_exit(tmp_path)) == exit


def tried(end: str | None = None, progress: int = 0, why: str = "", host: str = "n1", status: int = 137) -> Attempt:
    return Attempt("1", 0, host, 0.0, progress, end, why, status=status)


@pytest.mark.parametrize(
    ("attempts", "verdict"),
    [
        ([], None),
        ([tried()] * 2, None),
        ([tried(), tried(host="n2"), tried()], "its worker died 3 times (on n1, n2)"),
        ([tried(progress=-1)] * 9, None),
        ([tried(status=None)] * 9, None),  # preempted, or their hosts died
        ([tried(status=None)] * 10, "it was started 10 times without any progress"),
        ([tried("failed", why="the disk is full")], None),
        ([tried("failed", why="torn"), tried("failed", why="torn")], "torn"),
        ([tried("stopped", why="signal")] * 9, None),
        ([tried("stopped", why="signal")] * 10, "it was started 10 times without any progress"),
        (
            [tried("stopped", why="time limit")] * 2,
            "it was stopped by the time limit 2 times without any progress; raise cluster.time",
        ),
    ],
)
def test_when_a_unit_is_given_up(attempts, verdict):
    assert why_given_up(attempts, progress=0, most=10) == verdict


def test_a_unit_that_was_given_up_is_not_begun_until_it_has_a_new_chance(tmp_path, in_job):
    for number in range(3):
        note(tmp_path, "started", job=str(number), restart=0, host="n1", progress=0)
        note(tmp_path, "exited", job=str(number), restart=0, host="n1", status=137)
    (tmp_path / "error.json").write_text("{}")
    in_job("4")
    with pytest.raises(RunError, match="given up: its worker died 3 times"), attempt(tmp_path):
        pytest.fail("it was begun")
    give_new_chance(tmp_path)
    with attempt(tmp_path):
        pass
    assert [a.end for a in read_attempts(tmp_path)] == ["done"]
    assert not (tmp_path / "error.json").exists()


def test_ranks_that_do_not_write_leave_no_trace(tmp_path, in_job):
    in_job("1")
    with attempt(tmp_path, writes=False):
        pass
    assert read_attempts(tmp_path) == []


def test_a_process_that_is_taken_for_dead_writes_no_more(tmp_path, in_job):
    in_job("1")
    with pytest.raises(Superseded, match="job 1 has taken over the work of job 1"), attempt(tmp_path):
        require_current(tmp_path)
        in_job("1", restart=1)
        with attempt(tmp_path):
            require_current(tmp_path)
        in_job("1")
        require_current(tmp_path)
    assert [a.end for a in read_attempts(tmp_path)] == [None, "done"]
