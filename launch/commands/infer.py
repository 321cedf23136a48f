"""`deg infer` and `deg export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from deg.launch.commands.arguments import (
    ANY_PATH,
    finish,
    json_option,
    one_project,
    only_option,
    options_as_words,
    print_json,
    split_words,
    work_options,
)
from deg.launch.say import say

STAGES = ("feature_extractor", "sequence", "all")


@click.command()
@click.argument("words", nargs=-1, metavar="[feature_extractor|sequence|all] PROJECT [KEY=VALUE]...")
@click.option("--videos", multiple=True, type=ANY_PATH, help="Only this recording: key, folder or video. Repeatable.")
@click.option("--overwrite", is_flag=True, help="Compute again what is already there.")
@work_options
@only_option
@json_option
def infer(
    words: Sequence[str],
    videos: Sequence[Path],
    overwrite: bool,
    files: Sequence[Path],
    run_name: str | None,
    on: str,
    dry_run: bool,
    only: str | None,
    as_json: bool,
) -> int:
    """Compute features (feature_extractor), final probabilities (sequence) or both (all, the default) of every video.

    What is done is skipped; what was interrupted is resumed. Results: DATA/<video>/<video>_outputs.h5.

    \b
    Example: deg infer feature_extractor my_project feature_extractor.weights=latest inference.precision=auto
    """
    from deg.launch.on import place_named
    from deg.launch.stages.infer import stages
    from deg.launch.stages.request import Order, StageRequest, read_options
    from deg.launch.stages.stage import plan_or_merge
    from deg.projects.project import open_project

    plain, overrides = split_words(words)
    stage = plain.pop(0) if plain and plain[0] in STAGES else "all"
    project = open_project(Path(one_project(plain)))
    config = read_options(project, overrides, files, "inference")
    chosen = stages(stage, project, config)
    if only is not None and len(chosen) > 1:
        raise click.UsageError(f"--only {only}: name one stage, feature_extractor or sequence.")
    names = {name: run_name if run_name is None or len(chosen) == 1 else f"{run_name}_{name}" for name in chosen}
    keys = tuple(str(video) for video in videos)
    again = overwrite or config.inference.overwrite
    requests = [StageRequest("infer", name, project, config, keys, again, names[name]) for name in chosen]
    place = place_named(on)
    if only is not None:
        return finish(plan_or_merge(only, requests[0], place, dry_run=dry_run), as_json)
    more = [*overrides, *options_as_words(files, keys), *["--overwrite"] * overwrite]
    orders = [Order(each, ("infer", each.stage, str(project.path), *more)) for each in requests]
    return finish(place.do_stages(orders, run_name=run_name, dry_run=dry_run), as_json)


@click.command()
@click.argument("words", nargs=-1, metavar="PROJECT [KEY=VALUE]...")
@click.option("--format", "file_format", type=click.Choice(["csv", "parquet"]), default="csv", show_default=True)
@click.option(
    "--group", help="Results to export: tgmj, resnet18... Default: the sequence network's, else the features'."
)
@click.option("--to", "folder", type=ANY_PATH, help="Folder for the files. Default: beside each video.")
@click.option("--videos", multiple=True, type=ANY_PATH, help="Only this recording. Repeatable.")
@json_option
def export(
    words: Sequence[str],
    file_format: str,
    group: str | None,
    folder: Path | None,
    videos: Sequence[Path],
    as_json: bool,
) -> int:
    """Write predictions after thresholds and postprocessing, one file for each video.

    csv: <video>_predictions.csv as DeepEthogram writes it. parquet: probabilities and predictions of every frame.

    \b
    Example: deg export my_project --format csv
    """
    from deg.options.load import load_config
    from deg.plan.infer import choose_records
    from deg.projects.export import export_recordings
    from deg.projects.project import open_project

    plain, overrides = split_words(words)
    project = open_project(Path(one_project(plain)))
    config = load_config(project.config_file, overrides, stage="inference")
    records = choose_records(project, [str(video) for video in videos], config.inference)
    report = export_recordings(project, config, records, file_format=file_format, group=group, folder=folder)
    for notice in report.notices:
        say(f"Note: {notice}")
    for key, path in report.written.items():
        say(f"{key}: {path}")
    for key, reason in report.failed.items():
        say(f"{key}: FAILED: {reason}")
    if as_json:
        print_json({"written": {k: str(v) for k, v in report.written.items()}, "failed": dict(report.failed)})
    return 1 if report.failed else 0
