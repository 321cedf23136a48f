"""`deg infer` and `deg export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from deg.launch.commands.arguments import (
    ANY_PATH,
    json_option,
    one_project,
    only_option,
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
    """Compute features (feature_extractor) and final probabilities (sequence) of every video, or both (all: default).

    What is done is skipped; what was interrupted goes on where it stopped. Results: DATA/<video>/<video>_outputs.h5.

    \b
    Example: deg infer feature_extractor my_project feature_extractor.weights=latest inference.precision=auto
    """
    from deg.launch.stages import infer as inference
    from deg.launch.stages.request import StageRequest, read_options
    from deg.projects.project import open_project

    plain, overrides = split_words(words)
    stage = plain.pop(0) if plain and plain[0] in STAGES else "all"
    project = open_project(Path(one_project(plain)))
    config = read_options(project, overrides, files, "inference")
    chosen = inference.stages(stage, project, config)
    if only is not None and len(chosen) > 1:
        raise click.UsageError(f"--only {only}: name one stage, feature_extractor or sequence.")
    names = {name: run_name if run_name is None or len(chosen) == 1 else f"{run_name}_{name}" for name in chosen}
    keys = tuple(str(video) for video in videos)
    again = overwrite or config.inference.overwrite
    requests = [StageRequest("infer", name, project, config, keys, again, names[name]) for name in chosen]
    if on == "slurm":
        from deg.launch.commands.submit import submit_stages
        from deg.launch.on.slurm.orders import workers_on

        if only is None:
            more = [*overrides, *(word for key in keys for word in ("--videos", key)), *["--overwrite"] * overwrite]
            return submit_stages(requests, more, files, run_name=run_name, dry_run=dry_run, as_json=as_json)
        requests = [replace(request, workers=workers_on(config.cluster, request)) for request in requests]
    act = {None: inference.do, "plan": inference.plan_run, "merge": inference.merge_run}[only]
    reports: list[inference.Report] = []
    for request in requests:
        if dry_run and any(report.plan for report in reports):
            say(f"{request.stage}: is planned once the features are there.")
            break
        reports.append(inference.show_plan(request) if dry_run else act(request))
        if reports[-1].stopped:
            break
    if as_json:
        print_json({"stages": [report.as_dict() for report in reports]})
    return max(report.exit_status for report in reports)


@click.command()
@click.argument("words", nargs=-1, metavar="PROJECT [KEY=VALUE]...")
@click.option("--format", "file_format", type=click.Choice(["csv", "parquet"]), default="csv", show_default=True)
@click.option(
    "--group", help="Results to export: tgmj, resnet18... Default: the sequence network's, else the features'."
)
@click.option("--to", "folder", type=ANY_PATH, help="Folder for the files; default: beside each video.")
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
    """Predictions after thresholds and postprocessing, one file for each video.

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
