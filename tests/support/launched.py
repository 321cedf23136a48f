"""Launches for tests: the fake cluster's options, launch directories without a scheduler, and what was left of jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deg.config import as_dict, overlay
from deg.data.atomic import write_atomically
from deg.launch.launches import Job, Launch, LaunchDir, Stage
from deg.rundir import RunDir
from deg.schema import Cluster
from deg.version import __version__

SMALL = {
    "image": None,
    "cpus_per_task": 1,
    "memory_gb": 1.0,
    "gpus_per_node": None,
    "time": "1:00:00",
    "stop_ahead": None,
    "jobs": 4,
}
"""Options `cluster.*` of a job that fits anywhere and runs this Python."""
WORDS = tuple(f"cluster.{name}={'null' if value is None else value}" for name, value in SMALL.items())
"""The same on the command line."""


def make_launch(
    project: Path,
    stages: Sequence[Stage],
    *,
    name: str = "261122_120000_launch",
    array_size: int = 1000,
    report: bool = False,
    **options: Any,
) -> LaunchDir:
    """A launch directory of `project` as a submission leaves it, without scripts and jobs. `options`: of the launch, or
    `cluster.*`."""
    launch = LaunchDir(project / "models" / name)
    launch.jobs_folder.mkdir(parents=True)
    cluster = as_dict(overlay(Cluster(), {**SMALL, **options}, source="in a test"))
    spec = Launch(project, tuple(stages), report, __version__, None, cluster, array_size)
    write_atomically(launch.launch_file, spec.to_json())
    return launch


def inference(project: Path, run: str, elements: int = 1, stage: str = "feature_extractor", *words: str) -> Stage:
    """A stage that infers."""
    fixed = ("feature_extractor.weights=latest",)
    command = ("infer", stage, str(project), *(words or fixed), "--run", run)
    return Stage("infer", stage, run, elements, command)


def training(project: Path, run: str, stage: str = "flow_generator", *words: str) -> Stage:
    """A stage that trains."""
    return Stage("train", stage, run, 1, ("train", stage, str(project), *words, "--run", run))


def submitted(launch: LaunchDir) -> list[tuple[int, str, tuple[int, ...] | None, int]]:
    """Stage, role, elements and round of all jobs of a launch, in their order."""
    return [(job.stage, job.role, job.elements, job.round) for job in launch.jobs()]


def add_job(launch: LaunchDir, job: str, stage: int = 0, role: str = "execute", **more: Any) -> None:
    launch.add_job(Job(job, stage, role, **more))  # type: ignore[arg-type]


def attempted(run: RunDir, unit: int, *lines: Mapping[str, Any]) -> None:
    """Leave traces of attempts at a unit, such as {"event": "started", "job": "7"}; what is left out is made up."""
    folder = run.unit_folder(unit)
    folder.mkdir(parents=True, exist_ok=True)
    usual = {
        "started": {"job": "1", "restart": 0, "host": "n1", "time": 1.0, "progress": 0},
        "exited": {"job": "1", "restart": 0, "host": "n1", "time": 2.0, "status": 137, "oom_kills": None},
    }
    with (folder / "attempts.jsonl").open("a") as file:
        for line in lines:
            file.write(json.dumps({"time": 2.0, **usual.get(line["event"], {}), **line}) + "\n")


def only_launch(project: Path) -> LaunchDir:
    """The launch of a project that has one."""
    (file,) = (project / "models").glob("*/launch.json")
    return LaunchDir(file.parent)
