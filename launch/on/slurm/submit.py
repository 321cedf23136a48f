"""`--on slurm`: stages handed to Slurm all at once, each as the jobs that do its units and a job that merges them.

    execute -> merge and plan the next -> execute -> merge and plan the next -> ... -> merge and report

The first stage is planned here, so that a mistake is told at once; each of the others by the merge job of the one
before it, when the networks and features that it needs are there. What is submitted is recorded in a launch directory,
with all options of each stage as they are now, paths in full: they mean the same wherever a stage is planned.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from deg.arithmetic.units import plan_units
from deg.data.atomic import write_atomically
from deg.data.video.decoder import probe_all
from deg.errors import ConfigError, RunError, VideoError, show_path
from deg.launch.image import container as containers
from deg.launch.on.slurm import script as slurm
from deg.launch.on.slurm.jobs import work
from deg.launch.on.slurm.launches import Job, Launch, LaunchDir, Stage
from deg.launch.on.slurm.orders import Order, named_in, options_text, training_need, workers_on
from deg.launch.on.slurm.queue import run_scheduler
from deg.launch.on.slurm.script import Need, Script, Submitter
from deg.launch.say import say
from deg.launch.stages.provenance import provenance
from deg.launch.stages.request import StageReport, StageRequest
from deg.launch.stages.stage import plan_run, show_plan
from deg.options.load import as_dict
from deg.options.paths import with_full_paths
from deg.options.schema import Cluster
from deg.plan.infer import choose_records
from deg.projects.project import Project
from deg.runs.rundir import RunDir
from deg.version import __version__


@dataclass(frozen=True)
class Submission:
    """What is to be submitted at once."""

    project: Project
    cluster: Cluster
    orders: tuple[Order, ...]
    report: bool = False
    """Write a report at the end."""
    run_name: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Report:
    """What was submitted, for people and for --json."""

    launch: str | None = None
    """Name of the launch directory; None if nothing was submitted."""
    stages: tuple[Mapping[str, Any], ...] = ()
    jobs: tuple[Mapping[str, Any], ...] = ()
    scripts: Mapping[str, str] = field(default_factory=dict)
    """Batch scripts of a dry run, by what they do."""
    gpu_hours_at_most: float | None = None
    test_only: Mapping[str, str] = field(default_factory=dict)
    exit_status: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def submit(submission: Submission) -> Report:
    """Plan the first stage that has something to do, and submit it with all that follow.

    Returns at once. DegError if the first stage cannot be planned; LaunchError if the scheduler refuses, after which
    nothing is left in its queue.
    """
    models = submission.project.model_path
    stamp = submission.run_name or datetime.now().strftime("%y%m%d_%H%M%S")
    launch = LaunchDir(models / f"{stamp}_launch")
    if launch.path.exists():
        raise RunError(f"{show_path(launch.path)}: a launch of this name exists. Choose another --run.")
    _require_image(submission.cluster)
    launch.jobs_folder.mkdir(parents=True)
    try:
        left, run = _plan_first(submission)
        if not left:
            say("Nothing to do: all is done.")
            return Report()
        orders = [_settled(order, stamp) for order in left]
        spec = _spec(submission, orders, run)
        if submission.dry_run:
            return _show(submission, launch, spec, orders)
        _write(submission, launch, spec, orders)
        _warn(launch, spec)
        submit_stages(launch, spec, list(range(len(spec.stages))))
    except BaseException:
        shutil.rmtree(launch.path, ignore_errors=True)  # nothing is in the queue
        raise
    finally:
        if submission.dry_run or not launch.launch_file.exists():
            shutil.rmtree(launch.path, ignore_errors=True)
    report = describe(launch, spec)
    names = ", ".join(stage.name for stage in spec.stages)
    say(f"Submitted {launch.name}: {names}{', report' * submission.report}.")
    say(f"Watch it with: deg status {show_path(submission.project.path)}")
    return report


# ---------------------------------------------------------------------------------------------------- what is asked


def _plan_first(submission: Submission) -> tuple[Sequence[Order], StageReport | None]:
    """The orders from the first one on that has something to do, and what was planned for that."""
    act = show_plan if submission.dry_run else plan_run
    for number, order in enumerate(submission.orders):
        # without a name an interrupted run is resumed, whatever it is called
        name = submission.run_name and _name(order.request, submission.run_name)
        workers = workers_on(submission.cluster, order.request)
        report = act(replace(order.request, run_name=name, workers=workers))
        if report.run is not None or report.plan is not None:
            return submission.orders[number:], report
    return (), None


def _name(request: StageRequest, stamp: str) -> str:
    """Name of the run directory of a stage."""
    return f"{stamp}_{request.stage}_{'train' if request.verb == 'train' else 'inference'}"


def _settled(order: Order, stamp: str) -> Order:
    """An order that means the same on a node, with the name of its run."""
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


def _spec(submission: Submission, orders: Sequence[Order], first: StageReport | None) -> Launch:
    """The launch: its first stage is planned, the others are not."""
    cluster = with_full_paths(submission.cluster, submission.project.path.resolve())
    return Launch(
        project=submission.project.path.resolve(),
        stages=tuple(_stage(submission, order, None if number else first) for number, order in enumerate(orders)),
        report=submission.report,
        deg=__version__,
        image=None if cluster.image is None else Path(cluster.image).resolve(),
        cluster=as_dict(cluster),
        array_size=slurm.array_size(cluster),
    )


def _stage(submission: Submission, order: Order, planned: StageReport | None) -> Stage:
    """An order as a stage of the launch; `planned` is what its planning told, if it was planned."""
    request = order.request
    # an interrupted run that is gone on with has a name of its own
    run = (planned.run if planned else None) or request.run_name
    assert run is not None
    elements = 1 if request.verb == "train" else _elements(submission, request, planned)
    return Stage(request.verb, request.stage, run, elements, order.command, request.videos, request.overwrite)


def _elements(submission: Submission, request: StageRequest, planned: StageReport | None) -> int:
    """Elements of the array of an inference: one for each unit, as far as the number of units is known; of a sequence
    network, which takes less time than it takes to start, no more than run at one time."""
    if planned is None:
        units = _units_of_all(submission, request)
    elif planned.plan is not None:
        units = len(planned.plan["units"])
    else:
        units = len(RunDir(submission.project.model_path / str(planned.run)).load_plan().units)
    return max(min(units, submission.cluster.jobs) if request.stage == "sequence" else units, 1)


def _units_of_all(submission: Submission, request: StageRequest) -> int:
    """Into how many units an inference of all recordings is cut."""
    records = {key: record.video for key, record in request.project.records.items() if record.video is not None}
    answers = dict(zip(records, probe_all(records.values()), strict=True))
    units = plan_units(
        {key: answer.num_frames for key, answer in answers.items() if not isinstance(answer, VideoError)},
        devices=submission.cluster.jobs,
        units_per_device=request.config.inference.units_per_device,
        whole=request.stage == "sequence",
    )
    return len(units)


def _require_image(cluster: Cluster) -> None:
    """The image must be there, and of this version."""
    from deg.launch.image.file import require_same_version

    if (image := cluster.image) is None:
        say("Note: cluster.image is null: jobs run the Python that submits, which all nodes must see.")
        return
    path = Path(image).expanduser()
    if not path.exists():
        raise ConfigError(
            f"cluster.image = {image}: expected an Apptainer image, found nothing there. `deg image pull` fetches one, "
            "`deg image build` makes one."
        )
    require_same_version(path)


# ---------------------------------------------------------------------------------------------------- submitting


def _write(submission: Submission, launch: LaunchDir, spec: Launch, orders: Sequence[Order]) -> None:
    """Everything that jobs need, and at last launch.json."""
    for index, order in enumerate(orders):
        launch.stage_folder(index).mkdir(parents=True)
        write_atomically(launch.config_file(index), options_text(order))
    paths = named_in(order.request.config for order in orders)
    write_scripts(submission.project, launch, spec, paths)
    write_atomically(launch.path / "provenance.json", json.dumps(provenance(), indent=1))
    write_atomically(launch.launch_file, spec.to_json())


def write_scripts(project: Project, launch: LaunchDir, spec: Launch, paths: Sequence[Path]) -> None:
    """The scripts that run on the nodes' hosts. `paths` are named by options."""
    container = containers.Container.of(slurm.options_of(spec.cluster), [*_paths(project), *paths])
    write_atomically(launch.jobs_folder / "container.sh", containers.script(container))
    write_atomically(launch.jobs_folder / "cleanup.sh", containers.cleanup_script(container))
    after = files("deg.launch.on.slurm") / "after.sh"
    write_atomically(launch.jobs_folder / "after.sh", after.read_text(encoding="utf-8"))


