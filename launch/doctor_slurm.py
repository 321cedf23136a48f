"""The scheduler as a login node sees it: what it says of itself, and whether it would take what deg asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from deg.errors import LaunchError
from deg.launch.doctor_findings import Finding
from deg.launch.queue import run_scheduler
from deg.launch.site import number, parse_settings
from deg.launch.slurm import Script, Submitter, gpus, test_only, training_need
from deg.schema import Cluster

GPU_FLAGS = ("gpus_per_node", "gres", "gpus")
MEMORY: tuple[Mapping[str, Any], ...] = ({"memory_flag": "mem"}, {"memory_flag": "mem_per_cpu"}, {"memory_gb": None})

Accepts = Callable[[Cluster], str]
"""What the scheduler says to a training with these options. Raises LaunchError if it would refuse it."""


def check_scheduler(cluster: Cluster, folder: Path) -> Iterator[Finding]:
    """What can be known without a job. `folder` is for scripts, and seen by the scheduler's programs."""
    try:
        settings = parse_settings(run_scheduler(["scontrol", "show", "config"]))
    except LaunchError as error:
        remedy = "Call this on a login node, perhaps after `module load slurm`."
        yield Finding("Slurm", "fault", str(error), "a scheduler that answers", remedy)
        return
    version, name = settings.get("slurm_version", "of unknown version"), settings.get("clustername", "?")
    yield Finding("Slurm", "ok", f"{version}, cluster {name}")
    yield judge_accounting(_has_accounts())
    yield judge_array(number(settings.get("maxarraysize", "")), cluster.max_array_size)
    yield judge_memory_sharing(settings.get("selecttypeparameters", ""))

    def accepts(options: Cluster) -> str:
        need = training_need(options, "deg-doctor")
        return test_only(Submitter(folder, options, folder, folder).text(Script(need, (), ())), folder)

    if gpus(cluster):
        yield judge_gpu_flags(cluster, {flag: _refusal(accepts, replace(cluster, gpu_flag=flag)) for flag in GPU_FLAGS})
    yield check_request(cluster, accepts)


def judge_accounting(has_accounts: bool) -> Finding:
    if has_accounts:
        return Finding("accounting", "ok", "sacct answers")
    return Finding("accounting", "ok", "none: what became of jobs is told from deg's own files and squeue")


def judge_array(most: int | None, wanted: int | None) -> Finding:
    """`most` is MaxArraySize, the number of elements that an array may have; `wanted` is cluster.max_array_size."""
    check = "array size"
    if most is None:
        return Finding(check, "ok" if wanted else "warning", "the site does not say its MaxArraySize", *(
            ("",) if wanted else ("that scontrol tells it", "Write cluster.max_array_size, as the site's pages say.")
        ))
    if wanted is not None and wanted > most:
        remedy = "Write the profile's line below."
        return Finding(
            check, "fault", f"cluster.max_array_size={wanted}", f"at most {most}", remedy, {"max_array_size": most}
        )
    return Finding(check, "ok", f"up to {wanted or most}")


def judge_memory_sharing(parameters: str) -> Finding:
    """`parameters` is SelectTypeParameters."""
    if "MEMORY" in parameters.upper():
        return Finding("memory as a resource", "ok", f"shared out ({parameters})")
    return Finding("memory as a resource", "ok", f"not shared out ({parameters or 'unknown'}): jobs are not held to it")


def judge_gpu_flags(cluster: Cluster, refusals: Mapping[str, str | None]) -> Finding:
    """`refusals` are the scheduler's, for each way to ask for GPUs; None where it would take it."""
    check = "how to ask for GPUs"
    taken = [flag for flag, refusal in refusals.items() if refusal is None]
    if cluster.gpu_flag in taken:
        return Finding(check, "ok", f"{cluster.gpu_flag}; {', '.join(taken)} would be taken")
    said = str(refusals[cluster.gpu_flag])
    if not taken:
        return Finding(check, "warning", f"none of {', '.join(refusals)} is taken: {said}", "one that is", "See below.")
    remedy = "Write the profile's line below."
    return Finding(
        check, "fault", f"{cluster.gpu_flag} is refused: {said}", taken[0], remedy, {"gpu_flag": taken[0]}
    )


def check_request(cluster: Cluster, accepts: Accepts) -> Finding:
    """Whether a training as the options ask for it would be taken; if not, what else would."""
    check = "request of a training"
    try:
        return Finding(check, "ok", accepts(cluster).removeprefix("sbatch: "))
    except LaunchError as error:
        said = str(error)
    for flag, memory in product(GPU_FLAGS if gpus(cluster) else (cluster.gpu_flag,), MEMORY):
        options = {"gpu_flag": flag, **memory}
        if _refusal(accepts, replace(cluster, **options)) is None:
            changed = {name: value for name, value in options.items() if getattr(cluster, name) != value}
            others = ", ".join(f"{name}={'null' if value is None else value}" for name, value in changed.items())
            remedy = f"It would be taken with {others}: write the profile's lines below."
            return Finding(check, "fault", said, "that sbatch would take it", remedy, changed)
    remedy = "Change the cluster.* option that it speaks of; `deg cluster init` shows what the site has."
    return Finding(check, "fault", said, "that sbatch would take it", remedy)


def _refusal(accepts: Accepts, options: Cluster) -> str | None:
    try:
        accepts(options)
    except LaunchError as error:
        return str(error)
    return None


def _has_accounts() -> bool:
    try:
        run_scheduler(["sacct", "--noheader", "--allocations", "--starttime=now"])
    except LaunchError:
        return False
    return True
