"""Measures each part of inference on this machine: decoding, the network, and the whole from file to HDF5.

Weights are random, which makes the same amount of work. The whole decodes, computes and writes at the same time, as
`deg.execute` does, until the file is in place. The time for starting up is reported separately.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    preset: str
    size: tuple[int, int]
    precision: str
    batch: int | str
    video: Path | None
    frames: int
    runs: int
    compiled: bool = False


@dataclass(frozen=True)
class Bench:
    """Frames per second, one value for each run."""

    preset: str
    size: tuple[int, int]
    precision: str
    batch: int
    device: str
    threads: int
    frames: int
    decode: tuple[float, ...]
    network: tuple[float, ...]
    whole: tuple[float, ...]
    startup_seconds: float

    def as_dict(self) -> dict[str, Any]:
        medians = {name: round(statistics.median(getattr(self, name)), 2) for name in ("decode", "network", "whole")}
        return asdict(self) | {"median": medians}


def run_bench(settings: Settings) -> Bench:
    """Measure the speed of each part. Raises VideoError if the video cannot be read."""
    import torch

    from deg.data.video.decoder import DecoderPool
    from deg.data.video.files import probe
    from deg.data.video.transform import FrameTransform
    from deg.infer.features import FeatureEngine
    from deg.infer.spans import BLOCK_FRAMES
    from deg.models.device import choose_device, prepare_torch
    from deg.models.two_stream import build_two_stream
    from deg.options.load import load_config
    from deg.projects.shapes import write_shapes_video
    from deg.runs.plans import FeatureTask

    started = time.perf_counter()
    device = choose_device()
    prepare_torch("auto")
    torch.manual_seed(0)
    config = load_config(None, [f"preset={settings.preset}"], stage="inference")
    task = FeatureTask(
        config.feature_extractor,
        config.flow_generator,
        num_classes=4,
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
    )
    network = build_two_stream(task.feature_extractor, task.flow_generator, task.num_classes)
    engine = FeatureEngine(network, task, device)
    with tempfile.TemporaryDirectory() as folder:
        video = settings.video
        if video is None:
            video = Path(folder) / "shapes.mp4"
            write_shapes_video(video, num_frames=settings.frames, height=256, width=256, seed=0)
        frames = min(settings.frames, probe(video).num_frames)
        transform = FrameTransform(None, settings.size, None)
        with DecoderPool(1) as decoders:

            def blocks() -> Any:
                return decoders.blocks(video, 0, frames, transform, BLOCK_FRAMES)

            held = np.concatenate(list(blocks()))
            list(engine.run([held[: min(frames, 32)]], 0, min(frames, 32), min(frames, 32)))  # first batches are slower
            startup = time.perf_counter() - started
            decode = [_speed(frames, lambda: sum(len(block) for block in blocks())) for _ in range(settings.runs)]
            network_runs, whole = [], []
            for _ in range(settings.runs):
                network_runs.append(_speed(frames, lambda: list(engine.run([held], 0, frames, frames))))
                whole.append(
                    _speed(frames, lambda: _to_file(Path(folder), engine.run(blocks(), 0, frames, frames), frames))
                )
    return Bench(
        settings.preset,
        settings.size,
        engine.precision,
        engine.batch_size,
        torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        torch.get_num_threads(),
        frames,
        tuple(decode),
        tuple(network_runs),
        tuple(whole),
        round(startup, 1),
    )


def _speed(frames: int, work: Any) -> float:
    started = time.perf_counter()
    work()
    return round(frames / (time.perf_counter() - started), 2)


def _to_file(folder: Path, results: Any, frames: int) -> None:
    """Write results as an outputs file, flushed to disk."""
    from deg.data.results import Mark, write_group
    from deg.types import STREAM_FEATURES

    write_group(
        folder / "bench_outputs.h5",
        "bench",
        num_frames=frames,
        columns={"logits": 4, "P": 4, "spatial_features": STREAM_FEATURES, "flow_features": STREAM_FEATURES},
        blocks=(
            {
                "logits": block.logits_TK,
                "P": block.probabilities_TK,
                "spatial_features": block.spatial_features_TD,
                "flow_features": block.flow_features_TD,
            }
            for block in results
        ),
        class_names=["background", "a", "b", "c"],
        thresholds_K=np.full(4, 0.5),
        mark=Mark(frames, {}, "bench", 0, 0),
        provenance={},
    )
