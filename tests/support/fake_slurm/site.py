"""What kind of site the fake is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Site:
    """Written as site.json; `FakeSlurm.configure` changes it while jobs run."""

    nodes: list[str] = field(default_factory=lambda: ["n1", "n2", "n3"])
    cpus: int = 8
    """Of each node."""
    gpus: int = 2
    """Of each node."""
    memory_mb: int = 64000
    partitions: dict[str, float] = field(default_factory=lambda: {"gpu": 120, "short": 1})
    """Name -> longest time limit in minutes, which is the default as well. The first is the default partition."""
    first_job_id: int = 1
    max_array_size: int = 1001
    max_jobs: int | None = None
    """Jobs and array elements that a user may have in the queue."""
    requeue: bool = True
    """JobRequeue: whether jobs may be put back unless they ask for it or forbid it."""
    requeue_forbidden: bool = False
    """`scontrol requeue` is refused whatever the job asked for."""
    accounting: bool = True
    """Whether sacct and sacctmgr answer."""
    forbidden: list[str] = field(default_factory=list)
    """Long options of sbatch that the site refuses, such as mem or gpus-per-node."""
    speed: float = 1.0
    """Time limits and signals ahead of them come so many times sooner than asked for."""
    requeue_delay: float = 0.2
    """Seconds before a job that was put back starts again."""
    kill_wait: float = 2.0
    """Seconds from SIGTERM to SIGKILL."""
    signal_everything: bool = True
    """A signal to a step reaches all its processes, as with proctrack/linuxproc; else each task's first alone."""
    job_times: bool = False
    """Jobs are given SLURM_JOB_START_TIME and SLURM_JOB_END_TIME, as by Slurm 23.02 and newer."""
