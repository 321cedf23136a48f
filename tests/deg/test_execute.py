"""Executing a unit leaves one whole result or none, whatever goes wrong and whichever process is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import h5py
import numpy as np
import pytest
from scenes.run import do_units, make_plan, make_run, scripted_workers
from scripted_engine import FeatureSpans, rows_of
from waiting import wait_until

from deg import execute
from deg.data import results
from deg.data.results import checksum
from deg.errors import RunError
from deg.execute import UnitsToDo, main, run_unit, unit_named
from deg.work import STOPPED, StopFlag, Stopped, Teller


@pytest.fixture
def plan(tmp_path):
    return make_plan(tmp_path, {"a": 600, "b": 40, "c": 1500}, units=3)


@pytest.fixture
def run(tmp_path, plan):
    return make_run(tmp_path, plan)


@pytest.fixture
def script(monkeypatch, tmp_path):
    return scripted_workers(monkeypatch, tmp_path)


@pytest.fixture
def start(run):
    """Start `python -m deg.execute RUN ...`; nothing of it is left after the test."""
    started = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-m", "deg.execute", str(run.path), *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, **pipes, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()


def heard(process: subprocess.Popen[str], event: str) -> dict:
    """Return the next message of a kind."""
    for line in process.stdout:
        if (message := json.loads(line))["event"] == event:
            return message
    raise AssertionError(f"no {event}; {process.stderr.read()}")


def parts(run, index: int) -> list[str]:
    return sorted(path.name for path in run.unit_folder(index).iterdir() if path.name not in ("log.txt", "error.json"))


# ---------------------------------------------------------------------------------------------------- one unit


def test_a_unit_leaves_the_rows_of_its_spans_with_their_checksums(run, plan):
    do_units(run, plan)
    assert run.finished_units() == {unit.index for unit in plan.units}
    for unit in plan.units:
        with h5py.File(run.result_file(unit.index)) as file:
            assert json.loads(file.attrs["engine"]) == {"device": "script", "precision": "fp32"}
            for position, span in enumerate(unit.spans):
                group = file[str(position)]
                assert json.loads(group.attrs["span"]) == [span.key, span.start, span.stop]
                wanted = rows_of(span.start, span.stop, 3)
                assert set(group) == set(wanted)
                for name, rows in wanted.items():
                    np.testing.assert_array_equal(group[name][()], rows)
                assert json.loads(group.attrs["crc32"]) == {name: checksum(rows) for name, rows in wanted.items()}


def test_a_recording_at_fault_is_recorded_and_the_others_are_done(run, plan):
    assert [span.key for span in plan.units[0].spans] == ["a", "b"]
    do_units(run, plan, [0], faults={"a": "the file is damaged"})
    with h5py.File(run.result_file(0)) as file:
        assert "a.mp4: the file is damaged" in file["0"].attrs["error"]
        assert list(file["0"]) == []
        assert file["1"]["P"].shape == (40, 3) and "error" not in file["1"].attrs
    assert "the file is damaged" in run.log_file(0).read_text()


def test_doing_a_unit_twice_is_harmless(run, plan):
    do_units(run, plan, [0])
    with h5py.File(run.result_file(0)) as file:
        before = file["0"]["logits"][()]
    do_units(run, plan, [0])
    with h5py.File(run.result_file(0)) as file:
        np.testing.assert_array_equal(file["0"]["logits"][()], before)
    assert parts(run, 0) == ["result.h5"]


def test_what_a_killed_worker_left_is_removed(run, plan):
    run.unit_folder(0).mkdir(parents=True)
    (run.unit_folder(0) / f".result.h5.{socket.gethostname()}.999999999.part").write_bytes(b"half")
    run.error_file(0).write_text("{}")
    do_units(run, plan, [0])
    assert parts(run, 0) == ["result.h5"] and not run.error_file(0).exists()


def test_a_signal_stops_at_a_batch_and_leaves_no_result(run, plan):
    stop = StopFlag()
    stop.is_set = True
    with pytest.raises(Stopped):
        run_unit(run, plan, plan.units[0], FeatureSpans(plan, script={}), stop, Teller())
    assert parts(run, 0) == []


def test_an_engine_that_gives_too_few_rows_is_a_defect(run, plan):
    class Short(FeatureSpans):
        def run_span(self, span):
            yield from list(super().run_span(span))[:-1]

    with pytest.raises(RuntimeError, match="expected 600 rows"):
        run_unit(run, plan, plan.units[0], Short(plan, script={}), StopFlag(), Teller())
    assert parts(run, 0) == []


def test_the_log_of_a_unit_is_its_own(run, plan, caplog):
    caplog.set_level("INFO", logger="deg")
    do_units(run, plan)
    assert "unit 1: done" in run.log_file(1).read_text()
    assert "unit 0" not in run.log_file(1).read_text()


@pytest.mark.parametrize("number", ["-1", "99", "x", "1.0", ""])
def test_a_unit_that_is_not_in_the_plan_is_refused(plan, number):
    with pytest.raises(RunError, match="number of a unit"):
        unit_named(plan, number)


# ---------------------------------------------------------------------------------------------------- looking ahead


class Expecting(FeatureSpans):
    """Notes which spans it is told to expect."""

    def __init__(self, plan):
        super().__init__(plan, script={})
        self.expected = []

    def expect(self, spans):
        self.expected.append(list(spans))


def test_the_spans_of_all_units_that_are_known_are_expected_in_their_order(run, plan, monkeypatch):
    engine = Expecting(plan)
    monkeypatch.setattr(execute, "make_engine", lambda plan: engine)
    assert main([str(run.path), "2", "0", "1"]) == 0
    assert engine.expected == [list(plan.units[number].spans) for number in (2, 0, 1)]


def test_a_unit_that_is_done_already_is_not_expected(run, plan, monkeypatch):
    do_units(run, plan, [0, 1])
    engine = Expecting(plan)
    monkeypatch.setattr(execute, "make_engine", lambda plan: engine)
    assert main([str(run.path), "0", "1", "2"]) == 0
    assert engine.expected == [list(plan.units[2].spans)]


def test_a_stop_after_the_last_unit_leaves_the_work_done(run, plan, monkeypatch):
    class Late(FeatureSpans):
        def checks(self):
            stop.is_set = True
            return {}

    stop = StopFlag()
    monkeypatch.setattr(execute, "make_engine", lambda plan: Late(plan, script={}))
    assert len(plan.units[2].spans) == 1
    assert main([str(run.path), "2"], stop) == 0 and run.finished_units() == {2}
    stop.is_set = False
    assert main([str(run.path), "1", "0"], stop) == STOPPED


def test_the_caller_is_told_each_unit_before_it_is_done(run, plan, monkeypatch):
    monkeypatch.setattr(execute, "make_engine", lambda plan: FeatureSpans(plan, script={}))
    told = []
    main([str(run.path), "2", "0"], begins=lambda unit: told.append((unit, run.result_file(unit).exists())))
    assert told == [(2, False), (0, False)] and run.finished_units() == {0, 2}


def test_a_unit_is_told_as_soon_as_its_number_comes_in(plan, monkeypatch):
    reading, writing = os.pipe()
    told = []
    with os.fdopen(reading) as incoming, os.fdopen(writing, "w", buffering=1) as launcher:
        monkeypatch.setattr("sys.stdin", incoming)
        units = UnitsToDo.from_input(plan, StopFlag())
        launcher.write("1\n")
        units.tell(told.append)
        found = iter(units)
        assert next(found) == plan.units[1] and told == [plan.units[1]]
        launcher.write("0\n")
        wait_until(lambda: told == [plan.units[1], plan.units[0]])
        launcher.write("77\n")
        assert next(found) == plan.units[0]
        with pytest.raises(RunError, match="number of a unit"):
            next(found)
        launcher.write("\n")


# ---------------------------------------------------------------------------------------------------- full disks


class FullDisk(FeatureSpans):
    def run_span(self, span):
        yield rows_of(span.start, span.start + 16, 3)
        raise OSError(28, "No space left on device")


def test_a_full_disk_fails_the_unit_with_one_clear_sentence(run, plan, monkeypatch, capsys):
    monkeypatch.setattr(execute, "make_engine", lambda plan: FullDisk(plan, script={}))
    assert main([str(run.path), "0"]) == 1
    message = json.loads(run.error_file(0).read_text())["message"]
    assert message.startswith(f"{run.unit_folder(0)}: No space left on device. Make sure")
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[-1] == {"event": "unit_failed", "unit": 0, "message": message}
    assert parts(run, 0) == []


def test_a_disk_without_room_for_the_message_does_not_silence_it(run, plan, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(execute, "make_engine", lambda plan: FullDisk(plan, script={}))
    monkeypatch.setattr(execute, "write_atomically", refuse)
    assert main([str(run.path), "0"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["event"] == "unit_failed"


def test_a_really_full_disk_leaves_nothing_open(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(results, "SPARE_BYTES", 300_000)
    disk = tmp_path / "tiny"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        run = make_run(disk, plan)
        with pytest.raises(OSError) as caught:
            do_units(run, plan, [0])
        assert caught.value.errno == 28
        assert parts(run, 0) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------------------------------------- the process


def test_named_units_are_done_one_after_another(run, plan, script, start):
    process = start("0", "1")
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert run.finished_units() == {0, 1}


def test_what_is_done_is_not_done_again(run, plan, script, start):
    do_units(run, plan, [0])
    before = run.result_file(0).stat()
    process = start("0")
    assert '{"event": "unit", "unit": 0}' in process.communicate(timeout=30)[0]
    assert run.result_file(0).stat() == before


def test_units_come_on_standard_input_until_an_empty_line(run, plan, script, start):
    process = start("-")
    heard(process, "ready")
    for index in (1, 0):
        process.stdin.write(f"{index}\n")
        process.stdin.flush()
        assert heard(process, "unit")["unit"] == index
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(10) == 0


def test_a_stop_signal_ends_it_at_the_next_batch_with_75(run, plan, script, start):
    script(pause=0.05)
    process = start("0")
    heard(process, "progress")
    process.terminate()
    assert process.wait(10) == STOPPED
    assert parts(run, 0) == []


def test_a_stop_signal_ends_it_when_it_waits_for_work(run, plan, script, start):
    process = start("-")
    heard(process, "ready")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(10) == STOPPED


@pytest.mark.parametrize("busy", [True, False])
def test_it_ends_when_the_process_that_gave_the_work_is_gone(run, plan, script, start, busy):
    script(pause=0.05)
    process = start("-")
    heard(process, "ready")
    if busy:
        process.stdin.write("0\n")
        process.stdin.flush()
        heard(process, "progress")
    began = time.monotonic()
    process.stdin.close()
    assert process.wait(10) == STOPPED
    assert time.monotonic() - began < 3
    assert run.finished_units() == set()


def test_weights_that_do_not_fit_are_reported_before_it_begins(run, plan, script, start):
    script(refuse="weights.ckpt: the weights have 4 classes, the project 3.")
    process = start("-")
    message = heard(process, "failed")
    assert message["message"].startswith("weights.ckpt: the weights have 4 classes")
    assert process.wait(10) == message["status"] == 2


def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path), "0"]) == 2
    assert "expected a run directory" in json.loads(capsys.readouterr().out)["message"]


def test_without_units_it_says_how_it_is_used(capsys):
    assert main(["run"]) == 2
    assert "python -m deg.execute RUN UNIT" in capsys.readouterr().err


def test_progress_is_told_once_a_second_at_most(capsys):
    tell = Teller()
    for _ in range(100):
        tell.progress(16)
    assert capsys.readouterr().out == ""
    tell.flush()
    assert json.loads(capsys.readouterr().out) == {"event": "progress", "frames": 1600}
