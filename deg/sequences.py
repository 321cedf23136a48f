"""The engine of sequence inference: features of a video in, logits and probabilities of each frame out.

A video is laid out on a grid of stretches of `sequence_length` frames that do not overlap; the last is filled up with
zeros, and what comes of them is cut off. So filters see zeros at every edge of a stretch, as they did in training:

    frames  0 ........ 179 | 180 ...... 359 | 360 .. 411 0 0 0 |

The mlp has a window for each frame instead, the frame in its middle: [t - length // 2, t - length // 2 + length), with
zeros outside the video.

A block of stretches is read, computed and handed over before the next is read, so memory does not depend on the length
of the video. Names of arrays as in deg.types; L is the length of a stretch or window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deg.errors import ResultError
from deg.models.sequence import MLP, build_sequence
from deg.models.weights import load_weights
from deg.schema import Sequence
from deg.types import NUM_FEATURES

STRETCHES_PER_BATCH = 16
"""A stretch of 180 frames takes about 25 MB in tgmj: a batch fits everywhere, and a GPU is not left idle."""


@dataclass(frozen=True)
class SequenceTask:
    """All that sequence inference needs to know; plain values, so that it travels in a plan."""

    sequence: Sequence
    """Of the training run: it decides the network and the length of the stretches."""
    num_classes: int
    weights: str
    latent_name: str
    """Group of the outputs files that features are read from."""
    num_features: int = NUM_FEATURES
    """Of one frame, spatial and flow together."""
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    threads: int | str = "auto"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SequenceTask:
        return cls(**{**values, "sequence": Sequence(**values["sequence"])})


@dataclass(frozen=True, eq=False)
class SequenceBlock:
    """Results of the frames [start, stop) of one video, float32."""

    start: int
    stop: int
    logits_TK: np.ndarray
    probabilities_TK: np.ndarray


class SequenceEngine:
    """A sequence network, made ready for inference on one device, in float32."""

    def __init__(
        self,
        network: nn.Module,
        sequence_length: int,
        *,
        device: torch.device,
        activation: Literal["sigmoid", "softmax"] = "sigmoid",
        batch_size: int = STRETCHES_PER_BATCH,
    ):
        """`network` carries its weights already. `batch_size` counts stretches, for the mlp windows."""
        self.network = network.eval().to(device, torch.float32)
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self.device, self.activation = device, activation
        self._batches = self._windows if isinstance(network, MLP) else self._stretches

    @classmethod
    def load(cls, task: SequenceTask, device: torch.device) -> SequenceEngine:
        """Build the network and fill it from the task's weight file. WeightsError if they do not fit."""
        length = task.sequence.sequence_length
        inputs = task.num_features * (length if task.sequence.arch == "mlp" else 1)
        network = build_sequence(task.sequence, inputs, task.num_classes)
        load_weights(network, Path(task.weights), strict=True)
        return cls(network, length, device=device, activation=task.activation)

    def run(self, read: Callable[[int, int], np.ndarray], num_frames: int) -> Iterator[SequenceBlock]:
        """Results for all frames of a video, in order, block by block; a video without frames gives one empty block.

        `read(start, stop)` gives the features_TD of the frames [start, stop), float32. ResultError if there are fewer.
        """
        frames_per_block = self.sequence_length * self.batch_size
        for start in range(0, max(num_frames, 1), frames_per_block):
            stop = min(start + frames_per_block, num_frames)
            with torch.inference_mode():
                logits_TK = torch.cat([self._forward(batch) for batch in self._batches(read, start, stop, num_frames)])
                logits_TK = logits_TK[: stop - start]
                softmax = self.activation == "softmax"
                probabilities_TK = torch.softmax(logits_TK, dim=1) if softmax else torch.sigmoid(logits_TK)
            yield SequenceBlock(start, stop, logits_TK.cpu().numpy(), probabilities_TK.cpu().numpy())

    def _forward(self, batch_BDL: Tensor) -> Tensor:
        """Logits of the frames of stretches [B, D, L], or [B, D * L] for the mlp, one after the other: [frames, K]."""
        logits = self.network(batch_BDL.to(self.device))
        return logits if logits.ndim == 2 else logits.transpose(1, 2).flatten(0, 1)

    def _stretches(
        self, read: Callable[[int, int], np.ndarray], start: int, stop: int, num_frames: int
    ) -> Iterator[Tensor]:
        """The stretches of the frames [start, stop), the last filled up with zeros, as one batch."""
        count = max(-(-(stop - start) // self.sequence_length), 1)
        features_TD = _padded(read, start, start + count * self.sequence_length, num_frames)
        yield features_TD.unflatten(0, (count, self.sequence_length)).transpose(1, 2)

    def _windows(
        self, read: Callable[[int, int], np.ndarray], start: int, stop: int, num_frames: int
    ) -> Iterator[Tensor]:
        """The flattened windows of the frames [start, stop), feature by feature, in batches."""
        count = max(stop - start, 1)
        first = start - self.sequence_length // 2
        features_TD = _padded(read, first, first + count + self.sequence_length - 1, num_frames)
        for windows_BDL in features_TD.unfold(0, self.sequence_length, 1).split(self.batch_size):
            yield windows_BDL.flatten(1)


def _padded(read: Callable[[int, int], np.ndarray], start: int, stop: int, num_frames: int) -> Tensor:
    """Features of the frames [start, stop), with zeros for those outside the video."""
    first, last = min(max(start, 0), num_frames), min(stop, num_frames)
    features_TD = read(first, last)
    if len(features_TD) != last - first:
        raise ResultError(
            f"Expected features of the frames {first} to {last} of {num_frames}, found {len(features_TD)}. "
            "Run `deg infer feature_extractor --overwrite` for this video."
        )
    return F.pad(torch.from_numpy(features_TD), (0, 0, first - start, stop - last))
