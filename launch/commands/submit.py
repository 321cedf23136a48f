"""`--on slurm` of the commands that work: what is submitted, and what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deg.launch.commands.arguments import print_json
from deg.launch.on.slurm.orders import Order
from deg.launch.on.slurm.submit import Submission, submit
from deg.launch.say import say
from deg.launch.stages import chain
from deg.launch.stages.request import StageRequest
from deg.projects.project import open_project


def submit_stages(
    requests: Sequence[StageRequest],
    words: Sequence[str],
    files: Sequence[Path],
    *,
    run_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Submit the stages of a command with the options `words` and `files`, say so, and return the exit status."""
    more = [*words, *(word for file in files for word in ("--config", str(file.resolve())))]
    orders = [Order(each, (each.verb, each.stage, str(each.project.path), *more)) for each in requests]
    first = requests[0]
    return _submit(Submission(first.project, first.config.cluster, tuple(orders), False, run_name, dry_run), as_json)


def submit_chain(request: chain.ChainRequest, *, dry_run: bool, as_json: bool) -> int:
    """Submit what is missing of the whole chain, say so, and return the exit status."""
    unnamed = chain.ChainRequest(request.path, request.overrides, tuple(file.resolve() for file in request.files))
    steps = chain.steps(unnamed)
    chain.require_trainable(unnamed, steps)
    orders: list[Order] = []
    report = False
    for step in steps:
        missing = step.look()
        say(f"{step.name}: {missing.why}{'' if missing.missing else ': nothing to do'}.")
        if step.request is None:
            report = missing.missing or bool(orders)
        elif missing.missing:
            orders.append(Order(step.request(), step.command))
    project = open_project(request.path)
    cluster = unnamed.config(project, "inference").cluster
    return _submit(Submission(project, cluster, tuple(orders), report, request.run_name, dry_run), as_json)


def _submit(submission: Submission, as_json: bool) -> int:
    report = submit(submission)
    if as_json:
        print_json(report.as_dict())
    return report.exit_status
