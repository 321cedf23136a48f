"""A place where units are done, which is the value of `--on`, as stages and commands see it.

    Place      takes what a command asks: does it here and now, or has it done by others, later
    Workers    a place whose processes do the units of a run while this one waits for them

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
"""Called with the number of frames done since the last call, and whether a unit has just been finished; returns
whether to stop."""

Hear = Callable[[int, Mapping[str, Any]], None]
"""Called with the number of a rank and what it said."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of work on units."""

    failed: Mapping[int, str] = field(default_factory=dict)
    """Units that could not be done, each with its reason."""
    stopped: bool = False
    """A signal ended the work early, or came when it was just done."""


class Place(Protocol):
    """Where the units of stages are done."""

    def how_many(self, request: StageRequest) -> int:
        """Number of workers that share the units of an inference, or of ranks of a training. ConfigError if it cannot
        be had."""

    def do_stages(self, orders: Sequence[Order], *, run_name: str | None, dry_run: bool) -> Report:
        """Do stages in their order, or hand them over. `run_name` is what the user calls them, if they have a name."""

    def do_chain(self, request: ChainRequest, *, dry_run: bool) -> Report:
        """Do what is missing from labels to the report, or hand it over."""


class Workers(Protocol):
    """Processes that do the units of a run while this one waits."""

    def how_many(self, request: StageRequest) -> int:
        """Number of workers or ranks, as for a `Place`."""

    def do_units(self, run: RunDir, units: Sequence[Unit], config: Config, progress: Progress) -> Outcome:
        """Do units of an inference. Returns when they are done or given up, or a signal came.

        DegError if no worker can do any.
        """

    def train(self, run: RunDir, unit: int, config: Config, hear: Hear) -> Outcome:
        """Do a unit of a training by all ranks. Returns when it is done, or a signal stopped it.

        DegError with what a rank said that failed, LaunchError if one died or all hang.
        """
