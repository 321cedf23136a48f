"""`deg doctor`: is this machine, this cluster, this image fit for the work? Every check tries what the work will do.

Checks stand in modules of their own: `doctor_machine`, `doctor_files`, `doctor_gpu`, `doctor_collective`,
`doctor_image` on any machine; `doctor_slurm` on a login node; `doctor_ranks` in a job that `doctor_job` submits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deg.launch import doctor_collective, doctor_files, doctor_gpu, doctor_image, doctor_machine
from deg.launch.doctor_findings import Finding, exit_status, implied_profile
from deg.schema import Cluster
from deg.version import __version__


@dataclass(frozen=True)
class Report:
    """All that was found."""

    findings: tuple[Finding, ...]
    folder: Path | None = None
    """Of the doctor's job, where there was one."""

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


def examine_here(folder: Path, cluster: Cluster, tell: OnFinding) -> Report:
    """Examine this machine for work on the project in `folder`."""
    return _told(_here(folder, cluster), tell)


def _here(folder: Path, cluster: Cluster) -> Iterator[Finding]:
    yield doctor_machine.check_deg()
    yield doctor_machine.check_environment(in_image=False)
    yield doctor_machine.check_cores()
    yield doctor_machine.check_memory()
    yield doctor_machine.check_shared_memory()
    scratch = doctor_machine.scratch_folder(cluster.scratch)
    yield doctor_machine.check_scratch(scratch)
    yield from doctor_files.check_project_files(folder)
    yield doctor_machine.check_video(scratch)
    pytorch = doctor_gpu.ask_pytorch()
    yield from doctor_gpu.judge_pytorch(pytorch, needed=cluster.image is None)
    if "failure" not in pytorch:
        yield doctor_collective.check_local_ranks(len(pytorch["gpus"]))
    yield from doctor_image.check_apptainer(cluster)
    yield from doctor_image.check_image(cluster, [folder])


def _told(findings: Iterator[Finding], tell: OnFinding) -> Report:
    made = []
    for finding in findings:
        tell(finding)
        made.append(finding)
    return Report(tuple(made))
