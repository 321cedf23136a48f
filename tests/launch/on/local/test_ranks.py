"""The ranks of a training are told their numbers, end together, and the one at fault is named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from scenes.run import NOW
from scenes.training import make_training_plan

from deg.errors import ConfigError, DegError, LaunchError
from deg.launch.devices import Device
from deg.launch.on.local import ranks
from deg.launch.on.local.ranks import rank_devices, run_ranks
from deg.launch.stages.place import Outcome
from deg.options import schema
from deg.runs.rundir import create_run
from deg.work import available_cores

SUPPORT = Path(__file__).parents[3] / "support"
TWO = [Device(0, {}), Device(1, {})]


@pytest.fixture
def run(tmp_path):
    plan = make_training_plan(tmp_path)
    return create_run(tmp_path / "models", stage=plan.stage, kind="train", plan=plan, config={}, provenance={}, now=NOW)


@pytest.fixture
def script(monkeypatch, tmp_path):
    """`script(...)` sets what the ranks do; see support/scripted_rank.py."""
    monkeypatch.setenv("PYTHONPATH", f"{SUPPORT / 'scripted_ranks'}{os.pathsep}{SUPPORT}")
    folder = tmp_path / "marks"
    folder.mkdir()

    def write(**keys):
        monkeypatch.setenv("SCRIPT", json.dumps({"folder": str(folder), **keys}))
        return folder

    write()
    return write


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(ranks, "FOLLOW_SECONDS", 1.0)
    monkeypatch.setattr(ranks, "COLLATERAL_SECONDS", 0.5)


def events_of(run, devices=TWO, signal_at_step=None):
    """Run the unit and return its result and messages; the signal reaches this process when a step is reported."""
    heard, sent = [], []

    def hear(rank, event):
        heard.append((rank, event))
        if signal_at_step and event["event"] == "step" and not sent:
            sent.append(signal_at_step)
            os.kill(os.getpid(), signal_at_step)

    return run_ranks(run, 0, devices, hear), heard


def alone(run) -> bool:
    """Whether no process works on the run any more, including children of ranks."""
    living = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended by now
            living.append(file.read_bytes())
    return not any(str(run.path).encode() in words or words == b"sleep\x0061.25\x00" for words in living)


def send_later(seconds: float, number: signal.Signals) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


# ---------------------------------------------------------------------------------------------------- devices


def test_one_rank_for_each_gpu_with_a_fair_share_of_the_cores():
    devices = rank_devices(schema.Compute(), {"CUDA_VISIBLE_DEVICES": "0,1,2"})
    threads = str(max(available_cores() // 3, 1))
    assert [device.environment for device in devices] == [{"OMP_NUM_THREADS": threads}] * 3


def test_without_a_gpu_one_rank_or_as_many_as_wanted():
    assert len(rank_devices(schema.Compute(), {"CUDA_VISIBLE_DEVICES": ""})) == 1
    wanted = rank_devices(schema.Compute(devices=2, threads=3), {"CUDA_VISIBLE_DEVICES": ""})
    assert [device.environment["OMP_NUM_THREADS"] for device in wanted] == ["3", "3"]


@pytest.mark.parametrize("compute", [schema.Compute(devices=3), schema.Compute(devices=1, gpu_id=2)])
def test_gpus_that_are_not_there_are_refused(compute):
    with pytest.raises(ConfigError, match="this machine has"):
        rank_devices(compute, {"CUDA_VISIBLE_DEVICES": "0,1"})


# ---------------------------------------------------------------------------------------------------- going well


def test_ranks_do_the_unit_and_are_told_who_they_are(run, script, monkeypatch):
    monkeypatch.setenv("GROUP_RANK", "7")
    outcome, heard = events_of(run, [Device(index, {"OMP_NUM_THREADS": "1"}) for index in range(2)])
    assert outcome == Outcome() and run.phase_done_file(0).exists() and alone(run)
    told = {rank: event["environment"] for rank, event in heard if event["event"] == "ready"}
    assert told[0].pop("LOCAL_RANK") == "0" and told[1].pop("LOCAL_RANK") == "1"
    assert told[0] == told[1]
    assert int(told[0].pop("MASTER_PORT")) > 1023
    assert told[0] == {
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "GROUP_RANK": None,
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }


def test_all_that_they_say_is_heard_in_order(run, script):
    script(steps=4)
    _, heard = events_of(run)
    for rank in (0, 1):
        said = [event["event"] for sender, event in heard if sender == rank]
        assert said == ["ready", "step", "step", "step", "step", "unit"]


def test_what_a_rank_leaves_behind_is_ended(run, script):
    script(children=True)
    began = time.monotonic()
    assert events_of(run)[0] == Outcome()
    assert time.monotonic() - began < 20 and alone(run)


# ---------------------------------------------------------------------------------------------------- going wrong


def test_a_killed_rank_ends_the_others_and_is_named(run, script):
    script(at={"1": [1, "kill"]}, steps=100, pause=0.01)
    began = time.monotonic()
    with pytest.raises(LaunchError, match=r"Rank 1 of 2 was killed by SIGKILL \(out of memory\?\)") as caught:
        events_of(run)
    assert "Connection closed" not in str(caught.value) and "run the same command again" in str(caught.value)
    assert caught.value.exit_status == 3
    assert time.monotonic() - began < 20 and alone(run)


def test_an_exception_is_shown_with_the_last_lines_of_its_log(run, script):
    (run.path / "jobs").mkdir()
    (run.path / "jobs" / "rank-1.log").write_text("of an earlier call\n")
    script(at={"1": [2, "raise", "the loss is nonsense"]}, steps=100)
    with pytest.raises(LaunchError, match="Rank 1 of 2 ended with exit status 1") as caught:
        events_of(run)
    assert "ValueError: the loss is nonsense" in str(caught.value) and "rank-1.log" in str(caught.value)
    assert "of an earlier call" not in str(caught.value)


def test_a_user_s_error_is_told_in_its_own_words(run, script):
    script(at={"1": [0, "fail", "mouse_3: its features hold NaN in frame 7.", 2]}, steps=100)
    with pytest.raises(DegError) as caught:
        events_of(run)
    assert str(caught.value) == "mouse_3: its features hold NaN in frame 7." and caught.value.exit_status == 2


def test_ranks_that_wait_for_a_dead_one_are_not_waited_for(run, script, impatient):
    script(at={"0": [1, "kill"]}, bereaved=True, deaf=[1])
    began = time.monotonic()
    with pytest.raises(LaunchError, match="Rank 0 of 2 was killed"):
        events_of(run)
    assert time.monotonic() - began < 15 and alone(run)


@pytest.mark.slow
def test_ranks_that_hang_are_ended(run, script, monkeypatch):
    monkeypatch.setattr(ranks, "SILENT_SECONDS", 2.0)
    script(at={"0": [1, "hang"]})
    with pytest.raises(LaunchError, match="No rank has said anything"):
        events_of(run)
    assert alone(run)


# ---------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_stops_all_ranks_after_the_same_step(run, script, number):
    folder = script(steps=1000, pause=0.02)
    outcome, _ = events_of(run, signal_at_step=number)
    assert outcome == Outcome(stopped=True) and not run.phase_done_file(0).exists() and alone(run)
    assert len(list(folder.glob("0.*"))) == len(list(folder.glob("1.*"))) < 1000
    assert [event["status"] for event in run.events() if event["event"] == "rank_ended"] == [75, 75]


def test_a_signal_before_the_ranks_listen_stops_them_too(run, script, impatient):
    script(late={"0": 600, "1": 600})
    send_later(0.5, signal.SIGTERM)
    assert events_of(run)[0] == Outcome(stopped=True) and alone(run)


def test_a_rank_that_does_not_stop_is_killed_in_the_end(run, script, impatient):
    script(steps=10000, pause=0.05, deaf=[0, 1])
    outcome, heard = events_of(run, signal_at_step=signal.SIGTERM)
    assert outcome == Outcome(stopped=True) and alone(run)
    assert any("did not stop and was killed" in event.get("message", "") for _, event in heard)


@pytest.mark.slow
def test_pressing_ctrl_c_twice_ends_the_wait(run, script):
    script(steps=10000, pause=0.05, deaf=[0, 1])
    send_later(3.0, signal.SIGINT)
    began = time.monotonic()
    assert events_of(run, signal_at_step=signal.SIGINT)[0] == Outcome(stopped=True) and alone(run)
    assert time.monotonic() - began < 30


def test_a_signal_to_one_rank_stops_all(run, script):
    folder = script(steps=1000, pause=0.02)
    heard = []

    def hear(rank, event):
        if not heard and rank == 1 and event["event"] == "step":
            heard.append(event)
            (folder / f"stop.{event['batch'] + 20}").touch()

    assert run_ranks(run, 0, TWO, hear) == Outcome(stopped=True)


def test_ranks_end_when_the_launcher_is_killed(run, script):
    script(steps=10000, pause=0.02)
    code = (
        "import sys; from pathlib import Path\n"
        "from deg.launch.on.local.ranks import run_ranks; from deg.runs.rundir import RunDir\n"
        "from deg.launch.devices import Device\n"
        "run_ranks(RunDir(Path(sys.argv[1])), 0, [Device(0, {}), Device(1, {})], lambda *_: print('x', flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True) as launcher:
        try:
            for _ in range(6):
                launcher.stdout.readline()
            assert not alone(run)
        finally:
            launcher.kill()
    deadline = time.monotonic() + 15
    while not alone(run):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.1)
