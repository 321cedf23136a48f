"""`deg new`, `deg add` and `deg check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deg.errors import show_path
from deg.launch.commands.arguments import ANY_PATH, console, json_option, one_project, print_json, split_words
from deg.launch.say import say

if TYPE_CHECKING:
    from deg.projects.check import CheckReport


@click.command()
@click.argument("folder", type=ANY_PATH)
@click.option("--behaviors", required=True, help="Names, separated by commas. background is added in front of them.")
@click.option("--name", help="Name of the project. Default: the folder's.")
@json_option
def new(folder: Path, behaviors: str, name: str | None, as_json: bool) -> int:
    """Make a new project in FOLDER, in DeepEthogram's layout.

    \b
    Example: deg new my_project --behaviors groom,rear
    """
    from deg.projects.project import create_project

    project = create_project(folder, behaviors.split(","), name)
    say(f"New project {project.path} with {', '.join(project.class_names)}. Next: deg add {folder} VIDEO...")
    if as_json:
        print_json({"project": str(project.path), "class_names": list(project.class_names)})
    return 0


@click.command()
@click.argument("folder", type=ANY_PATH, metavar="PROJECT")
@click.argument("videos", type=ANY_PATH, nargs=-1, required=True, metavar="VIDEO...")
@click.option(
    "--labels", type=ANY_PATH, multiple=True, help="Label CSV, one for each video in the same order. Repeatable."
)
@click.option("--mode", type=click.Choice(["copy", "link", "move"]), default="copy", show_default=True)
@click.option(
    "--frame-count",
    type=click.Choice(["claimed", "decoded"]),
    default="claimed",
    show_default=True,
    help="decoded: take damaged videos as far as they can be read.",
)
@click.option(
    "--pooled-statistics",
    is_flag=True,
    help="Compute colour statistics over all frames, exactly. Default: average deviations, as DeepEthogram does.",
)
@json_option
def add(
    folder: Path,
    videos: Sequence[Path],
    labels: Sequence[Path],
    mode: str,
    frame_count: str,
    pooled_statistics: bool,
    as_json: bool,
) -> int:
    """Add videos (files, image folders, HDF5) and labels to a project, and compute their statistics.

    A video that cannot be added is named with the reason and leaves the project as it was; the others are added.

    \b
    Example: deg add my_project mouse1.mp4 --labels mouse1.csv --mode link
    """
    from deg.errors import DegError
    from deg.options.load import load_config
    from deg.projects.add import add_recording
    from deg.projects.project import open_project

    if labels and len(labels) != len(videos):
        raise click.UsageError(f"Expected one --labels for each video, found {len(labels)} for {len(videos)} videos.")
    project = open_project(folder)
    image_order = load_config(project.config_file).project.image_order
    added, failed = [], {}
    for index, video in enumerate(videos):
        try:
            record = add_recording(
                project,
                video,
                labels[index] if labels else None,
                mode,  # type: ignore[arg-type]
                frame_count=frame_count,  # type: ignore[arg-type]
                pooled_statistics=pooled_statistics,
                image_order=image_order,
            )
        except DegError as error:
            failed[str(video)] = str(error)
            say(f"{video}: NOT ADDED: {error}")
        else:
            added.append(record.key)
            say(f"{record.key}: added")
    if as_json:
        print_json({"added": added, "failed": failed})
    return 1 if failed else 0


@click.command()
@click.argument("words", nargs=-1, metavar="PROJECT [KEY=VALUE]...")
@click.option("--deep", is_flag=True, help="Decode every frame of every video.")
@json_option
def check(words: Sequence[str], deep: bool, as_json: bool) -> int:
    """Read everything in a project: videos, labels, splits, results, weights. Say what is wrong and what to do.

    \b
    Example: deg check my_project --deep
    """
    from deg.options.load import load_config
    from deg.projects.check import check_project
    from deg.projects.project import open_project

    plain, overrides = split_words(words)
    project = open_project(Path(one_project(plain)))
    config = load_config(project.config_file, overrides)
    report = check_project(project, config, deep=deep)
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report)
    return 0 if report.ok else 1


def _show(report: CheckReport) -> None:
    """Print the report as tables and a list of what to do."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("recording", "frames", "size", "fps", "labels", "split", "results"):
        table.add_column(heading, justify="right" if heading in ("frames", "fps") else "left", overflow="fold")
    for recording in report.recordings:
        decoded = recording.frames_decoded
        differs = decoded is not None and decoded != recording.frames
        size = "" if recording.width is None else f"{recording.width}x{recording.height}"
        table.add_row(
            escape(show_path(recording.key)),
            ("?" if recording.frames is None else str(recording.frames)) + (f" ({decoded} decode)" if differs else ""),
            size,
            "" if not recording.fps else f"{recording.fps:.4g}",
            recording.labels,
            recording.part or "",
            ", ".join(f"{group} ({frames})" for group, frames in recording.results.items()),
        )
    classes = Table(box=None, pad_edge=False)
    classes.add_column("behaviour")
    for part in report.positives:
        classes.add_column(f"{part} frames", justify="right")
    for name in report.class_names:
        classes.add_row(escape(name), *(str(counts.get(name, 0)) for counts in report.positives.values()))
    out = console()
    out.print(table)
    out.print()
    out.print(classes)
    for issue in report.issues:
        out.print(
            f"{issue.severity}: {issue.key + ': ' if issue.key else ''}{issue.message}", markup=False, highlight=False
        )
    if not report.issues:
        out.print("No faults found." + ("" if report.deep else " (--deep decodes every frame.)"))
