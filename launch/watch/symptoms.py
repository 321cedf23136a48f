"""Why a job waits, in plain words, and what it died of, from its last lines.

Reasons are those of squeue(1) and of Slurm's list of job reason codes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

WAITS = (
    ("Priority", "other jobs are ahead of it in the queue"),
    ("Resources", "it is next, but nodes, GPUs or memory that it needs are not free yet"),
    ("DependencyNeverSatisfied", "a job that it depends on has failed, so it will never run"),
    ("Dependency", "it waits for the stage before it"),
    ("JobArrayTaskLimit", "as many workers as cluster.jobs allows are already running"),
    ("BeginTime", "it was put back into the queue, and may begin again in a moment"),
    ("Cleaning", "it was put back into the queue, and what its last start left is still being cleaned up"),
    ("JobHeldUser", "a user holds it: `scontrol release JOB` releases it"),
    ("JobHeldAdmin", "the administrators hold it: ask them"),
    ("JobHoldMaxRequeue", "it was put back into the queue too often, and is held: `scontrol release JOB` releases it"),
    ("launch failed requeued held", "the node could not start it, and it is held: `scontrol release JOB` releases it"),
    ("ReqNodeNotAvail", "nodes that it needs are down, drained or reserved; maintenance may be planned"),
    ("Reservation", "it waits for a reservation to begin"),
    ("PartitionTimeLimit", "cluster.time is more than this partition allows"),
    ("PartitionNodeLimit", "it asks for more nodes than this partition allows or has"),
    ("PartitionDown", "the partition is closed at present"),
    ("PartitionInactive", "the partition is closed at present"),
    ("BadConstraints", "no node has everything that it asks for: GPUs, memory, cores or cluster.constraint"),
    ("NodeDown", "a node that it needs is down"),
    ("AccountNotAllowed", "cluster.account may not use this partition"),
    ("InvalidAccount", "cluster.account is not valid here"),
    ("InvalidQOS", "cluster.qos is not valid here"),
    ("QOSNotAllowed", "cluster.qos may not be used in this partition"),
    ("Licenses", "it waits for a licence"),
    ("Assoc", "your group has reached a limit (at one time, or in total); it runs when other jobs of the group end"),
    ("QOSMaxWall", "cluster.time is more than this quality of service allows"),
    ("QOSMax", "you have reached this quality of service's limit for one user; it runs when other jobs of yours end"),
    ("QOSGrp", "all users of this quality of service together have reached its limit"),
    ("QOS", "it asks for more than this quality of service allows"),
    ("MaxCpuPerAccount", "your account is using as many cores as it may use at one time"),
    ("MaxMemPerLimit", "it asks for more memory per core than this site allows: lower cluster.memory_gb"),
)
"""Beginnings of reasons, and what they mean. The first that fits is taken."""

NEVER_BY_ITSELF = (
    *("DependencyNeverSatisfied", "JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue", "launch failed requeued held"),
    *("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "AccountNotAllowed", "InvalidAccount"),
    *("InvalidQOS", "QOSNotAllowed", "QOSMaxWall", "MaxMemPerLimit"),
)
"""Beginnings of reasons that do not pass by themselves: somebody has to act."""


def wait_in_words(reason: str) -> str:
    """Return why a job waits: what the scheduler's reason means, and the reason itself."""
    plain = reason.replace("_", " ")
    for beginning, meaning in WAITS:
        if plain.lower().startswith(beginning.lower()):
            return f"{meaning} ({reason})"
    return f"the scheduler says {reason}" if reason else "the scheduler has not looked at it yet"


def waits_in_vain(reason: str) -> bool:
    """Whether somebody has to do something before the job can run."""
    return reason.replace("_", " ").startswith(NEVER_BY_ITSELF)


@dataclass(frozen=True)
class Symptom:
    """Something that processes write before they die."""

    kind: str
    pattern: re.Pattern[str]
    meaning: str
    advice: str = ""


def _symptom(kind: str, pattern: str, meaning: str, advice: str = "") -> Symptom:
    return Symptom(kind, re.compile(pattern, re.IGNORECASE), meaning, advice)


SYMPTOMS = (
    _symptom(
        "gpu_memory",
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "Out of GPU memory",
    ),
    _symptom(
        "memory",
        r"oom[-_ ]kill|out-of-memory handler|exceeded .*memory limit|can(not|'t) allocate memory|MemoryError|bad_alloc",
        "Out of memory",
    ),
    _symptom(
        "no_image",
        r"could not open image|image .*(not found|no such file)|no such file or directory.*\.sif",
        "The image is missing on the node, or cannot be read there",
        "It must lie on a file system that all nodes see: cluster.image.",
    ),
    _symptom(
        "no_apptainer",
        r"apptainer: (command )?not found|exec: \S*(apptainer|singularity)\S*: (cannot execute|not found)",
        "Apptainer is not on the node's PATH",
        "Name its module in cluster.modules, or its full path in cluster.apptainer.",
    ),
    _symptom(
        "driver",
        r"driver (version is insufficient|on your system is too old)|CUDA initialization: .*driver|no kernel image is "
        r"available|forward compatibility was attempted",
        "The NVIDIA driver or the GPU of the node is too old for the image",
        "Build or pull the image for older drivers (cu12), or ask for other nodes: cluster.constraint.",
    ),
    _symptom(
        "version",
        r"another version of deg|this version of deg can read",
        "The version of deg in the image is not the one that submitted the jobs",
        "`deg image check` shows which it is. Build or pull the image of the deg that submits.",
    ),
    _symptom(
        "disk",
        r"No space left on device|Disk quota exceeded",
        "A disk is full, or a quota is reached",
    ),
    _symptom(
        "namespace",
        r"user namespace|fakeroot|FATAL:.*(mount|squashfuse|setuid)",
        "Apptainer could not start the image on the node",
        "`deg doctor --on slurm` tests what works there.",
    ),
)


def symptom_of(lines: Sequence[str]) -> Symptom | None:
    """Return the first known symptom in the last lines of a process; None if there is none."""
    text = "\n".join(lines)
    return next((symptom for symptom in SYMPTOMS if symptom.pattern.search(text)), None)
