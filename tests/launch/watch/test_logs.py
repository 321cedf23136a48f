"""Logs of runs and launches: which files, in which order, in which words, and to the end."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from scenes.launch import BEGAN, ended, exited, make_launch, output, plan_stage, started
from scenes.project import make_project
from scenes.run import make_plan, make_run

from deg.errors import RunError
from deg.launch import cli
from deg.launch.scheduler.launches import Verdict
from deg.launch.watch.logs import Selection, follow, in_words, last_lines, merged, moments, sources, stamp
from deg.launch.watch.target import find_watched


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "mice", {"m": 20})


@pytest.fixture
def launch(project):
    launch = make_launch(project)
    plan_stage(launch)
    return launch


def line(text: str, seconds: float = 0.0) -> str:
    moment = datetime.fromtimestamp(BEGAN + seconds)
    return f"{moment.strftime('%Y-%m-%d %H:%M:%S')},{moment.microsecond // 1000:03d} INFO {text}\n"


def texts(watched, chosen=Selection(), count=100):  # noqa: B008 - a frozen dataclass
    return [str(found) for found in last_lines(sources(watched, chosen), count)]


def said(watched, chosen=Selection(), count=100):  # noqa: B008
    return [(text.split(" | ")[0], text.split("INFO ")[-1].split(" | ")[-1]) for text in texts(watched, chosen, count)]


def test_lines_of_all_sources_are_merged_by_time(launch):
    output(launch, "10_0", errors=line("one", 0) + line("four", 3))
    output(launch, "10_1", errors=line("two", 1) + "a traceback\n  of two lines\n" + line("three", 2))
    assert said(find_watched(launch.path)) == [
        ("10_0", "one"),
        ("10_1", "two"),
        ("10_1", "a traceback"),
        ("10_1", "  of two lines"),
        ("10_1", "three"),
        ("10_0", "four"),
    ]


def test_what_stands_in_two_files_is_shown_once(launch):
    run = launch.load().run_of(0)
    run.unit_folder(0).mkdir(parents=True)
    run.log_file(0).write_text(line("the same"))
    output(launch, "10_0", errors=line("the same") + "twice\ntwice\n")
    assert [text for _, text in said(find_watched(launch.path))] == ["the same", "twice", "twice"]


def test_what_workers_tell_programs_is_put_in_words_or_left_out(launch):
    assert in_words('{"event": "progress", "frames": 3}') is None
    assert in_words('{"event": "unit_failed", "unit": 3, "message": "no"}') == "unit 3 FAILED: no"
    assert in_words('{"event": "epoch", "epoch": 1, "train": {"loss": 0.5}, "val": {"loss": 0.25}}') == (
        "epoch 2: loss 0.500; validation: loss 0.250"
    )
    assert in_words('{"event": "ready", "device": "cuda:0", "precision": "bf16"}') == (
        "ready: device cuda:0, precision bf16"
    )
    for other in ("plain", '{"no": "event"}', '{"torn', "{}"):
        assert in_words(other) == other


def test_the_last_lines_of_what_failed_come_first(launch):
    run = launch.load().run_of(0)
    for unit in (0, 1):
        started(run, unit, f"10_{unit}")
        output(launch, f"10_{unit}", errors=line(f"unit {unit}"))
    exited(run, 1, "10_1", 137)
    assert said(find_watched(launch.path)) == [("10_1", "unit 1")]
    started(run, 1, "10_2")
    ended(run, 1)  # another job has mended it
    assert len(said(find_watched(launch.path))) == 2


def test_a_merge_job_that_failed_is_telling(launch):
    output(launch, "10_0", errors=line("fine"))
    output(launch, "11", errors=line("no room"))
    launch.set_verdict(0, Verdict("failed", "no room"))
    assert said(find_watched(launch.path)) == [("11", "no room")]


def test_only_so_many_lines(launch):
    output(launch, "10_0", errors="".join(line(str(number), number) for number in range(9)))
    assert [text for _, text in said(find_watched(launch.path), count=2)] == ["7", "8"]


def test_of_a_unit_what_its_jobs_wrote_while_they_were_at_it(launch):
    run = launch.load().run_of(0)
    started(run, 0, "10_0", at=BEGAN)
    ended(run, 0, at=BEGAN + 100)
    started(run, 2, "10_0", at=BEGAN + 1000)
    output(launch, "10_0", errors=line("of 0", 50) + line("of 2", 1050))
    output(launch, "10_1", errors=line("of another", 50))
    run.log_file(2).write_text(line("own", 1060))
    watched = find_watched(launch.path)
    assert said(watched, Selection(unit=0)) == [("10_0", "of 0")]
    assert said(watched, Selection(unit=2)) == [("10_0", "of 2"), ("unit 2", "own")]


def test_of_a_recording_the_units_that_have_a_part_of_it(project):
    plan = make_plan(project, {"a": 2000, "b": 2000}, units=4)
    run = make_run(project, plan)
    for unit in plan.units:
        run.unit_folder(unit.index).mkdir(parents=True)
        run.log_file(unit.index).write_text(line(f"{unit.spans[0].key}", unit.index))
    watched = find_watched(run.path)
    keys = {text for _, text in said(watched, Selection(recording="b"))}
    assert keys == {"b"} or keys == {"a", "b"}
    wanted = [unit.index for unit in plan.units if any(span.key == "b" for span in unit.spans)]
    assert [name for name, _ in said(watched, Selection(recording="b"))] == [f"unit {index}" for index in wanted]
    assert len(wanted) < len(plan.units)


def test_of_a_rank(project):
    launch = make_launch(project, ("train sequence",))
    plan_stage(launch)
    for rank in (0, 1):
        output(launch, "10", errors=line(f"rank {rank} speaks", rank), rank=rank)
    assert said(find_watched(launch.path), Selection(rank=1)) == [("10 rank 1", "rank 1 speaks")]
    assert [name for name, _ in said(find_watched(launch.path))] == ["10 rank 0", "10 rank 1"]


def test_of_a_run_of_this_machine(project):
    run = make_run(project, make_plan(project, {"a": 40}))
    (run.path / "jobs").mkdir()
    (run.path / "jobs" / "local-0.log").write_text(line("one", 1))
    run.unit_folder(0).mkdir(parents=True)
    run.log_file(0).write_text(line("zero", 0))
    assert said(find_watched(run.path)) == [("unit 0", "zero"), ("local 0", "one")]


def test_what_is_not_there_is_an_error(launch):
    watched = find_watched(launch.path)
    with pytest.raises(RunError, match="unit 99"):
        sources(watched, Selection(unit=99))
    with pytest.raises(RunError, match="recording 'rat'"):
        sources(watched, Selection(recording="rat"))


def test_bytes_that_are_no_text_do_no_harm(launch):
    (launch.jobs_folder / "10_0_0_log.err").write_bytes(b"caf\xe9\n")
    assert len(merged(sources(find_watched(launch.path), Selection()))) == 1


def test_lines_without_a_time():
    lines = ["submitit INFO (2026-11-22 12:00:00,000) - x", "a trace", '{"event": "a"}', "more", '{"event": "b"}']
    began = stamp(lines[0])
    assert moments(lines, began + 10) == [began, began, began + 4, began + 4, began + 8]
    assert moments(["x", '{"event": "a"}'], 50.0) == [50.0, 50.0] and moments([], 50.0) == []


def test_a_time_is_read_to_the_millisecond():
    assert stamp("2026-11-22 12:00:00,250 INFO x") == datetime(2026, 11, 22, 12).timestamp() + 0.25
    assert stamp("no time") is None


def test_following_shows_what_is_added_also_in_new_files_until_the_end(launch):
    watched = find_watched(launch.path)
    output(launch, "10_0", errors=line("before", 0))
    log, steps = launch.jobs_folder / "10_0_0_log.err", []

    def wait(_):
        steps.append(1)
        if len(steps) == 1:
            with log.open("a") as file:
                file.write(line("added", 1) + line("half a line", 2)[:-1])
        elif len(steps) == 2:
            with log.open("a") as file:
                file.write("\n")
            output(launch, "10_1", errors=line("new file", 3))

    lines = follow(watched, Selection(), 10, is_over=lambda: len(steps) >= 2, wait=wait)
    assert [found.text.split("INFO ")[-1] for found in lines] == ["before", "added", "half a line", "new file"]


def test_the_command_prints_lines(launch, capsys):
    output(launch, "10_0", errors=line("hello"))
    assert cli.run(["logs", str(launch.path)]) == 0
    assert capsys.readouterr().out.startswith("10_0 | 2026-")


def test_the_command_says_when_nothing_was_written(launch, capsys):
    assert cli.run(["logs", str(launch.path)]) == 0
    assert "Nothing has been written" in capsys.readouterr().err


def test_following_a_run_that_has_ended_ends(project, capsys):
    run = make_run(project, make_plan(project, {"a": 40}))
    run.unit_folder(0).mkdir(parents=True)
    run.log_file(0).write_text(line("done"))
    began = time.monotonic()
    assert cli.run(["logs", str(run.path), "--follow"]) == 0
    assert "done" in capsys.readouterr().out and time.monotonic() - began < 5