def _paths(project: Project) -> list[Path]:
    """All of a project that jobs read or write: its folders, its videos and labels wherever they are."""
    found = [project.path, project.data_path, project.model_path]
    if project.pretrained_path is not None:
        found.append(project.pretrained_path)
    for record in project.records.values():
        found += [path for path in (record.folder, record.video, record.labels, record.outputs) if path is not None]
    return found


def scripts_of(launch: LaunchDir, spec: Launch, index: int) -> tuple[list[Script], Script]:
    """The scripts of a stage: those that do its units, an array no longer than the site allows, and the merging one."""
    stage, cluster = spec.stages[index], slurm.options_of(spec.cluster)
    title = f"deg-{spec.project.name}-{stage.verb}-{stage.stage}"
    run, folder = str(launch.run_of(stage).path), str(launch.path)
    requeue = "yes" if cluster.requeue else "no"

    def execute(need: Need, first: int, elements: int | None) -> Script:
        words = ("execute", folder, str(index), str(first))
        return Script(need, work, words, (folder, "execute", str(index), str(first), run, requeue), elements)

    if stage.verb == "train":
        arrays = [execute(training_need(cluster, stage.stage, title), 0, None)]
    else:
        firsts = range(0, stage.elements, spec.array_size)
        need = slurm.worker_need(cluster, title)
        arrays = [execute(need, first, min(spec.array_size, stage.elements - first)) for first in firsts]
    merging = Script(
        slurm.merge_need(cluster, f"{title}-merge"),
        work,
        ("merge", folder, str(index)),
        (folder, "merge", str(index), requeue),
    )
    return arrays, merging


