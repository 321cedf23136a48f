"""`deg resume`: go on with what was interrupted, was cancelled, or gave up; only what is missing is done.

Units that were put aside get a new chance. A launch is submitted again from its first stage that is not done.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deg.data.atomic import write_atomically
from deg.errors import ConfigError, RunError, show_path
from deg.launch.on.slurm import submit
from deg.launch.on.slurm.launches import Launch, LaunchDir, find_launches, launch_of
from deg.launch.on.slurm.orders import config_of, named_in, request_of
from deg.launch.on.slurm.queue import in_queue, run_scheduler
from deg.launch.on.slurm.script import options_of
from deg.launch.say import say
from deg.launch.stages.request import StageRequest
from deg.launch.stages.stage import plan_run, resume_run
from deg.options.load import as_dict, did_you_mean, overlay, parse_overrides, read_run_config, restore
from deg.options.schema import Cluster
from deg.projects.project import open_project
from deg.runs.attempts import give_new_chance
from deg.runs.rundir import RunDir, find_runs
from deg.runs.state import open_run


def resume(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Go on with the run, the launch, or the newest of a project that is unfinished; the command's JSON document.

    `overrides` are options `cluster.*` for the jobs of a launch. RunError if nothing is there to go on with.
    """
    found = _find(path)
    if isinstance(found, LaunchDir):
        return resume_launch(found, overrides)
    if overrides:
        raise ConfigError(f"{overrides[0]}: {found.name} was run on this machine, with the options of its plan.")
    return _resume_here(found)


def _find(path: Path) -> LaunchDir | RunDir:
    if (path / "launch.json").exists():
        return LaunchDir(path)
    if (path / "plan.json").exists():
        return launch_of(RunDir(path)) or RunDir(path)
    project = open_project(path)
    unfinished: list[tuple[int, LaunchDir | RunDir]] = []
    for launch in find_launches(project.model_path):
        if undone(launch, launch.load()):
            unfinished.append((launch.launch_file.stat().st_mtime_ns, launch))
            break
    for run in find_runs(project.model_path):
        if not run.done_file.exists() and launch_of(run) is None:
            unfinished.append((run.plan_file.stat().st_mtime_ns, run))
            break
    if not unfinished:
        raise RunError(f"{show_path(project.path)}: nothing was interrupted. `deg status` lists the runs.")
    return max(unfinished, key=lambda item: item[0])[1]


def _resume_here(run: RunDir) -> dict[str, Any]:
    """Go on with a run on this machine."""
    if run.done_file.exists():
        raise RunError(f"{run.name}: it is finished.")
    found = open_run(run)
    config = restore(read_run_config(run.config_file))
    project = open_project(run.path.parent.parent if config.project.path is None else Path(config.project.path))
    return resume_run(run, StageRequest(found.verb, found.plan.stage, project, config)).as_dict()


# ---------------------------------------------------------------------------------------------------- launches


def resume_launch(launch: LaunchDir, overrides: Sequence[str]) -> dict[str, Any]:
    """Submit again what is left of a launch. RunError if it is finished, or if its jobs are still at it."""
    spec = launch.load()
    left = undone(launch, spec)
    if not left:
        raise RunError(f"{launch.name}: it is finished.")
    _clear_queue(launch)
    spec = dataclasses.replace(spec, cluster=as_dict(_cluster(spec, overrides)))
    spec, left = _with_what_follows(launch, spec, left)
    project = open_project(spec.project)
    stage = spec.stages[left[0]]
    run = launch.run_of(stage)
    if run.plan_file.exists():
        _give_new_chances(run)
    else:
        plan_run(request_of(launch, spec, left[0]))
    for word in launch.path.glob("stages/*/again"):
        word.unlink()  # of a merge job that could not be followed by another
    paths = named_in(config_of(launch, index) for index in range(len(spec.stages)))
    submit.write_scripts(project, launch, spec, paths)
    write_atomically(launch.launch_file, spec.to_json())
    launch.log_event("resumed", stages=left)
    submit.submit_stages(launch, spec, left)
    say(f"Submitted again, from {stage.name} on: {launch.name}. Watch it with: deg status {show_path(spec.project)}")
    return submit.describe(launch, spec).as_dict()


def undone(launch: LaunchDir, spec: Launch) -> list[int]:
    """The stages that are not done, or not whole because units were put aside."""
    return [
        index for index, stage in enumerate(spec.stages) if not launch.is_done(index) or _has_gaps(launch.run_of(stage))
    ]


def _with_what_follows(launch: LaunchDir, spec: Launch, left: list[int]) -> tuple[Launch, list[int]]:
    """Also the inferences after the first stage that is left, which lack what it will fill in; in runs of their own."""
    stages, again = list(spec.stages), set(left)
    for index in range(left[0] + 1, len(stages)):
        stage = stages[index]
        if stage.verb == "infer" and launch.run_of(stage).plan_file.exists():
            number = next(n for n in itertools.count(2) if not (launch.path.parent / f"{stage.run}_{n}").exists())
            run = f"{stage.run}_{number}"
            stages[index] = dataclasses.replace(stage, run=run)
            launch.merge_file(index).unlink(missing_ok=True)
            again.add(index)
    return dataclasses.replace(spec, stages=tuple(stages)), sorted(again)


def _has_gaps(run: RunDir) -> bool:
    return run.plan_file.exists() and open_run(run).has_gaps()


def _clear_queue(launch: LaunchDir) -> None:
    """Take jobs out of the queue that wait in vain. RunError if others are alive."""
    jobs = {name: job for name, job in in_queue([job.job for job in launch.jobs()]).items() if job.is_alive}
    at_work = sorted(name for name, job in jobs.items() if not job.never_runs and job.reason != "Dependency")
    if at_work:
        raise RunError(
            f"{launch.name}: its jobs are still at it ({', '.join(at_work[:5])}). Watch them with `deg status`, or end "
            "them first with `deg cancel`."
        )
    if jobs:
        run_scheduler(["scancel", *sorted(jobs)])


def _cluster(spec: Launch, overrides: Sequence[str]) -> Cluster:
    """The options of the launch, with what is asked for now."""
    asked = parse_overrides(overrides)
    cluster = asked.pop("cluster", {})
    if asked or not isinstance(cluster, dict) or "profile" in cluster:
        raise ConfigError(
            f"{' '.join(overrides)}: expected options such as cluster.time=8:00:00; all others are of the plan. To "
            "plan anew, cancel this launch and give the command again."
        )
    for name in cluster.keys() - spec.cluster.keys():
        raise ConfigError(f"cluster.{name}: there is no such option.{did_you_mean(f'cluster.{name}')}")
    return overlay(options_of(spec.cluster), cluster, source="on the command line")


def _give_new_chances(run: RunDir) -> None:
    for unit in open_run(run).undone():
        give_new_chance(run.unit_folder(unit))
