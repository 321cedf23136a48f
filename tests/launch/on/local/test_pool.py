"""Workers on this machine are replaced when they die, given up when that does not help, and end with their parent."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from scenes.run import do_units, frame_numbers, make_plan, make_run, scripted_workers
from waiting import is_running, wait_until

from deg.errors import DegError, LaunchError
from deg.launch.devices import Device, devices
from deg.launch.on.local.pool import LocalPool
from deg.runs.merge import merge
from deg.work import describe_exit

pytestmark = pytest.mark.slow

LENGTHS = {"a": 600, "b": 40, "c": 2000}


@pytest.fixture
def plan(tmp_path):
    return make_plan(tmp_path, LENGTHS, units=4)


@pytest.fixture
def run(tmp_path, plan):
    return make_run(tmp_path, plan)


@pytest.fixture
def script(monkeypatch, tmp_path):
    return scripted_workers(monkeypatch, tmp_path)


def shares(count: int) -> list[Device]:
    return [Device(index, {"CUDA_VISIBLE_DEVICES": str(index)}) for index in range(count)]


def execute(run, plan, count: int = 2, progress=lambda frames, finished: None):
    return LocalPool(run, plan.units, shares(count), progress).execute()


def children(pid: int) -> list[int]:
    """Return the processes whose parent is `pid`."""
    return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]


def all_right(run, plan) -> bool:
    merged = merge(run, plan)
    for key, frames in LENGTHS.items():
        assert frame_numbers(plan.outputs[key]).tolist() == list(range(frames))
    return merged.is_complete


def test_all_units_are_done_and_counted(run, plan, script):
    told, before = [], children(os.getpid())
    outcome = execute(run, plan, progress=lambda frames, finished: told.append((frames, finished)))
    assert not outcome.failed and not outcome.stopped
    assert sum(frames for frames, _ in told) == sum(LENGTHS.values())
    assert sum(finished for _, finished in told) == len(plan.units)
    assert all_right(run, plan)
    assert children(os.getpid()) == before


def test_there_are_no_more_workers_than_units(run, plan, script):
    pool = LocalPool(run, plan.units[:1], shares(8), lambda *_: None)
    pool.execute()
    assert len(list((run.path / "jobs").iterdir())) == 1


@pytest.mark.parametrize(("count", "given"), [(1, [2, 2, 2, 1]), (2, [2, 1, 1, 1]), (4, [1, 1, 1, 1])])
def test_a_worker_gets_its_next_unit_early_but_not_one_of_the_last(run, plan, script, monkeypatch, count, given):
    seen, give = [], LocalPool._give

    def watched(pool, worker):
        give(pool, worker)
        if pool._given.get(worker):
            seen.append(len(pool._given[worker]))

    monkeypatch.setattr(LocalPool, "_give", watched)
    assert not execute(run, plan, count).failed
    assert len(plan.units) == 4 and seen == given
    assert all_right(run, plan)


def test_a_unit_that_a_dead_worker_had_not_begun_is_not_blamed(run, plan, script, monkeypatch):
    blamed, try_again = [], LocalPool._try_again
    monkeypatch.setattr(
        LocalPool, "_try_again", lambda pool, unit, why: [blamed.append(unit), try_again(pool, unit, why)]
    )
    script(deaths={"a": 2})
    assert not execute(run, plan, 1).failed
    assert blamed == [plan.units[0]] * 2
    assert all_right(run, plan)


def test_a_recording_at_fault_fails_no_unit(run, plan, script):
    script(faults={"a": "the file is damaged"})
    assert execute(run, plan).failed == {}
    assert "the file is damaged" in merge(run, plan).failed["a"]


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_worker_that_dies_is_replaced_and_its_unit_done_again(run, plan, script, deaths):
    script(deaths={"a": deaths})
    outcome = execute(run, plan)
    assert not outcome.failed and not outcome.stopped
    died = [event for event in run.events() if event["event"] == "worker_died"]
    assert [event["status"] for event in died] == [-signal.SIGKILL] * deaths
    assert all_right(run, plan)


def test_a_unit_that_kills_its_workers_is_given_up_and_the_rest_continues(run, plan, script):
    script(deaths={"b": 99})
    outcome = execute(run, plan)
    (index,) = outcome.failed
    assert "b" in [span.key for span in plan.units[index].spans]
    assert "killed by SIGKILL (out of memory?); see" in outcome.failed[index]
    assert "(3 times)" in outcome.failed[index]
    assert run.finished_units() == {unit.index for unit in plan.units} - {index}


def test_workers_killed_at_random_times_cost_nothing_but_time(run, plan, script):
    script(pause=0.01)
    over = threading.Event()
    chance = random.Random(0)

    def shoot():
        for _ in range(4):
            if over.wait(chance.uniform(0.3, 0.8)):
                return
            for pid in children(os.getpid())[:1]:
                os.kill(pid, signal.SIGKILL)

    shooter = threading.Thread(target=shoot)
    shooter.start()
    outcome = execute(run, plan)
    over.set()
    shooter.join()
    for _ in range(3):  # a unit that was hit three times is left to the next run
        if not outcome.failed:
            break
        outcome = LocalPool(run, [plan.units[i] for i in outcome.failed], shares(1), lambda *_: None).execute()
    assert all_right(run, plan)


def test_a_worker_that_says_why_it_cannot_work_ends_the_run_with_that(run, plan, script):
    script(refuse="weights.ckpt: the weights have 4 classes, the project 3.")
    before = children(os.getpid())
    with pytest.raises(DegError, match="4 classes, the project 3") as caught:
        execute(run, plan)
    assert caught.value.exit_status == 2
    assert children(os.getpid()) == before


def test_workers_that_die_before_they_begin_end_the_run_with_their_last_words(run, plan, script):
    script(start={"exit": 9, "devices": ["0", "1"]})
    with pytest.raises(LaunchError, match=r"die before they begin: .*exit status 9(.|\n)*the driver is too old"):
        execute(run, plan)


def test_a_broken_device_does_not_stop_the_others(run, plan, script):
    script(start={"exit": 9, "devices": ["1"]}, pause=0.02)
    outcome = execute(run, plan)
    assert not outcome.failed and all_right(run, plan)


def test_a_full_disk_fails_the_unit_and_is_told(tmp_path, plan, script):
    disk = tmp_path / "tiny"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        outcome = execute(make_run(disk, plan), plan, count=1)
        assert outcome.failed and all("No space left on device" in reason for reason in outcome.failed.values())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------------------------------------- signals

PARENT = """
import sys
from pathlib import Path
from deg.launch.on.local.pool import LocalPool
from deg.launch.devices import Device
from deg.runs.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
plan = run.load_plan()
todo = [unit for unit in plan.units if unit.index not in run.finished_units()]
with run.claimed():
    outcome = LocalPool(run, todo, [Device(0, {}), Device(1, {})], lambda *_: print("on", flush=True)).execute()
