"""`deg run`: from labelled videos to a report. Each step is also a command of its own, and is done if it is missing.

    train flow_generator -> train feature_extractor -> infer feature_extractor -> train sequence -> infer sequence
    -> report

Whether a step is done is read from files when the chain reaches it, so it may be killed and called again at any time.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from deg.errors import DegError, RunError, show_path
from deg.launch.say import say
from deg.launch.stages.infer import InferenceReport
from deg.launch.stages.place import Workers
from deg.launch.stages.request import ChainRequest, Order, Report, Verb
from deg.launch.stages.stage import Answer, answer_of, do, show_plan
from deg.launch.stages.train import unfinished_training
from deg.options.load import as_dict
from deg.options.schema import Config
from deg.plan.recordings import find_trainable
from deg.plan.train import SHAPING, prepare, same_training
from deg.projects.project import Project, open_project
from deg.runs.networks import TrainedRun, scan
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import RunDir, find_runs
from deg.work import STOPPED

SOME_FAILED = 1
"""Exit status of an inference that could not do every recording."""


@dataclass(frozen=True)
class Missing:
    """Whether a step is to be done, and why."""

    missing: bool
    why: str


@dataclass(frozen=True)
class Step:
    """One step of the chain."""

    name: str
    command: tuple[str, ...]
    """Words after `deg` with which a user does the step alone."""
    look: Callable[[], Missing]
    """Function that reads from the project's files whether the step is missing."""
    order: Callable[[], Order] | None
    """Function that makes the order for the stage; None for the report."""


@dataclass(frozen=True)
class StepReport:
    """Result of a step."""

    name: str
    command: tuple[str, ...]
    state: str
    """`done`, `there` (already), `failed`, `stopped`, or in a dry run `missing`."""
    why: str
    exit_status: int = 0
    document: Any = None
    """Document that its command prints with --json."""


@dataclass(frozen=True)
class ChainReport:
    """Result of the chain, for people and for --json."""

    steps: tuple[StepReport, ...]
    exit_status: int

    def as_dict(self) -> dict[str, Any]:
        return {"steps": [vars(step) for step in self.steps], "exit_status": self.exit_status}


def steps(request: ChainRequest) -> list[Step]:
    """Return the steps of the chain, in their order. They always use the newest networks of this project."""
    flow = ("flow_generator.weights=latest",)
    # null: the flow generator that the feature extractor was trained with
    extractor = ("feature_extractor.weights=latest", "flow_generator.weights=null")
    always = Missing(True, "what is done is skipped")

    def step(verb: Verb, stage: str, look: Callable[[], Missing], forced: Sequence[str]) -> Step:
        return Step(
            f"{verb} {stage}", request.words(verb, stage, forced), look, partial(request.order, verb, stage, forced)
        )

    def training(stage: str, forced: Sequence[str] = ()) -> Step:
        return step("train", stage, lambda: look_for_network(request, stage, forced), forced)

    def inference(stage: str, forced: Sequence[str]) -> Step:
        return step("infer", stage, lambda: always, forced)

    return [
        training("flow_generator"),
        training("feature_extractor", flow),
        inference("feature_extractor", extractor),
        training("sequence"),
        inference("sequence", ("sequence.weights=latest",)),
        Step("report", ("report", str(request.path), *request.overrides), lambda: look_for_report(request), None),
    ]


def run_chain(request: ChainRequest, workers: Workers, *, dry_run: bool = False) -> ChainReport:
    """Do what is missing, up to the first step that fails.

    Raises DegError if it is clear beforehand that a step will fail.
    """
    chain = steps(request)
    require_trainable(request, chain)
    reports: list[StepReport] = []
    for number, step in enumerate(chain, start=1):
        say(f"\n[{number}/{len(chain)}] {step.name}")
        missing = step.look()
        if not missing.missing:
            say(f"{missing.why}: nothing to do.")
            reports.append(StepReport(step.name, step.command, "there", missing.why))
            continue
        if dry_run:
            say(f"{missing.why}.")
        say(f"$ deg {shlex.join(step.command)}")
        report, continues = _show(step, missing, reports, workers) if dry_run else _do(step, missing, request, workers)
        reports.append(report)
        if not continues:
            break
    return ChainReport(tuple(reports), max(report.exit_status for report in reports))


# ---------------------------------------------------------------------------------------------------- doing


def _do(step: Step, missing: Missing, request: ChainRequest, workers: Workers) -> tuple[StepReport, bool]:
    """Do a step. Return its report, and whether the chain continues."""

    def act() -> Report:
        from deg.launch.stages.report import write_report

        if step.order is None:
            return write_report(request.path, request.overrides)
        return do(step.order().request, workers)

    found = answer_of(act)
    state = {0: "done", STOPPED: "stopped"}.get(found.exit_status, "failed")
    report = StepReport(step.name, step.command, state, missing.why, found.exit_status, found.document)
    return report, may_continue(request.path, found)


def _show(step: Step, missing: Missing, before: Sequence[StepReport], workers: Workers) -> tuple[StepReport, bool]:
    """Show a step of a dry run. Return the same as `_do`.

    A step that comes after a missing one cannot be planned yet.
    """
    report = StepReport(step.name, step.command, "missing", missing.why)
    order = step.order
    if order is None or any(other.state == "missing" for other in before):
        return report, True

    def act() -> Report:
        request = order().request
        return show_plan(request, workers.how_many(request))

    found = answer_of(act)
    if isinstance(found.report, InferenceReport) and found.exit_status == 0 and not found.report.plan:
        return replace(report, state="there", document=found.document), True
    return replace(report, exit_status=found.exit_status, document=found.document), not found.exit_status


