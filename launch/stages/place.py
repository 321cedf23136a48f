"""A place where units are done, as stages and commands see it. `--on` names one.

    Place      takes what a command asks for, and does it now or has others do it later
    Workers    processes that do the units of a run while this one waits for them

`deg.launch.on` finds a place by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deg.launch.stages.request import ChainRequest, Order, Report, StageRequest
from deg.options.schema import Config
from deg.runs.rundir import RunDir
from deg.types import Unit

Progress = Callable[[int, bool], bool]
"""Function that is called with the number of frames done since the last call, and whether a unit has just been
finished. It returns whether to stop."""

Hear = Callable[[int, Mapping[str, Any]], None]
"""Function that is called with the number of a rank and what it said."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of work on units."""

    failed: Mapping[int, str] = field(default_factory=dict)
    """Units that could not be done, each with its reason."""
    stopped: bool = False
    """Whether a signal ended the work early, or came when it was just done."""


class Place(Protocol):
    """Where the units of stages are done."""

    def how_many(self, request: StageRequest) -> int:
        """Return the number of workers that share the units of an inference, or of the ranks of a training.

        Raises ConfigError if the options ask for more than there are.
        """

    def do_stages(self, orders: Sequence[Order], *, run_name: str | None, dry_run: bool) -> Report:
        """Do stages in their order, or hand them over. `run_name` is the name that the user gave them, if any."""

    def do_chain(self, request: ChainRequest, *, dry_run: bool) -> Report:
        """Do the steps that are missing between labels and report, or hand them over."""


class Workers(Protocol):
    """Processes that do the units of a run while this one waits."""

    def how_many(self, request: StageRequest) -> int:
        """Return the number of workers or ranks, as a `Place` does."""

    def do_units(self, run: RunDir, units: Sequence[Unit], config: Config, progress: Progress) -> Outcome:
        """Do units of an inference. Returns when they are done or given up, or when a signal came.

        Raises DegError if no worker can do any.
        """

    def train(self, run: RunDir, unit: int, config: Config, hear: Hear) -> Outcome:
        """Do a unit of a training with all ranks. Returns when it is done or a signal has stopped it.

        Raises the DegError of a rank that failed, or LaunchError if one died or all hang.
        """