print("stopped" if outcome.stopped else "done", flush=True)
"""


@pytest.fixture
def parent(run, script):
    """A process that is executing the run."""
    script(pause=0.05)
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "on\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_workers_end_by_themselves_when_their_parent_is_killed(run, plan, parent, script):
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.kill()
    wait_until(lambda: not any(is_running(pid) for pid in workers), seconds=5)
    script()
    assert not execute(run, plan).failed
    assert all_right(run, plan)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_stops_at_the_next_batch_and_leaves_what_is_whole(run, plan, parent, number):
    workers = children(parent.pid)
    began = time.monotonic()
    parent.send_signal(number)
    assert parent.stdout.read().splitlines()[-1] == "stopped"
    assert parent.wait(10) == 0
    assert time.monotonic() - began < 5
    assert not any(is_running(pid) for pid in workers)
    assert not run.is_claimed()
    assert list(run.path.glob("units/*/.*.part")) == []


def test_a_pool_can_be_stopped_from_within(run, plan, script):
    script(pause=0.05)
    assert execute(run, plan, progress=lambda frames, finished: True).stopped
    assert run.finished_units() == set()


def test_what_is_done_is_not_done_again(run, plan, script):
    do_units(run, plan, [0, 1])
    before = {index: run.result_file(index).stat().st_ino for index in (0, 1)}
    execute(run, plan)
    assert {index: run.result_file(index).stat().st_ino for index in (0, 1)} == before
    assert all_right(run, plan)


# ---------------------------------------------------------------------------------------------------- words, shares


@pytest.mark.parametrize(
    ("status", "words"),
    [(1, "exit status 1"), (-9, r"SIGKILL \(out of memory\?\)"), (-11, "SIGSEGV"), (75, "exit status 75")],
)
def test_an_exit_status_in_words(status, words):
    assert re.search(words, describe_exit(status))


def test_cores_are_shared_evenly_and_gpus_one_each(monkeypatch):
    from deg.launch import devices as resources

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    monkeypatch.setattr(resources, "available_cores", lambda: 16)
    found = devices("auto")
    assert [device.environment for device in found] == [
        {"OMP_NUM_THREADS": "8", "DEG_CORES": "8", "CUDA_VISIBLE_DEVICES": "4"},
        {"OMP_NUM_THREADS": "8", "DEG_CORES": "8", "CUDA_VISIBLE_DEVICES": "GPU-abc"},
    ]
    assert [device.environment["CUDA_VISIBLE_DEVICES"] for device in devices(4)] == ["4", "GPU-abc"] * 2
    assert [device.environment["DEG_CORES"] for device in devices(4)] == ["4"] * 4


@pytest.mark.parametrize("named", ["", "-1"])
def test_without_gpus_there_is_one_worker_with_all_cores(monkeypatch, named):
    from deg.launch import devices as resources

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(resources, "available_cores", lambda: 6)
    assert [device.environment for device in devices("auto")] == [{"OMP_NUM_THREADS": "6", "DEG_CORES": "6"}]
    assert [device.environment for device in devices(8)] == [{"OMP_NUM_THREADS": "1", "DEG_CORES": "1"}] * 8


def test_events_of_a_run_are_json_lines(run, plan, script):
    execute(run, plan)
    kinds = [json.loads(line)["event"] for line in run.events_file.read_text().splitlines()]
    assert kinds == ["planned"] + ["unit_done"] * len(plan.units)
