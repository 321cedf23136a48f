"""The engine of feature extraction: frames in, logits and features out.

Each frame is sent to the device and normalised once. Windows are views of one buffer of consecutive frames:

    buffer     [ 5 frames | batch of B labels | 5 frames ]
    window i   [ frames i ... i + 10 ]            no copy: stride of one frame between windows

The outputs of a batch are fetched while the next batch is computed, and the caller writes them meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deg.arithmetic.units import GRAIN
from deg.arithmetic.windows import WINDOW, Reach, batches, mean_colour, reach
from deg.errors import RunError
from deg.models.device import is_out_of_memory
from deg.models.fold import fold_batchnorm
from deg.models.precision import PRECISIONS, resolve_precision
from deg.models.sliding import SlidingTwoStream, slides
from deg.models.two_stream import build_two_stream
from deg.models.weights import load_two_stream
from deg.runs.plans import FeatureTask

log = logging.getLogger(__name__)

SMALLEST_BATCH = 1
CPU_BATCH = 16
"""Windows in a batch on a CPU. Larger batches are not faster there and take more memory (measured with `deg bench`)."""


@dataclass(frozen=True)
class FeatureBlock:
    """Results for the labels [start, stop) of one video, float32."""

    start: int
    stop: int
    logits_TK: np.ndarray
    probabilities_TK: np.ndarray
    spatial_features_TD: np.ndarray
    flow_features_TD: np.ndarray


class FeatureEngine:
    """A two-stream network, ready for inference on one device."""

    def __init__(self, network: nn.Module, task: FeatureTask, device: torch.device):
        """Prepare a copy of `network`, which must have its weights already. The original is not changed."""
        self.device = device
        self.precision = resolve_precision(task.precision, device)
        self.dtype = PRECISIONS[self.precision]
        self.stacks_frames = bool(network.stacks_frames)
        self.batch_size = 0 if task.batch_size == "auto" else int(task.batch_size)
        self.softmax = task.feature_extractor.final_activation == "softmax"
        self._mean = torch.tensor(task.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(task.std, device=device).view(1, 3, 1, 1)
        self._colour = torch.from_numpy(mean_colour(task.mean)).to(device).view(1, 3, 1, 1)
        self.layout = torch.channels_last if self.stacks_frames else torch.channels_last_3d
        folded = fold_batchnorm(network.eval())
        self._whole_batches = task.compile is True
        self._slides = False
        if device.type == "cpu" and not self._whole_batches and slides(folded):
            self._slides, folded = True, SlidingTwoStream(folded)
        self.network = folded.to(device, self.dtype).to(memory_format=self.layout)
        if self._whole_batches:
            # compiled for one shape; if the compiler fails, torch says so and continues without it
            torch._dynamo.config.suppress_errors = True
            self.network = torch.compile(self.network, dynamic=False)  # type: ignore[assignment]

    @classmethod
    def load(cls, task: FeatureTask, device: torch.device) -> FeatureEngine:
        """Build the network and load the task's weight files. Raises WeightsError if they do not fit."""
        network = build_two_stream(task.feature_extractor, task.flow_generator, task.num_classes)
        load_two_stream(network, Path(task.weights), None if task.flow_weights is None else Path(task.flow_weights))
        return cls(network, task, device)

    def run(self, frames: Iterable[np.ndarray], start: int, stop: int, num_frames: int) -> Iterator[FeatureBlock]:
        """Yield the results for the labels [start, stop) of a video of `num_frames` frames, in order, batch by batch.

        `frames` are uint8 RGB blocks (T,H,W,3) of any T. Together they are the frames that
        `deg.arithmetic.windows.reach(start, stop, num_frames)` asks for.
        """
        source = _FrameBuffer(self._prepared(frames, reach(start, stop, num_frames)))
        waiting: _Outputs | None = None
        for first, last in batches(start, stop, self._choose_batch_size(source)):
            for outputs in self._forward(source.take(last - first + WINDOW - 1), first, last):
                # fetched only once the next batch is under way: on a GPU the copy then waits for nothing
                if waiting is not None:
                    yield waiting.fetch()
                waiting = outputs
        source.require_end()
        if waiting is not None:
            yield waiting.fetch()

    def _prepared(self, frames: Iterable[np.ndarray], needed: Reach) -> Iterator[torch.Tensor]:
        """Yield normalised frames (T,C,H,W) on the device, of mean colour where a window leaves the video."""
        size: tuple[int, int] | None = None
        seen = 0
        for block_THWC in frames:
            if size is None:
                size = block_THWC.shape[1:3]
                yield from self._outside(needed.pad_before, size)
            seen += len(block_THWC)
            yield self._normalise(self._send(block_THWC))
        if seen != needed.last - needed.first or size is None:
            raise RuntimeError(f"expected {needed.last - needed.first} frames from the decoder, got {seen}")
        yield from self._outside(needed.pad_after, size)

    def _send(self, block_THWC: np.ndarray) -> torch.Tensor:
        block = torch.from_numpy(block_THWC)
        if self.device.type == "cuda":
            block = block.pin_memory().to(self.device, non_blocking=True)
        return block.permute(0, 3, 1, 2)

    def _outside(self, frames: int, size: tuple[int, int]) -> Iterator[torch.Tensor]:
        if frames:
            yield self._normalise(self._colour.expand(frames, 3, *size))

    def _normalise(self, frames_TCHW: torch.Tensor) -> torch.Tensor:
        return frames_TCHW.to(torch.float32).div_(255).sub_(self._mean).div_(self._std).to(self.dtype)

    def _forward(self, frames_TCHW: torch.Tensor, first: int, last: int) -> Iterator[_Outputs]:
        """Run the network over the windows of labels [first, last), halving the batch each time memory runs out."""
        while first < last:
            end = min(last, (first // self.batch_size + 1) * self.batch_size)
            count = end - first
            tensors = self._compute_if_it_fits(frames_TCHW[: count + WINDOW - 1], count)
            if tensors is None:
                self._halve_batch()
                continue
            yield _Outputs(first, end, tensors)
            frames_TCHW = frames_TCHW[count:]
            first = end

    def _compute_if_it_fits(self, frames_TCHW: torch.Tensor, count: int) -> Sequence[torch.Tensor] | None:
        """Compute `count` windows; return None if they do not fit into memory. Raises RunError if even one does not."""
        try:
            return self._compute(self._windows(frames_TCHW, count))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if self.batch_size == SMALLEST_BATCH:
                raise RunError(
                    f"A single window does not fit into the memory of {self.device}. "
                    "Use a smaller augs.resize, or a device with more memory."
                ) from error
            return None  # not tried again in here: the error holds on to the memory until the handler is left

    @torch.inference_mode()
    def _compute(self, clip: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return logits, probabilities and features of a batch of windows, in the order of `FeatureBlock`."""
        count = len(clip)
        if self._whole_batches and count < self.batch_size:
            clip = torch.cat([clip, clip.new_zeros(self.batch_size - count, *clip.shape[1:])])
        outputs = self.network(clip)
        logits = outputs.logits.float()
        probabilities = torch.softmax(logits, dim=1) if self.softmax else torch.sigmoid(logits)
        tensors = (logits, probabilities, outputs.spatial_features, outputs.flow_features)
        return [tensor[:count] for tensor in tensors]

    def _windows(self, frames_TCHW: torch.Tensor, count: int) -> torch.Tensor:
        """Return the windows of `count` labels as the network takes them: (B,33,H,W), or (B,3,11,H,W) for 3D networks.

        A sliding network takes the frames themselves.
        """
        if self._slides:
            return frames_TCHW
        _, C, H, W = frames_TCHW.shape
        frame, channel, row, column = frames_TCHW.stride()
        if self.stacks_frames:
            stacked = frames_TCHW.as_strided((count, WINDOW, C, H, W), (frame, frame, channel, row, column))
            clip = stacked.reshape(count, WINDOW * C, H, W)
        else:
            clip = frames_TCHW.as_strided((count, C, WINDOW, H, W), (frame, channel, frame, row, column))
        return clip.contiguous(memory_format=self.layout)

    def _choose_batch_size(self, source: _FrameBuffer) -> int:
        if self.batch_size == 0:
            self.batch_size = choose_batch_size(self, source.frame_size())
            log.info("batch size %d", self.batch_size)
        return self.batch_size

    def _halve_batch(self) -> None:
        self.batch_size //= 2
        log.warning("out of memory: continuing with batches of %d", self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Outputs:
    """Results of one batch, still on the device."""

    first: int
    last: int
    tensors: Sequence[torch.Tensor]

    def fetch(self) -> FeatureBlock:
        arrays = [tensor.float().cpu().numpy() for tensor in self.tensors]
        return FeatureBlock(self.first, self.last, *arrays)


class _FrameBuffer:
    """Consecutive prepared frames, handed out with an overlap: each frame is held only while a window needs it."""

    def __init__(self, source: Iterator[torch.Tensor]):
        self._source = source
        self._held = next(source)

    def frame_size(self) -> tuple[int, int]:
        return self._held.shape[-2], self._held.shape[-1]

    def take(self, count: int) -> torch.Tensor:
        """Return the next `count` frames (T,C,H,W); the next call returns the last WINDOW - 1 of them again."""
        parts, total = [self._held], len(self._held)
        while total < count:
            parts.append(next(self._source))
            total += len(parts[-1])
        held = torch.cat(parts) if len(parts) > 1 else parts[0]
        self._held = held[count - (WINDOW - 1) :]
        return held[:count]

    def require_end(self) -> None:
        """Exhaust the source, because a decoder says only at its end whether all went well."""
        for frames in self._source:
            raise RuntimeError(f"the decoder gave at least {len(frames)} frames more than it was asked for")


def choose_batch_size(engine: FeatureEngine, size: tuple[int, int]) -> int:
    """Return the largest power of two, at most GRAIN, whose forward pass fits into 60 % of the free memory of a GPU.

    The memory per window is measured with one pass of two windows. On a CPU, larger batches gain nothing: what matters
    there is that activations stay in the cache.
    """
    if engine.device.type != "cuda":
        return CPU_BATCH
    free, _ = torch.cuda.mem_get_info(engine.device)
    torch.cuda.reset_peak_memory_stats(engine.device)
    before = torch.cuda.memory_allocated(engine.device)
    trial = 2
    frames = torch.zeros((trial + WINDOW - 1, 3, *size), dtype=engine.dtype, device=engine.device)
    with torch.inference_mode():
        engine.network(engine._windows(frames, trial))
    per_window = (torch.cuda.max_memory_allocated(engine.device) - before) / trial
    fits = int(0.6 * free / max(per_window, 1))
    return max(SMALLEST_BATCH, min(GRAIN, 1 << max(fits.bit_length() - 1, 0)))
