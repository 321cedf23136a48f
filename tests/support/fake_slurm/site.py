"""The kind of site that the fake is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Site:
    """Settings of a site, written as site.json; `FakeSlurm.configure` changes them while jobs run."""

    nodes: list[str] = field(default_factory=lambda: ["n1", "n2", "n3"])
    cpus: int = 8
    """CPUs of each node."""
    gpus: int = 2
    """GPUs of each node."""
    memory_mb: int = 64000
    partitions: dict[str, float] = field(default_factory=lambda: {"gpu": 120, "short": 1})
    """Longest time limit of each partition in minutes, also its default. The first is the default partition."""
    first_job_id: int = 1
    max_array_size: int = 1001
    max_jobs: int | None = None
    """Largest number of jobs and array elements that a user may have in the queue."""
    requeue: bool = True
    """JobRequeue: whether jobs may be requeued if they neither ask for it nor forbid it."""
    requeue_forbidden: bool = False
    """Whether `scontrol requeue` is refused whatever the job asked for."""
    accounting: bool = True
    """Whether sacct and sacctmgr answer."""
    forbidden: list[str] = field(default_factory=list)
    """Long options of sbatch that the site refuses, such as mem or gpus-per-node."""
    speed: float = 1.0
    """Factor by which time limits, and the signals ahead of them, come sooner than requested."""
    requeue_delay: float = 0.2
    """Seconds before a requeued job starts again."""
    kill_wait: float = 2.0
    """Seconds from SIGTERM to SIGKILL."""
    signal_everything: bool = True
    """Whether a signal to a step reaches all processes, as with proctrack/linuxproc; else only each task's first."""
    job_times: bool = False
    """Whether jobs get SLURM_JOB_START_TIME and SLURM_JOB_END_TIME, as from Slurm 23.02 on."""
