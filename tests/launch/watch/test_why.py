"""Why launches and runs are not done: from what jobs leave behind, and what a scheduler says."""

from __future__ import annotations

import json
import shlex

import pytest
from scenes.launch import BEGAN, ended, exited, make_launch, output, plan_stage, queued, started
from scenes.project import make_project
from scenes.run import do_units, make_plan, make_run
from scenes.training import leave_trained
from shims import Shims

from deg.launch import cli
from deg.launch.scheduler.launches import Verdict
from deg.launch.scheduler.queue import JobState, parse_squeue
from deg.launch.watch.causes import in_hours, state_at, why_it_died
from deg.launch.watch.symptoms import WAITS, symptom_of, wait_in_words, waits_in_vain
from deg.launch.watch.target import Queue
from deg.launch.watch.why import explain_launch, explain_run
from deg.runs.attempts import Attempt
from deg.runs.merge import finish, merge


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "mice", {"m": 20})


@pytest.fixture
def shims(tmp_path, monkeypatch):
    """A site without accounts, unless a test gives some."""
    shims = Shims(tmp_path / "bin", monkeypatch)
    shims("sacct", errors="Slurm accounting storage is disabled", status=1)
    shims("squeue")
    return shims


@pytest.fixture
def launch(project, shims):
    launch = make_launch(project)
    plan_stage(launch)
    return launch


def run_of(launch, index=0):
    return launch.load().run_of(index)


def ask(launch, *lines, problem=""):
    return explain_launch(launch, Queue(parse_squeue("".join(lines)), problem), launch.load().project)


def causes(found) -> dict[str, str]:
    return {finding.kind: finding.cause for finding in found.findings}


def resume(launch, *options: str) -> str:
    return shlex.join(["deg", "resume", str(launch.load().project), *options])


# ---------------------------------------------------------------------------------------------------- what ended it


def test_out_of_memory_as_the_host_saw_it(launch):
    started(run_of(launch), 2, "10_2", "n2")
    exited(run_of(launch), 2, "10_2", 137, "n2", oom_kills=1)
    found = ask(launch)
    assert "Out of memory" in causes(found)["memory"] and "unit 2, on n2" in causes(found)["memory"]
    assert "the kernel killed 1 of its processes" in found.findings[0].evidence[0]
    assert found.command == resume(launch, "cluster.memory_gb=64")


def test_out_of_memory_as_only_a_step_in_the_accounts_knows(launch, shims):
    started(run_of(launch), 2, "10_2", "n2")
    exited(run_of(launch), 2, "10_2", 1, "n2")
    shims(
        "sacct",
        f"10_2|FAILED|n2|{int(BEGAN)}|00:01:00|04:00:00|1:0|None\n10_2.0|OUT_OF_MEMORY|n2|1|00:01:00||0:125|\n",
    )
    assert "memory" in causes(ask(launch))
    assert "--duplicates" in shims.calls("sacct")[0]


def test_out_of_memory_as_its_last_words_say(launch):
    started(run_of(launch), 2, "10_2")
    exited(run_of(launch), 2, "10_2", 137)
    output(launch, "10_2", errors="slurmstepd: error: Detected 1 oom_kill event in StepId=12.0.\n")
    assert "memory" in causes(ask(launch))


def test_memory_of_the_gpu_in_a_training_wants_a_smaller_batch(project, shims):
    launch = make_launch(project, ("train sequence",))
    plan_stage(launch)
    started(run_of(launch), 0, "10")
    ended(run_of(launch), 0, "failed", message="CUDA out of memory. Tried to allocate 2 GiB")
    found = ask(launch)
    assert "Out of GPU memory" in causes(found)["gpu_memory"]
    assert found.command == f"deg train sequence {project} compute.batch_size=16 --on slurm"


def test_a_unit_that_takes_longer_than_the_limit(launch):
    run = run_of(launch)
    for restart in (0, 1):
        started(run, 3, "10_3", restart=restart)
        ended(run, 3, "stopped", why="time limit")
    run.log_event("unit_done", unit=0, seconds=20000.0, frames=1000)
    found = ask(launch)
    assert "Stopped by the time limit (4:00:00)" in causes(found)["time_limit"]
    assert found.command == resume(launch, "cluster.time=8:30:00")