def submit_stages(launch: LaunchDir, spec: Launch, indices: Sequence[int]) -> None:
    """Submit stages in their order, each after the one before it; the first is planned already.

    LaunchError if the scheduler refuses one: then those before it are taken back.
    """
    after_sh = launch.jobs_folder / "after.sh"
    submitter = Submitter(
        launch.jobs_folder, slurm.options_of(spec.cluster), launch.jobs_folder / "container.sh", after_sh
    )
    submitted: list[str] = []
    before: str | None = None
    try:
        for index in indices:
            arrays, merging = scripts_of(launch, spec, index)
            folder = launch.stage_folder(index)
            folder.mkdir(parents=True, exist_ok=True)
            jobs = []
            for chunk, script in enumerate(arrays):
                dependency = None if before is None else f"afterok:{before}"
                _keep_for_again(submitter, script, folder / f"execute-{chunk}")
                jobs.append(submitter.submit_script(script, dependency))
                submitted.append(jobs[-1])
                elements = None if script.elements is None else tuple(range(script.elements))
                launch.add_job(Job(jobs[-1], index, "execute", elements))
            _keep_for_again(submitter, merging, folder / "merge")
            waits_for = ["afterany:" + ":".join(jobs), *(() if before is None else (f"afterok:{before}",))]
            before = submitter.submit_script(merging, ",".join(waits_for))
            submitted.append(before)
            launch.add_job(Job(before, index, "merge"))
    except BaseException:
        if submitted:
            say(f"Taking back {len(submitted)} jobs that were submitted before.")
            run_scheduler(["scancel", *submitted])
        raise
    launch.log_event("submitted", jobs=submitted)


