"""What one site allows and another does not, and `deg cancel`, `why` and `resume` where they are needed."""

from __future__ import annotations

import json

from cluster_lab import (
    assert_same_results,
    make_project,
    newest_launch,
    story,
    undisturbed,
    verdicts,
    wait_for_launch,
    write_profile,
)
from small_cluster import Site
from test_under_fire import until

from deg.projects.project import open_project
from deg.runs.attempts import read_attempts


def test_a_site_that_forbids_almost_everything(cluster, image, user, folder):
    """The site has no accounting, requeueing, --mem or Python on nodes, arrays of four, and GPUs by gres alone.

    The command is typed outside the project, and names recordings relative to that folder.
    """
    cluster.configure(Site(requeue=False, max_array_size=4, memory_flag=False, gpus_by="gres"))
    project = make_project(folder, user, videos=6, frames=515, labelled=0, trained=True)
    profile = write_profile(folder, user, image, memory_gb=None, gpu_flag="gres", requeue=False)
    keys = [f"mouse{number:02d}" for number in range(5)]
    alone = undisturbed(
        project, ["infer", "all", *(word for key in keys for word in ("--videos", key))], folder / "alone"
    )
    here = user.give(folder / "elsewhere")
    videos = [word for key in keys for word in ("--videos", f"../mice/DATA/{key}/{key}.mp4")]
    user.deg("infer", "all", "../mice", *videos, "--on", "slurm", "cluster=../site.yaml", folder=here)
    assert profile.exists()
    launch = newest_launch(project)
    arrays = [job for job in launch.jobs() if job.stage == 0 and job.role == "execute"]
    assert [len(job.elements) for job in arrays] == [4, 1]
    run = launch.load().run_of(0)
    until("the first attempt", lambda: (run.unit_folder(0) / "attempts.jsonl").exists())
    # stopped, and must not be requeued; the status of scancel is about other elements
    cluster.run("scancel", "--signal=USR2", f"{arrays[0].job}_0", check=False)
    launch = wait_for_launch(cluster, project, seconds=400)
    assert verdicts(launch) == ["done", "done"], story(launch)
    attempts = read_attempts(run.unit_folder(0))
    assert [attempt.end for attempt in attempts] == ["stopped", "done"]
    assert attempts[0].job.partition("_")[0] != attempts[1].job.partition("_")[0]  # by another job
    assert_same_results(project, alone)
    assert all((record.outputs is None) == (key not in keys) for key, record in open_project(project).records.items())


def test_what_a_site_refuses_is_said_before_anything_is_left_behind(cluster, image, user, folder):
    cluster.configure(Site(memory_flag=False))
    project = make_project(folder, user, videos=2, frames=20, labelled=0, trained=True)
    profile = write_profile(folder, user, image)
    refused = user.deg("infer", "feature_extractor", project, "--on", "slurm", f"cluster={profile}", check=False)
    assert refused.returncode == 3 and "cluster.memory_gb=null" in refused.stderr
    assert cluster.run("squeue", "--noheader") == ""
    assert not list(project.glob("models/*_launch"))


def test_a_launch_is_recorded_cancelled_and_resumed(cluster, image, user, folder):
    project = make_project(folder, user, videos=3, frames=600, labelled=0, trained=True)
    profile = write_profile(folder, user, image, jobs=1)
    alone = undisturbed(project, ["infer", "feature_extractor"], folder / "alone", jobs=1)
    user.deg("infer", "feature_extractor", project, "--on", "slurm", f"cluster={profile}")
    launch = newest_launch(project)
    provenance = json.loads((launch.path / "provenance.json").read_text())
    assert provenance["command"][1:3] == ["infer", "feature_extractor"]
    run = launch.load().run_of(0)
    refused = user.deg("infer", "feature_extractor", project, "--on", "slurm", f"cluster={profile}", check=False)
    assert refused.returncode == 2 and "deg cancel" in refused.stderr  # it would do the same work twice
    until("the first result", lambda: run.result_file(0).exists())
    profile.unlink()  # the options of the launch are kept
    user.deg("cancel", project)
    until("an empty queue", lambda: cluster.run("squeue", "--noheader") == "")
    stamp = run.result_file(0).stat().st_mtime_ns
    state = json.loads(user.deg("status", project, "--json").stdout)["launches"][0]["state"]
    assert state == "cancelled"
    assert "deg resume" in user.deg("why", project).stdout
    user.deg("resume", project, "cluster.jobs=2")
    launch = wait_for_launch(cluster, project, seconds=200)
    assert verdicts(launch) == ["done"], story(launch)
    assert run.result_file(0).exists() is False or run.result_file(0).stat().st_mtime_ns == stamp
    assert_same_results(project, alone)
