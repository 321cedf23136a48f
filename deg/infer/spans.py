"""Engines of the stages: from a span of a plan to rows of results.

`FeatureSpans` decodes in child processes and runs the two-stream network; `SequenceSpans` reads features from outputs
files and runs the sequence network. Both implement `deg.execute.Engine`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deg.arithmetic.ranges import ranges_of
from deg.arithmetic.windows import AFTER, BEFORE, reach
from deg.data.sequence_input import describe_mark, open_input
from deg.data.video.decoder import DecoderPool
from deg.data.video.reader import require_unchanged
from deg.data.video.transform import FrameTransform
from deg.errors import ProjectError, show_path
from deg.infer.features import FeatureEngine
from deg.infer.sequences import SequenceEngine
from deg.models.device import keep_freed_memory, prepare_torch
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


class FeatureSpans:
    """Feature extraction over spans of videos."""

    def __init__(self, plan: InferencePlan, device: torch.device):
        require_planned(plan.weights)
        task = plan.task
        assert isinstance(task, FeatureTask)
        task = replace(task, compile=_compiles(task.compile, plan, device))
        prepare_torch(task.threads)
        if device.type == "cpu":
            keep_freed_memory()
        self._videos = plan.videos
        self._task = task
        self._engine = FeatureEngine.load(task, device)
        self._transform = FrameTransform(task.crop_size, task.resize, task.pad)
        self._decoders = DecoderPool(_decoders(task.decoders, device))
        self._seams: _Seams | None = None
        self._damaged: set[int] | None = None
        classes, features = task.num_classes, STREAM_FEATURES
        self.columns = {"logits": classes, "P": classes, "spatial_features": features, "flow_features": features}

    def describe(self) -> dict[str, Any]:
        activation = self._task.feature_extractor.final_activation
        return _describe(self._engine.device, self._engine.precision, activation)

    def run_span(self, span: Span) -> Iterator[Mapping[str, np.ndarray]]:
        video = self._videos[span.key]
        require_unchanged(video)
        needed = reach(span.start, span.stop, video.num_frames)
        self._seams = _Seams(span, needed.first, video.num_frames)
        self._damaged = set() if self._task.damaged_frames == "keep" else None
        blocks = self._decoders.blocks(
            video.path,
            needed.first,
            needed.last,
            self._transform,
            BLOCK_FRAMES,
            # counted when the run was planned
            frame_count="claimed" if self._task.frame_count == "claimed" else video.num_frames,
            damaged=self._damaged,
            image_order=video.image_order,
        )
        for block in self._engine.run(self._seams.watch(blocks), span.start, span.stop, video.num_frames):
            yield {
                "logits": block.logits_TK,
                "P": block.probabilities_TK,
                "spatial_features": block.spatial_features_TD,
                "flow_features": block.flow_features_TD,
            }

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


def _decoders(wanted: int | str, device: torch.device) -> int:
    if wanted != "auto":
        return int(wanted)
    # on a CPU the network is far slower than one decoder; a GPU can use all cores but the one that feeds it
    return 1 if device.type == "cpu" else max(1, min(8, available_cores() // max(torch.cuda.device_count(), 1) - 1))


def _describe(device: torch.device, precision: str, activation: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "device": name,
        "precision": precision,
        "activation": activation,
        "torch": str(torch.__version__),
        "deg": __version__,
    }
