"""`deg status`, `deg bench` and `deg demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from deg.launch.arguments import ANY_PATH, console, json_option, print_json, say

BATCHES = ("auto", "1", "2", "4", "8", "16", "32", "64", "128", "256")


@click.command()
@click.argument("path", type=ANY_PATH, default=".", metavar="[RUN or PROJECT]")
@json_option
def status(path: Path, as_json: bool) -> int:
    """Runs of a project, or one run: what is done, how fast, how good. Reads files only.

    \b
    Example: deg status my_project
    """
    from deg.errors import RunError
    from deg.launch.progress import FIGURES
    from deg.launch.status import RunStatus, TrainingStatus, read_status, runs_at

    found: list[RunStatus | TrainingStatus] = []
    unreadable: dict[str, str] = {}
    for run in runs_at(path):
        try:
            found.append(read_status(run))
        except RunError as error:
            unreadable[run.name] = str(error)
            say(f"Warning: {error}")
    if as_json:
        print_json({"runs": [run.as_dict() for run in found], "unreadable": unreadable})
        return 1 if unreadable else 0
    trainings = [
        (
            state.name,
            state.state,
            state.phase if state.phases > 1 else "",
            f"{state.epochs_done}/{state.epochs}",
            "" if state.loss is None else f"{state.loss:.3f}",
            "" if state.figure is None or state.value is None else f"{FIGURES[state.figure]} {state.value:.3f}",
        )
        for state in found
        if isinstance(state, TrainingStatus)
    ]
    inferences = [
        (
            state.name,
            state.state,
            f"{state.units_done}/{state.units}",
            f"{state.recordings_done}/{state.recordings}",
            str(state.recordings_failed + state.units_failed),
            f"{state.frames_done}/{state.frames}",
            "" if state.frames_per_second is None else f"{state.frames_per_second:.1f}",
        )
        for state in found
        if isinstance(state, RunStatus)
    ]
    _print_table(("training", "state", "phase", "epochs", "loss", "validation"), trainings)
    _print_table(("inference", "state", "units", "recordings", "failed", "frames", "frames/s"), inferences)
    return 1 if unreadable else 0


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output, words to the left and numbers to the right; nothing without rows."""
    from rich.table import Table

    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        left = heading in ("training", "inference", "state", "phase", "validation")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


@click.command()
@click.option("--preset", type=click.Choice(["deg_f", "deg_m", "deg_s"]), default="deg_f", show_default=True)
@click.option(
    "--size",
    type=click.IntRange(min=16),
    nargs=2,
    default=(224, 224),
    show_default=True,
    help="Height and width of the frames.",
)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True)
@click.option("--batch", type=click.Choice(BATCHES), default="auto", show_default=True, help="Frames in one go.")
@click.option("--video", type=ANY_PATH, help="A video of yours instead of a made one.")
@click.option("--frames", type=click.IntRange(min=1), default=320, show_default=True, help="How many frames at most.")
@click.option(
    "--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions; medians are shown."
)
@click.option("--compile/--no-compile", "compiled", default=False, help="Compile the network first.")
@json_option
def bench(
    preset: str,
    size: tuple[int, int],
    precision: str,
    batch: str,
    video: Path | None,
    frames: int,
    runs: int,
    compiled: bool,
    as_json: bool,
) -> int:
    """Frames per second of decoding, of the network, and of the whole from file to HDF5, with untrained weights.

    \b
    Example: deg bench --preset deg_f --size 224 224 --precision bf16
    """
    from deg.launch.bench import Settings, run_bench

    settings = Settings(
        preset, size, precision, batch if batch == "auto" else int(batch), video, frames, runs, compiled
    )
    result = run_bench(settings)
    if as_json:
        print_json(result.as_dict())
        return 0
    say(
        f"{result.device}, {result.threads} threads, {preset} at {size[0]}x{size[1]}, "
        f"{result.precision}, batch {result.batch}"
    )
    for name, speed in (("decode", result.decode), ("network", result.network), ("whole", result.whole)):
        print_speed(name, speed)
    return 0


def print_speed(name: str, frames_per_second: Sequence[float]) -> None:
    """One line of `deg bench`: the median and all runs."""
    import statistics

    runs = ", ".join(f"{speed:.1f}" for speed in frames_per_second)
    click.echo(f"{name:8s} {statistics.median(frames_per_second):8.1f} frames/s   (runs: {runs})")


@click.command()
@click.argument("folder", type=ANY_PATH, default="demo", metavar="[FOLDER]")
@json_option
def demo(folder: Path, as_json: bool) -> int:
    """Make a small project of moving shapes in FOLDER; train, infer and report on it: minutes on two cores.

    It shows that everything works on this machine, and what it looks like. Called again, it does what is missing.

    \b
    Example: deg demo my_demo
    """
    from deg.launch.demo import run_demo

    report = run_demo(folder)
    if as_json:
        print_json(report)
    return int(report["exit_status"])
