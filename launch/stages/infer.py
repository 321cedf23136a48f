"""One stage of inference from beginning to end: plan it, have its units done, merge, and say the result.

An interrupted run is found by its plan and resumed. Only what is missing is done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from deg.arithmetic.units import missing_units
from deg.errors import DegError, RunError
from deg.launch.say import say
from deg.launch.scheduler.launches import require_free
from deg.launch.stages.place import Outcome, Workers
from deg.launch.stages.progress import Progress
from deg.launch.stages.provenance import provenance
from deg.launch.stages.request import StageRequest
from deg.options.load import as_dict
from deg.options.schema import Config
from deg.plan.infer import STAGES, PreparedInference, choose_records, prepare
from deg.projects.project import Project
from deg.runs.merge import Merged, close_if_merged, finish, merge
from deg.runs.networks import scan
from deg.runs.plans import InferencePlan
from deg.runs.rundir import RunDir, create_run, read_error, unfinished_runs
from deg.work import STOPPED

MERGE_SECONDS = 10.0
"""Seconds between two merges of the recordings that are complete, while units are being done."""


@dataclass(frozen=True)
class InferenceReport:
    """Result of a stage, for people and for --json."""

    stage: str
    group: str | None = None
    run: str | None = None
    done: tuple[str, ...] = ()
    already_done: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()
    """Recordings that another call of the same command would do. Those that met an obstacle are in `failed` too."""
    notices: tuple[str, ...] = ()
    plan: Mapping[str, Any] | None = None
    stopped: bool = False

    @property
    def exit_status(self) -> int:
        if self.stopped:
            return STOPPED
        return 1 if self.failed or self.waiting else 0

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"exit_status": self.exit_status}


def stages(wanted: str, project: Project, config: Config) -> tuple[str, ...]:
    """Return the stages that a word on the command line means.

    `all` leaves out the sequence network while none is trained.
    """
    if wanted != "all":
        return (wanted,)
    if config.sequence.weights is None and not any(run.model == "sequence" for run in scan(project.model_path)):
        say("Note: this project has no trained sequence network yet; features only.")
        return ("feature_extractor",)
    return STAGES


def show_plan(request: StageRequest, count: int) -> InferenceReport:
    """Say what `count` workers would do, and in how many units. Nothing is written."""
    stage, prepared = request.stage, _prepare(request, count)
    report = _report(stage, prepared)
    _tell_failures(report)
    if prepared.plan is None:
        say(f"{stage}: nothing to do, {len(prepared.done)} recordings are done.")
        return report
    units = prepared.plan.units
    frames = sum(unit.num_frames for unit in units)
    say(f"{stage}: {len(prepared.plan.videos)} recordings, {frames} frames, {len(units)} units:")
    for unit in units:
        spans = ", ".join(f"{span.key}[{span.start}:{span.stop}]" for span in unit.spans)
        say(f"  {unit.index:5d}  {unit.num_frames:8d} frames  {spans}")
    shape = {"units": [[[s.key, s.start, s.stop] for s in unit.spans] for unit in units], "frames": frames}
    return replace(report, plan=shape)


def do(request: StageRequest, workers: Workers) -> InferenceReport:
    """Do a stage. Recordings that fail are named in the report and do not stop the others."""
    run, plan, wanted, report = _begin(request, workers.how_many(request))
    if run is None or plan is None or wanted is None:
        return report
    with run.claimed():
        outcome, merged = _execute(run, plan, request, wanted, workers)
    return _tell(_result(report, plan, wanted.videos, merged, outcome.failed), outcome.stopped, request, merged)


def plan_run(request: StageRequest, count: int) -> InferenceReport:
    """Make the run directory of a stage, so that `count` others can do its units. Without work there is none."""
    run, _, _, report = _begin(request, count)
    return report if run is None else replace(report, run=run.name)


def resume_run(run: RunDir, request: StageRequest, workers: Workers) -> InferenceReport:
    """Do what is left of an interrupted run, as it was planned."""
    plan = run.load_plan()
    with run.claimed():
        outcome, merged = _execute(run, plan, request, plan, workers)
    report = InferenceReport(plan.stage, group=plan.group, run=run.name)
    return _tell(_result(report, plan, plan.videos, merged, outcome.failed), outcome.stopped, request, merged)


def merge_run(request: StageRequest) -> InferenceReport:
    """Merge what others have done of the run that the request names, or of the newest unfinished one.

    Raises RunError if there is none.
    """
    stage, (run, plan) = request.stage, _run_to_merge(request)
    if run.is_merged():
        say(f"{run.name}: merged already.")
        return InferenceReport(stage, group=plan.group, run=run.name, done=tuple(plan.videos))
    with run.claimed():
        merged = merge(run, plan)
        if merged.is_complete:
            finish(run, merged)
    reasons = {unit.index: read_error(run, unit.index) for unit in missing_units(plan.units, run.finished_units())}
    failed = {index: reason for index, reason in reasons.items() if reason is not None}
    report = InferenceReport(stage, group=plan.group, run=run.name)
    return _tell(_result(report, plan, plan.videos, merged, failed), False, request, merged)


def _run_to_merge(request: StageRequest) -> tuple[RunDir, InferencePlan]:
    if request.run_name is not None:
        run = RunDir(request.project.model_path / request.run_name)
        return run, run.load_plan()
    found = unfinished_runs(request.project.model_path, request.stage)
    if not found:
        raise RunError(f"{request.stage}: there is no unfinished run to merge. `deg status` lists the runs.")
    return found[0]


def _begin(
    request: StageRequest, count: int
) -> tuple[RunDir | None, InferencePlan | None, InferencePlan | None, InferenceReport]:
    """Return the run to work on, its plan, the plan of what is wanted now, and a report.

    All but the report are None if there is nothing to do.
    """
    stage = request.stage
    if not request.overwrite:  # with overwrite, such a run is resumed
        _close_merged_runs(stage, request.project)
    prepared = _prepare(request, count)
    report = _report(stage, prepared)
    if request.config.inference.ignore_error is False and prepared.failed:
        key, reason = next(iter(prepared.failed.items()))
        raise DegError(f"{key}: {reason} (inference.ignore_error is false)")
    if prepared.plan is None:
        say(f"{stage}: nothing to do, {len(prepared.done)} recordings are done.")
        _tell_failures(report)
        return None, None, None, report
    run, plan = _interrupted(request, prepared.plan) or _created(request, prepared.plan)
    return run, plan, prepared.plan, replace(report, run=run.name)


def _result(
    report: InferenceReport, plan: InferencePlan, wanted: Collection[str], merged: Merged, undone: Mapping[int, str]
) -> InferenceReport:
    """Add the recordings that are wanted to the report. `undone` are units that could not be done, with reasons."""
    waiting = {key for key in (*merged.waiting, *merged.unwritten) if key in wanted}
    obstacles = {
        span.key: f"unit {index} was not done: {reason}"
        for index, reason in undone.items()
        for span in plan.units[index].spans
        if span.key in waiting
    }
    found = {**merged.failed, **merged.unwritten, **obstacles}
    return replace(
        report,
        done=tuple(key for key in merged.done if key in wanted),
        failed={**report.failed, **{key: reason for key, reason in found.items() if key in wanted}},
        waiting=tuple(sorted(waiting)),
    )


def _tell(report: InferenceReport, stopped: bool, request: StageRequest, merged: Merged) -> InferenceReport:
    report = replace(report, stopped=stopped and bool(report.waiting) and not _gave_up(request, merged))
    _tell_failures(report)
    say(
        f"{report.stage}: {len(report.done)} recordings done, {len(report.failed)} failed, "
        f"{len(report.waiting)} still to do."
    )
    if report.waiting:
        say("Run the same command again to resume.")
    return report


def _gave_up(request: StageRequest, merged: Merged) -> bool:
    """Whether the work ends here because a recording failed and `inference.ignore_error` is false."""
    return bool(merged.failed) and not request.config.inference.ignore_error


def _prepare(request: StageRequest, count: int) -> PreparedInference:
    records = choose_records(request.project, request.videos, request.config.inference)
    prepared = prepare(
        request.stage,
        request.project,
        request.config,
        records,
        devices=count,
        overwrite=request.overwrite,
    )
    for notice in prepared.notices:
        say(notice)
    return prepared


def _report(stage: str, prepared: PreparedInference) -> InferenceReport:
    group = prepared.plan.group if prepared.plan else None
    return InferenceReport(
        stage, group=group, already_done=prepared.done, failed=dict(prepared.failed), notices=prepared.notices
    )


def _tell_failures(report: InferenceReport) -> None:
    for key, reason in report.failed.items():
        say(f"{key}: FAILED: {reason}")


def _close_merged_runs(stage: str, project: Project) -> None:
    """Close runs that were killed after all was merged, but before that was recorded."""
    for run, plan in unfinished_runs(project.model_path, stage):
        if not run.is_claimed():
            with run.claimed():
                close_if_merged(run, plan)


def _interrupted(request: StageRequest, wanted: InferencePlan) -> tuple[RunDir, InferencePlan] | None:
    """Return an interrupted run that would give just what is wanted, with its own plan; None if there is none."""
    for run, plan in unfinished_runs(request.project.model_path, wanted.stage):
        if request.run_name in (None, run.name) and _same_work(plan, wanted):
            require_free(run)
            say(f"Resuming the interrupted run {run.name}.")
            return run, plan
    return None


def _same_work(plan: InferencePlan, wanted: InferencePlan) -> bool:
    # weights count with their paths: workers read them from there
    names = ("group", "class_names", "thresholds", "settings", "overwrite", "weights")
    if any(getattr(plan, name) != getattr(wanted, name) for name in names):
        return False
    return all(
        plan.videos.get(key) == video
        and plan.outputs.get(key) == wanted.outputs[key]
        and plan.sources.get(key) == wanted.sources.get(key)
        for key, video in wanted.videos.items()
    )


def _created(request: StageRequest, plan: InferencePlan) -> tuple[RunDir, InferencePlan]:
    run = create_run(
        request.project.model_path,
        stage=plan.stage,
        kind="inference",
        plan=plan,
        config=_absolute(request),
        provenance=provenance(),
        now=datetime.now(),
        name=request.run_name,
        notes=request.config.notes,
    )
    return run, plan


def _absolute(request: StageRequest) -> dict[str, Any]:
    """Return the configuration as DeepEthogram stores it with a run: complete, with the project's paths here."""
    config, project = as_dict(request.config), request.project
    config["project"].update(
        path=str(project.path),
        config_file=str(project.config_file),
        data_path=str(project.data_path),
        model_path=str(project.model_path),
    )
    if project.pretrained_path is not None:
        config["project"]["pretrained_path"] = str(project.pretrained_path)
    return config


