"""`--on slurm`: a cluster. A command submits its stages and ends. Jobs do them, and plan and merge in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deg.launch.on.slurm.orders import workers_on
from deg.launch.on.slurm.submit import Submission, SubmissionReport, submit
from deg.launch.say import say
from deg.launch.stages import chain
from deg.launch.stages.place import Place
from deg.launch.stages.request import ChainRequest, Order, StageRequest
from deg.projects.project import open_project


class Slurm:
    """The cluster that the options `cluster.*` describe."""

    def how_many(self, request: StageRequest) -> int:
        return workers_on(request.config.cluster, request)

    def do_stages(self, orders: Sequence[Order], *, run_name: str | None, dry_run: bool) -> SubmissionReport:
        first = orders[0].request
        return submit(Submission(first.project, first.config.cluster, tuple(orders), False, run_name, dry_run))

    def do_chain(self, request: ChainRequest, *, dry_run: bool) -> SubmissionReport:
        orders, report = _missing(request)
        project = open_project(request.path)
        cluster = request.config(project, "inference").cluster
        return submit(Submission(project, cluster, orders, report, request.run_name, dry_run))


def _missing(request: ChainRequest) -> tuple[tuple[Order, ...], bool]:
    """Return the orders for the missing stages of the chain, and whether a report is missing. Says what it finds."""
    # the launch names the runs
    unnamed = replace(request, run_name=None, files=tuple(file.resolve() for file in request.files))
    steps = chain.steps(unnamed)
    chain.require_trainable(unnamed, steps)
    orders: list[Order] = []
    report = False
    for step in steps:
        missing = step.look()
        say(f"{step.name}: {missing.why}{'' if missing.missing else ': nothing to do'}.")
        if step.order is None:
            report = missing.missing or bool(orders)
        elif missing.missing:
            orders.append(step.order())
    return tuple(orders), report


PLACE: Place = Slurm()
