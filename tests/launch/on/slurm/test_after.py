"""after.sh, run by bash as on a compute node: how it records, requeues and resubmits a job that ended."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from scenes.launch import inference, make_launch, submitted, training
from shims import Shims

from deg.launch.on.slurm.jobs import ask_again
from deg.launch.scheduler.launches import LaunchDir
from deg.runs.attempts import read_attempts, read_exit

AFTER = Path(str(files("deg.launch.on.slurm") / "after.sh"))
COUNT = 'n=$(cat "$0.count" 2>/dev/null || echo 90); n=$((n + 1)); echo $n >"$0.count"; echo "$n;the_cluster"'
"""Answers of `sbatch --parsable` on a federation: 91, 92..."""


@pytest.fixture
def shims(tmp_path, monkeypatch):
    found = Shims(tmp_path / "bin", monkeypatch)
    found("sbatch", then=COUNT)
    found("scontrol")
    found("squeue", "RUNNING\n")
    return found


@pytest.fixture
def launch(tmp_path) -> LaunchDir:
    """A launch in a folder with a space in its name: an inference by 5 elements in arrays of 3, then a training."""
    project = tmp_path / "my project"
    made = make_launch(
        project, [inference(project, "the run", 5), training(project, "other")], array_size=3, submitted=False
    )
    for index in (0, 1):
        folder = made.stage_folder(index)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("execute-0", "execute-1", "merge"):
            (folder / f"{name}.sh").write_text(f"#!/bin/sh\n# {name}\n")
            (folder / f"{name}.pkl").write_bytes(f"{index} {name}".encode())
    (made.path.parent / "the run").mkdir()
    (made.path.parent / "other").mkdir()
    return made


@pytest.fixture
def after(shims, launch, monkeypatch):
    """`after(status, "execute", ...)` runs the script as that job and returns its exit status."""

    def after(status: int, *words: object, element: int | None = None, restart: int | None = None) -> int:
        monkeypatch.setenv("SLURM_JOB_ID", "50")
        if element is not None:
            monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(element))
        if restart is not None:
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        command = ["bash", str(AFTER), str(status), str(launch.path), *map(str, words)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "unbound variable" not in ended.stderr and "syntax" not in ended.stderr, ended.stderr
        return ended.returncode

    return after


def unit(launch: LaunchDir, index: int = 0, run: str = "the run") -> Path:
    return launch.path.parent / run / "units" / f"{index:05d}"


def execute(launch: LaunchDir, stage: int = 0, first: int = 0, requeue: str = "yes", run: str = "the run") -> tuple:
    return ("execute", stage, first, launch.path.parent / run, requeue)


# ---------------------------------------------------------------------------------------------------- computing


@pytest.mark.parametrize("status", [0, 1, 75, 137, 143])
def test_how_a_job_ended_is_noted_beside_its_unit(after, launch, status):
    assert after(status, *execute(launch)) == status
    exit = read_exit(unit(launch))
    assert (exit.job, exit.restart, exit.host, exit.status) == ("50", 0, socket.gethostname(), status)
    assert abs(exit.time - (unit(launch) / "exit.json").stat().st_mtime) < 60
    assert json.loads((unit(launch) / "exit.json").read_text())["oom_kills"] is None or exit.oom_kills >= 0
    attempts = [(attempt.status, attempt.host) for attempt in read_attempts(unit(launch))]
    assert attempts == ([] if status == 0 else [(status, socket.gethostname())])
    assert sorted(path.name for path in unit(launch).iterdir()) == ["attempts.jsonl", "exit.json"][status == 0 :]


def test_an_element_is_told_by_its_array_and_its_life(after, launch):
    after(137, *execute(launch, first=3), element=1, restart=2)
    exit = read_exit(unit(launch, 4))
    assert (exit.job, exit.restart) == ("40_1", 2)


def test_the_unit_is_the_one_that_the_element_was_at(after, launch):
    (launch.stage_folder(0) / "at-4").write_text("14")
    after(137, *execute(launch, first=3), element=1)
    assert read_exit(unit(launch, 14)).status == 137 and not unit(launch, 4).exists()


def test_a_stage_that_had_nothing_to_do_leaves_nothing(after, launch):
    run = launch.path.parent / "the run"
    run.rmdir()
    assert after(0, *execute(launch)) == 0
    assert not run.exists()


@pytest.mark.parametrize(
    ("status", "requeue", "put_back"),
    [
        (75, "yes", True),
        (143, "yes", True),
        (140, "yes", True),
        (75, "no", False),
        (143, "no", False),
        (0, "yes", False),
        (1, "yes", False),
        (3, "yes", False),
        (137, "yes", False),
    ],
)
def test_what_was_stopped_is_put_back_where_that_is_allowed(after, launch, shims, status, requeue, put_back):
    assert after(status, *execute(launch, requeue=requeue)) == status
    assert shims.calls("scontrol") == (["requeue 50"] if put_back else [])
    assert shims.calls("sbatch") == []


def test_what_somebody_cancelled_is_not_put_back(after, launch, shims):
    shims("squeue", "COMPLETING\n")
    assert after(75, *execute(launch)) == 75 and read_exit(unit(launch)).status == 75
    assert shims.calls("scontrol") == []


def test_an_element_is_put_back_by_itself(after, launch, shims):
    after(75, *execute(launch), element=2)
    assert shims.calls("scontrol") == ["requeue 40_2"]


def test_a_site_that_refuses_leaves_it_to_the_merge_job(after, launch, shims):
    shims("scontrol", errors="Requested operation is presently disabled", status=1)
    assert after(75, *execute(launch)) == 75 and read_exit(unit(launch)).status == 75


# ---------------------------------------------------------------------------------------------------- merging

MERGE = ("merge", 0, "yes")


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_merge_job_that_has_its_answer_ends_with_it(after, launch, shims, status):
    assert after(status, *MERGE) == status
    assert shims.calls("sbatch") == shims.calls("scontrol") == [] and launch.jobs() == []


def test_what_was_asked_for_is_computed_and_merged_again(after, launch, shims):
    ask_again(launch.load(), 0, [0, 2, 4], ["n2", "n3"], 1)
    assert after(75, *MERGE) == 0
    folder = launch.stage_folder(0)
    assert shims.calls("sbatch") == [
        f"--parsable --dependency= --array=0,2 --exclude=n2,n3 {folder}/execute-0.sh",
        f"--parsable --dependency= --array=1 --exclude=n2,n3 {folder}/execute-1.sh",
        f"--parsable --dependency=afterany:91,afterany:92 {folder}/merge.sh",
    ]
    assert [job.job for job in launch.jobs()] == ["91", "92", "93"]
    assert submitted(launch) == [(0, "execute", (0, 2), 1), (0, "execute", (1,), 1), (0, "merge", None, 1)]
    assert not (folder / "again").exists()


def test_the_new_jobs_find_their_work(after, launch):
    ask_again(launch.load(), 0, [0, 2, 4], [], 1)
    after(75, *MERGE)
    found = {path.name: path.read_bytes() for path in launch.jobs_folder.glob("*.pkl")}
    assert found == {
        "91_0_submitted.pkl": b"0 execute-0",
        "91_2_submitted.pkl": b"0 execute-0",
        "92_1_submitted.pkl": b"0 execute-1",
        "93_submitted.pkl": b"0 merge",
    }


def test_a_training_is_asked_for_as_one_job(after, launch, shims):
    ask_again(launch.load(), 1, [0], [], 4)
    assert after(75, "merge", 1, "yes") == 0
    folder = launch.stage_folder(1)
    assert shims.calls("sbatch") == [
        f"--parsable --dependency= {folder}/execute-0.sh",
        f"--parsable --dependency=afterany:91 {folder}/merge.sh",
    ]
    assert submitted(launch) == [(1, "execute", None, 4), (1, "merge", None, 4)]
    assert (launch.jobs_folder / "91_submitted.pkl").read_bytes() == b"1 execute-0"


def test_jobs_that_waited_for_the_merge_job_wait_for_the_new_one(after, launch, shims):
    waiting = ("51|afterok:50(unfulfilled)", "52|afterany:51(unfulfilled)", "53|afterok:9,afterok:50", "54|afterok:500")
    shims("squeue", "\n".join([*waiting, "55|\n"]))
    ask_again(launch.load(), 0, [0], [], 1)
    assert after(75, *MERGE) == 0
    assert shims.calls("scontrol") == [
        "update JobId=51 Dependency=afterok:92",
        "update JobId=53 Dependency=afterok:9,afterok:92",
    ]


def test_a_merge_job_that_was_stopped_itself_is_only_followed_by_another(after, launch, shims):
    assert after(143, *MERGE) == 0
    assert shims.calls("sbatch") == [f"--parsable --dependency= {launch.stage_folder(0)}/merge.sh"]
    assert submitted(launch) == [(0, "merge", None, 0)]


@pytest.mark.parametrize(("requeue", "followed"), [("yes", 0), ("no", 1)])
def test_a_merge_job_that_slurm_ends_and_may_put_back_is_not_followed_by_a_second_one(
    after, launch, shims, requeue, followed
):
    shims("squeue", "COMPLETING\n")
    assert after(75, "merge", 0, requeue) == (75 if requeue == "yes" else 0)
    assert len(shims.calls("sbatch")) == len(launch.jobs()) == followed


def test_what_was_asked_for_before_slurm_ended_the_merge_job_is_submitted_all_the_same(after, launch, shims):
    shims("squeue", "COMPLETING\n")
    ask_again(launch.load(), 0, [0], [], 1)
    assert after(75, *MERGE) == 0 and len(launch.jobs()) == 2


def test_the_environment_of_this_job_is_not_that_of_the_next(after, launch, shims, monkeypatch, tmp_path):
    shims("sbatch", then=f"env >'{tmp_path}/seen'; {COUNT}")
    for name in ("SLURM_MEM_PER_NODE", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/of the site.conf")
    after(75, *MERGE)
    seen = dict(line.partition("=")[::2] for line in (tmp_path / "seen").read_text().splitlines())
    of_jobs = {name: value for name, value in seen.items() if name.startswith(("SLURM", "SBATCH", "SRUN", "SUBMITIT"))}
    assert of_jobs == {"SLURM_CONF": "/etc/slurm/of the site.conf"}


@pytest.mark.parametrize("asked", [True, False])
def test_a_scheduler_that_takes_no_more_jobs_ends_the_launch(after, launch, shims, asked):
    shims("sbatch", errors="sbatch: error: QOSMaxSubmitJobPerUserLimit", status=1)
    if asked:
        ask_again(launch.load(), 0, [0], [], 1)
    assert after(75, *MERGE) == 1
    assert launch.jobs() == [] and shims.calls("scontrol") == []


def test_oom_kills_of_the_kernel_are_counted(after, launch, tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "job_50").mkdir(parents=True)
    (root / "job_50" / "memory.events").write_text("low 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n")
    (root / "cgroup").write_text("0::/job_50/step_batch/user/task_0\n")
    text = AFTER.read_text().replace("/proc/self/cgroup", f"{root}/cgroup").replace("/sys/fs/cgroup", str(root))
    (tmp_path / "after.sh").write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "AFTER", tmp_path / "after.sh")
    after(137, *execute(launch))
    assert read_exit(unit(launch)).oom_kills == read_attempts(unit(launch))[0].oom_kills == 2
