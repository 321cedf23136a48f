"""A launch: what was submitted to a scheduler at once, with all that its jobs and `deg status` need.

    PROJECT/models/<yymmdd_HHMMSS>_launch/
        launch.json   what was asked, and its stages        jobs.jsonl   each job that was submitted
        events.jsonl  provenance.json                       jobs/        scripts, scheduler output
        stages/02/    config.yaml  all options of the stage        merge.json   how it ended

A launch does nothing itself: its stages are runs, in run directories of their own, whose names are chosen beforehand.
Jobs that `deg resume` or another job submits again are added to jobs.jsonl.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from deg.data.atomic import write_atomically
from deg.data.json_lines import append_line, read_lines
from deg.errors import ConfigError, LaunchError, RunError, show_path
from deg.launch.scheduler.queue import alive
from deg.options.load import as_dict, overlay
from deg.options.schema import Cluster
from deg.runs.rundir import RunDir

LAUNCH_VERSION = 2
Role = Literal["execute", "merge"]


@dataclass(frozen=True)
class Stage:
    """One stage of a launch."""

    verb: Literal["train", "infer"]
    stage: str
    """`flow_generator`, `feature_extractor` or `sequence`."""
    run: str
    """Name of its run directory, which is made when the stage is planned, unless there is nothing to do."""
    elements: int
    """Number of workers of an inference: element i does units i, i + elements, i + 2 * elements... 1 for a training."""
    command: tuple[str, ...]
    """Words after `deg` that do the same on one machine: for people, never read by the program."""
    videos: tuple[str, ...] = ()
    """Keys of the recordings of an inference; empty: all."""
    overwrite: bool = False
    """Whether results that exist are computed again."""

    @property
    def name(self) -> str:
        return f"{self.verb} {self.stage}"


@dataclass(frozen=True)
class Launch:
    """What was submitted, as launch.json holds it."""

    folder: LaunchDir
    project: Path
    stages: tuple[Stage, ...]
    report: bool
    """Whether a report is written after the last stage."""
    deg: str
    """Version of deg that submitted; the image must have the same."""
    image: Path | None
    cluster: Cluster
    """Options `cluster.*` of its jobs."""
    array_size: int
    """Largest number of elements of an array here: element 2 * array_size is the first of the third array."""

    def run_of(self, index: int) -> RunDir:
        """Return the run of a stage. Its folder exists once the stage is planned."""
        return RunDir(self.folder.path.parent / self.stages[index].run)

    def write(self) -> None:
        """Write launch.json. From then on the launch exists."""
        write_atomically(self.folder.launch_file, self.to_json())

    def to_json(self) -> str:
        document = asdict(self) | {"cluster": as_dict(self.cluster)}
        del document["folder"]
        document["version"], document["project"] = LAUNCH_VERSION, str(self.project)
        document["image"] = None if self.image is None else str(self.image)
        return json.dumps(document, indent=1)

    @classmethod
    def from_json(cls, text: str, folder: LaunchDir) -> Launch:
        document = json.loads(text)
        if document.pop("version") != LAUNCH_VERSION:
            raise ValueError("it was submitted by another version")
        document["cluster"] = overlay(Cluster(), document["cluster"], source="in launch.json")
        document["project"] = Path(document["project"])
        document["image"] = None if document["image"] is None else Path(document["image"])
        document["stages"] = tuple(
            Stage(**(stage | {name: tuple(stage[name]) for name in ("command", "videos")}))
            for stage in document["stages"]
        )
        return cls(folder, **document)


@dataclass(frozen=True)
class SubmittedJob:
    """One job that was submitted: a line of jobs.jsonl, which after.sh writes too."""

    job: str
    """Job id, such as `12`. An array has one for all its elements."""
    stage: int
    role: Role
    elements: tuple[int, ...] | None = None
    """Task indices of an array job, such as (1, 3). None if the job is not an array."""
    round: int = 0
    """Number of times that the merge job has submitted the stage again, this one included; 0 for the first jobs."""
    time: float = 0.0
    """Time of submission, in seconds since 1970."""


@dataclass(frozen=True)
class Verdict:
    """What a merge job found, as merge.json holds it."""

    state: Literal["done", "partly", "again", "failed"]
    """partly: done, except for some recordings or for units that were given up; again: units were submitted again."""
    message: str = ""
    exit_status: int = 0


@dataclass(frozen=True)
class LaunchDir:
    """The folder of a launch."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def launch_file(self) -> Path:
        return self.path / "launch.json"

    @property
    def jobs_file(self) -> Path:
        return self.path / "jobs.jsonl"

    @property
    def jobs_folder(self) -> Path:
        """Scripts, and what the scheduler wrote: `<job>_<task>_log.out`, `<array>_<element>_<task>_log.err`..."""
        return self.path / "jobs"

    def stage_folder(self, index: int) -> Path:
        return self.path / "stages" / f"{index:02d}"

    def config_file(self, index: int) -> Path:
        """Return the file of all options of a stage, as they were when it was submitted."""
        return self.stage_folder(index) / "config.yaml"

    def merge_file(self, index: int) -> Path:
        return self.stage_folder(index) / "merge.json"

    def load(self) -> Launch:
        """Read launch.json. Raises RunError if there is none here, or none that this version can read."""
        try:
            return Launch.from_json(self.launch_file.read_text(encoding="utf-8"), self)
        except FileNotFoundError:
            raise RunError(f"{show_path(self.path)}: expected a launch.json, found none.") from None
        except (ConfigError, ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{show_path(self.launch_file)}: not a launch that this version of deg can read ({error}). End it with "
                f"`deg cancel {show_path(self.path)}`, then repeat the command that submitted it: what is done stays "
                "done."
            ) from None

    def run_names(self) -> tuple[str, ...]:
        """Return the names of the launch's runs, planned or not; none if this version cannot read the launch."""
        try:
            return tuple(stage.run for stage in self.load().stages)
        except RunError:
            return ()

    def jobs(self) -> list[SubmittedJob]:
        """Return all jobs that were submitted, oldest first."""
        found = []
        for line in read_lines(self.jobs_file):
            elements = line.get("elements")
            found.append(SubmittedJob(**(line | {"elements": None if elements is None else tuple(elements)})))
        return found

    def add_job(self, job: SubmittedJob) -> None:
        """Record a job that was submitted."""
        append_line(self.jobs_file, asdict(job) | {"time": job.time or round(time.time(), 3)})

    def verdict(self, index: int) -> Verdict | None:
        """Return what the last merge job of a stage found; None if none has ended yet."""
        try:
            return Verdict(**json.loads(self.merge_file(index).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def is_done(self, index: int) -> bool:
        """Whether the jobs of a stage have done what they could."""
        verdict = self.verdict(index)
        return verdict is not None and verdict.state in ("done", "partly")

    def set_verdict(self, index: int, verdict: Verdict) -> None:
        self.stage_folder(index).mkdir(parents=True, exist_ok=True)
        write_atomically(self.merge_file(index), json.dumps(asdict(verdict)))

    def log_event(self, kind: str, **details: Any) -> None:
        """Append one line to events.jsonl."""
        append_line(self.path / "events.jsonl", {"time": round(time.time(), 3), "event": kind, **details})


def find_launches(models: Path) -> Sequence[LaunchDir]:
    """Return all launches of a project, newest first."""
    found = [LaunchDir(file.parent) for file in models.glob("*/launch.json")]
    return sorted(found, key=lambda launch: (launch.launch_file.stat().st_mtime_ns, launch.name), reverse=True)


def launch_of(run: RunDir) -> LaunchDir | None:
    """Return the newest launch that has this run as a stage; None if there is none."""
    return next((launch for launch in find_launches(run.path.parent) if run.name in launch.run_names()), None)


def require_free(run: RunDir) -> None:
    """Raise RunError if a launch has jobs running or queued for a run.

    Where the scheduler cannot be asked, the run counts as free.
    """
    launch = launch_of(run)
    if launch is None:
        return
    submitted = [job.job for job in launch.jobs()]
    if os.environ.get("SLURM_JOB_ID") in submitted:
        return  # this is its merge job, put back into the queue after it had planned this run
    try:
        jobs = alive(submitted)
    except LaunchError:
        return  # no scheduler here: in an image, where a job of the launch asks, or on another machine
    if jobs:
        raise RunError(
            f"{run.name} is in use: {len(jobs)} jobs of {launch.name} are running or queued for it. Wait for them "
            "(`deg status`), or stop them with `deg cancel`, then run this again."
        )
