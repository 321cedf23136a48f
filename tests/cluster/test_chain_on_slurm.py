"""One command leads from labelled videos to a report, by jobs in the image, on three hosts."""

from __future__ import annotations

import json

import numpy as np
import torch
from cluster_lab import (
    SHORT,
    assert_same_results,
    make_project,
    story,
    undisturbed,
    verdicts,
    wait_for_launch,
    write_profile,
)

from deg.projects.project import open_project
from deg.runs.networks import scan


def test_from_nothing_to_the_report_equals_this_machine_in_every_dataset(cluster, image, user, folder):
    """The site has accounting. Only one command is typed."""
    from small_cluster import Site

    cluster.configure(Site(accounting=True))
    project = make_project(folder, user, videos=4, frames=40)
    profile = write_profile(folder, user, image, jobs=2)
    alone = undisturbed(project, ["run", *SHORT, "compute.devices=1"], folder / "alone", jobs=2)
    said = json.loads(user.deg("run", project, "--on", "slurm", f"cluster={profile}", *SHORT, "--json").stdout)
    assert [stage["stage"] for stage in said["stages"]] == [
        *("train flow_generator", "train feature_extractor", "infer feature_extractor"),
        *("train sequence", "infer sequence"),
    ]
    launch = wait_for_launch(cluster, project, seconds=600)
    assert launch.name == said["launch"]
    assert verdicts(launch) == ["done"] * 5, story(launch)
    assert assert_same_results(project, alone) > 4 * 5
    pages = list(project.glob("reports/*/index.html"))
    assert len(pages) == 1 and pages[0].stat().st_size > 10_000
    state = json.loads(user.deg("status", project, "--json").stdout)["launches"][0]
    assert (state["name"], state["state"]) == (launch.name, "finished")
    again = user.deg("run", project, "--on", "slurm", f"cluster={profile}", *SHORT)
    assert "Nothing to do" in again.stderr


def test_two_hosts_with_two_ranks_each_train_as_four_ranks_of_one_machine_do(cluster, image, user, folder):
    project = make_project(folder, user, videos=4, frames=40)
    profile = write_profile(folder, user, image, nodes=2, gpus_per_node=2)
    words = ["train", "flow_generator", *SHORT, "compute.batch_size=8", "train.seed=3"]
    alone = undisturbed(project, [*words, "compute.devices=4"], folder / "alone")
    user.deg(*words[:2], project, *words[2:], "--on", "slurm", f"cluster={profile}")
    launch = wait_for_launch(cluster, project, seconds=300)
    assert verdicts(launch) == ["done"], story(launch)
    logs = [(launch.jobs_folder / f"{launch.jobs()[0].job}_{rank}_log.out").read_text() for rank in range(4)]
    hosts = [
        line.split("hostname=")[1].split(",")[0] for log in logs for line in log.splitlines() if "hostname=" in line
    ]
    assert len(hosts) == 4 and len(set(hosts)) == 2
    assert all('"ranks": 4' in log for log in logs)
    one, four = (weights_of(path) for path in (alone, project))
    assert one.keys() == four.keys()
    for name, values in one.items():
        np.testing.assert_allclose(four[name], values, atol=1e-6, rtol=1e-5, err_msg=name)


def test_a_dry_run_shows_scripts_and_the_word_of_the_scheduler_and_leaves_nothing(cluster, image, user, folder):
    project = make_project(folder, user, videos=3, frames=40, trained=True)
    profile = write_profile(folder, user, image)
    before = sorted(project.rglob("*"))
    said = json.loads(user.deg("infer", project, "--on", "slurm", f"cluster={profile}", "--dry-run", "--json").stdout)
    assert "#SBATCH --array=0-" in said["scripts"]["infer feature_extractor"]
    assert "to start at" in said["test_only"]["infer feature_extractor"]
    assert said["gpu_hours_at_most"] > 0
    assert sorted(project.rglob("*")) == before
    assert cluster.run("squeue", "--noheader") == ""


def weights_of(project) -> dict[str, np.ndarray]:
    """Return the weights of the newest trained network."""
    newest = scan(open_project(project).model_path)[-1]
    file = next((newest.folder / "lightning_checkpoints").glob("epoch=*.ckpt"))
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    return {name: values.float().numpy() for name, values in state.items()}
