"""The engine of sequence inference: features of a video in, logits and probabilities of each frame out.

A video is cut into stretches of `sequence_length` frames that do not overlap. The last one is filled up with zeros, and
the results for these are dropped. Thus filters see zeros at every edge of a stretch, as they did in training:

    frames  0 ........ 179 | 180 ...... 359 | 360 .. 411 0 0 0 |

The mlp has a window around each frame t instead, [t - length // 2, t - length // 2 + length), with zeros outside the
video.

The tcn needs no stretches. A block of frames is read together with all the frames around it that its logits depend on,
so that they equal the logits of the whole video in one piece.

A block of stretches is read, computed and handed over before the next is read, so that memory does not depend on the
length of the video. Arrays are named as in deg.types; L is the length of a stretch or window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deg.errors import ResultError
from deg.models.sequence import MLP, build_sequence
from deg.models.tcn import TCN
from deg.models.weights import load_weights
from deg.runs.plans import SequenceTask

STRETCHES_PER_BATCH = 16
"""Stretches in a batch. One of 180 frames takes about 25 MB in tgmj: a batch fits everywhere and keeps a GPU busy."""

Read = Callable[[int, int], np.ndarray]
"""A function that returns the features_TD of the frames [start, stop), float32."""


@dataclass(frozen=True, eq=False)
class SequenceBlock:
    """Results for the frames [start, stop) of one video, float32."""

    start: int
    stop: int
    logits_TK: np.ndarray
    probabilities_TK: np.ndarray


class SequenceEngine:
    """A sequence network, ready for inference on one device, in float32."""

    def __init__(
        self,
        network: nn.Module,
        sequence_length: int,
        *,
        device: torch.device,
        activation: Literal["sigmoid", "softmax"] = "sigmoid",
        batch_size: int = STRETCHES_PER_BATCH,
    ):
        """Prepare `network`, which must have its weights already.

        A block has `batch_size` stretches; the mlp also computes this many windows together.
        """
        self.network = network.eval().to(device, torch.float32)
        self.sequence_length, self.batch_size = sequence_length, batch_size
        self.device, self.activation = device, activation
        self._frames_per_block = sequence_length * batch_size
        self._logits, self._reach = self._of_stretches, 0
        if isinstance(network, MLP):
            self._logits = self._of_windows
        elif isinstance(network, TCN):
            self._logits, self._reach = self._of_piece, network.reach
            # in smaller blocks, most frames would be computed several times
            self._frames_per_block = max(self._frames_per_block, self._reach)

    @classmethod
    def load(cls, task: SequenceTask, device: torch.device) -> SequenceEngine:
        """Build the network and load the task's weight file. Raises WeightsError if it does not fit."""
        length = task.sequence.sequence_length
        inputs = task.num_features * (length if task.sequence.arch == "mlp" else 1)
        network = build_sequence(task.sequence, inputs, task.num_classes)
        load_weights(network, Path(task.weights), strict=True)
        return cls(network, length, device=device, activation=task.activation)

    def run(self, read: Read, num_frames: int) -> Iterator[SequenceBlock]:
        """Yield the results for all frames of a video, in order, block by block; without frames, one empty block.

        Raises ResultError if `read` returns the features of fewer frames.
        """
        for start in range(0, max(num_frames, 1), self._frames_per_block):
            stop = min(start + self._frames_per_block, num_frames)
            with torch.inference_mode():
                logits_TK = self._logits(read, start, stop, num_frames)[: stop - start]
                softmax = self.activation == "softmax"
                probabilities_TK = torch.softmax(logits_TK, dim=1) if softmax else torch.sigmoid(logits_TK)
            yield SequenceBlock(start, stop, logits_TK.cpu().numpy(), probabilities_TK.cpu().numpy())

    # Each returns the logits [frames, K] of the frames [start, stop), at least one row. `run` cuts off surplus rows.

    def _of_stretches(self, read: Read, start: int, stop: int, num_frames: int) -> Tensor:
        """Compute all stretches in one batch, the last of them filled up with zeros."""
        count = max(-(-(stop - start) // self.sequence_length), 1)
        features_TD = _padded(read, start, start + count * self.sequence_length, num_frames)
        stretches_BDL = features_TD.unflatten(0, (count, self.sequence_length)).transpose(1, 2)
        return self.network(stretches_BDL.to(self.device)).transpose(1, 2).flatten(0, 1)

    def _of_windows(self, read: Read, start: int, stop: int, num_frames: int) -> Tensor:
        """Compute a window for each frame, flattened feature by feature."""
        count = max(stop - start, 1)
        first = start - self.sequence_length // 2
        features_TD = _padded(read, first, first + count + self.sequence_length - 1, num_frames)
        windows_BDL = features_TD.unfold(0, self.sequence_length, 1)
        return torch.cat(
            [self.network(batch_BDL.flatten(1).to(self.device)) for batch_BDL in windows_BDL.split(self.batch_size)]
        )

    def _of_piece(self, read: Read, start: int, stop: int, num_frames: int) -> Tensor:
        """Compute one piece, up to the ends of the video or to where they are too far away to matter."""
        first, last = max(start - self._reach, 0), max(min(stop + self._reach, num_frames), 1)
        piece_BDL = _padded(read, first, last, num_frames).T.unsqueeze(0)
        return self.network(piece_BDL.to(self.device))[0].T[start - first :]


def _padded(read: Read, start: int, stop: int, num_frames: int) -> Tensor:
    """Return the features of the frames [start, stop), with zeros for those outside the video."""
    first, last = min(max(start, 0), num_frames), min(stop, num_frames)
    features_TD = read(first, last)
    if len(features_TD) != last - first:
        raise ResultError(
            f"Expected features of the frames [{first}, {last}) of {num_frames}, found those of {len(features_TD)} "
            "frames. Run `deg infer feature_extractor --overwrite` for this video."
        )
    return F.pad(torch.from_numpy(features_TD), (0, 0, first - start, stop - last))