def test_a_time_limit_that_is_enough_is_not_raised(launch):
    started(run_of(launch), 3, "10_3")
    ended(run_of(launch), 3, "stopped", why="time limit")
    run_of(launch).log_event("unit_done", unit=0, seconds=200.0, frames=1000)
    assert ask(launch).command == resume(launch)


def test_a_training_that_does_not_get_anywhere_within_the_limit_wants_twice_as_long(project, shims):
    launch = make_launch(project, ("train sequence",), time="30:00:00")
    plan_stage(launch)
    started(run_of(launch), 0, "10")
    ended(run_of(launch), 0, "stopped", why="time limit")
    assert ask(launch).command == resume(launch, "cluster.time=2-12:00:00")


def test_a_node_that_fails_what_others_can_do(launch):
    run = run_of(launch)
    for unit in (0, 1):
        started(run, unit, f"10_{unit}", "n3")
        ended(run, unit, "failed", message="the GPU has fallen off the bus")
    started(run, 0, "12_0", "n1")
    ended(run, 0)
    found = ask(launch)
    bad = next(finding for finding in found.findings if finding.kind == "bad_node")
    assert "n3" in bad.cause
    assert bad.evidence == ("unit 0 failed on n3, done on n1 afterwards", "unit 1 failed on n3")
    assert found.command == resume(launch, 'cluster.sbatch=["exclude=n3"]')


def test_a_node_that_was_lost(launch):
    started(run_of(launch), 1, "10_1", "n2")
    assert "The node failed" in causes(ask(launch))["node"]


def test_preemption_is_counted(launch, shims):
    run = run_of(launch)
    for restart in (0, 1):
        started(run, 1, "10_1", restart=restart, at=BEGAN + 1000 * restart)
        ended(run, 1, "stopped", why="signal")
    started(run, 1, "10_1", restart=2, at=BEGAN + 2000)
    shims("sacct", f"10_1|PREEMPTED|n1|{int(BEGAN) + 2000}|1:00|4:00:00|0:0|None\n")
    assert "3 times" in causes(ask(launch, queued("10_1", "PENDING", "BeginTime", start=None)))["preempted"]


def test_a_unit_that_was_given_up(launch):
    run_of(launch).unit_folder(1).mkdir(parents=True)
    run_of(launch).error_file(1).write_text('{"message": "its worker was killed 3 times (on n1)"}')
    found = ask(launch)
    assert "unit 1" in causes(found)["given_up"]
    assert found.findings[0].evidence == ("unit 1: its worker was killed 3 times (on n1)",)


def test_what_dies_again_and_again_without_a_known_cause_is_to_be_looked_at(launch):
    run = run_of(launch)
    for restart in range(3):
        started(run, 1, "10_1", restart=restart)
        exited(run, 1, "10_1", 1, restart=restart)
    output(launch, "10_1", errors="RuntimeError: something new\n")
    assert ask(launch).command == resume(launch)
    run.error_file(1).write_text('{"message": "its worker was killed 3 times (on n1)"}')
    found = ask(launch)
    assert found.command == f"deg logs {launch.load().project}"
    assert "RuntimeError: something new" in found.findings[0].evidence


def test_a_corrupt_video_is_told_with_its_frame(project, shims):
    launch = make_launch(project)
    run, plan = plan_stage(launch)
    reason = "decoding ended at frame 1234"
    do_units(run, plan, faults={"b": reason})
    found = ask(launch)
    assert causes(found)["recordings"].startswith("1 recording(s)") and reason in found.findings[0].evidence[0]
    assert found.command == f"deg check {project} --deep"
    finish(run, merge(run, plan))
    launch.set_verdict(0, Verdict("partly", "b"))
    found = ask(launch)
    assert reason in found.findings[0].evidence[0] and found.command == f"deg check {project} --deep"
    assert found.summary == "Done, except for some recordings: infer feature_extractor."


def test_a_job_that_ended_before_its_work_began(launch):
    exited(run_of(launch), 0, "10_0", 255)
    output(launch, "10_0", errors="FATAL:   could not open image /shared/deg.sif: no such file\n")
    found = ask(launch)
    assert "The image is missing" in causes(found)["no_image"]
    assert any("could not open image" in line for line in found.findings[0].evidence)


