"""A small lab whose user works on the cluster: projects, the profile of the site, and reference results."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from cluster_user import User
from small_cluster import SmallCluster
from videos import write_video

from deg.data.labels import write_labels
from deg.launch.scheduler.launches import LaunchDir, find_launches
from deg.launch.selftest import write_untrained_weights
from deg.projects.add import add_recording
from deg.projects.project import create_project, open_project
from deg.runs.rundir import RunDir

SIZE = 32
JOBS, UNITS = 6, 6
"""Workers at one time on the cluster, and the number of units that the work is cut into for each."""
SHORT = (
    *("flow_generator.weights=null", "feature_extractor.weights=random", "train.num_epochs=1"),
    *("train.steps_per_epoch.train=3", "compute.batch_size=4", "compute.num_workers=0"),
    *("train.precision=fp32", "compute.threads=1"),
)
"""Options of a training that takes a moment. It uses no bf16: on CPUs, PyTorch's bf16 gradients of convolutions over a
single pixel, to which such small frames shrink, are not finite."""


def make_project(
    folder: Path, user: User, *, videos: int, frames: int, labelled: int = 4, trained: bool = False
) -> Path:
    """Make a project of the user; if `trained`, with untrained weights of all networks."""
    project = create_project(folder / "mice", ["groom", "rear"])
    for number in range(videos):
        video = write_video(folder / f"mouse{number:02d}.mp4", frames + number)
        labels = None
        if number < labelled:
            labels = video.with_name(f"{video.stem}_labels.csv")
            write_labels(labels, np.eye(3, dtype=np.int8)[np.arange(frames + number) // 5 % 3], project.class_names)
        add_recording(project, video, labels)
    settings = yaml.safe_load(project.config_file.read_text())
    settings["augs"]["resize"] = [SIZE, SIZE]
    project.config_file.write_text(yaml.safe_dump(settings))
    if trained:
        write_untrained_weights(project.path)
    user.give(folder)
    return project.path


def write_profile(folder: Path, user: User, image: Path | None, **options: Any) -> Path:
    """Write the cluster profile of a site, with additional `options`."""
    cluster = {
        "image": None if image is None else str(image),
        "time": "0:20:00",
        "merge_time": "0:10:00",
        "gpus_per_node": 1,
        "cpus_per_task": 1,
        "memory_gb": 2,
        "jobs": JOBS,
    }
    return user.give(folder / "site.yaml", yaml.safe_dump({"cluster": cluster | options}))


def undisturbed(project: Path, command: Sequence[str], to: Path, *, jobs: int = JOBS) -> Path:
    """Copy a project and run the same command on it on this machine.

    The work is cut into the same units as for `jobs` on the cluster, and each is done by one thread: only equal batches
    and threads give numbers that are equal to the last bit.
    """
    shutil.copytree(project, to, symlinks=True)  # with its modification times
    alike = ["inference.devices=2", f"inference.units_per_device={jobs * UNITS // 2}"] if command[0] != "train" else []
    two_cores = ["taskset", "--cpu-list", "0,1"]
    words = [*two_cores, sys.executable, "-m", "deg.launch.cli", *command, *alike, str(to)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return to


def newest_launch(project: Path) -> LaunchDir:
    return find_launches(open_project(project).model_path)[0]


def wait_for_launch(cluster: SmallCluster, project: Path, *, seconds: float) -> LaunchDir:
    """Wait until no job of the launch is left, including jobs that its jobs have submitted."""
    launch = newest_launch(project)
    known: set[str] = set()
    while names := {job.job for job in launch.jobs()} - known:
        cluster.wait(*sorted(names), seconds=seconds)
        known |= names
    return launch


def verdicts(launch: LaunchDir) -> list[str | None]:
    """Return the last verdict of each stage's merge job."""
    found = [launch.verdict(index) for index in range(len(launch.load().stages))]
    return [verdict and verdict.state for verdict in found]


def story(launch: LaunchDir) -> str:
    """Return all that a launch has logged, for the message of an assertion."""
    files = [launch.jobs_file, launch.path / "events.jsonl", *sorted(launch.path.glob("stages/*/merge.json"))]
    files += sorted(launch.jobs_folder.glob("*.err"))[-6:]
    loaded = launch.load()
    for index in range(len(loaded.stages)):
        files += sorted(loaded.run_of(index).path.glob("units/*/attempts.jsonl"))
    return "\n".join(f"== {file.name}\n{file.read_text()[-1500:]}" for file in files if file.exists())


def results(project: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield recording, dataset and values of everything in the outputs files."""
    for record in open_project(project).records.values():
        if record.outputs is None:
            continue  # in both projects the same recordings must have none: their datasets are compared by name
        found: list[tuple[str, np.ndarray]] = []
        with h5py.File(record.outputs) as file:
            file.visititems(
                lambda name, item, to=found: to.append((name, item[()])) if hasattr(item, "shape") else None
            )
        for name, values in found:
            yield record.key, name, values


def assert_same_results(one: Path, other: Path) -> int:
    """Check that every dataset of every recording is the same, bit for bit; return their number."""
    first, second = ({(key, name): values for key, name, values in results(project)} for project in (one, other))
    assert first.keys() == second.keys() and first
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=str(name))
    return len(first)


def unit_events(run: RunDir, kind: str = "unit_done") -> list[int]:
    """Return the units that the events of a kind name."""
    return [event["unit"] for event in run.events() if event["event"] == kind]
