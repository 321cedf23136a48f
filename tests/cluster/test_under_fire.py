"""Whatever the cluster does to the jobs, the results equal those of an undisturbed run."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from cluster_lab import (
    SHORT,
    assert_same_results,
    make_project,
    newest_launch,
    story,
    undisturbed,
    unit_events,
    verdicts,
    wait_for_launch,
    write_profile,
)
from test_chain_on_slurm import weights_of

from deg.runs.attempts import read_attempts


def until(what: str, test: Callable[[], object], seconds: float = 180):
    """Wait for the first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := test()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)
    return answer


def running(cluster) -> dict[str, str]:
    """Return the host of each running element."""
    lines = cluster.run("squeue", "--noheader", "--states=RUNNING", "--format=%i %N").splitlines()
    return dict(line.split() for line in lines)


def tended(cluster) -> bool:
    """Release what Slurm holds, as `deg status` advises; return whether the queue is empty.

    A node that was cut off may come back and still know a job that was meanwhile put back into the queue. If Slurm
    starts the job there again, it drains the node ("Duplicate jobid") and holds the job until somebody releases both.
    """
    lines = cluster.run("squeue", "--noheader", "--format=%i|%r").splitlines()
    for job, reason in (line.split("|") for line in lines):
        if reason == "launch failed requeued held":
            cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME", check=False)
            cluster.run("scontrol", "release", job, check=False)
    return not lines


def test_inference_under_fire(cluster, image, user, folder):
    """A job is preempted, one host loses power, another its network, a time limit is reached, an element is cancelled,
    and the submitting process is killed."""
    project = make_project(folder, user, videos=8, frames=520, labelled=0, trained=True)
    profile = write_profile(folder, user, image, stop_ahead=20)
    command = ["infer", "feature_extractor"]
    alone = undisturbed(project, command, folder / "alone")
    entry = pwd.getpwnam(user.name)
    submitting = subprocess.Popen(
        [user.login / "bin" / "deg", *command, project, "--on", "slurm", f"cluster={profile}"],
        env={"HOME": str(user.home), "PATH": os.environ["PATH"], **user.environment},
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        cwd=folder,
        stderr=subprocess.PIPE,
    )
    launches = project / "models"
    until("the submission", lambda: list(launches.glob("*_launch/jobs.jsonl")))
    launch = newest_launch(project)
    until("both jobs", lambda: len(launch.jobs()) == 2, 60)
    submitting.send_signal(signal.SIGKILL)
    submitting.wait()
    run = launch.load().run_of(0)

    until("six elements at work", lambda: len([1 for path in run.path.glob("units/*/attempts.jsonl")]) >= 6)
    on = running(cluster)
    cancelled = next(job for job, host in on.items() if host == "n1")
    cluster.run("scancel", cancelled)
    limited = next(job for job, host in on.items() if host == "n1" and job != cancelled)
    cluster.run("scancel", "--signal=STOP", limited)  # otherwise it would be done before its time limit
    # also of the next attempts: stopped 20 s before the limit, none would finish within a minute on a loaded machine
    cluster.run("scontrol", "update", f"JobId={limited}", "TimeLimit=2")
    cluster.kill_node("n3")
    cluster.cut_node("n2")
    urgent = user.submit("sleep 5", "--partition=urgent", "--gpus-per-node=2", "--nodes=1", "--mem=1G", folder=folder)
    until("the urgent job", lambda: cluster.states().get(urgent) == "COMPLETED", 120)
    cluster.start_node("n2")
    cluster.start_node("n3")
    until("an empty queue", lambda: tended(cluster), 400)
    launch = wait_for_launch(cluster, project, seconds=400)
    assert verdicts(launch) == ["done"], story(launch)
    assert_same_results(project, alone)
    counted = Counter(unit_events(run))
    assert set(counted.values()) == {1} and len(counted) == len(run.load_plan().units), story(launch)
    ends = [attempt.end for path in run.path.glob("units/*") for attempt in read_attempts(path)]
    assert len(ends) > len(counted), "nothing was disturbed"


def test_signals_once_or_many_times_give_the_same(cluster, image, user, folder):
    """One process of the first element gets one signal, all processes of the second get many."""
    project = make_project(folder, user, videos=2, frames=600, labelled=0, trained=True)
    profile = write_profile(folder, user, image, jobs=2)
    alone = undisturbed(project, ["infer", "feature_extractor"], folder / "alone", jobs=2)
    user.deg("infer", "feature_extractor", project, "--on", "slurm", f"cluster={profile}")
    launch = newest_launch(project)
    run = launch.load().run_of(0)
    job = launch.jobs()[0].job
    until("the first attempts", lambda: all(read_attempts(run.unit_folder(unit)) for unit in (0, 1)))
    cluster.run("scancel", "--signal=USR2", f"{job}_0")
    for number in ("USR2", "TERM", "USR2", "TERM"):
        cluster.run("scancel", "--full", f"--signal={number}", f"{job}_1", check=False)  # it may be gone by now
    launch = wait_for_launch(cluster, project, seconds=300)
    assert verdicts(launch) == ["done"], story(launch)
    once, often = ([attempt.end for attempt in read_attempts(run.unit_folder(unit))] for unit in (0, 1))
    assert once == ["stopped", "done"], story(launch)
    assert often in (once, [None, "done"]), story(launch)  # at the second SIGTERM srun kills its tasks
    assert sorted(unit_events(run)) == list(range(len(run.load_plan().units)))
    assert_same_results(project, alone)


def test_training_under_fire(cluster, image, user, folder):
    """The training is told to stop, and its host loses power: it learns what an undisturbed run learns."""
    project = make_project(folder, user, videos=4, frames=60)
    profile = write_profile(folder, user, image, gpus_per_node=2)
    long = ["train.num_epochs=3", "train.steps_per_epoch.train=40", "train.checkpoint_every=0.05", "train.patience=9"]
    words = ["train", "flow_generator", *SHORT, *long]
    alone = undisturbed(project, [*words, "compute.devices=2"], folder / "alone")
    user.deg(*words[:2], project, *words[2:], "--on", "slurm", f"cluster={profile}")
    launch = newest_launch(project)
    run = launch.load().run_of(0)
    unit, job = run.unit_folder(0), launch.jobs()[0].job

    def saved() -> set[str]:
        return {path.name for path in (unit / "state").glob("step-*.ckpt")}

    def begun(number: int) -> bool:
        return len(read_attempts(unit)) >= number

    until("a state", saved)
    cluster.run("scancel", "--signal=USR2", job)
    until("the second attempt", lambda: begun(2))
    before = saved()
    until("a newer state", lambda: saved() - before)
    host = running(cluster)[job]
    cluster.kill_node(host)
    until("the third attempt", lambda: begun(3))
    cluster.start_node(host)
    before = saved()
    until("a still newer state", lambda: saved() - before or (unit / "done.json").exists())
    launch = wait_for_launch(cluster, project, seconds=300)
    assert verdicts(launch) == ["done"], story(launch)
    one, other = weights_of(alone), weights_of(project)
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, atol=1e-5, rtol=1e-4, err_msg=name)
