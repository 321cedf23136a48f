"""`--on local`: this machine. A command does its stages here and now, and ends when they are done."""

from __future__ import annotations

from collections.abc import Sequence

from deg.launch.devices import devices
from deg.launch.on.local.pool import LocalPool
from deg.launch.on.local.ranks import rank_devices, run_ranks
from deg.launch.stages.chain import ChainReport, run_chain
from deg.launch.stages.place import Hear, Outcome, Place, Progress
from deg.launch.stages.request import ChainRequest, Order, StageRequest
from deg.launch.stages.stage import StagesReport, do_stages
from deg.options.schema import Config
from deg.runs.rundir import RunDir
from deg.types import Unit


class Local:
    """This machine: a `Place` and its `Workers`, with one process for each device."""

    def how_many(self, request: StageRequest) -> int:
        if request.verb == "train":
            return len(rank_devices(request.config.compute))
        return len(devices(request.config.inference.devices))

    def do_stages(self, orders: Sequence[Order], *, run_name: str | None, dry_run: bool) -> StagesReport:
        return do_stages([order.request for order in orders], self, dry_run=dry_run)

    def do_chain(self, request: ChainRequest, *, dry_run: bool) -> ChainReport:
        return run_chain(request, self, dry_run=dry_run)

    def do_units(self, run: RunDir, units: Sequence[Unit], config: Config, progress: Progress) -> Outcome:
        return LocalPool(run, units, devices(config.inference.devices), progress).execute()

    def train(self, run: RunDir, unit: int, config: Config, hear: Hear) -> Outcome:
        return run_ranks(run, unit, rank_devices(config.compute), hear)


LOCAL = Local()
PLACE: Place = LOCAL
