"""`deg run`: from labelled videos to a report, in steps that are commands of their own, each done where it is missing.

    train flow_generator -> train feature_extractor -> infer feature_extractor -> train sequence -> infer sequence
    -> report

Whether a step is done is read from files, when its turn comes: the chain may be killed and called at any time. A step
is its words after `deg`, so whoever starts it, here or as jobs of a scheduler that wait for each other, does the same.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deg.errors import DegError, RunError, show_path
from deg.launch import cli
from deg.launch.say import say
from deg.launch.stages.train import unfinished_training
from deg.options.load import load_config
from deg.options.schema import Config
from deg.plan import train as planning
from deg.plan.recordings import find_trainable
from deg.projects.project import Project, open_project
from deg.runs.networks import TrainedRun, scan
from deg.runs.rundir import RunDir, TrainingPlan, find_runs
from deg.work import STOPPED

SOME_FAILED = 1
"""Exit status of an inference that could not do every recording."""


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    path: Path
    overrides: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    run_name: str | None = None

    def config(self, project: Project, stage: str, forced: Sequence[str] = ()) -> Config:
        """The options that hold for a stage."""
        return load_config(project.config_file, [*self.overrides, *forced], stage=stage, files=self.files)


@dataclass(frozen=True)
class Finding:
    """Whether a step is to be done, and why."""

    missing: bool
    why: str


@dataclass(frozen=True)
class Step:
    """One link of the chain."""

    name: str
    command: tuple[str, ...]
    """The words after `deg` that do it; they do it again if it is done."""
    look: Callable[[], Finding]
    """Reads from the project's files whether that is needed."""


@dataclass(frozen=True)
class StepReport:
    """What became of a step."""

    name: str
    command: tuple[str, ...]
    state: str
    """`done`, `there` (already), `failed`, `stopped`, or in a dry run `missing`."""
    why: str
    exit_status: int = 0
    document: Any = None
    """What its command prints with --json."""


@dataclass(frozen=True)
class Report:
    """What became of the chain, for people and for --json."""

    steps: tuple[StepReport, ...]
    exit_status: int

    def as_dict(self) -> dict[str, Any]:
        return {"steps": [vars(step) for step in self.steps], "exit_status": self.exit_status}


def steps(request: Request) -> list[Step]:
    """The links of the chain, in their order. Networks are always the newest of this project."""

    def words(*command: str, forced: Sequence[str] = ()) -> tuple[str, ...]:
        options = [word for file in request.files for word in ("--config", str(file))]
        if request.run_name is not None:
            options += ["--run", "_".join([request.run_name, *reversed(command)])]
        return (*command, str(request.path), *request.overrides, *forced, *options)

    flow = ("flow_generator.weights=latest",)
    # null: the flow generator that the feature extractor was trained with
    extractor = ("feature_extractor.weights=latest", "flow_generator.weights=null")
    always = Finding(True, "what is done is skipped")

    def training(stage: str, forced: Sequence[str] = ()) -> Step:
        name = f"train {stage}"
        return Step(name, words("train", stage, forced=forced), lambda: look_for_network(request, stage, forced))

    def inference(stage: str, forced: Sequence[str]) -> Step:
        return Step(f"infer {stage}", words("infer", stage, forced=forced), lambda: always)

    return [
        training("flow_generator"),
        training("feature_extractor", flow),
        inference("feature_extractor", extractor),
        training("sequence"),
        inference("sequence", ("sequence.weights=latest",)),
        Step("report", ("report", str(request.path), *request.overrides), lambda: look_for_report(request)),
    ]


def run_chain(request: Request, *, dry_run: bool = False) -> Report:
    """Do what is missing, up to the first step that fails. DegError if it is clear beforehand that one will."""
    chain = steps(request)
    require_trainable(request, chain)
    reports: list[StepReport] = []
    for number, step in enumerate(chain, start=1):
        say(f"\n[{number}/{len(chain)}] {step.name}")
        reports.append(_show(step, reports) if dry_run else _do(step))
        if reports[-1].exit_status and not _may_go_on(request, reports[-1]):
            break
    return Report(tuple(reports), max(report.exit_status for report in reports))


# ---------------------------------------------------------------------------------------------------- doing


def _do(step: Step) -> StepReport:
    finding = step.look()
    if not finding.missing:
        say(f"{finding.why}: nothing to do.")
        return StepReport(step.name, step.command, "there", finding.why)
    say(f"$ deg {shlex.join(step.command)}")
    status, document = run_quietly(step.command)
    state = {0: "done", STOPPED: "stopped"}.get(status, "failed")
    return StepReport(step.name, step.command, state, finding.why, status, document)


def _show(step: Step, before: Sequence[StepReport]) -> StepReport:
    """A step of a dry run. What comes after one that is missing cannot be planned yet."""
    finding = step.look()
    report = StepReport(step.name, step.command, "missing" if finding.missing else "there", finding.why)
    say(f"{finding.why}." if finding.missing else f"{finding.why}: nothing to do.")
    if not finding.missing:
        return report
    say(f"$ deg {shlex.join(step.command)}")
    if step.name == "report" or any(other.state == "missing" for other in before):
        return report
    status, document = run_quietly((*step.command, "--dry-run"))
    if status == 0 and step.name.startswith("infer") and not any(stage["plan"] for stage in document["stages"]):
        return replace(report, state="there", document=document)
    return replace(report, exit_status=status, document=document)


def run_quietly(command: Sequence[str]) -> tuple[int, Any]:
    """Do a command in this process: its exit status and its JSON document. What it says to people is said."""
    with redirect_stdout(io.StringIO()) as printed:
        status = cli.run([*command, "--json"])
    return status, json.loads(printed.getvalue()) if printed.getvalue() else None


