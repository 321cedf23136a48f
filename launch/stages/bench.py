"""Measures each part of inference on this machine: decoding, the network, and the whole from files to HDF5.

The whole is what a worker does: `deg.execute` does the units of a plan, with as many decoders as a worker has. Weights
are random, which makes the same amount of work. A stand-in of a given speed can take the network's place: it shows how
far decoding carries on a machine that lacks the GPU.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deg.arithmetic.units import plan_units
from deg.data.video.files import probe
from deg.errors import RunError
from deg.execute import UnitsToDo, do_units
from deg.options.load import load_config
from deg.projects.shapes import write_shapes_video
from deg.runs.inference import error_of
from deg.runs.plans import FeatureTask, InferencePlan
from deg.runs.rundir import RunDir, read_error
from deg.types import Unit, VideoInfo
from deg.work import Silent, StopFlag, available_cores

if TYPE_CHECKING:
    import torch

    from deg.infer.features import FeatureEngine
    from deg.infer.spans import FeatureSpans

CLASSES = ("background", "a", "b", "c")
FEW_FRAMES, MANY_FRAMES = 320, 20_000
"""Number of frames in a run by default: on a CPU, and where thousands are done in a second."""
UNITS = 6


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    preset: str
    size: tuple[int, int]
    precision: str
    batch: int | str
    videos: tuple[Path, ...]
    """Videos to decode, again and again until there are enough frames; none: one is made."""
    frames: int | None
    """Number of frames in a run; None: as many as suit the device."""
    span_frames: int
    """Number of frames to take from each video at most."""
    runs: int
    compiled: bool = False
    decoders: int | str = "auto"
    engine_fps: float | None = None
    """Speed of the stand-in, in frames per second; None: the network."""


@dataclass(frozen=True)
class Bench:
    """Frames per second, one value for each run."""

    preset: str
    size: tuple[int, int]
    precision: str
    batch: int
    device: str
    threads: int
    decoders: int
    frames: int
    span_frames: int
    decode: tuple[float, ...]
    network: tuple[float, ...]
    whole: tuple[float, ...]
    startup_seconds: float

    @property
    def share(self) -> float:
        """Speed of the whole as a share of that of its slower part, by medians."""
        decode, network, whole = (statistics.median(speeds) for speeds in (self.decode, self.network, self.whole))
        return whole / min(decode, network)

    def as_dict(self) -> dict[str, Any]:
        medians = {name: round(statistics.median(getattr(self, name)), 2) for name in ("decode", "network", "whole")}
        return asdict(self) | {"median": medians, "share": round(self.share, 3)}


def run_bench(settings: Settings) -> Bench:
    """Measure the speed of each part. Raises VideoError if a video cannot be read."""
    import torch

    from deg.infer.spans import FeatureSpans, decoder_count
    from deg.infer.stand_in import StandIn
    from deg.models.device import choose_device, device_name, prepare_torch

    started = time.perf_counter()
    device = choose_device() if settings.engine_fps is None else torch.device("cpu")
    # a stand-in is for a GPU: as many decoders serve it
    kind = device.type if settings.engine_fps is None else "cuda"
    decoders = decoder_count(settings.decoders, kind, available_cores())
    prepare_torch("auto")
    frames = settings.frames or (FEW_FRAMES if kind == "cpu" else MANY_FRAMES)
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(settings, decoders, _recordings(settings, frames, Path(folder)))
        network = (
            _network(plan, device)
            if settings.engine_fps is None
            else StandIn(settings.engine_fps, device, len(CLASSES))
        )
        with closing(FeatureSpans(plan, device, network)) as spans:
            held = list(itertools.islice(_all_frames(spans, plan.units[0]), 8))
            _decode(spans, plan)  # starts the decoders
            list(network.run(_cycled(held, 32), 0, 32, 32))  # first batches are slower
            startup = time.perf_counter() - started
            frames = sum(unit.num_frames for unit in plan.units)
            decode, alone, whole = [], [], []
            for run in range(settings.runs):
                decode.append(_speed(frames, lambda: _decode(spans, plan)))
                alone.append(_speed(frames, lambda: list(network.run(_cycled(held, frames), 0, frames, frames))))
                whole.append(_speed(frames, lambda: _do_all(RunDir(Path(folder, f"run{run}")), plan, spans)))  # noqa: B023
            return Bench(
                settings.preset,
                settings.size,
                network.precision,
                network.batch_size,
                "stand-in" if settings.engine_fps else device_name(device),
                torch.get_num_threads(),
                decoders,
                frames,
                max(len(span) for unit in plan.units for span in unit.spans),
                tuple(decode),
                tuple(alone),
                tuple(whole),
                round(startup, 1),
            )


def _recordings(settings: Settings, frames: int, folder: Path) -> dict[str, VideoInfo]:
    """Return recordings with enough frames together, each under a name of its own, so that it is opened anew."""
    videos = settings.videos
    if not videos:
        videos = (folder / "shapes.mp4",)
        length = min(frames, settings.span_frames)
        write_shapes_video(videos[0], num_frames=length, height=256, width=256, seed=0)
    found: dict[str, VideoInfo] = {}
    while frames > 0:
        video = videos[len(found) % len(videos)].absolute()
        link = folder / f"{len(found)}{video.suffix}"
        link.symlink_to(video)
        found[link.name] = probe(link)
        frames -= min(found[link.name].num_frames, settings.span_frames)
    return found


def _plan(settings: Settings, decoders: int, videos: dict[str, VideoInfo]) -> InferencePlan:
    config = load_config(None, [f"preset={settings.preset}"], stage="inference")
    task = FeatureTask(
        config.feature_extractor,
        config.flow_generator,
        num_classes=len(CLASSES),
        weights="",
        flow_weights=None,
        crop_size=None,
        resize=settings.size,
        pad=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        precision=settings.precision,
        batch_size=settings.batch,
        compile=settings.compiled,
        decoders=decoders,
    )
    lengths = {key: min(video.num_frames, settings.span_frames) for key, video in videos.items()}
    left = settings.frames or sum(lengths.values())
    for key, length in lengths.items():
        lengths[key] = min(length, left)
        left -= lengths[key]
    units = plan_units(lengths, devices=1, units_per_device=UNITS)
    return InferencePlan(
        "feature_extractor", "bench", CLASSES, (0.5,) * len(CLASSES), videos, {}, {}, "", task, tuple(units)
    )


def _network(plan: InferencePlan, device: torch.device) -> FeatureEngine:
    import torch

    from deg.infer.features import FeatureEngine
    from deg.models.two_stream import build_two_stream

    assert isinstance(plan.task, FeatureTask)
    torch.manual_seed(0)
    task = plan.task
    return FeatureEngine(build_two_stream(task.feature_extractor, task.flow_generator, len(CLASSES)), task, device)


def _all_frames(spans: FeatureSpans, *units: Unit) -> Iterator[np.ndarray]:
    every = [span for unit in units for span in unit.spans]
    spans.expect(every)
    for span in every:
        yield from spans.frames(span)


def _decode(spans: FeatureSpans, plan: InferencePlan) -> None:
    for _ in _all_frames(spans, *plan.units):
        pass


def _cycled(blocks: list[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """Yield so many frames out of a few blocks."""
    for block_THWC in itertools.cycle(blocks):
        yield block_THWC[:frames]
        frames -= len(block_THWC)
        if frames <= 0:
            return


def _do_all(run: RunDir, plan: InferencePlan, spans: FeatureSpans) -> None:
    """Do all units, as a worker does. Raises RunError if a unit or a recording fails."""
    run.path.mkdir()
    stop, names = StopFlag(), [str(unit.index) for unit in plan.units]
    if not do_units(run, plan, UnitsToDo.named(plan, stop, names), spans, stop, Silent()):
        raise RunError(next(filter(None, (read_error(run, unit.index) for unit in plan.units)), "a unit failed"))
    for unit in plan.units:
        for position in range(len(unit.spans)):
            if (error := error_of(run.result_file(unit.index), position)) is not None:
                raise RunError(error)


def _speed(frames: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return round(frames / (time.perf_counter() - started), 2)
