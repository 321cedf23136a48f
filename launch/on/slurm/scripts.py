"""The batch scripts of a launch, and the scripts that its jobs run on the hosts of the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from deg.data.atomic import write_atomically
from deg.launch.image.container import Container, cleanup_script, script
from deg.launch.on.slurm.jobs import work
from deg.launch.on.slurm.orders import training_need
from deg.launch.scheduler.launches import Launch
from deg.launch.scheduler.script import Need, Script, Submitter, for_again, gpu_hours, merge_need, worker_need
from deg.projects.project import Project


def write_host_scripts(project: Project, launch: Launch, paths: Sequence[Path]) -> None:
    """Write the scripts that run on the hosts of the nodes. The container shows `paths`, which options name."""
    container = Container.of(launch.cluster, [*_paths(project), *paths])
    jobs = launch.folder.jobs_folder
    write_atomically(jobs / "container.sh", script(container))
    write_atomically(jobs / "cleanup.sh", cleanup_script(container))
    after = files("deg.launch.on.slurm") / "after.sh"
    write_atomically(jobs / "after.sh", after.read_text(encoding="utf-8"))


def _paths(project: Project) -> list[Path]:
    """Return all that jobs read or write of a project: its folders, and its videos and labels wherever they are."""
    found = [project.path, project.data_path, project.model_path]
    if project.pretrained_path is not None:
        found.append(project.pretrained_path)
    for record in project.records.values():
        found += [path for path in (record.folder, record.video, record.labels, record.outputs) if path is not None]
    return found


def submitter_of(launch: Launch) -> Submitter:
    """Return the object that submits the scripts of a launch."""
    jobs = launch.folder.jobs_folder
    return Submitter(jobs, launch.cluster, jobs / "container.sh", jobs / "after.sh")


def scripts_of(launch: Launch, index: int) -> tuple[list[Script], Script]:
    """Return the scripts of a stage: those that do its units, and the one that merges them.

    An inference is one array, or several where the site does not allow one that long.
    """
    stage, cluster = launch.stages[index], launch.cluster
    title = f"deg-{launch.project.name}-{stage.verb}-{stage.stage}"
    run, folder = str(launch.run_of(index).path), str(launch.folder.path)
    requeue = "yes" if cluster.requeue else "no"

    def execute(need: Need, first: int, elements: int | None) -> Script:
        words = ("execute", folder, str(index), str(first))
        return Script(need, work, words, (folder, "execute", str(index), str(first), run, requeue), elements)

    if stage.verb == "train":
        arrays = [execute(training_need(cluster, stage.stage, title), 0, None)]
    else:
        firsts = range(0, stage.elements, launch.array_size)
        need = worker_need(cluster, title)
        arrays = [execute(need, first, min(launch.array_size, stage.elements - first)) for first in firsts]
    merging = Script(
        merge_need(cluster, f"{title}-merge"),
        work,
        ("merge", folder, str(index)),
        (folder, "merge", str(index), requeue),
    )
    return arrays, merging


def all_scripts(launch: Launch) -> list[Script]:
    """Return the scripts of all stages."""
    found = []
    for index in range(len(launch.stages)):
        arrays, merging = scripts_of(launch, index)
        found += [*arrays, merging]
    return found


def keep_for_again(submitter: Submitter, script: Script, path: Path) -> None:
    """Leave script and pickle where after.sh finds them if the job must be submitted again."""
    write_atomically(path.with_suffix(".sh"), for_again(submitter.text(script)))
    submitter.pickle(script, path.with_suffix(".pkl"))


def gpu_hours_of(launch: Launch) -> float | None:
    """Return the most GPU hours that a launch can take; None without time limits."""
    return gpu_hours([(script.need, script.elements or 1) for script in all_scripts(launch)])
