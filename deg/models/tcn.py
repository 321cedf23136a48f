"""A dilated temporal convolution network: features [B, D, T] -> logits [B, K, T].

    features -> 1 -> block, dilation 1 -> block, dilation 2 -> ... -> block, dilation 2^(n-1) -> 1 -> logits

Each block looks at a frame and at one on each side of it, twice as far away as the block before; so n blocks see
2^n - 1 frames on each side, 127 for 7. Source: Farha, Gall, "MS-TCN: multi-stage temporal convolutional network for
action segmentation", CVPR 2019, of which this is one stage. DeepEthogram does not have it.

Beyond the ends of a video there is nothing: what stands there is set to zero wherever a layer would look at it, so
logits are the same however much padding was put around a video, and however it was cut, if `reach` frames were left on
each side.

Unlike in that paper, each frame is brought to one scale, and so are its channels before each block. Features are all
positive: what dropout takes away of them is mostly their mean, which drowns what differs between frames, so without it
learning is slower and ends worse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def reach(num_layers: int) -> int:
    """Frames on each side of a frame that its logits depend on."""
    return 2**num_layers - 1


class FrameNorm(nn.LayerNorm):
    """Brings the channels of each frame [B, C, T] to mean 0 and variance 1, whatever the frames around it hold."""

    def forward(self, values_BCT: Tensor) -> Tensor:
        return super().forward(values_BCT.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """Adds to each frame what is seen from it at one distance to both sides."""

    def __init__(self, hidden: int, dilation: int, dropout_p: float):
        super().__init__()
        self.norm = FrameNorm(hidden)
        self.look = nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv1d(hidden, hidden, 1)
        self.dropout = nn.Dropout(dropout_p)

    def forward(self, hidden_BHT: Tensor, inside: Tensor | float) -> Tensor:
        seen_BHT = torch.relu(self.look(self.norm(hidden_BHT) * inside))
        return hidden_BHT + self.dropout(self.mix(seen_BHT))


class TCN(nn.Module):
    """One stage of dilated temporal convolutions."""

    class_layers: tuple[str, ...] = ("classify",)

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        hidden: int,
        num_layers: int,
        dropout_p: float,
        input_dropout: float,
    ):
        super().__init__()
        self.standardise = FrameNorm(num_features, elementwise_affine=False)
        self.input_dropout = nn.Dropout(input_dropout)
        self.project = nn.Conv1d(num_features, hidden, 1)
        self.blocks = nn.ModuleList(Block(hidden, 2**index, dropout_p) for index in range(num_layers))
        self.norm = FrameNorm(hidden)
        self.classify = nn.Conv1d(hidden, num_classes, 1)

    @property
    def reach(self) -> int:
        return reach(len(self.blocks))

    def forward(self, features_BDT: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """`valid_BT` is False where there is no frame, outside the video; None: all are frames."""
        inside = 1.0 if valid_BT is None else valid_BT.unsqueeze(1).to(features_BDT.dtype)
        hidden_BHT = self.project(self.input_dropout(self.standardise(features_BDT)))
        for block in self.blocks:
            hidden_BHT = block(hidden_BHT, inside)
        return self.classify(self.norm(hidden_BHT))

    def set_class_bias(self, bias_K: Tensor) -> None:
        with torch.no_grad():
            self.classify.bias.copy_(bias_K)  # type: ignore[union-attr]
