"""Resumes a launch from its first stage that is not done. Units that were given up get a new chance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from deg.errors import ConfigError, RunError, show_path
from deg.launch.on.slurm.orders import config_of, named_in, request_of, workers_on
from deg.launch.on.slurm.scripts import write_host_scripts
from deg.launch.on.slurm.submit import SubmissionReport, describe, submit_stages
from deg.launch.say import say
from deg.launch.scheduler.launches import Launch, LaunchDir
from deg.launch.scheduler.queue import in_queue, run_scheduler
from deg.launch.stages.stage import plan_run
from deg.options.load import as_dict, did_you_mean, overlay, parse_overrides
from deg.options.schema import Cluster
from deg.projects.project import open_project
from deg.runs.attempts import give_new_chance
from deg.runs.rundir import RunDir
from deg.runs.state import open_run


def resume_launch(folder: LaunchDir, overrides: Sequence[str]) -> SubmissionReport:
    """Submit again what is left of a launch.

    Raises RunError if the launch is finished, or if its jobs are running or queued.
    """
    launch = folder.load()
    left = undone(launch)
    if not left:
        raise RunError(f"{folder.name}: it is finished, there is nothing to resume.")
    _clear_queue(folder)
    launch, left = _with_what_follows(replace(launch, cluster=_cluster(launch, overrides)), left)
    project = open_project(launch.project)
    stage = launch.stages[left[0]]
    run = launch.run_of(left[0])
    if run.plan_file.exists():
        _give_new_chances(run)
    else:
        request = request_of(launch, left[0])
        plan_run(request, workers_on(launch.cluster, request))
    for word in folder.path.glob("stages/*/again"):
        word.unlink()  # left by a merge job that could not submit what it asked for
    write_host_scripts(project, launch, named_in(config_of(launch, index) for index in range(len(launch.stages))))
    launch.write()
    folder.log_event("resumed", stages=left)
    submit_stages(launch, left)
    say(f"Resumed {folder.name}, from {stage.name} on. Watch it with: deg status {show_path(launch.project)}")
    return describe(launch)


def undone(launch: Launch) -> list[int]:
    """Return the stages that are not done, or that have gaps because units were given up."""
    return [
        index
        for index in range(len(launch.stages))
        if not launch.folder.is_done(index) or _has_gaps(launch.run_of(index))
    ]


def _with_what_follows(launch: Launch, left: list[int]) -> tuple[Launch, list[int]]:
    """Add the inferences after the first unfinished stage, which lack what it will fill in. They get new runs."""
    stages, again, folder = list(launch.stages), set(left), launch.folder
    for index in range(left[0] + 1, len(stages)):
        stage = stages[index]
        if stage.verb == "infer" and launch.run_of(index).plan_file.exists():
            number = next(n for n in itertools.count(2) if not (folder.path.parent / f"{stage.run}_{n}").exists())
            stages[index] = replace(stage, run=f"{stage.run}_{number}")
            folder.merge_file(index).unlink(missing_ok=True)
            again.add(index)
    return replace(launch, stages=tuple(stages)), sorted(again)


def _has_gaps(run: RunDir) -> bool:
    return run.plan_file.exists() and open_run(run).has_gaps()


def _clear_queue(folder: LaunchDir) -> None:
    """Cancel jobs that never run or wait for another job. Raises RunError if any other is running or queued."""
    jobs = {name: job for name, job in in_queue([job.job for job in folder.jobs()]).items() if job.is_alive}
    at_work = sorted(name for name, job in jobs.items() if not job.never_runs and job.reason != "Dependency")
    if at_work:
        raise RunError(
            f"{folder.name}: its jobs are running or queued ({', '.join(at_work[:5])}). Wait for them (`deg status`), "
            "or stop them with `deg cancel`, then run this again."
        )
    if jobs:
        run_scheduler(["scancel", *sorted(jobs)])


def _cluster(launch: Launch, overrides: Sequence[str]) -> Cluster:
    """Return the cluster options of the launch, changed by those given now."""
    asked = parse_overrides(overrides)
    cluster = asked.pop("cluster", {})
    if asked or not isinstance(cluster, dict) or "profile" in cluster:
        raise ConfigError(
            f"{' '.join(overrides)}: `deg resume` takes cluster.* options only, such as cluster.time=8:00:00; the rest "
            "was fixed when the launch was planned. To change it: `deg cancel`, then give the original command again."
        )
    for name in cluster.keys() - as_dict(launch.cluster).keys():
        raise ConfigError(f"cluster.{name}: there is no such option.{did_you_mean(f'cluster.{name}')}")
    return overlay(launch.cluster, cluster, source="on the command line")


def _give_new_chances(run: RunDir) -> None:
    for unit in open_run(run).undone():
        give_new_chance(run.unit_folder(unit))
