"""`deg bench` and `deg demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from deg.launch.commands.arguments import ANY_PATH, json_option, print_json
from deg.launch.say import say

BATCHES = ("auto", "1", "2", "4", "8", "16", "32", "64", "128", "256")


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
@click.option("--batch", type=click.Choice(BATCHES), default="auto", show_default=True, help="Frames in a batch.")
@click.option("--video", "videos", type=ANY_PATH, multiple=True, help="A video of yours; may be given several times.")
@click.option("--frames", type=click.IntRange(min=1), help="Frames in a run; 320 on a CPU by default, else 20000.")
@click.option(
    "--span", type=click.IntRange(min=1), default=1800, show_default=True, help="Frames to take from each video."
)
@click.option("--decoders", type=click.IntRange(min=1), help="Decoders; by default as many as a worker has.")
@click.option(
    "--engine-fps",
    type=click.FloatRange(min=1),
    help="Put a stand-in that takes so many frames a second in the network's place, to see how far decoding carries.",
)
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
    videos: tuple[Path, ...],
    frames: int | None,
    span: int,
    decoders: int | None,
    engine_fps: float | None,
    runs: int,
    compiled: bool,
    as_json: bool,
) -> int:
    """Measure frames per second of decoding, of the network, and of the whole from files to HDF5, as a worker does it.

    Weights are untrained. If there are too few videos, they are decoded again and again.

    \b
    Example: deg bench --preset deg_f --size 224 224 --precision bf16
             deg bench --engine-fps 7000 --span 900
    """
    from deg.launch.stages.bench import Settings, run_bench

    settings = Settings(
        preset,
        size,
        precision,
        batch if batch == "auto" else int(batch),
        videos,
        frames,
        span,
        runs,
        compiled,
        decoders or "auto",
        engine_fps,
    )
    result = run_bench(settings)
    if as_json:
        print_json(result.as_dict())
        return 0
    say(
        f"{result.device}, {result.threads} threads, {preset} at {size[0]}x{size[1]}, "
        f"{result.precision}, batch {result.batch}"
    )
    say(f"{result.frames} frames of {result.span_frames} a video, decoders: {result.decoders}")
    for name, speed in (("decode", result.decode), ("network", result.network), ("whole", result.whole)):
        print_speed(name, speed)
    say(f"The whole has {result.share:.1%} of the speed of its slower part.")
    return 0


def print_speed(name: str, frames_per_second: Sequence[float]) -> None:
    """Print one line of `deg bench`: the median and all runs."""
    import statistics

    runs = ", ".join(f"{speed:.1f}" for speed in frames_per_second)
    click.echo(f"{name:8s} {statistics.median(frames_per_second):8.1f} frames/s   (runs: {runs})")


@click.command()
@click.argument("folder", type=ANY_PATH, default="demo", metavar="[FOLDER]")
@json_option
def demo(folder: Path, as_json: bool) -> int:
    """Make a small project of moving shapes in FOLDER, then train, infer and report on it: minutes on two cores.

    This shows that everything works on this machine, and what it looks like. Run it again to do what is missing.

    \b
    Example: deg demo my_demo
    """
    from deg.launch.on.local.place import LOCAL
    from deg.launch.stages.demo import run_demo

    report = run_demo(folder, LOCAL)
    if as_json:
        print_json(report)
    return int(report["exit_status"])