def test_a_driver_that_is_too_old_sends_to_the_image(project, shims):
    launch = make_launch(project, image=project / "deg.sif")
    plan_stage(launch)
    exited(run_of(launch), 0, "10_0", 1)
    output(launch, "10_0", errors="RuntimeError: The NVIDIA driver on your system is too old (found version 11040).\n")
    assert ask(launch).command == f"deg image check {project / 'deg.sif'}"


def test_another_version_in_the_image(project, shims):
    found = ask(make_launch(project, image=project / "deg.sif", deg="0.0.1"))
    assert "deg 0.0.1" in causes(found)["version"]


def test_a_merge_job_that_died_tells_its_last_words(launch):
    output(launch, "11", errors="Traceback\nOSError: No space left on device\n")
    assert "disk is full" in causes(ask(launch))["disk"]
    output(launch, "11", errors="something odd\n")
    found = ask(launch)
    assert found.findings[0].kind == "merge" and "something odd" in found.findings[0].evidence


def test_a_stage_that_failed_says_why(launch):
    launch.set_verdict(0, Verdict("failed", "labels of a are missing", 2))
    found = ask(launch)
    assert "labels of a are missing" in causes(found)["merge"] and found.state == "failed"


def test_what_was_cancelled(launch):
    launch.log_event("cancelled")
    started(run_of(launch), 1, "10_1")
    found = ask(launch, queued("10_1", "CANCELLED"))
    assert found.command == resume(launch) and "It was cancelled" in found.summary


def test_what_all_causes_ask_for_is_one_command(launch):
    run = run_of(launch)
    started(run, 2, "10_2")
    exited(run, 2, "10_2", 137, oom_kills=2)
    started(run, 3, "10_3")
    ended(run, 3, "stopped", why="time limit")
    assert ask(launch).command == resume(launch, "cluster.memory_gb=64", "cluster.time=8:00:00")


# ---------------------------------------------------------------------------------------------------- what it waits for


def test_all_is_well(launch):
    started(run_of(launch), 0, "10_0")
    found = ask(launch, queued("10_0"), queued("11", "PENDING", "Dependency"))
    assert found.summary == "Running without problems: infer feature_extractor."
    assert (found.findings, found.command) == ((), None)


def test_what_went_wrong_and_is_being_mended(launch):
    started(run_of(launch), 0, "10_0")
    exited(run_of(launch), 0, "10_0", 137, oom_kills=1)
    found = ask(launch, queued("10_1"))
    assert found.summary == "Running in spite of problems: infer feature_extractor."
    assert "memory" in causes(found) and found.command is None


def test_a_queue_that_is_long(launch):
    found = ask(launch, queued("10_[0-3]", "PENDING", "Priority"))
    assert (
        "4 jobs: other jobs are ahead of it in the queue (Priority)" in causes(found)["queue"] and found.command is None
    )


def test_a_wait_that_time_does_not_end(launch):
    found = ask(launch, queued("10_0", "PENDING", "PartitionTimeLimit"))
    assert "more than this partition allows" in causes(found)["queue"]
    assert found.command == f"deg cancel {launch.load().project}"


def test_a_dependency_that_will_never_be_met(launch):
    found = ask(launch, queued("11", "PENDING", "DependencyNeverSatisfied"))
    assert "will never run" in causes(found)["dependency"] and found.command.startswith("deg cancel")


def test_a_queue_that_cannot_be_asked_is_told(launch):
    assert ask(launch, problem="squeue: not found").findings[-1].evidence == ("squeue: not found",)


def test_every_reason_of_the_table_is_found_again():
    found = {reason: wait_in_words(reason) for reason, _ in WAITS}
    lost = [reason for reason, words in found.items() if not words.endswith(f"({reason})") or "scheduler says" in words]
    assert not lost, "\n".join(lost)


def test_reasons_with_details_and_unknown_ones():
    assert wait_in_words("ReqNodeNotAvail, UnavailableNodes:n[1-2]").startswith("nodes that it needs")
    assert wait_in_words("AssocGrpGRES").startswith("your group") and wait_in_words("QOSMaxGRESPerUser").startswith(
        "you"
    )
    assert wait_in_words("Moonlight") == "the scheduler says Moonlight"
    assert waits_in_vain("launch_failed_requeued_held") and not waits_in_vain("QOSMaxGRESPerUser")


