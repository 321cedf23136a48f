"""The scheduler as a login node sees it: what it says of itself, and whether it would accept deg's jobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from deg.errors import LaunchError
from deg.launch.findings import Finding
from deg.launch.scheduler.queue import run_scheduler
from deg.launch.scheduler.script import Script, Submitter, gpus, test_only, training_need
from deg.launch.site.ask import number, parse_settings
from deg.options.schema import Cluster

GPU_FLAGS: tuple[Literal["gpus_per_node", "gres", "gpus"], ...] = ("gpus_per_node", "gres", "gpus")
MEMORY: tuple[Mapping[str, Any], ...] = ({"memory_flag": "mem"}, {"memory_flag": "mem_per_cpu"}, {"memory_gb": None})

Try = Callable[[Cluster], str]
"""Returns what `sbatch --test-only` says to a training with these options."""


def check_scheduler(cluster: Cluster) -> Iterator[Finding]:
    """Check what can be known without a job."""
    try:
        settings = parse_settings(run_scheduler(["scontrol", "show", "config"]))
    except LaunchError as error:
        remedy = "Run this on a login node, perhaps after `module load slurm`."
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
    return Finding("accounting", "ok", "none: deg follows its jobs by its own files and squeue")


def judge_array(most: int | None, wanted: int | None) -> Finding:
    """Judge the size of arrays: `most` elements are allowed (MaxArraySize), `wanted` is cluster.max_array_size."""
    check = "array size"
    if most is None:
        return Finding(
            check,
            "ok" if wanted else "warning",
            "Slurm does not say what MaxArraySize is",
            *(("",) if wanted else ("scontrol to show it", "Set cluster.max_array_size to what the site's pages say.")),
        )
    if wanted is not None and wanted > most:
        remedy = "Add the line below to the profile."
        return Finding(
            check, "fault", f"cluster.max_array_size={wanted}", f"at most {most}", remedy, {"max_array_size": most}
        )
    return Finding(check, "ok", f"up to {wanted or most}")


def judge_memory_sharing(parameters: str) -> Finding:
    """Judge by SelectTypeParameters whether Slurm allocates memory to jobs."""
    if "MEMORY" in parameters.upper():
        return Finding("memory as a resource", "ok", f"allocated to jobs ({parameters})")
    return Finding(
        "memory as a resource",
        "ok",
        f"not allocated ({parameters or 'unknown'}): jobs are not limited to what they ask for",
    )


def judge_gpu_flags(cluster: Cluster, answers: Mapping[str, str]) -> Finding:
    """Judge the ways of asking for GPUs; `answers` is what sbatch says to each."""
    check = "how to ask for GPUs"
    taken = [flag for flag, words in answers.items() if is_taken(words)]
    if cluster.gpu_flag in taken:
        return Finding(check, "ok", f"{cluster.gpu_flag}; sbatch accepts {', '.join(taken)}")
    said = _said(answers[cluster.gpu_flag])
    if not taken:
        return Finding(
            check,
            "warning",
            f"sbatch accepts none of {', '.join(answers)}: {said}",
            "one that it accepts",
            "See below.",
        )
    remedy = "Add the line below to the profile."
    return Finding(check, "fault", f"{cluster.gpu_flag} is refused: {said}", taken[0], remedy, {"gpu_flag": taken[0]})


def check_request(cluster: Cluster, try_out: Try) -> Finding:
    """Check whether sbatch would accept a training with these options; if not, find options that it accepts."""
    check, expected = "request of a training", "sbatch to accept it"
    words = try_out(cluster)
    if is_taken(words):
        return Finding(check, "ok", _said(words))
    for flag, memory in product(GPU_FLAGS if gpus(cluster) else (cluster.gpu_flag,), MEMORY):
        options = {"gpu_flag": flag, **memory}
        if is_taken(try_out(replace(cluster, **options))):
            changed = {name: value for name, value in options.items() if getattr(cluster, name) != value}
            others = ", ".join(f"{name}={'null' if value is None else value}" for name, value in changed.items())
            remedy = f"It would be accepted with {others}: add the lines below to the profile."
            return Finding(check, "fault", _said(words), expected, remedy, changed)
    remedy = (
        "Change the cluster.* option that this is about; `deg cluster init NAME --dry-run` shows what the site has."
    )
    return Finding(check, "fault", _said(words), expected, remedy)


def is_taken(words: str) -> bool:
    """Whether `sbatch --test-only` would accept a script, judged by its words."""
    return re.search(r"Job \d+ to start at", words) is not None


def _said(words: str) -> str:
    """Return the words of sbatch on one line, without its name."""
    return " / ".join(line.removeprefix("sbatch: ").strip() for line in words.splitlines()) or "nothing was said"


def _has_accounts() -> bool:
    try:
        run_scheduler(["sacct", "--noheader", "--allocations", "--starttime=now"])
    except LaunchError:
        return False
    return True
