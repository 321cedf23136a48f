"""What jobs do, tested in this process: an element does its units, a merge job finishes or requests more jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
from scenes.launch import WORDS, add_job, died, ended, exited, inference, make_launch, started, training
from scenes.project import make_labelled_project, make_project
from scenes.run import NOW, do_units, frame_numbers
from scenes.training import leave_trained, make_training_plan
from scripted_engine import FeatureSpans, SequenceSpans

from deg import execute as door
from deg.launch import cli
from deg.launch.on.slurm import jobs
from deg.launch.on.slurm.jobs import do, this_job, units_left
from deg.launch.scheduler.launches import LaunchDir
from deg.options.schema import Cluster
from deg.runs.attempts import bad_hosts, read_attempts
from deg.runs.rundir import RunDir, create_run, read_error
from deg.work import CORES, StopFlag, Stopped

LENGTHS = {"mouse_1": 1100, "mouse_2": 30}
RUN = "the_run"
FIXED = ("feature_extractor.weights=latest", *WORDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose inference has three units, planned as RUN."""
    project = make_project(tmp_path_factory.mktemp("made") / "mice", LENGTHS)
    return project


@pytest.fixture
def project(made, tmp_path):
    subprocess.run(["cp", "-a", str(made), str(tmp_path / "mice")], check=True)
    project = tmp_path / "mice"
    words = ["infer", "feature_extractor", str(project), *FIXED, "--run", RUN, "--on", "slurm", "--only", "plan"]
    assert cli.run(words) == 0
    return project


@pytest.fixture
def run(project) -> RunDir:
    run = RunDir(project / "models" / RUN)
    assert len(run.load_plan().units) == 3
    return run


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`environment(...)` makes this process part of a job; variables of jobs are removed afterwards."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = dict(os.environ)

    def become(job: int = 7, element: int | None = None, **more: object) -> None:
        os.environ["SLURM_JOB_ID"] = str(job)
        if element is not None:
            os.environ.update(SLURM_ARRAY_JOB_ID=str(job), SLURM_ARRAY_TASK_ID=str(element))
        os.environ.update({name: str(value) for name, value in more.items()})

    become()
    yield become
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def script(monkeypatch):
    """Sets what the engines of this process do."""
    followed: dict[str, object] = {}

    def make_engine(plan):
        return (FeatureSpans if plan.stage == "feature_extractor" else SequenceSpans)(plan, script=followed)

    monkeypatch.setattr(door, "make_engine", make_engine)
    return followed


def launch_of(project, elements: int = 3, **options) -> LaunchDir:
    """Make a launch: an inference of features in RUN, then of the sequence network."""
    sequence = inference(project, "next", 3, "sequence", *FIXED, "sequence.weights=latest")
    return make_launch(
        project, [inference(project, RUN, elements, "feature_extractor", *FIXED), sequence], submitted=False, **options
    )


def outputs(project, key: str):
    return project / "DATA" / key / f"{key}_outputs.h5"


# ---------------------------------------------------------------------------------------------------- elements


@pytest.mark.parametrize(
    ("elements", "first", "index", "done"),
    [
        (3, 0, 1, {1}),
        (2, 0, 0, {0, 2}),
        (2, 0, 1, {1}),
        (1, 0, 0, {0, 1, 2}),
        (3, 2, 0, {2}),
        (3, 1, 1, {2}),
        (5, 0, 4, set()),
    ],
)
def test_an_element_does_every_so_many_units(project, run, script, environment, elements, first, index, done):
    environment(7, index)
    assert jobs.execute(launch_of(project, elements).load(), 0, first, StopFlag()) == 0
    assert run.finished_units() == done


def test_a_job_without_elements_does_all(project, run, script):
    assert jobs.execute(launch_of(project, 1).load(), 0, 0, StopFlag()) == 0
    assert run.finished_units() == {0, 1, 2}


