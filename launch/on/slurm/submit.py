"""Hands stages to Slurm all at once, each as the jobs that do its units and a job that merges them.

    execute -> merge and plan the next -> execute -> merge and plan the next -> ... -> merge and report

The first stage is planned here, so that a mistake is reported at once. Each later stage is planned by the merge job of
the stage before it, when the networks and features that it needs are there. A launch directory records what was
submitted, with all options of each stage as they are now. Paths are written in full, so that they mean the same
wherever a stage is planned.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from deg.arithmetic.units import plan_units
from deg.data.atomic import write_atomically
from deg.data.video.probing import probe_all
from deg.errors import ConfigError, RunError, VideoError, show_path
from deg.launch.on.slurm.orders import named_in, options_text, workers_on
from deg.launch.on.slurm.scripts import (
    all_scripts,
    gpu_hours_of,
    keep_for_again,
    scripts_of,
    submitter_of,
    write_host_scripts,
)
from deg.launch.say import say
from deg.launch.scheduler.launches import Launch, LaunchDir, Stage, SubmittedJob
from deg.launch.scheduler.queue import run_scheduler
from deg.launch.scheduler.script import array_size, test_only
from deg.launch.stages.provenance import provenance
from deg.launch.stages.request import Order, StageReport, StageRequest
from deg.launch.stages.stage import plan_run, show_plan
from deg.options.paths import with_full_paths
from deg.options.schema import Cluster
from deg.plan.infer import choose_records
from deg.projects.project import Project
from deg.runs.rundir import RunDir
from deg.version import __version__


@dataclass(frozen=True)
class Submission:
    """Everything that one command submits."""

    project: Project
    cluster: Cluster
    orders: tuple[Order, ...]
    report: bool = False
    """Whether a report is written at the end."""
    run_name: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class SubmissionReport:
    """What was submitted, for people and for --json."""

    launch: str | None = None
    """Name of the launch directory; None if nothing was submitted."""
    stages: tuple[Mapping[str, Any], ...] = ()
    jobs: tuple[Mapping[str, Any], ...] = ()
    scripts: Mapping[str, str] = field(default_factory=dict)
    """Batch scripts of a dry run, by what they do."""
    gpu_hours_at_most: float | None = None
    test_only: Mapping[str, str] = field(default_factory=dict)
    """Answers of `sbatch --test-only` to the scripts of a dry run."""
    exit_status: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def submit(submission: Submission) -> SubmissionReport:
    """Plan the first stage that has something to do, and submit it with all stages after it.

    Returns at once. Raises DegError if the first stage cannot be planned, and LaunchError if the scheduler refuses a
    job; then none of the jobs stays in its queue.
    """
    models = submission.project.model_path
    stamp = submission.run_name or datetime.now().strftime("%y%m%d_%H%M%S")
    folder = LaunchDir(models / f"{stamp}_launch")
    if folder.path.exists():
        raise RunError(f"{show_path(folder.path)}: a launch of this name exists. Choose another --run.")
    _require_image(submission.cluster)
    folder.jobs_folder.mkdir(parents=True)
    try:
        left, planned = _plan_first(submission)
        if not left:
            say("Nothing to do: everything is done.")
            return SubmissionReport()
        orders = [_settled(order, stamp) for order in left]
        launch = _launch(submission, folder, orders, planned)
        if submission.dry_run:
            return _show(submission, launch, orders)
        _write(submission, launch, orders)
        _warn(launch)
        submit_stages(launch, range(len(launch.stages)))
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)  # nothing is in the queue
        raise
    finally:
        if submission.dry_run or not folder.launch_file.exists():
            shutil.rmtree(folder.path, ignore_errors=True)
    names = ", ".join(stage.name for stage in launch.stages)
    say(f"Submitted {folder.name}: {names}{', report' * submission.report}.")
    say(f"Watch it with: deg status {show_path(submission.project.path)}")
    return describe(launch)


# ---------------------------------------------------------------------------------------------------- what is asked


def _plan_first(submission: Submission) -> tuple[Sequence[Order], StageReport | None]:
    """Plan the first order that has something to do. Return the orders from that one on, and its report."""
    act = show_plan if submission.dry_run else plan_run
    for number, order in enumerate(submission.orders):
        # without a name an interrupted run is resumed, whatever it is called
        name = submission.run_name and _name(order.request, submission.run_name)
        report = act(replace(order.request, run_name=name), workers_on(submission.cluster, order.request))
        if report.run is not None or report.plan is not None:
            return submission.orders[number:], report
    return (), None


def _name(request: StageRequest, stamp: str) -> str:
    """Return the name of the run directory of a stage."""
    return f"{stamp}_{request.stage}_{'train' if request.verb == 'train' else 'inference'}"


def _settled(order: Order, stamp: str) -> Order:
    """Return an order that means the same on every node, with the name of its run."""
    request = order.request
    narrowed = request.videos or request.config.inference.directory_list != "all"
    chosen = choose_records(request.project, request.videos, request.config.inference) if narrowed else ()
    settled = replace(
        request,
        config=with_full_paths(request.config, request.project.path.resolve()),
        videos=tuple(record.key for record in chosen),
        run_name=_name(request, stamp),
    )
    return replace(order, request=settled)


def _launch(submission: Submission, folder: LaunchDir, orders: Sequence[Order], first: StageReport | None) -> Launch:
    """Return the launch. Its first stage is planned, the others are not."""
    cluster = with_full_paths(submission.cluster, submission.project.path.resolve())
    return Launch(
        folder=folder,
        project=submission.project.path.resolve(),
        stages=tuple(_stage(submission, order, None if number else first) for number, order in enumerate(orders)),
        report=submission.report,
        deg=__version__,
        image=None if cluster.image is None else Path(cluster.image).resolve(),
        cluster=cluster,
        array_size=array_size(cluster),
    )


def _stage(submission: Submission, order: Order, planned: StageReport | None) -> Stage:
    """Return the stage of the launch for an order. `planned` is the report of its planning, if it was planned."""
    request = order.request
    # an interrupted run that is resumed keeps its name
    run = (planned.run if planned else None) or request.run_name
    assert run is not None
    elements = 1 if request.verb == "train" else _elements(submission, request, planned)
    return Stage(request.verb, request.stage, run, elements, order.command, request.videos, request.overwrite)


def _elements(submission: Submission, request: StageRequest, planned: StageReport | None) -> int:
    """Return the number of array elements of an inference: one for each unit, planned or expected.

    A sequence network needs less time for a unit than a job needs to start. It gets no more elements than run at once.
    """
    if planned is None:
        units = _units_of_all(submission, request)
    elif planned.plan is not None:
        units = len(planned.plan["units"])
    else:
        units = len(RunDir(submission.project.model_path / str(planned.run)).load_plan().units)
    return max(min(units, submission.cluster.jobs) if request.stage == "sequence" else units, 1)


def _units_of_all(submission: Submission, request: StageRequest) -> int:
    """Count the units of an inference of all recordings."""
    records = {key: record.video for key, record in request.project.records.items() if record.video is not None}
    answers = dict(
        zip(records, probe_all(records.values(), image_order=request.config.project.image_order), strict=True)
    )
    units = plan_units(
        {key: answer.num_frames for key, answer in answers.items() if not isinstance(answer, VideoError)},
        devices=submission.cluster.jobs,
        units_per_device=request.config.inference.units_per_device,
        whole=request.stage == "sequence",
    )
    return len(units)


def _require_image(cluster: Cluster) -> None:
    """Require that the image exists and is of this version."""
    from deg.launch.image.file import require_same_version

    if (image := cluster.image) is None:
        say("Note: cluster.image is null: jobs run the Python that submits them, which all nodes must see.")
        return
    path = Path(image).expanduser()
    if not path.exists():
        raise ConfigError(
            f"cluster.image = {image}: expected an Apptainer image, found nothing there. `deg image pull` fetches one, "
            "`deg image build` makes one."
        )
    require_same_version(path)


# ---------------------------------------------------------------------------------------------------- submitting


def _write(submission: Submission, launch: Launch, orders: Sequence[Order]) -> None:
    """Write everything that the jobs need, launch.json last."""
    folder = launch.folder
    for index, order in enumerate(orders):
        folder.stage_folder(index).mkdir(parents=True)
        write_atomically(folder.config_file(index), options_text(order))
    write_host_scripts(submission.project, launch, named_in(order.request.config for order in orders))
    write_atomically(folder.path / "provenance.json", json.dumps(provenance(), indent=1))
    launch.write()


def submit_stages(launch: Launch, indices: Sequence[int]) -> None:
    """Submit stages in their order, each to start after the one before it. The first is planned already.

    Raises LaunchError if the scheduler refuses a job, after cancelling those that it accepted before.
    """
    submitter, folder = submitter_of(launch), launch.folder
    submitted: list[str] = []
    before: str | None = None
    try:
        for index in indices:
            arrays, merging = scripts_of(launch, index)
            kept = folder.stage_folder(index)
            kept.mkdir(parents=True, exist_ok=True)
            jobs = []
            for chunk, script in enumerate(arrays):
                dependency = None if before is None else f"afterok:{before}"
                keep_for_again(submitter, script, kept / f"execute-{chunk}")
                jobs.append(submitter.submit_script(script, dependency))
                submitted.append(jobs[-1])
                elements = None if script.elements is None else tuple(range(script.elements))
                folder.add_job(SubmittedJob(jobs[-1], index, "execute", elements))
            keep_for_again(submitter, merging, kept / "merge")
            waits_for = ["afterany:" + ":".join(jobs), *(() if before is None else (f"afterok:{before}",))]
            before = submitter.submit_script(merging, ",".join(waits_for))
            submitted.append(before)
            folder.add_job(SubmittedJob(before, index, "merge"))
    except BaseException:
        if submitted:
            say(f"Cancelling the {len(submitted)} jobs that were submitted before it failed.")
            run_scheduler(["scancel", *submitted])
        raise
    folder.log_event("submitted", jobs=submitted)


def _warn(launch: Launch) -> None:
    """Warn of jobs that the scheduler may never start. sbatch accepts some of them, and they wait for ever."""
    submitter = submitter_of(launch)
    alike = {replace(script.need, name=""): script for script in all_scripts(launch)}
    said = {test_only(submitter.text(script)) for script in alike.values()}
    for words in sorted(words for words in said if "to start at" not in words):
        say(f"Warning: the scheduler may never begin a job like these: {words}")


# ---------------------------------------------------------------------------------------------------- telling


def describe(launch: Launch) -> SubmissionReport:
    """Return what was submitted."""
    return SubmissionReport(
        launch=launch.folder.name,
        stages=_stages(launch),
        jobs=tuple({"job": job.job, "stage": job.stage, "role": job.role} for job in launch.folder.jobs()),
        gpu_hours_at_most=gpu_hours_of(launch),
    )


def _stages(launch: Launch) -> tuple[Mapping[str, Any], ...]:
    return tuple({"stage": stage.name, "run": stage.run, "elements": stage.elements} for stage in launch.stages)


def _show(submission: Submission, launch: Launch, orders: Sequence[Order]) -> SubmissionReport:
    """Say and return what a dry run finds: stages, scripts, GPU hours, and what the scheduler would say."""
    write_host_scripts(submission.project, launch, named_in(order.request.config for order in orders))
    submitter = submitter_of(launch)
    container = launch.folder.jobs_folder / "container.sh"
    scripts: dict[str, str] = {"container.sh": container.read_text(encoding="utf-8")}
    said: dict[str, str] = {}
    for index, stage in enumerate(launch.stages):
        arrays, merging = scripts_of(launch, index)
        for number, script in enumerate(arrays):
            name = stage.name + (f", array {number + 1} of {len(arrays)}" if len(arrays) > 1 else "")
            scripts[name] = submitter.text(script)
            said[name] = test_only(scripts[name])
        scripts[f"merge {stage.name}"] = submitter.text(merging)
        said[f"merge {stage.name}"] = test_only(scripts[f"merge {stage.name}"])
    hours = gpu_hours_of(launch)
    for name, text in scripts.items():
        say(f"\n---- {name}\n{text}")
        if name in said:
            say(f"sbatch --test-only: {said[name]}")
    for stage in launch.stages:
        say(f"{stage.name}: {stage.elements} job(s) in {stage.run}")
    say("GPU hours at most: " + ("no limit is set" if hours is None else f"{hours:.1f}"))
    return SubmissionReport(stages=_stages(launch), scripts=scripts, gpu_hours_at_most=hours, test_only=said)
