"""`deg train`, `deg run` and `deg resume`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from deg.launch.commands.arguments import (
    finish,
    json_option,
    one_project,
    only_option,
    options_as_words,
    split_words,
    work_options,
)

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
    sequence network from the features of labelled videos. An interrupted training is resumed. A finished one is not
    touched: a new one begins. The network is written to PROJECT/models/<date>_<network>_train.

    \b
    Example: deg train feature_extractor my_project flow_generator.weights=latest train.num_epochs=10
    """
    from deg.launch.on import place_named
    from deg.launch.stages.request import Order, StageRequest, read_options
    from deg.launch.stages.stage import plan_or_merge
    from deg.projects.project import open_project

    plain, overrides = split_words(words)
    stage = plain.pop(0) if plain else ""
    if stage not in STAGES:
        raise click.UsageError(f"Expected one of {', '.join(STAGES)} first, found {stage or 'nothing'}.")
    project = open_project(Path(one_project(plain)))
    request = StageRequest("train", stage, project, read_options(project, overrides, files, stage), run_name=run_name)
    place = place_named(on)
    if only is not None:
        return finish(plan_or_merge(only, request, place, dry_run=dry_run), as_json)
    order = Order(request, ("train", stage, str(project.path), *overrides, *options_as_words(files)))
    return finish(place.do_stages([order], run_name=run_name, dry_run=dry_run), as_json)


@click.command()
@click.argument("words", nargs=-1, metavar="PROJECT [KEY=VALUE]...")
@work_options
@json_option
def run(
    words: Sequence[str], files: Sequence[Path], run_name: str | None, on: str, dry_run: bool, as_json: bool
) -> int:
    """Do what is missing of these steps: train flow_generator, train feature_extractor, infer feature_extractor, train
    sequence, infer sequence, report.

    A trained network is not trained again, even if labels or options have changed since. A note then says so, and
    `deg train` trains a new one. KEY=VALUE applies to every step that has this option.

    \b
    Example: deg run my_project train.num_epochs=10
    """
    from deg.launch.on import place_named
    from deg.launch.stages.request import ChainRequest

    plain, overrides = split_words(words)
    request = ChainRequest(Path(one_project(plain)), tuple(overrides), tuple(files), run_name)
    return finish(place_named(on).do_chain(request, dry_run=dry_run), as_json)


@click.command()
@click.argument("words", nargs=-1, metavar="[RUN or PROJECT] [cluster.KEY=VALUE]...")
@json_option
def resume(words: Sequence[str], as_json: bool) -> int:
    """Resume a run that was interrupted, cancelled or given up: the newest one of a project, or the one named.

    Only what is missing is done; what was given up gets a new chance. Jobs of a cluster are submitted again, with the
    options that are given now.

    \b
    Example: deg resume my_project cluster.time=8:00:00
    """
    from deg.launch.on.resume import resume

    plain, overrides = split_words(words)
    return finish(resume(Path(one_project(plain or ["."])), overrides), as_json)