# ---------------------------------------------------------------------------------------------------- pure


@pytest.mark.parametrize(
    ("status", "oom", "state", "kind"),
    [
        (137, 1, "", "memory"),
        (137, 0, "OUT_OF_MEMORY", "memory"),
        (137, None, "TIMEOUT", "time_limit"),
        (137, None, "NODE_FAIL", "node"),
        (137, 0, "", "killed"),
        (139, None, "FAILED", "killed"),
        (143, None, "", "preempted"),
        (None, None, "", "node"),
        (None, None, "CANCELLED", "cancelled"),
    ],
)
def test_what_an_attempt_died_of(status, oom, state, kind):
    attempt = Attempt("1", 0, "n1", 10.0, ended=20.0, status=status, oom_kills=oom)
    assert why_it_died(attempt, state, None) == kind


def test_of_a_job_that_was_put_back_each_time_is_told_apart():
    said = [JobState("1", "NODE_FAIL", start=100.0), JobState("1", "OUT_OF_MEMORY", start=1000.0)]
    assert state_at(Attempt("1", 0, "n1", 105.0), said) == "NODE_FAIL"
    assert state_at(Attempt("1", 1, "n1", 1005.0), said) == "OUT_OF_MEMORY"
    assert state_at(Attempt("2", 1, "n1", 1005.0), said) == ""


def test_a_harmless_line_is_no_symptom():
    assert symptom_of(["WARNING out of memory: continuing with batches of 8"]) is None
    assert symptom_of([]) is None


@pytest.mark.parametrize(("seconds", "text"), [(1, "0:30:00"), (3600, "1:00:00"), (30 * 3600 + 1, "1-06:30:00")])
def test_a_time_limit_in_words_of_the_scheduler(seconds, text):
    assert in_hours(seconds) == text


# ---------------------------------------------------------------------------------------------------- this machine


def test_a_run_of_this_machine_at_work(project):
    run = make_run(project, make_plan(project, {"a": 40}))
    with run.claimed():
        found = explain_run(run, project)
    assert found.summary == "Running: 0 of 1 units done." and found.command is None


def test_a_run_of_this_machine_whose_workers_were_killed(project):
    run = make_run(project, make_plan(project, {"a": 40}))
    with run.claimed():
        run.log_event("worker_died", unit=0, status=-9)
    (run.path / "jobs").mkdir()
    (run.path / "jobs" / "local-0.log").write_text("last words\n")
    found = explain_run(run, project)
    assert "has ended" in found.summary and found.command == f"deg resume {project}"
    assert any("SIGKILL" in line for line in found.findings[0].evidence) and "last words" in found.findings[0].evidence


def test_deaths_of_an_earlier_time_are_past(project):
    run = make_run(project, make_plan(project, {"a": 40}))
    run.log_event("worker_died", unit=0, status=-9)
    with run.claimed():
        pass
    assert explain_run(run, project).findings == ()


def test_a_run_of_this_machine_that_is_done(project):
    plan = make_plan(project, {"a": 40, "b": 40})
    run = make_run(project, plan)
    do_units(run, plan, faults={"b": "the video ends at frame 3"})
    finish(run, merge(run, plan))
    found = explain_run(run, project)
    assert found.command == f"deg check {project} --deep" and "frame 3" in found.findings[0].evidence[0]


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_causes_and_what_to_do(launch, capsys):
    started(run_of(launch), 2, "10_2", "n2")
    exited(run_of(launch), 2, "10_2", 137, "n2", oom_kills=1)
    assert cli.run(["why", str(launch.path)]) == 0
    shown = capsys.readouterr().out
    assert "Out of memory" in shown and f"deg resume {launch.path} cluster.memory_gb=64" in shown
    assert cli.run(["why", str(launch.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "memory"


def test_a_chain_is_explained_from_its_first_stage_that_is_not_done(project, shims):
    launch = make_launch(project, ("train sequence", "infer sequence"))
    run, _ = plan_stage(launch, 0)
    leave_trained(run, 0)
    run.done_file.write_text("{}")
    launch.set_verdict(0, Verdict("done"))
    found = ask(launch)
    assert found.state == "stalled" and "infer sequence" in found.findings[0].cause
