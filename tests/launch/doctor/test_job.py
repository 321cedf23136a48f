"""The doctor's job is submitted to a stand-in for Slurm, requeued, waited for, read and judged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from deg.errors import RunError
from deg.launch.doctor import job as doctor_job
from deg.launch.doctor import ranks
from deg.launch.doctor.job import JobDir, Submitted
from deg.launch.findings import Finding
from deg.options.schema import Cluster

# the nodes of the stand-in are only names
CLUSTER = Cluster(gpus_per_node=None, cpus_per_task=1, memory_gb=None, setup=("export MASTER_ADDR=127.0.0.1",))


def by_check(findings) -> dict[str, Finding]:
    return {found.check: found for found in findings}


@pytest.fixture
def run_job(tmp_path):
    """`run_job(cluster, seconds)` returns the job's folder, its submission, and the findings by check."""

    def run(cluster=CLUSTER, seconds=120.0):
        (tmp_path / "project").mkdir(exist_ok=True)
        job = doctor_job.new_folder(tmp_path / "project")
        submitted = doctor_job.submit(job, cluster, [Finding("deg", "ok", "here")])
        state = doctor_job.wait(job, submitted, seconds, lambda _: None)
        return job, submitted, by_check(doctor_job.read_findings(job, submitted, state))

    return run


@pytest.mark.slow
def test_a_job_that_does_not_begin_is_cancelled(recorder, run_job):
    _, submitted, found = run_job(seconds=2.0)
    assert found["job"].state == "fault" and "did not begin" in found["job"].found
    assert recorder.jobs()[submitted.job].states == {submitted.job: "CANCELLED"}


@pytest.mark.slow
def test_ranks_that_cannot_start_are_told_in_their_own_words(fake_slurm, run_job, monkeypatch):
    monkeypatch.setattr(doctor_job, "LATE_FILES_SECONDS", 0.5)
    monkeypatch.setattr(doctor_job, "ASK_SECONDS", 0.5)
    broken = replace(CLUSTER, setup=("echo no such licence >&2; exit 3",))
    job, submitted, found = run_job(broken, seconds=60.0)
    assert found["job"].state == "fault"
    assert "no such licence" in found["job"].found and "srun ended with 3" in found["job"].found
    assert found["requeueing"].state == "not tried"
    again, loaded = doctor_job.load(job.path)
    assert loaded == submitted and by_check(doctor_job.read_findings(again, loaded, "FAILED")) == found


@pytest.mark.parametrize(
    ("nodes", "gpus", "wanted"),
    [(1, None, (1, 2, 0)), (1, 1, (1, 2, 1)), (1, 4, (1, 2, 2)), (4, 4, (2, 1, 1)), (None, 1, (1, 2, 1))],
)
def test_the_job_is_small(nodes, gpus, wanted):
    cluster = Cluster(nodes=nodes, gpus_per_node=gpus, cpus_per_task=32, memory_gb=100.0)
    need = doctor_job.doctor_need(cluster)
    assert (need.nodes, need.tasks_per_node, need.gpus_per_node) == wanted
    small = doctor_job.small(cluster)
    assert (small.cpus_per_task, small.memory_gb, small.requeue, small.stop_ahead) == (4, 8.0, True, None)


def test_the_job_keeps_a_shorter_time_limit():
    assert doctor_job.doctor_need(Cluster(time="0:02:00")).time == "2"
    assert doctor_job.doctor_need(Cluster(time="1-0")).time == "5"


def test_the_folder_lies_among_the_runs_of_a_project(tmp_path):
    (tmp_path / "project" / "models").mkdir(parents=True)
    assert doctor_job.new_folder(tmp_path / "project").path.parent == tmp_path / "project" / "models"
    (tmp_path / "plain").mkdir()
    assert doctor_job.new_folder(tmp_path / "plain").path.parent == tmp_path / "plain"


def test_a_folder_without_a_job_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no readable job\.json"):
        doctor_job.load(tmp_path)


@pytest.mark.parametrize(
    ("facts", "state", "profile"),
    [
        ({"restarted": True}, "ok", {}),
        ({"status": "1", "said": "Access denied"}, "warning", {"requeue": False}),
        ({"status": "1", "said": "Access denied", "wanted": False}, "ok", {}),
        ({"status": "0"}, "warning", {}),
        ({"status": None}, "warning", {}),
        ({"asked": False}, "not tried", {}),
    ],
)
def test_the_right_to_requeue_is_judged(facts, state, profile):
    usual = {"asked": True, "status": "0", "said": "", "restarted": False, "wanted": True}
    found = doctor_job.judge_requeue(**{**usual, **facts})
    assert (found.state, found.profile) == (state, profile)


@pytest.mark.parametrize(
    ("left", "known"),
    [
        ([], True),
        (["requeue.asked"], False),
        (["requeue.asked", "requeue.status"], False),
        (["requeue.asked", "requeue.status", "restarted"], True),
    ],
)
def test_a_granted_requeueing_is_waited_for(left, known, tmp_path):
    for name in left:
        (tmp_path / name).write_text("0")
    assert JobDir(tmp_path).requeueing_is_known() is known


def test_a_refused_requeueing_is_not_waited_for(tmp_path):
    (tmp_path / "requeue.asked").touch()
    (tmp_path / "requeue.status").write_text("1\n")
    assert JobDir(tmp_path).requeueing_is_known()


def test_what_was_submitted_can_be_read_again():
    submitted = Submitted("12", 2, True, (Finding("deg", "fault", "old", "new", "do", {"gpu_flag": "gres"}, "n1"),))
    assert Submitted.from_json(submitted.to_json()) == submitted


# ------------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize(
    ("received", "child", "status", "state"),
    [(1, 0, "0", "ok"), (2, 1, "0", "ok"), (0, 0, "0", "fault"), (0, 0, "127", "warning"), (0, 0, None, "warning")],
)
def test_the_signal_is_judged(received, child, status, state):
    assert ranks.judge_signal(received, child, status, "").state == state


def test_an_image_that_the_signal_takes_away_is_told():
    assert ranks.judge_image_life(True).state == "ok"
    assert "--sandbox" in ranks.judge_image_life(False).remedy


def test_a_site_without_signals_is_told_what_to_write():
    assert ranks.judge_signal(0, 0, "0", "").profile == {"stop_ahead": None}


@pytest.mark.parametrize(("seconds", "state"), [(0.2, "ok"), (45.0, "warning"), (None, "fault")])
def test_files_that_come_late_are_told(seconds, state):
    assert ranks.judge_meeting(2, seconds).state == state


@pytest.mark.parametrize(
    ("uid_map", "user", "mode"),
    [
        ("         0          0 4294967295\n", 0, "root"),
        ("         0          0 4294967295\n", 1000, "setuid"),
        ("      1000       1000          1\n", 1000, "user namespaces"),
    ],
)
def test_the_mode_of_apptainer_is_seen_from_inside(uid_map, user, mode):
    assert ranks.judge_mode(uid_map, user).found == mode


def test_the_place_of_a_rank_is_as_srun_sets_it():
    environment = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURMD_NODENAME": "n2"}
    assert ranks.Seat.of(environment) == ranks.Seat(3, 4, 1, "n2")


def test_what_the_ranks_need_to_know_comes_through():
    request = ranks.Request(image=True, gpus_per_node=2, cpus_per_task=None, memory_gb=8.0)
    assert ranks.Request.from_json(request.to_json()) == request
    assert json.loads(request.to_json())["image"] is True
