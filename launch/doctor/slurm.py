"""The scheduler as a login node sees it: what it says of itself, and whether it would take what deg asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from deg.errors import LaunchError
from deg.launch.findings import Finding
from deg.launch.on.slurm.queue import run_scheduler
from deg.launch.on.slurm.script import Script, Submitter, gpus, test_only, training_need
from deg.launch.site.ask import number, parse_settings
from deg.options.schema import Cluster

GPU_FLAGS: tuple[Literal["gpus_per_node", "gres", "gpus"], ...] = ("gpus_per_node", "gres", "gpus")
MEMORY: tuple[Mapping[str, Any], ...] = ({"memory_flag": "mem"}, {"memory_flag": "mem_per_cpu"}, {"memory_gb": None})

Try = Callable[[Cluster], str]
"""The words of `sbatch --test-only` to a training with these options."""


def check_scheduler(cluster: Cluster) -> Iterator[Finding]:
    """What can be known without a job."""
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

    def try_out(options: Cluster) -> str:
        unused = Path("/")
        need = training_need(options, "deg-doctor")
        return test_only(Submitter(unused, options, unused, unused).text(Script(need, print, (), ())))

    if gpus(cluster):
        yield judge_gpu_flags(cluster, {flag: try_out(replace(cluster, gpu_flag=flag)) for flag in GPU_FLAGS})
    yield check_request(cluster, try_out)


def judge_accounting(has_accounts: bool) -> Finding:
    if has_accounts:
        return Finding("accounting", "ok", "sacct answers")
    return Finding("accounting", "ok", "none: what became of jobs is told from deg's own files and squeue")


def judge_array(most: int | None, wanted: int | None) -> Finding:
    """`most` is MaxArraySize, the number of elements that an array may have; `wanted` is cluster.max_array_size."""
    check = "array size"
    if most is None:
        return Finding(
            check,
            "ok" if wanted else "warning",
            "the site does not say its MaxArraySize",
            *(
                ("",)
                if wanted
                else ("that scontrol tells it", "Write cluster.max_array_size, as the site's pages say.")
            ),
        )
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


def judge_gpu_flags(cluster: Cluster, answers: Mapping[str, str]) -> Finding:
    """`answers` are the words of sbatch to each way of asking for GPUs."""
    check = "how to ask for GPUs"
    taken = [flag for flag, words in answers.items() if is_taken(words)]
    if cluster.gpu_flag in taken:
        return Finding(check, "ok", f"{cluster.gpu_flag}; taken would be {', '.join(taken)}")
    said = _said(answers[cluster.gpu_flag])
    if not taken:
        return Finding(check, "warning", f"none of {', '.join(answers)} is taken: {said}", "one that is", "See below.")
    remedy = "Write the profile's line below."
    return Finding(check, "fault", f"{cluster.gpu_flag} is refused: {said}", taken[0], remedy, {"gpu_flag": taken[0]})


def check_request(cluster: Cluster, try_out: Try) -> Finding:
    """Whether a training as the options ask for it would be taken; if not, what else would."""
    check, expected = "request of a training", "that sbatch would take it"
    words = try_out(cluster)
    if is_taken(words):
        return Finding(check, "ok", _said(words))
    for flag, memory in product(GPU_FLAGS if gpus(cluster) else (cluster.gpu_flag,), MEMORY):
        options = {"gpu_flag": flag, **memory}
        if is_taken(try_out(replace(cluster, **options))):
            changed = {name: value for name, value in options.items() if getattr(cluster, name) != value}
            others = ", ".join(f"{name}={'null' if value is None else value}" for name, value in changed.items())
            remedy = f"It would be taken with {others}: write the profile's lines below."
            return Finding(check, "fault", _said(words), expected, remedy, changed)
    remedy = "Change the cluster.* option that it speaks of; `deg cluster init` shows what the site has."
    return Finding(check, "fault", _said(words), expected, remedy)


def is_taken(words: str) -> bool:
    """Whether `sbatch --test-only` would take a script, by its words."""
    return re.search(r"Job \d+ to start at", words) is not None


def _said(words: str) -> str:
    """Words of sbatch in one line, without its name."""
    return " / ".join(line.removeprefix("sbatch: ").strip() for line in words.splitlines()) or "nothing was said"


def _has_accounts() -> bool:
    try:
        run_scheduler(["sacct", "--noheader", "--allocations", "--starttime=now"])
    except LaunchError:
        return False
    return True