def _execute(
    run: RunDir, plan: InferencePlan, request: StageRequest, wanted: InferencePlan, workers: Workers
) -> tuple[Outcome, Merged]:
    units = [unit for unit in plan.units if any(span.key in wanted.videos for span in unit.spans)]
    missing = missing_units(units, run.finished_units())
    say(f"{run.name}: {len(missing)} of {len(units)} units to do on {workers.how_many(request)} device(s)")
    with Progress(sum(unit.num_frames for unit in missing)) as progress, _MergingBeside(run, plan) as merging:

        def count(frames: int, finished: bool) -> bool:
            progress.add(frames)
            due = finished and progress.due("merge", seconds=MERGE_SECONDS)
            return due and _gave_up(request, merging.merge_more())

        outcome = workers.do_units(run, missing, request.config, count) if missing else Outcome()
    merged = merge(run, plan)
    if merged.is_complete:
        finish(run, merged)
    return outcome, merged


class _MergingBeside:
    """Merges recordings while others are computed, in a thread, so that no worker has to wait for its next unit."""

    def __init__(self, run: RunDir, plan: InferencePlan):
        self._run, self._plan = run, plan
        self._settled: set[str] = set()
        self._thread = ThreadPoolExecutor(1, "merge")
        self._pending: Future[Merged] | None = None

    def __enter__(self) -> _MergingBeside:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._thread.shutdown()

    def merge_more(self) -> Merged:
        """Start to merge what is new, unless the last merge still runs. Return what the last merge has found."""
        found = Merged()
        if self._pending is not None:
            if not self._pending.done():
                return found
            found = self._pending.result()
            self._settled.update(found.done, found.failed)
        self._pending = self._thread.submit(merge, self._run, self._plan, skip=frozenset(self._settled))
        return found