def _warn(launch: LaunchDir, spec: Launch) -> None:
    """Say what the scheduler will not do. sbatch itself takes some jobs that then wait for ever."""
    submitter = _submitter(launch, spec)
    scripts = [script for index in range(len(spec.stages)) for script in _all_scripts(launch, spec, index)]
    alike = {replace(script.need, name=""): script for script in scripts}
    said = {slurm.test_only(submitter.text(script)) for script in alike.values()}
    for words in sorted(words for words in said if "to start at" not in words):
        say(f"Warning: the scheduler may never begin a job like these: {words}")


def _all_scripts(launch: LaunchDir, spec: Launch, index: int) -> list[Script]:
    arrays, merging = scripts_of(launch, spec, index)
    return [*arrays, merging]


def _submitter(launch: LaunchDir, spec: Launch) -> Submitter:
    folder = launch.jobs_folder
    return Submitter(folder, slurm.options_of(spec.cluster), folder / "container.sh", folder / "after.sh")


def _keep_for_again(submitter: Submitter, script: Script, path: Path) -> None:
    """Leave script and pickle where after.sh finds them, should there be a next time."""
    write_atomically(path.with_suffix(".sh"), slurm.for_again(submitter.text(script)))
    submitter.pickle(script, path.with_suffix(".pkl"))


# ---------------------------------------------------------------------------------------------------- telling


def describe(launch: LaunchDir, spec: Launch) -> Report:
    """What was submitted."""
    return Report(
        launch=launch.name,
        stages=tuple({"stage": stage.name, "run": stage.run, "elements": stage.elements} for stage in spec.stages),
        jobs=tuple({"job": job.job, "stage": job.stage, "role": job.role} for job in launch.jobs()),
        gpu_hours_at_most=_gpu_hours(launch, spec),
    )


def _gpu_hours(launch: LaunchDir, spec: Launch) -> float | None:
    scripts = [script for index in range(len(spec.stages)) for script in _all_scripts(launch, spec, index)]
    return slurm.gpu_hours([(script.need, script.elements or 1) for script in scripts])


def _show(submission: Submission, launch: LaunchDir, spec: Launch, orders: Sequence[Order]) -> Report:
    """--dry-run: stages, scripts, GPU hours, and what the scheduler would say."""
    paths = named_in(order.request.config for order in orders)
    write_scripts(submission.project, launch, spec, paths)
    cluster = slurm.options_of(spec.cluster)
    submitter = Submitter(
        launch.jobs_folder, cluster, launch.jobs_folder / "container.sh", launch.jobs_folder / "after.sh"
    )
    scripts: dict[str, str] = {"container.sh": (launch.jobs_folder / "container.sh").read_text(encoding="utf-8")}
    said: dict[str, str] = {}
    for index, stage in enumerate(spec.stages):
        arrays, merging = scripts_of(launch, spec, index)
        for number, script in enumerate(arrays):
            name = stage.name + (f", array {number + 1} of {len(arrays)}" if len(arrays) > 1 else "")
            scripts[name] = submitter.text(script)
            said[name] = slurm.test_only(scripts[name])
        scripts[f"merge {stage.name}"] = submitter.text(merging)
        said[f"merge {stage.name}"] = slurm.test_only(scripts[f"merge {stage.name}"])
    hours = _gpu_hours(launch, spec)
    for name, text in scripts.items():
        say(f"\n---- {name}\n{text}")
        if name in said:
            say(f"sbatch --test-only: {said[name]}")
    for stage in spec.stages:
        say(f"{stage.name}: {stage.elements} job(s) in {stage.run}")
    say("GPU hours at most: " + ("no limit is set" if hours is None else f"{hours:.1f}"))
    return Report(
        stages=tuple({"stage": stage.name, "run": stage.run, "elements": stage.elements} for stage in spec.stages),
        scripts=scripts,
        gpu_hours_at_most=hours,
        test_only=said,
    )