def run_or_raise(command: Sequence[str]) -> tuple[int, Any]:
    """The same, but what the command raises is not caught."""
    with redirect_stdout(io.StringIO()) as printed:
        status = cli.main_group(args=[*command, "--json"], prog_name="deg", standalone_mode=False)
    return status or 0, json.loads(printed.getvalue()) if printed.getvalue() else None


def _may_go_on(request: Request, report: StepReport) -> bool:
    """Whether a step that could not do everything keeps the others from being right."""
    if report.exit_status != SOME_FAILED or not report.name.startswith("infer"):
        return False
    return may_go_on(request.path, report.name.removeprefix("infer "), report.document)


def may_go_on(project: Path, stage: str, document: Mapping[str, Any]) -> bool:
    """Whether the chain goes on after an inference, by its JSON document, that could not do every recording: one bad
    video among a thousand does no harm, unless it is labelled, and the sequence network would be trained without it."""
    if stage != "feature_extractor":
        return True
    records = open_project(project).records
    lacking = {key for stage in document["stages"] for key in (*stage["failed"], *stage["waiting"])}
    labelled = sorted(key for key in lacking if key in records and records[key].labels is not None)
    if labelled:
        say(
            f"The chain ends here: {', '.join(map(show_path, labelled))} is labelled but has no features, and the "
            "sequence network would be trained without it. Mend it, or move its folder out of the project's data."
        )
    return not labelled


def require_trainable(request: Request, chain: Sequence[Step]) -> None:
    """Before a flow generator is trained for a day: are there labels? ProjectError if not enough."""
    project = open_project(request.path)
    for stage in ("feature_extractor", "sequence"):
        if find_network(project, stage, getattr(request.config(project, stage), stage).arch) is None:
            find_trainable("feature_extractor", project, request.config(project, "feature_extractor"))
            return


# ---------------------------------------------------------------------------------------------------- looking


def find_network(project: Project, stage: str, arch: str) -> TrainedRun | None:
    """The newest network of this project that is trained to the end, by deg or by DeepEthogram; not pretrained ones."""
    pretrained = None if project.pretrained_path is None else project.pretrained_path.resolve()
    found = [
        run
        for run in scan(project.model_path)
        if (run.model, run.arch) == (stage, arch)
        and (pretrained is None or not run.folder.resolve().is_relative_to(pretrained))
        and unfinished_training(RunDir(run.folder)) is None
    ]
    return found[-1] if found else None


def look_for_network(request: Request, stage: str, forced: Sequence[str]) -> Finding:
    """Whether a stage was trained. RunError while another process is at it."""
    project = open_project(request.path)
    config = request.config(project, stage, forced)
    arch = getattr(config, stage).arch
    for run in find_runs(project.model_path):
        plan = unfinished_training(run)
        if plan is not None and (plan.stage, plan.config[stage]["arch"]) == (stage, arch) and run.is_claimed():
            raise RunError(f"{run.name}: another `deg` is training the {stage}. Wait for it, then run again.")
    found = find_network(project, stage, arch)
    if found is None:
        return Finding(True, f"this project has not trained a {stage} {arch} yet")
    if changes := _changes(RunDir(found.folder), stage, project, config):
        say(
            f"Note: since {found.folder.name} was trained, this has changed: {', '.join(changes)}. "
            f"To train anew: deg train {stage} {show_path(request.path)}"
        )
    return Finding(False, f"trained by {found.folder.name}")


def look_for_report(request: Request) -> Finding:
    """Whether anything is newer than the newest report."""
    project = open_project(request.path)
    pages = sorted(project.path.glob("reports/*/index.html"), key=lambda page: page.stat().st_mtime_ns)
    if not pages:
        return Finding(True, "there is none yet")
    sources = [path for record in project.records.values() for path in (record.outputs, record.labels) if path]
    sources += project.model_path.glob("*/done.json")
    if any(path.stat().st_mtime_ns > pages[-1].stat().st_mtime_ns for path in sources):
        return Finding(True, "results are newer than the last one")
    return Finding(False, f"{show_path(pages[-1])} is of the newest results")


def _changes(run: RunDir, stage: str, project: Project, config: Config) -> list[str]:
    """What a training would find different now. A run of DeepEthogram does not say what it was trained with."""
    if not run.plan_file.exists():
        return []
    try:
        then, now = _trained_with(run.load_training_plan()), _trained_with(_prepare(stage, project, config))
    except DegError as error:
        return [f"it could not be trained now ({error})"]
    if planning.same_training(then, now):
        return []
    return differences(then, now) or ["something that the network depends on"]


def _prepare(stage: str, project: Project, config: Config) -> TrainingPlan:
    return planning.prepare(stage, project, config, devices=1).plan


def _trained_with(plan: TrainingPlan) -> TrainingPlan:
    """A plan without what the network began with, which is another as soon as it is trained from its `latest`."""
    sections = {**plan.config, plan.stage: {**plan.config[plan.stage], "weights": None}}
    return replace(plan, config=sections, weights={k: v for k, v in plan.weights.items() if k != "start"})


def differences(one: TrainingPlan, other: TrainingPlan) -> list[str]:
    """What the network of `other` is trained with and that of `one` was not, in words."""
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
    for section in planning.SHAPING[one.stage]:
        found += _options(section, one.config[section], other.config[section])
    return found


def _options(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in after.items():
        if isinstance(value, Mapping):
            found += _options(f"{prefix}.{name}", before.get(name, {}), value)
        elif name != "weights" and value != before.get(name):
            found.append(f"{prefix}.{name}")
    return found
