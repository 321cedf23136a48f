"""`deg doctor`: are this machine, this cluster and this image fit for the work? Each check tries what the work will do.

The checks are in modules of their own: `machine`, `files`, `gpu`, `collective` and `image` run on any machine, `slurm`
on a login node, `ranks` in a job that `job` submits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deg.errors import LaunchError, show_path
from deg.launch.doctor import collective, files, gpu, image, machine, slurm
from deg.launch.doctor import job as doctor_job
from deg.launch.findings import Finding, exit_status, implied_profile, together
from deg.launch.scheduler import queue
from deg.options.schema import Cluster
from deg.version import __version__


@dataclass(frozen=True)
class Examination:
    """All findings of one examination."""

    findings: tuple[Finding, ...]
    folder: Path | None = None
    """Folder of the doctor's job; None if there was none."""

    @property
    def exit_status(self) -> int:
        return exit_status(self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {
            "deg": __version__,
            "exit_status": self.exit_status,
            "findings": [finding.as_dict() for finding in self.findings],
            "profile": implied_profile(self.findings),
            "folder": None if self.folder is None else str(self.folder),
        }


OnFinding = Callable[[Finding], None]
"""Called with each finding as it is made."""
OnNote = Callable[[str], None]
"""Called with messages about the job while it is waited for."""


def examine_here(folder: Path, cluster: Cluster, tell: OnFinding) -> Examination:
    """Examine this machine for work on the project in `folder`."""
    return _told(_here(folder, cluster), tell)


def _here(folder: Path, cluster: Cluster) -> Iterator[Finding]:
    yield machine.check_deg()
    yield machine.check_environment(in_image=False)
    yield machine.check_cores()
    yield machine.check_memory()
    yield machine.check_shared_memory()
    scratch = machine.scratch_folder(cluster.scratch)
    yield machine.check_scratch(scratch)
    yield from files.check_project_files(folder)
    yield machine.check_video(scratch)
    pytorch = gpu.ask_pytorch()
    yield from gpu.judge_pytorch(pytorch, needed=cluster.image is None)
    if "failure" not in pytorch:
        yield collective.check_local_ranks(len(pytorch["gpus"]))
    yield from image.check_apptainer(cluster)
    yield from image.check_image(cluster, [folder])


def examine_cluster(folder: Path, cluster: Cluster, seconds: float, tell: OnFinding, note: OnNote) -> Examination:
    """Examine the cluster with a job. Wait for it for `seconds`, then cancel it; 0 leaves the job alone."""
    before = _told(_login_node(folder, cluster), tell).findings
    if exit_status(before):
        unneeded = Finding("job", "not tried", "fix the faults above first")
        tell(unneeded)
        return Examination((*before, unneeded))
    job = doctor_job.new_folder(folder)
    try:
        submitted = doctor_job.submit(job, cluster, before)
    except LaunchError as error:
        refused = Finding("job", "fault", str(error), "sbatch to accept it")
        tell(refused)
        return Examination((*before, refused), job.path)
    note(f"Submitted job {submitted.job}: {submitted.count} ranks, {doctor_job.MINUTES} minutes at most.")
    if not seconds:
        waiting = Finding(
            "job",
            "not tried",
            f"{submitted.job} was not waited for; read its findings later with --job {show_path(job.path)}",
        )
        tell(waiting)
        return Examination((*before, waiting), job.path)
    state = doctor_job.wait(job, submitted, seconds, note)
    findings = doctor_job.read_findings(job, submitted, state)
    return Examination((*before, *_told(iter(together(findings)), tell).findings), job.path)


def job_report(folder: Path, tell: OnFinding) -> Examination:
    """Report what a job submitted earlier has found so far. RunError if `folder` is not that of a doctor's job."""
    job, submitted = doctor_job.load(folder)
    state = queue.states([submitted.job])[submitted.job].state
    findings = (*submitted.before, *together(doctor_job.read_findings(job, submitted, state)))
    return _told(iter(findings), tell, job.path)


def _login_node(folder: Path, cluster: Cluster) -> Iterator[Finding]:
    yield machine.check_deg()
    yield from files.check_project_files(folder)
    yield from image.check_apptainer(cluster)
    yield from image.check_image(cluster, [folder])
    yield from slurm.check_scheduler(cluster)


def _told(findings: Iterator[Finding], tell: OnFinding, folder: Path | None = None) -> Examination:
    made = []
    for finding in findings:
        tell(finding)
        made.append(finding)
    return Examination(tuple(made), folder)
