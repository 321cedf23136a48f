"""Launches without a scheduler: their folders as they lie after jobs have done this or that."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from runs import NOW, make_plan
from training_runs import make_training_plan

from deg.attempts import note, read_attempts
from deg.launch.launches import Job, Launch, LaunchDir, Stage
from deg.rundir import Plan, RunDir, create_run
from deg.schema import Cluster
from deg.version import __version__

BEGAN = 1_795_354_200.0
"""When jobs begin, in seconds since 1970, unless a test says otherwise."""


def make_launch(project: Path, verbs: tuple[str, ...] = ("infer feature_extractor",), **options) -> LaunchDir:
    """A launch of stages, `verb stage`, with the jobs 10 (execute) and 11 (merge) for the first, 20 and 21 for the
    next... `options` are of the cluster, but for `image` and `deg`."""
    launch = LaunchDir(project / "models" / "261122_120000_launch")
    launch.jobs_folder.mkdir(parents=True)
    stages = []
    for index, words in enumerate(verbs):
        verb, stage = words.split()
        command = (verb, stage, str(project))
        stages.append(Stage(verb, stage, f"261122_12000{index}_{stage}_{verb}", 4 if verb == "infer" else 1, command))
    image, version = options.pop("image", None), options.pop("deg", __version__)
    cluster = asdict(Cluster()) | options
    spec = Launch(project, tuple(stages), False, version, image, cluster, 1000)
    launch.launch_file.write_text(spec.to_json())
    for index, stage in enumerate(stages):
        elements = tuple(range(4)) if stage.verb == "infer" else None
        launch.add_job(Job(f"{index + 1}0", index, "execute", elements, time=BEGAN - 60))
        launch.add_job(Job(f"{index + 1}1", index, "merge", time=BEGAN - 60))
    return launch


def plan_stage(launch: LaunchDir, index: int = 0, lengths: dict[str, int] | None = None) -> tuple[RunDir, Plan]:
    """The run directory of a stage: of an inference with units of 1000 frames over recordings a and b."""
    stage, project = launch.load().stages[index], launch.load().project
    if stage.verb == "infer":
        lengths = lengths or {"a": 2000, "b": 2000}
        plan = make_plan(project, lengths, units=sum(lengths.values()) // 1000, stage=stage.stage)
        kind = "inference"
    else:
        plan, kind = make_training_plan(project, stage=stage.stage), "train"
    run = create_run(
        project / "models", stage=stage.stage, kind=kind, plan=plan, config={}, provenance={}, now=NOW, name=stage.run
    )
    return run, plan


def started(run: RunDir, unit: int, job: str, host: str = "n1", *, restart: int = 0, at: float = BEGAN, **more) -> None:
    """An attempt at a unit begins."""
    note(run.unit_folder(unit), "started", job=job, host=host, restart=restart, **{"progress": 0, "time": at, **more})


def ended(run: RunDir, unit: int, event: str = "done", *, at: float = BEGAN + 60, **more) -> None:
    """The last attempt at a unit ends by itself: done, stopped (why=...) or failed (message=...)."""
    last = read_attempts(run.unit_folder(unit))[-1]
    note(run.unit_folder(unit), event, job=last.job, restart=last.restart, **{"time": at, **more})


def exited(run: RunDir, unit: int, job: str, status: int, host: str = "n1", **more) -> None:
    """The host has seen a job's process end."""
    details = {"restart": 0, "oom_kills": None, "time": BEGAN + 60, **more}
    note(run.unit_folder(unit), "exited", job=job, host=host, status=status, **details)


def output(launch: LaunchDir, job: str, *events: dict, errors: str = "", rank: int = 0) -> None:
    """What a process of a job wrote."""
    (launch.jobs_folder / f"{job}_{rank}_log.out").write_text("".join(json.dumps(event) + "\n" for event in events))
    (launch.jobs_folder / f"{job}_{rank}_log.err").write_text(errors)


def queued(job: str, state: str = "RUNNING", reason: str = "None", *, start: float | None = BEGAN) -> str:
    """A line of squeue."""
    return f"{job}|{state}|n1|{'N/A' if start is None else int(start)}|1:00|4:00:00|{reason}\n"
