"""`deg resume`: resumes a run or a launch at the place where it was started.

In a project it resumes the newest one that was interrupted or cancelled, or in which units were given up. Only what is
missing is done. Units that were given up get a new chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deg.errors import ConfigError, RunError, show_path
from deg.launch.on.local.place import LOCAL
from deg.launch.on.slurm.resume import resume_launch, undone
from deg.launch.scheduler.launches import LaunchDir, find_launches, launch_of
from deg.launch.stages.request import Report, StageRequest
from deg.launch.stages.stage import resume_run
from deg.options.load import read_run_config, restore
from deg.projects.project import open_project
from deg.runs.rundir import RunDir, find_runs
from deg.runs.state import open_run


def resume(path: Path, overrides: Sequence[str]) -> Report:
    """Resume the run or launch at `path`, or the newest unfinished one of the project at `path`.

    `overrides` are `cluster.*` options for the jobs of a launch. Raises RunError if there is nothing to resume.
    """
    found = _find(path)
    if isinstance(found, LaunchDir):
        return resume_launch(found, overrides)
    if overrides:
        raise ConfigError(
            f"{overrides[0]}: {found.name} was run on this machine, with the options of its plan. Resume it without "
            "options."
        )
    return _resume_here(found)


def _find(path: Path) -> LaunchDir | RunDir:
    if (path / "launch.json").exists():
        return LaunchDir(path)
    if (path / "plan.json").exists():
        return launch_of(RunDir(path)) or RunDir(path)
    project = open_project(path)
    unfinished: list[tuple[int, LaunchDir | RunDir]] = []
    for launch in find_launches(project.model_path):
        if undone(launch.load()):
            unfinished.append((launch.launch_file.stat().st_mtime_ns, launch))
            break
    for run in find_runs(project.model_path):
        if not run.done_file.exists() and launch_of(run) is None:
            unfinished.append((run.plan_file.stat().st_mtime_ns, run))
            break
    if not unfinished:
        raise RunError(f"{show_path(project.path)}: nothing was interrupted. `deg status` lists the runs.")
    return max(unfinished, key=lambda item: item[0])[1]


def _resume_here(run: RunDir) -> Report:
    """Resume a run on this machine."""
    if run.done_file.exists():
        raise RunError(f"{run.name}: it is finished, there is nothing to resume.")
    found = open_run(run)
    config = restore(read_run_config(run.config_file))
    project = open_project(run.path.parent.parent if config.project.path is None else Path(config.project.path))
    return resume_run(run, StageRequest(found.verb, found.plan.stage, project, config), LOCAL)
