"""What a command or a job of a launch asks of a stage or of the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from deg.launch.say import say
from deg.options.load import load_config
from deg.options.schema import Config
from deg.projects.project import Project, open_project

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
    """Whether results that exist are computed again."""
    run_name: str | None = None
    """Name of the run directory; None: that of an interrupted run, or one by date."""


@dataclass(frozen=True)
class Order:
    """A stage that a user asks for, and the command that does it."""

    request: StageRequest
    command: tuple[str, ...]
    """Words after `deg` with which a user does it on one machine."""


@dataclass(frozen=True)
class ChainRequest:
    """What the user asked of the whole chain."""

    path: Path
    overrides: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    run_name: str | None = None
    """Prefix of the names of all its runs; None: they are named by date."""

    def config(self, project: Project, stage: str, forced: Sequence[str] = ()) -> Config:
        """Read the options for a stage."""
        return load_config(project.config_file, [*self.overrides, *forced], stage=stage, files=self.files)

    def order(self, verb: Verb, stage: str, forced: Sequence[str] = ()) -> Order:
        """Return the order for one of the stages, with the project as it is now."""
        project = open_project(self.path)
        kind = stage if verb == "train" else "inference"
        config = read_options(project, [*self.overrides, *forced], self.files, kind)
        overwrite = config.inference.overwrite
        request = StageRequest(verb, stage, project, config, overwrite=overwrite, run_name=self.run_of(verb, stage))
        return Order(request, self.words(verb, stage, forced))

    def run_of(self, verb: Verb, stage: str) -> str | None:
        """Return the name of the run directory of a stage; None if the user has given no name."""
        return None if self.run_name is None else f"{self.run_name}_{stage}_{verb}"

    def words(self, verb: Verb, stage: str, forced: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the words after `deg` with which a user does a stage alone."""
        options = [word for file in self.files for word in ("--config", str(file))]
        if (name := self.run_of(verb, stage)) is not None:
            options += ["--run", name]
        return (verb, stage, str(self.path), *self.overrides, *forced, *options)


class Report(Protocol):
    """Result of a stage or of a report, for people and for --json."""

    @property
    def exit_status(self) -> int: ...

    def as_dict(self) -> dict[str, Any]:
        """Return the report as --json prints it."""


class StageReport(Report, Protocol):
    """Result of a stage."""

    @property
    def run(self) -> str | None:
        """Name of the run directory; None if there was nothing to do."""

    @property
    def plan(self) -> Mapping[str, Any] | None:
        """What `show_plan` found would be done; None if nothing would."""

    @property
    def stopped(self) -> bool:
        """Whether a signal ended it early."""


def read_options(project: Project, overrides: Sequence[str], files: Sequence[Path], stage: str) -> Config:
    """Read the options for a stage, and say which of them have no effect."""
    config = load_config(project.config_file, overrides, stage=stage, files=files)
    if config.ignored:
        say(f"Note: these options have no effect in deg: {', '.join(config.ignored)}.")
    return config
