"""One stage of training from beginning to end: plan it, have its phases trained, and say the result.

An interrupted run of the same training is found by its plan and resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from deg.data.atomic import write_atomically
from deg.data.metrics_file import MetricsFile, without_tables
from deg.errors import LaunchError, RunError, show_path
from deg.launch.say import say
from deg.launch.scheduler.launches import require_free
from deg.launch.stages.place import Workers
from deg.launch.stages.progress import TrainingProgress, figures
from deg.launch.stages.provenance import provenance
from deg.launch.stages.request import StageRequest
from deg.options.load import as_dict
from deg.plan.train import PreparedTraining, commit, describe, prepare, same_training
from deg.runs.networks import companion, weight_files
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import RunDir, create_run, find_runs
from deg.work import STOPPED


@dataclass(frozen=True)
class Best:
    """The network that a training produced, and how good it was on the validation recordings."""

    weights: str
    epoch: int
    """Counted from 0, as in the name of the weight file."""
    epochs: int
    key_metric: str
    val: Mapping[str, Any]
    """Metrics of that epoch by name, including the key metric; without those for every threshold."""
    test: Mapping[str, Any] = field(default_factory=dict)
    """The same metrics for the test recordings; empty if there are none."""


@dataclass(frozen=True)
class TrainingReport:
    """Result of a stage, for people and for --json."""

    stage: str
    run: str | None = None
    best: Best | None = None
    notices: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Recordings that could not be used, each with its reason."""
    plan: Mapping[str, Any] | None = None
    stopped: bool = False

    @property
    def exit_status(self) -> int:
        return STOPPED if self.stopped else 0

    def as_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {"best": self.best and vars(self.best), "exit_status": self.exit_status}


def show_plan(request: StageRequest, count: int) -> TrainingReport:
    """Say what `count` ranks would learn, and from what. Nothing is written."""
    prepared = _prepare(request, count)
    for line in describe(prepared):
        say(line)
    if (run := _interrupted(request, prepared.plan)) is not None:
        say(f"This would resume the interrupted run {run.name}.")
    plan = prepared.plan
    weights = {role: file.as_dict() for role, file in plan.weights.items()}
    shape = {"parts": plan.parts, "phases": plan.phases, "weights": weights, "devices": plan.devices}
    return _report(prepared, run=None if run is None else run.name, plan=shape)


def do(request: StageRequest, workers: Workers) -> TrainingReport:
    """Train a network, or resume an interrupted training of it.

    Raises DegError if it cannot be trained, LaunchError if a process died.
    """
    prepared, run = _begin(request, workers.how_many(request))
    with run.claimed():
        commit(prepared, run)
        best = _execute_to_end(run, request, workers)
    return _report(prepared, run=run.name, best=best, stopped=best is None)


def resume_run(run: RunDir, request: StageRequest, workers: Workers) -> TrainingReport:
    """Do what is left of an interrupted training, as it was planned."""
    plan = run.load_training_plan()
    with run.claimed():
        best = _execute_to_end(run, request, workers)
    return TrainingReport(plan.stage, run=run.name, best=best, stopped=best is None)


def _execute_to_end(run: RunDir, request: StageRequest, workers: Workers) -> Best | None:
    """Do what is left, close the run and say the result. Return None if a signal stopped it."""
    if not _execute(run, request, workers):
        say(f"{request.stage}: stopped; what was learned is kept in {run.name}. Run the same command again to resume.")
        return None
    best = _close(run)
    _tell(request.stage, best)
    return best


def plan_run(request: StageRequest, count: int) -> TrainingReport:
    """Make the run directory of a training, so that `count` ranks can do its units."""
    prepared, run = _begin(request, count)
    with run.claimed():
        commit(prepared, run)
    return _report(prepared, run=run.name)


def merge_run(request: StageRequest) -> TrainingReport:
    """Close a run whose phases others have trained: the one that the request names, or the newest unfinished one.

    Raises RunError if there is none, or if a phase is still to be trained.
    """
    run = _run_to_close(request)
    plan = run.load_training_plan()
    left = [plan.phases[unit.index] for unit in plan.units if not run.phase_done_file(unit.index).exists()]
    if left:
        raise RunError(f"{run.name}: expected a training that is done, found {', '.join(left)} still to be trained.")
    with run.claimed():
        best = _close(run)
    _tell(request.stage, best)
    return TrainingReport(request.stage, run=run.name, best=best)


def _run_to_close(request: StageRequest) -> RunDir:
    if request.run_name is not None:
        return RunDir(request.project.model_path / request.run_name)
    for run in find_runs(request.project.model_path):
        plan = unfinished_training(run)
        if plan is not None and plan.stage == request.stage:
            return run
    raise RunError(f"{request.stage}: there is no unfinished training to close. `deg status` lists the runs.")


