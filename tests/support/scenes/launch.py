"""Launches without a scheduler: their folders, with the files that jobs leave there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deg.launch.scheduler.launches import Launch, LaunchDir, Stage, SubmittedJob
from deg.options.load import load_config, overlay, to_yaml
from deg.options.schema import Cluster, Config
from deg.runs.attempts import note, read_attempts
from deg.runs.plans import InferencePlan
from deg.runs.rundir import RunDir, create_run
from deg.version import __version__
from scenes.run import NOW, make_plan
from scenes.training import make_training_plan

WORDS = tuple(
    f"cluster.{option}"
    for option in (
        *("image=null", "cpus_per_task=1", "memory_gb=1.0", "gpus_per_node=null"),
        *("time=1:00:00", "stop_ahead=null", "jobs=4"),
    )
)
"""Options of a job that fits on any cluster and runs this Python."""
BEGAN = 1_795_354_200.0
"""Default time at which jobs begin, in seconds since 1970."""


def make_launch(
    project: Path,
    stages: Sequence[Stage | str] = ("infer feature_extractor",),
    *,
    name: str = "261122_120000_launch",
    image: Path | None = None,
    deg: str = __version__,
    array_size: int = 1000,
    report: bool = False,
    submitted: bool = True,
    **cluster: Any,
) -> LaunchDir:
    """Make a launch of stages, which may be given as `verb stage`; `cluster` are options `cluster.*`.

    The options of a stage are taken from its command. If `submitted`, the first stage has the jobs 10 (execute) and 11
    (merge), the next one 20 and 21, and so on.
    """
    launch = LaunchDir(project / "models" / name)
    launch.jobs_folder.mkdir(parents=True)
    made = [_stage(project, stage, index) if isinstance(stage, str) else stage for index, stage in enumerate(stages)]
    options = overlay(Cluster(), cluster, source="in a test")
    Launch(launch, project, tuple(made), report, deg, image, options, array_size).write()
    for index, stage in enumerate(made):
        launch.stage_folder(index).mkdir(parents=True)
        launch.config_file(index).write_text(to_yaml(_options(project, stage)))
    for index, stage in enumerate(made if submitted else ()):
        elements = tuple(range(stage.elements)) if stage.verb == "infer" else None
        launch.add_job(SubmittedJob(f"{index + 1}0", index, "execute", elements, time=BEGAN - 60))
        launch.add_job(SubmittedJob(f"{index + 1}1", index, "merge", time=BEGAN - 60))
    return launch


def _options(project: Path, stage: Stage) -> Config:
    file = project / "project_config.yaml"
    words = [word for word in stage.command[3:] if "=" in word]
    kind = stage.stage if stage.verb == "train" else "inference"
    return load_config(file if file.exists() else None, words, stage=kind)


def _stage(project: Path, words: str, index: int) -> Stage:
    verb, stage = words.split()
    run = f"261122_12000{index}_{stage}_{verb}"
    return inference(project, run, 4, stage) if verb == "infer" else training(project, run, stage)


def inference(project: Path, run: str, elements: int = 1, stage: str = "feature_extractor", *words: str) -> Stage:
    """Return a stage that infers."""
    fixed = ("feature_extractor.weights=latest",)
    return Stage("infer", stage, run, elements, ("infer", stage, str(project), *(words or fixed)))


def training(project: Path, run: str, stage: str = "flow_generator", *words: str) -> Stage:
    """Return a stage that trains."""
    return Stage("train", stage, run, 1, ("train", stage, str(project), *words))


def plan_stage(
    launch: LaunchDir, index: int = 0, lengths: dict[str, int] | None = None
) -> tuple[RunDir, InferencePlan]:
    """Make the run directory of a stage; an inference has units of 1000 frames over recordings a and b."""
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


# ---------------------------------------------------------------------------------------------------- state


def only_launch(project: Path) -> LaunchDir:
    """Return the launch of a project that has exactly one."""
    (file,) = (project / "models").glob("*/launch.json")
    return LaunchDir(file.parent)


def submitted(launch: LaunchDir) -> list[tuple[int, str, tuple[int, ...] | None, int]]:
    """Return stage, role, elements and round of all jobs of a launch, in their order."""
    return [(job.stage, job.role, job.elements, job.round) for job in launch.jobs()]


def queued(job: str, state: str = "RUNNING", reason: str = "None", *, start: float | None = BEGAN) -> str:
    """Return a line of squeue."""
    return f"{job}|{state}|n1|{'N/A' if start is None else int(start)}|1:00|4:00:00|{reason}\n"


# ---------------------------------------------------------------------------------------------------- what jobs leave


def add_job(launch: LaunchDir, job: str, stage: int = 0, role: str = "execute", **more: Any) -> None:
    launch.add_job(SubmittedJob(job, stage, role, **more))  # type: ignore[arg-type]


def started(run: RunDir, unit: int, job: str, host: str = "n1", *, restart: int = 0, at: float = BEGAN, **more) -> None:
    """Record that an attempt at a unit begins."""
    note(run.unit_folder(unit), "started", job=job, host=host, restart=restart, **{"progress": 0, "time": at, **more})


def ended(run: RunDir, unit: int, event: str = "done", *, at: float = BEGAN + 60, **more) -> None:
    """Record that the last attempt at a unit ended by itself: done, stopped (why=...) or failed (message=...)."""
    last = read_attempts(run.unit_folder(unit))[-1]
    note(run.unit_folder(unit), event, job=last.job, restart=last.restart, **{"time": at, **more})


def exited(run: RunDir, unit: int, job: str, status: int, host: str = "n1", **more) -> None:
    """Record that the host saw a job's process end."""
    details = {"restart": 0, "oom_kills": None, "time": BEGAN + 60, **more}
    note(run.unit_folder(unit), "exited", job=job, host=host, status=status, **details)


def died(run: RunDir, unit: int, *jobs: str, host: str = "n1") -> None:
    """Record that an attempt at a unit began in each of these jobs and was killed."""
    for job in jobs:
        started(run, unit, job, host)
        exited(run, unit, job, 137, host)


def output(launch: LaunchDir, job: str, *events: dict, errors: str = "", rank: int = 0) -> None:
    """Write the output of a process of a job."""
    (launch.jobs_folder / f"{job}_{rank}_log.out").write_text("".join(json.dumps(event) + "\n" for event in events))
    (launch.jobs_folder / f"{job}_{rank}_log.err").write_text(errors)
