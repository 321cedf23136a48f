"""What is asked of a stage, whoever asks: a command, the chain, or a launch that a scheduler has come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from deg.launch.say import say
from deg.options.load import load_config
from deg.options.schema import Config
from deg.projects.project import Project

Verb = Literal["train", "infer"]


@dataclass(frozen=True)
class StageRequest:
    """One stage to be planned, done or merged."""

    verb: Verb
    stage: str
    """`flow_generator`, `feature_extractor` or `sequence`."""
    project: Project
    config: Config
    videos: tuple[str, ...] = ()
    """Recordings by key, folder or video, for an inference; empty: all."""
    overwrite: bool = False
    """Results that are there are computed again."""
    run_name: str | None = None
    """Name of the run directory; None: named by date, or an interrupted run's."""
    workers: int | None = None
    """Number of workers or ranks, where others do the work; None: as many as this machine has devices."""


class Report(Protocol):
    """Result of a stage or of a report, for people and for --json."""

    @property
    def exit_status(self) -> int: ...

    def as_dict(self) -> dict[str, Any]:
        """The report as --json prints it."""


class StageReport(Report, Protocol):
    """Result of a stage."""

    @property
    def run(self) -> str | None:
        """Name of the run directory; None if there was nothing to do."""

    @property
    def plan(self) -> Mapping[str, Any] | None:
        """What would be done, after `show_plan`; None if that is nothing."""


def read_options(project: Project, overrides: Sequence[str], files: Sequence[Path], stage: str) -> Config:
    """The options that hold for a stage; those that mean nothing here are named."""
    config = load_config(project.config_file, overrides, stage=stage, files=files)
    if config.ignored:
        say(f"Note: without effect in deg: {', '.join(config.ignored)}.")
    return config
