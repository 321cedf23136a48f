"""Engines of the stages: from a span of a plan to rows of results.

`FeatureSpans` decodes in child processes and runs the two-stream network; `SequenceSpans` reads features from outputs
files and runs the sequence network. Both implement `deg.execute.Engine`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from deg.arithmetic.ranges import ranges_of
from deg.arithmetic.windows import AFTER, BEFORE, reach
from deg.data.sequence_input import describe_mark, open_input
from deg.data.video.pool import DecoderPool
from deg.data.video.reader import require_unchanged
from deg.data.video.stretch import Stretch
from deg.data.video.transform import FrameTransform
from deg.errors import ProjectError, show_path
from deg.infer.features import FeatureBlock, FeatureEngine
from deg.infer.sequences import SequenceEngine
from deg.models.device import device_name, keep_freed_memory, prepare_torch
from deg.runs.networks import require_planned
from deg.runs.planned import KeypointSource
from deg.runs.plans import FeatureTask, InferencePlan, SequenceTask
from deg.types import STREAM_FEATURES, Span
from deg.version import __version__
from deg.work import available_cores

BLOCK_FRAMES = 64
"""Frames that a decoder hands over at a time."""
WORTH_COMPILING = 50_000
"""Frames of a run above which compiling, which takes a minute, pays on a GPU. A CPU would take longer to compile."""


class Network(Protocol):
    """Computes the features of frames: a FeatureEngine, or what stands in for it where speed is measured."""

    device: torch.device
    precision: str

    def run(self, frames: Iterable[np.ndarray], start: int, stop: int, num_frames: int) -> Iterator[FeatureBlock]:
        """Do as `FeatureEngine.run` does."""


class FeatureSpans:
    """Feature extraction over spans of videos."""

    def __init__(self, plan: InferencePlan, device: torch.device, network: Network | None = None):
        """Prepare the network of the plan, or take the one given, and decoders as the type of the device wants them."""
        require_planned(plan.weights)
        task = plan.task
        assert isinstance(task, FeatureTask)
        task = replace(task, compile=_compiles(task.compile, plan, device))
        prepare_torch(task.threads)
        if device.type == "cpu":
            keep_freed_memory()
        self._videos = plan.videos
        self._task = task
        self._engine: Network = network or FeatureEngine.load(task, device)
        self._transform = FrameTransform(task.crop_size, task.resize, task.pad)
        self._decoders = DecoderPool(decoder_count(task.decoders, device.type, available_cores()), BLOCK_FRAMES)
        self._seams: _Seams | None = None
        self._damaged: set[int] = set()
        classes, features = task.num_classes, STREAM_FEATURES
        self.columns = {"logits": classes, "P": classes, "spatial_features": features, "flow_features": features}

    def describe(self) -> dict[str, Any]:
        activation = self._task.feature_extractor.final_activation
        return _describe(self._engine.device, self._engine.precision, activation)

    def expect(self, spans: Sequence[Span]) -> None:
        self._decoders.expect([self._stretch(span) for span in spans])

    def run_span(self, span: Span) -> Iterator[Mapping[str, np.ndarray]]:
        video = self._videos[span.key]
        require_unchanged(video)
        self._seams = _Seams(span, self._stretch(span).start, video.num_frames)
        for block in self._engine.run(self._seams.watch(self.frames(span)), span.start, span.stop, video.num_frames):
            yield {
                "logits": block.logits_TK,
                "P": block.probabilities_TK,
                "spatial_features": block.spatial_features_TD,
                "flow_features": block.flow_features_TD,
            }

    def frames(self, span: Span) -> Iterator[np.ndarray]:
        """Yield the frames that the labels of a span need, uint8 (T, H, W, 3), in blocks."""
        self._damaged = set()
        return self._decoders.blocks(self._stretch(span), self._damaged)

    def _stretch(self, span: Span) -> Stretch:
        """Return the frames that the labels of a span need."""
        video = self._videos[span.key]
        needed = reach(span.start, span.stop, video.num_frames)
        return Stretch(
            video,
            needed.first,
            needed.last,
            self._transform,
            # counted when the run was planned
            frame_count="claimed" if self._task.frame_count == "claimed" else video.num_frames,
            keep_damaged=self._task.damaged_frames == "keep",
        )

    def checks(self) -> Mapping[str, np.ndarray]:
        assert self._seams is not None
        found = self._seams.arrays()
        if self._damaged:
            found["damaged"] = np.array([(one.start, one.stop) for one in ranges_of(sorted(self._damaged))])
        return found

    def close(self) -> None:
        self._decoders.close()


class SequenceSpans:
    """Sequence networks over whole recordings, from the features in their outputs files or from keypoints."""

    def __init__(self, plan: InferencePlan, device: torch.device):
        require_planned(plan.weights)
        task = plan.task
        assert isinstance(task, SequenceTask)
        prepare_torch(task.threads)
        self._plan = plan
        self._latent = task.latent_name
        self._engine = SequenceEngine.load(task, device)
        self.columns = {"logits": task.num_classes, "P": task.num_classes}

    def describe(self) -> dict[str, Any]:
        return _describe(self._engine.device, "fp32", self._engine.activation)

    def expect(self, spans: Sequence[Span]) -> None:
        pass

    def run_span(self, span: Span) -> Iterator[Mapping[str, np.ndarray]]:
        with open_input(self._input(span.key), self._latent) as read:
            for block in self._engine.run(read, len(span)):
                yield {"logits": block.logits_TK, "P": block.probabilities_TK}

    def _input(self, key: str) -> Path:
        """Return the file to read for a recording. Raises ProjectError if its keypoints are not those of the plan."""
        outputs, source = self._plan.outputs[key], self._plan.sources.get(key)
        if not isinstance(source, KeypointSource):
            return outputs
        path = outputs.with_name(source.keypoints)
        if describe_mark(path, "") != source.mark:
            raise ProjectError(f"{show_path(path)}: the keypoints changed since the run was planned. Run again.")
        return path

    def checks(self) -> Mapping[str, np.ndarray]:
        return {}

    def close(self) -> None:
        pass


class _Seams:
    """Checksums of the frames around both ends of a span; the neighbouring spans decode these frames too."""

    def __init__(self, span: Span, first: int, num_frames: int):
        self._at = first
        around_start = range(max(span.start - BEFORE, 0), min(span.start + AFTER, num_frames))
        around_stop = range(max(span.stop - BEFORE, 0), min(span.stop + AFTER, num_frames))
        self._wanted = {"head": around_start, "tail": around_stop}
        self._crc32: dict[int, int] = {}

    def watch(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for block_THWC in blocks:
            for frames in self._wanted.values():
                for frame in range(max(frames.start, self._at), min(frames.stop, self._at + len(block_THWC))):
                    self._crc32[frame] = zlib.crc32(np.ascontiguousarray(block_THWC[frame - self._at]).data)
            self._at += len(block_THWC)
            yield block_THWC

    def arrays(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for end, frames in self._wanted.items():
            found[f"{end}_frames"] = np.array(frames, dtype=np.int64)
            found[f"{end}_crc32"] = np.array([self._crc32[frame] for frame in frames], dtype=np.int64)
        return found


def _compiles(wanted: bool | str, plan: InferencePlan, device: torch.device) -> bool:
    if wanted != "auto":
        return bool(wanted)
    return device.type == "cuda" and sum(unit.num_frames for unit in plan.units) >= WORTH_COMPILING


def decoder_count(wanted: int | str, device: str, cores: int) -> int:
    """Return how many decoders serve a worker with this type of device and this share of the cores.

    >>> [decoder_count("auto", "cuda", cores) for cores in (1, 2, 4, 8, 16)]
    [1, 1, 3, 7, 14]
    """
    if wanted != "auto":
        return int(wanted)
    # on a CPU the network is far slower than one decoder; a GPU's host work needs a core or two, and the rest decode
    return 1 if device == "cpu" else max(1, cores - max(1, cores // 8))


def _describe(device: torch.device, precision: str, activation: str) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "precision": precision,
        "activation": activation,
        "torch": str(torch.__version__),
        "deg": __version__,
    }