def _begin(request: StageRequest, count: int) -> tuple[PreparedTraining, RunDir]:
    """Plan what `count` ranks are to learn, and find or make a run for it."""
    prepared = _prepare(request, count)
    for notice in prepared.notices:
        say(notice)
    for key, reason in prepared.left_out.items():
        say(f"{show_path(key)}: left out: {reason}")
    run = _interrupted(request, prepared.plan)
    if run is not None:
        say(f"Resuming the interrupted run {run.name}.")
        return prepared, run
    commit(prepared, None)
    return prepared, _created(request, prepared.plan)


def _close(run: RunDir) -> Best:
    """Record that a run is done. Its phases must all be done before."""
    best = read_best(run)
    write_atomically(run.done_file, json.dumps(vars(best), indent=1))
    run.log_event("finished")
    return best


def _tell(stage: str, best: Best) -> None:
    say(f"{stage}: trained in {best.epochs} epochs; epoch {best.epoch + 1} was best: {figures(best.val)}.")
    if best.test:
        say(f"On the test recordings: {figures(best.test)}.")
    say(f"Weights: {show_path(best.weights)}")


def unfinished_training(run: RunDir) -> TrainingPlan | None:
    """Return the plan of an unfinished training run; None for any other run, and for one of another version of deg."""
    if run.done_file.exists():
        return None
    try:
        return run.load_training_plan()
    except RunError:
        return None


def read_best(run: RunDir) -> Best:
    """Return the network that the last phase produced. Raises RunError if weights or metrics are missing."""
    weights = weight_files(run.path)
    metrics = companion(weights[0]).metrics if weights else None
    if metrics is None:
        raise RunError(f"{show_path(run.path)}: expected weights and metrics of a finished training, found none.")
    file = MetricsFile.open(metrics)
    epoch = file.best_epoch()
    if epoch is None:
        raise RunError(f"{show_path(metrics)}: expected values of {file.key_metric}, found none. Train again.")
    val, test = _row(file, "val", epoch), _row(file, "test", 0)
    return Best(str(weights[0]), epoch, file.num_epochs, file.key_metric, val, test)


def _row(file: MetricsFile, part: str, epoch: int) -> dict[str, Any]:
    return without_tables({name: file.values(part, name)[epoch] for name in file.names(part)})


def _prepare(request: StageRequest, count: int) -> PreparedTraining:
    return prepare(request.stage, request.project, request.config, devices=count)


def _report(prepared: PreparedTraining, **rest: Any) -> TrainingReport:
    return TrainingReport(prepared.plan.stage, notices=prepared.notices, left_out=prepared.left_out, **rest)


def _interrupted(request: StageRequest, wanted: TrainingPlan) -> RunDir | None:
    """Return the newest interrupted run that would give the same network; None if there is none."""
    for run in find_runs(request.project.model_path):
        if request.run_name not in (None, run.name):
            continue
        plan = unfinished_training(run)
        if plan is None or plan.stage != wanted.stage or not same_training(plan, wanted):
            continue
        require_free(run)
        if not run.is_claimed():
            return run
        say(f"Note: another `deg` is doing this training, in {run.name}; this is a second one.")
    return None


def _created(request: StageRequest, plan: TrainingPlan) -> RunDir:
    config = as_dict(plan.config)
    config["project"]["config_file"] = str(request.project.config_file)
    return create_run(
        request.project.model_path,
        stage=plan.stage,
        kind="train",
        plan=plan,
        config=config,
        provenance=provenance(),
        now=datetime.now(),
        name=request.run_name,
        notes=request.config.notes,
    )


def _execute(run: RunDir, request: StageRequest, workers: Workers) -> bool:
    """Do all phases that are not done. Return False if a signal stopped them."""
    plan, count = run.load_training_plan(), workers.how_many(request)
    with TrainingProgress() as progress:
        for unit in plan.units:
            if run.phase_done_file(unit.index).exists():
                continue
            phase = f", phase {plan.phases[unit.index]}" if len(plan.phases) > 1 else ""
            say(f"{run.name}{phase}: training on {count} device(s)")
            outcome = workers.train(run, unit.index, request.config, progress.hear)
            done = run.phase_done_file(unit.index).exists()
            if outcome.stopped and not (done and unit is plan.units[-1]):
                return False
            if not done:
                raise LaunchError(f"{run.name}{phase}: the ranks ended, but the phase is not done. {_logs(run)}")
    return True


def _logs(run: RunDir) -> str:
    return f"See {show_path(run.path / 'jobs')}; run the same command again to resume."