def test_units_that_are_done_are_not_done_again(project, run, script):
    do_units(run, run.load_plan(), [0, 2])
    before = {unit: run.result_file(unit).stat().st_mtime_ns for unit in (0, 2)}
    jobs.execute(launch_of(project, 1).load(), 0, 0, StopFlag())
    assert {unit: run.result_file(unit).stat().st_mtime_ns for unit in (0, 2)} == before
    assert [len(read_attempts(run.unit_folder(unit))) for unit in (0, 1, 2)] == [0, 1, 0]


def test_elements_that_come_late_do_nothing_again(done, project, run, script):
    jobs.merge(done.load(), 0, StopFlag())
    assert jobs.execute(done.load(), 0, 0, StopFlag()) == 0
    assert not run.finished_units() and read_attempts(run.unit_folder(0)) == []


def test_where_an_element_is_can_be_read_from_its_host(project, run, script, environment):
    launch = launch_of(project, 2)
    environment(7, 0)
    jobs.execute(launch.load(), 0, 0, StopFlag())
    assert (launch.stage_folder(0) / "at-0").read_text() == "2"


def test_one_engine_does_all_units_of_an_element(project, run, script, environment, monkeypatch):
    made, make = [], door.make_engine
    monkeypatch.setattr(door, "make_engine", lambda plan: made.append(plan) or make(plan))
    launch = launch_of(project, 1).load()
    jobs.execute(launch, 0, 0, StopFlag())
    assert run.finished_units() == {0, 1, 2} and len(made) == 1
    jobs.execute(launch, 0, 0, StopFlag())
    assert len(made) == 1, "where all is done, none is made"


def test_a_worker_knows_the_cores_that_its_job_asked_for(project, run, script, environment, monkeypatch):
    seen, make = [], door.make_engine
    monkeypatch.setattr(door, "make_engine", lambda plan: seen.append(os.environ[CORES]) or make(plan))
    environment(7, 0, SLURM_CPUS_PER_TASK=3)
    jobs.execute(launch_of(project, 1).load(), 0, 0, StopFlag())
    assert seen == ["3"]


def test_attempts_are_noted_with_their_job(project, run, script, environment):
    environment(7, 1, SLURM_RESTART_COUNT=4)
    jobs.execute(launch_of(project).load(), 0, 0, StopFlag())
    (attempt,) = read_attempts(run.unit_folder(1))
    assert (attempt.job, attempt.restart, attempt.end) == ("7_1", 4, "done")


def test_a_stage_that_was_not_planned_has_nothing_to_do(project, run, script):
    assert jobs.execute(launch_of(project).load(), 1, 0, StopFlag()) == 0


def test_a_stopped_element_says_so_and_leaves_the_rest(project, run, script, environment):
    stop = StopFlag()
    stop.is_set = True
    environment(7, 0)
    assert jobs.execute(launch_of(project, 1).load(), 0, 0, stop) == 75
    assert run.finished_units() == set() and not read_attempts(run.unit_folder(1))


def test_a_fault_of_a_unit_does_not_end_the_others(project, run, script, environment, monkeypatch):
    real = door.run_unit

    def fail(run, plan, unit, *rest):
        if unit.index == 0:
            raise OSError(28, "No space left on device")
        real(run, plan, unit, *rest)

    monkeypatch.setattr(door, "run_unit", fail)
    assert jobs.execute(launch_of(project, 1).load(), 0, 0, StopFlag()) == 0
    assert run.finished_units() == {1, 2} and "No space left" in read_error(run, 0)


def test_a_worker_that_cannot_begin_ends_the_job(project, run, script):
    script["refuse"] = "the weights are damaged"
    assert jobs.execute(launch_of(project, 1).load(), 0, 0, StopFlag()) == 2
    assert run.finished_units() == set()


