"""`deg train`, `deg run` and `deg resume`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from deg.launch.commands.arguments import json_option, one_project, only_option, print_json, split_words, work_options

STAGES = ("flow_generator", "feature_extractor", "sequence")


@click.command()
@click.argument("words", nargs=-1, metavar="flow_generator|feature_extractor|sequence PROJECT [KEY=VALUE]...")
@work_options
@only_option
@json_option
def train(
    words: Sequence[str],
    files: Sequence[Path],
    run_name: str | None,
    on: str,
    dry_run: bool,
    only: str | None,
    as_json: bool,
) -> int:
    """Train one network on the project's recordings.

    The flow_generator learns motion from all videos, the feature_extractor behaviours from labelled videos, the
    sequence network from the features of labelled videos. What was interrupted goes on; what is finished is trained
    anew. The network lies in PROJECT/models/<date>_<network>_train.

    \b
    Example: deg train feature_extractor my_project flow_generator.weights=latest train.num_epochs=10
    """
    from deg.launch.stages import stage as stages
    from deg.launch.stages.request import StageRequest, read_options
    from deg.projects.project import open_project

    plain, overrides = split_words(words)
    stage = plain.pop(0) if plain else ""
    if stage not in STAGES:
        raise click.UsageError(f"Expected one of {', '.join(STAGES)} first, found {stage or 'nothing'}.")
    project = open_project(Path(one_project(plain)))
    request = StageRequest("train", stage, project, read_options(project, overrides, files, stage), run_name=run_name)
    if on == "slurm":
        from deg.launch.commands.submit import submit_stages
        from deg.launch.on.slurm.orders import workers_on

        if only is None:
            return submit_stages([request], overrides, files, run_name=run_name, dry_run=dry_run, as_json=as_json)
        request = replace(request, workers=workers_on(request.config.cluster, request))
    act = stages.show_plan if dry_run else {None: stages.do, "plan": stages.plan_run, "merge": stages.merge_run}[only]
    report = act(request)
    if as_json:
        print_json(report.as_dict())
    return report.exit_status


@click.command()
@click.argument("words", nargs=-1, metavar="PROJECT [KEY=VALUE]...")
@work_options
@json_option
def run(
    words: Sequence[str], files: Sequence[Path], run_name: str | None, on: str, dry_run: bool, as_json: bool
) -> int:
    """Do what is missing of: train flow_generator, train feature_extractor, infer feature_extractor, train sequence,
    infer sequence, report.

    Networks that were trained are not trained again, also when labels or options have changed since: that is said, and
    `deg train` does it. KEY=VALUE holds for every step that it means something to.

    \b
    Example: deg run my_project train.num_epochs=10
    """
    from deg.launch.stages import chain

    plain, overrides = split_words(words)
    request = chain.ChainRequest(Path(one_project(plain)), tuple(overrides), tuple(files), run_name)
    if on == "slurm":
        from deg.launch.commands.submit import submit_chain

        return submit_chain(request, dry_run=dry_run, as_json=as_json)
    report = chain.run_chain(request, dry_run=dry_run)
    if as_json:
        print_json(report.as_dict())
    return report.exit_status


@click.command()
@click.argument("words", nargs=-1, metavar="[RUN or PROJECT] [cluster.KEY=VALUE]...")
@json_option
def resume(words: Sequence[str], as_json: bool) -> int:
    """Go on with a run that was interrupted, cancelled or given up: the newest one of a project, or the one named.

    Only what is missing is done; what was put aside gets a new chance. Jobs of a cluster are submitted again, with the
    options that are given now.

    \b
    Example: deg resume my_project cluster.time=8:00:00
    """
    from deg.launch.on.slurm.resume import resume as go_on

    plain, overrides = split_words(words)
    document = go_on(Path(one_project(plain or ["."])), overrides)
    if as_json:
        print_json(document)
    return int(document["exit_status"])