def may_continue(project: Path, found: Answer) -> bool:
    """Whether the chain continues after a step.

    One bad video among a thousand does no harm to an inference. But if it is labelled, the sequence network would be
    trained without it.
    """
    if found.exit_status != SOME_FAILED or not isinstance(found.report, InferenceReport):
        return found.exit_status == 0
    if found.report.stage != "feature_extractor":
        return True
    records = open_project(project).records
    lacking = {*found.report.failed, *found.report.waiting}
    labelled = sorted(key for key in lacking if key in records and records[key].labels is not None)
    if labelled:
        say(
            f"The chain ends here: {', '.join(map(show_path, labelled))} is labelled but has no features, and the "
            "sequence network would be trained without it. Repair it, or move its folder out of the project's data."
        )
    return not labelled


def require_trainable(request: ChainRequest, chain: Sequence[Step]) -> None:
    """Require enough labels before a flow generator is trained for a day. Raises ProjectError if there are too few."""
    project = open_project(request.path)
    for stage in ("feature_extractor", "sequence"):
        if find_network(project, stage, getattr(request.config(project, stage), stage).arch) is None:
            find_trainable("feature_extractor", project, request.config(project, "feature_extractor"))
            return


# ---------------------------------------------------------------------------------------------------- looking


def find_network(project: Project, stage: str, arch: str) -> TrainedRun | None:
    """Return the newest fully trained network of this project, made by deg or by DeepEthogram; None if there is none.

    Networks in the folder of pretrained ones do not count.
    """
    pretrained = None if project.pretrained_path is None else project.pretrained_path.resolve()
    found = [
        run
        for run in scan(project.model_path)
        if (run.model, run.arch) == (stage, arch)
        and (pretrained is None or not run.folder.resolve().is_relative_to(pretrained))
        and run.is_ended
    ]
    return found[-1] if found else None


def look_for_network(request: ChainRequest, stage: str, forced: Sequence[str]) -> Missing:
    """Find out whether a stage must be trained. Raises RunError while another process trains it."""
    project = open_project(request.path)
    config = request.config(project, stage, forced)
    arch = getattr(config, stage).arch
    for run in find_runs(project.model_path):
        plan = unfinished_training(run)
        if plan is not None and (plan.stage, getattr(plan.config, stage).arch) == (stage, arch) and run.is_claimed():
            raise RunError(f"{run.name}: another `deg` is training the {stage}. Wait for it, then run again.")
    found = find_network(project, stage, arch)
    if found is None:
        return Missing(True, f"this project has not trained a {stage} {arch} yet")
    if changes := _changes(RunDir(found.folder), stage, project, config):
        say(
            f"Note: since {found.folder.name} was trained, this has changed: {', '.join(changes)}. "
            f"To train again: deg train {stage} {show_path(request.path)}"
        )
    return Missing(False, f"trained by {found.folder.name}")


def look_for_report(request: ChainRequest) -> Missing:
    """Find out whether a report must be written: there is none, or something is newer than it."""
    project = open_project(request.path)
    pages = sorted(project.path.glob("reports/*/index.html"), key=lambda page: page.stat().st_mtime_ns)
    if not pages:
        return Missing(True, "there is none yet")
    sources = [path for record in project.records.values() for path in (record.outputs, record.labels) if path]
    sources += project.model_path.glob("*/done.json")
    if any(path.stat().st_mtime_ns > pages[-1].stat().st_mtime_ns for path in sources):
        return Missing(True, "results are newer than the last one")
    return Missing(False, f"{show_path(pages[-1])} shows the newest results")


def _changes(run: RunDir, stage: str, project: Project, config: Config) -> list[str]:
    """Return what a training would find different now.

    A run of DeepEthogram does not record what it was trained with, so nothing is found.
    """
    if not run.plan_file.exists():
        return []
    try:
        then, now = _trained_with(run.load_training_plan()), _trained_with(_prepare(stage, project, config))
    except DegError as error:
        return [f"it could not be trained now ({error})"]
    if same_training(then, now):
        return []
    return differences(then, now) or ["something that the network depends on"]


def _prepare(stage: str, project: Project, config: Config) -> TrainingPlan:
    return prepare(stage, project, config, devices=1).plan


def _trained_with(plan: TrainingPlan) -> TrainingPlan:
    """The plan without its starting weights.

    With `weights=latest` they change after every training and must not count as a difference.
    """
    section = replace(getattr(plan.config, plan.stage), weights=None)
    config = replace(plan.config, **{plan.stage: section})
    return replace(plan, config=config, weights={k: v for k, v in plan.weights.items() if k != "start"})


def differences(one: TrainingPlan, other: TrainingPlan) -> list[str]:
    """Return, in words, what has changed between the plans of two trainings, from `one` to `other`."""
    found = []
    for said, before, after in (
        ("recordings", one.videos, other.videos),
        ("labels", one.labels, other.labels),
        ("features", one.inputs, other.inputs),
    ):
        keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        if keys:
            found.append(f"{said} of {', '.join(map(show_path, keys[:5]))}{' and others' if len(keys) > 5 else ''}")
    if one.parts != other.parts and one.videos.keys() == other.videos.keys():
        found.append("the split")
    if one.class_names != other.class_names:
        found.append("the behaviours")
    found += [f"the {role}" for role in other.weights if one.weights.get(role) != other.weights[role]]
    for section in SHAPING[one.stage]:
        found += _options(section, as_dict(getattr(one.config, section)), as_dict(getattr(other.config, section)))
    return found


def _options(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in after.items():
        if isinstance(value, Mapping):
            found += _options(f"{prefix}.{name}", before.get(name, {}), value)
        elif name != "weights" and value != before.get(name):
            found.append(f"{prefix}.{name}")
    return found