def test_a_job_by_its_environment():
    given = {"SLURM_JOB_ID": "41", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"}
    job = this_job(Cluster(restarts=5), {**given, "DEG_JOB_END": "2000", "DEG_STOP_AHEAD": "120"})
    assert (job.name, job.restart, job.most, job.ends) == ("40_3", 0, 5, 1880.0)
    job = this_job(Cluster(restarts=5), {"SLURM_JOB_ID": "41", "SLURM_RESTART_COUNT": "2"})
    assert (job.name, job.restart, job.ends) == ("41", 2, None)


@pytest.mark.parametrize("told", [{"DEG_JOB_END": "N/A", "DEG_STOP_AHEAD": "120"}, {"DEG_JOB_END": "2000"}])
def test_a_job_that_does_not_know_its_end(told):
    assert this_job(Cluster(restarts=5), {"SLURM_JOB_ID": "41", **told}).ends is None


@pytest.fixture
def signals():
    """Restores the signal handlers after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_job_ends_with_its_status(project, run, script, signals, capsys):
    launch = launch_of(project, 1)
    assert do("execute", str(launch.path), "0", "0") == 0 and run.finished_units() == {0, 1, 2}
    assert do("merge", str(launch.path.parent / "no_launch"), "0") == 2
    assert "expected a launch.json" in capsys.readouterr().err


def test_a_signal_stops_a_job_cleanly(project, run, script, signals, monkeypatch):
    monkeypatch.setattr(SequenceSpans, "run_span", None)
    real = FeatureSpans.run_span

    def then_a_signal(self, span):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        yield from real(self, span)

    monkeypatch.setattr(FeatureSpans, "run_span", then_a_signal)
    assert do("execute", str(launch_of(project, 1).path), "0", "0") == 75 and run.finished_units() == set()
    assert [attempt.end for attempt in read_attempts(run.unit_folder(0))] == ["stopped"]


# ---------------------------------------------------------------------------------------------------- merging


@pytest.fixture
def done(project, run):
    """A project in which all units are done."""
    do_units(run, run.load_plan())
    return launch_of(project)


def again(launch: LaunchDir, stage: int = 0) -> list[str] | None:
    path = launch.stage_folder(stage) / "again"
    return path.read_text().splitlines() if path.exists() else None


def test_a_stage_is_merged_and_the_next_one_planned(done, project, run):
    assert jobs.merge(done.load(), 0, StopFlag()) == 0
    assert done.verdict(0).state == "done" and run.is_merged() and again(done) is None
    for key, frames in LENGTHS.items():
        assert frame_numbers(outputs(project, key)).tolist() == list(range(frames))
    following = RunDir(project / "models" / "next")
    assert following.load_plan().stage == "sequence"


def test_after_the_last_stage_a_report_is_written_if_it_is_wanted(project, run, monkeypatch):
    written = []
    monkeypatch.setattr(jobs, "write_report", lambda of: written.append(of) or SimpleNamespace(exit_status=0))
    do_units(run, run.load_plan())
    stage = inference(project, RUN, 3, "feature_extractor", *FIXED)
    for report in (False, True):
        assert (
            jobs.merge(make_launch(project, [stage], name=f"launch_{report}", report=report).load(), 0, StopFlag()) == 0
        )
        assert written == [project] * report


def test_merging_a_second_time_does_no_harm(done, project):
    jobs.merge(done.load(), 0, StopFlag())
    before = outputs(project, "mouse_1").read_bytes()
    assert jobs.merge(done.load(), 0, StopFlag()) == 0
    assert done.verdict(0).state == "done" and outputs(project, "mouse_1").read_bytes() == before


def test_a_merge_job_that_was_killed_when_all_that_was_left_was_to_say_so(done, project, run):
    jobs.merge(done.load(), 0, StopFlag())
    run.done_file.unlink()
    assert jobs.merge(done.load(), 0, StopFlag()) == 0
    assert run.is_merged() and done.verdict(0).state == "done"


def test_a_stage_that_was_not_planned_only_leads_to_the_next(project, run):
    launch = make_launch(
        project, [inference(project, "nothing"), inference(project, "other", 3, "feature_extractor", *FIXED)]
    )
    assert jobs.merge(launch.load(), 0, StopFlag()) == 0 and launch.verdict(0).state == "done"
    assert (project / "models" / "other" / "plan.json").exists()


def test_a_stage_after_a_failed_one_is_not_merged(project, run):
    launch = launch_of(project)
    assert jobs.merge(launch.load(), 1, StopFlag()) == 1
    assert launch.verdict(1).state == "failed" and "infer feature_extractor is not done" in launch.verdict(1).message


def test_missing_units_are_asked_for(project, run):
    do_units(run, run.load_plan(), [0])
    launch = launch_of(project, array_size=2)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 75
    assert launch.verdict(0).state == "again" and "2 of its units" in launch.verdict(0).message
    assert again(launch) == ["0 1 - 1", "1 0 - 1"]
    assert not (project / "models" / "next").exists() and not run.is_merged()


def test_elements_are_asked_for_by_the_units_that_they_do(project, run):
    do_units(run, run.load_plan(), [1])
    launch = launch_of(project, 2)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 75 and again(launch) == ["0 0 - 1"]  # for units 0 and 2


def test_each_request_is_a_round_and_rounds_are_limited(project, run):
    do_units(run, run.load_plan(), [0, 1])
    launch = launch_of(project, restarts=3)
    for round in (1, 2, 3):
        assert jobs.merge(launch.load(), 0, StopFlag()) == 75
        assert again(launch) == [f"0 2 - {round}"]
        add_job(launch, str(round), 0, "execute", round=round)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 0
    assert launch.verdict(0).state == "partly" and not run.is_merged()
    assert frame_numbers(outputs(project, "mouse_1")).tolist() == list(range(LENGTHS["mouse_1"]))


def test_a_resumed_launch_gets_its_rounds_again(project, run):
    do_units(run, run.load_plan(), [0, 1])
    launch = launch_of(project, restarts=3)
    add_job(launch, "1", 0, "execute", round=3)
    add_job(launch, "2", 0, "execute", round=0)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 75
    assert again(launch) == ["0 2 - 1"]


def test_rounds_of_another_stage_do_not_count(project, run):
    launch = launch_of(project, restarts=1)
    add_job(launch, "1", 1, "execute", round=9)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 75


DONE, STOP, FAIL = {"event": "done"}, {"event": "stopped", "why": "signal"}, {"event": "failed", "message": "no GPU"}


def attempted(run: RunDir, unit: int, host: str, end: dict | int | None, job: str = "1") -> None:
    """Record an attempt that ends by itself, with an exit status, or without a trace."""
    started(run, unit, job, host)
    if isinstance(end, dict):
        ended(run, unit, **end)
    elif end is not None:
        exited(run, unit, job, end, host)


def test_hosts_that_fail_what_others_can_do_are_excluded(project, run):
    attempted(run, 0, "good", DONE)
    attempted(run, 1, "bad", FAIL)
    died(run, 2, "1", host="dead")
    do_units(run, run.load_plan(), [0])
    launch = launch_of(project)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 75
    assert again(launch) == ["0 1,2 bad,dead 1"]


@pytest.mark.parametrize(
    ("units", "excluded"),
    [
        ([("a", FAIL)], []),  # no host did anything: the unit may be at fault
        ([("a", DONE), ("b", FAIL)], ["b"]),
        ([("a", STOP), ("b", FAIL)], ["b"]),
        ([("a", DONE), ("a", FAIL)], []),  # this host had one success
        ([("a", DONE), ("b", 137)], ["b"]),
        ([("a", DONE), ("b", 143)], []),
        ([("a", DONE), ("b", None)], []),  # the end is unknown
    ],
)
def test_a_bad_host_did_nothing_well_where_others_did(project, run, units, excluded):
    for unit, (host, end) in enumerate(units):
        attempted(run, unit, host, end)
    assert bad_hosts(run.path) == excluded


def test_a_unit_that_kills_its_workers_is_given_up_and_the_rest_continues(project, run):
    do_units(run, run.load_plan(), [0, 1])
    for job in ("1", "2", "3"):
        started(run, 2, job, f"n{job}")
        exited(run, 2, job, 137)
    launch = launch_of(project)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 0
    verdict = launch.verdict(0)
    assert verdict.state == "partly" and "mouse_2" in verdict.message and "3 times" in verdict.message
    assert "3 times (on n1, n2, n3)" in read_error(run, 2)
    assert outputs(project, "mouse_1").exists() and not outputs(project, "mouse_2").exists()
    assert RunDir(project / "models" / "next").load_plan().videos.keys() == {"mouse_1"}


def test_two_deaths_are_not_enough(project, run):
    do_units(run, run.load_plan(), [0, 1])
    died(run, 2, "1", "2")
    assert jobs.merge(launch_of(project).load(), 0, StopFlag()) == 75
    assert read_error(run, 2) is None and units_left(run, 10) == [2]


def test_a_unit_that_failed_twice_keeps_its_own_reason(project, run):
    run.unit_folder(2).mkdir(parents=True)
    run.error_file(2).write_text(json.dumps({"message": "disk quota exceeded"}))
    for job in ("1", "2"):
        attempted(run, 2, "n1", FAIL, job=job)
    assert 2 not in units_left(run, 10) and read_error(run, 2) == "disk quota exceeded"


def test_a_labelled_recording_without_features_ends_the_launch(project, run):
    lines = [",background,groom,rear", *(f"{frame},1,0,0" for frame in range(30))]
    (project / "DATA" / "mouse_2" / "mouse_2_labels.csv").write_text("\n".join(lines) + "\n")
    do_units(run, run.load_plan(), faults={"mouse_2": "the file is damaged"})
    launch = launch_of(project)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 1
    assert launch.verdict(0).state == "failed" and "the file is damaged" in launch.verdict(0).message
    assert not (project / "models" / "next").exists()


def test_a_damaged_video_without_labels_is_named_and_the_chain_continues(project, run):
    do_units(run, run.load_plan(), faults={"mouse_2": "the file is damaged"})
    launch = launch_of(project)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 0
    assert launch.verdict(0).state == "partly" and "the file is damaged" in launch.verdict(0).message


def test_a_next_stage_that_cannot_be_planned_is_reported(done, project):
    for weights in project.glob("models/*sequence*/checkpoint.pt"):
        weights.unlink()
    assert jobs.merge(done.load(), 0, StopFlag()) == 2
    assert done.verdict(0).state == "failed" and "sequence" in done.verdict(0).message
    assert RunDir(project / "models" / RUN).is_merged()


def test_a_stopped_merge_job_leaves_no_verdict(done):
    stop = StopFlag()
    stop.is_set = True
    with pytest.raises(Stopped):
        jobs.merge(done.load(), 0, stop)
    assert done.verdict(0) is None and again(done) is None


def test_all_that_a_merge_job_decides_is_in_the_events(project, run):
    do_units(run, run.load_plan(), [0])
    launch = launch_of(project)
    jobs.merge(launch.load(), 0, StopFlag())
    do_units(run, run.load_plan(), [1, 2])
    jobs.merge(launch.load(), 0, StopFlag())
    events = [json.loads(line) for line in (launch.path / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event.get("units"), event.get("state")) for event in events] == [
        ("again", [1, 2], None),
        ("merged", None, "done"),
    ]


# ---------------------------------------------------------------------------------------------------- trainings


@pytest.fixture
def trained(tmp_path):
    """A training in two phases, planned by hand, and a launch with this stage alone."""
    project = tmp_path / "mice"
    plan = make_training_plan(tmp_path, phases=("spatial", "both"))
    made = create_run(
        project / "models", stage="sequence", kind="train", plan=plan, config={}, provenance={}, now=NOW, name="trained"
    )
    return made, make_launch(project, [training(project, "trained", "sequence")])


def test_a_training_is_asked_for_until_all_phases_are_done(trained):
    run, launch = trained
    leave_trained(run, 0)
    assert units_left(run, 10) == [1]
    assert jobs.merge(launch.load(), 0, StopFlag()) == 75 and again(launch) == ["0 - - 1"]


def test_a_training_that_gets_no_further_ends_the_launch_with_the_reason(trained):
    run, launch = trained
    died(run, 0, "1", "2", "3")
    assert units_left(run, 10) == []
    assert jobs.merge(launch.load(), 0, StopFlag()) != 0
    assert launch.verdict(0).state == "failed" and "3 times" in launch.verdict(0).message


def test_a_training_that_is_done_is_closed_and_the_next_stage_planned(tmp_path):
    project = make_labelled_project(tmp_path / "mice")
    words = ("compute.devices=1", *WORDS)
    assert (
        cli.run(["train", "flow_generator", str(project), *words, "--run", "flow", "--on", "slurm", "--only", "plan"])
        == 0
    )
    run = RunDir(project / "models" / "flow")
    more = (*words, "flow_generator.weights=latest", "feature_extractor.weights=random")
    following = training(project, "features", "feature_extractor", *more)
    launch = make_launch(project, [training(project, "flow", "flow_generator", *words), following])
    leave_trained(run, 0)
    assert jobs.merge(launch.load(), 0, StopFlag()) == 0
    assert run.done_file.exists() and launch.verdict(0).state == "done"
    weights = RunDir(project / "models" / "features").load_training_plan().weights
    assert weights["flow_generator"].path.is_relative_to(run.path)


def test_ranks_do_all_phases_that_are_left(trained, monkeypatch, environment):
    run, launch = trained
    did = []

    def train(words, stop, begins):
        begins(int(words[1]))
        did.append(int(words[1]))
        leave_trained(run, int(words[1]))
        return 0

    monkeypatch.setattr(door, "main", train)
    environment(7, SLURM_PROCID=0)
    assert jobs.execute(launch.load(), 0, 0, StopFlag()) == 0 and did == [0, 1]
    assert jobs.execute(launch.load(), 0, 0, StopFlag()) == 0 and did == [0, 1]
    assert (launch.stage_folder(0) / "at-0").read_text() == "1"


def test_ranks_that_are_not_the_first_wait_for_it(trained, monkeypatch, environment):
    run, launch = trained
    seen = []
    monkeypatch.setattr(door, "main", lambda words, stop, begins: seen.append(words[1]) or begins(0) or 0)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: leave_trained(run, int(seen[-1])))
    environment(7, SLURM_PROCID=1, SLURM_LOCALID=1)
    assert jobs.execute(launch.load(), 0, 0, StopFlag()) == 0 and seen == ["0", "1"]
    assert not (launch.stage_folder(0) / "at-0").exists()


@pytest.mark.parametrize("status", [2, 3, 75])
def test_a_rank_that_ends_ends_its_job(trained, monkeypatch, status):
    run, launch = trained
    monkeypatch.setattr(door, "main", lambda words, stop, begins: status)
    assert jobs.execute(launch.load(), 0, 0, StopFlag()) == status and not run.phase_done_file(0).exists()


# ---------------------------------------------------------------------------------------------------- asking


@pytest.mark.parametrize(
    ("size", "elements", "lines"),
    [
        (1000, [0, 5, 7], ["0 0,5,7 - 2"]),
        (4, [0, 5, 7, 11], ["0 0 - 2", "1 1,3 - 2", "2 3 - 2"]),
        (1, [3], ["3 0 - 2"]),
    ],
)
def test_elements_are_asked_for_by_array_and_index(tmp_path, size, elements, lines):
    launch = make_launch(tmp_path, [inference(tmp_path, RUN, 12)], array_size=size)
    launch.stage_folder(0).mkdir(parents=True, exist_ok=True)
    jobs.ask_again(launch.load(), 0, elements, [], 2)
    assert again(launch) == lines
