"""A dilated temporal convolution network: features [B, D, T] -> logits [B, K, T].

    features -> 1 -> block, dilation 1 -> block, dilation 2 -> ... -> block, dilation 2^(n-1) -> 1 -> logits

Each block looks at a frame and at one frame on each side of it, twice as far away as in the block before. Thus n blocks
see 2^n - 1 frames on each side: 127 for n = 7. Source: Farha, Gall, "MS-TCN: multi-stage temporal convolutional network
for action segmentation", CVPR 2019; this is one of its stages. DeepEthogram has no tcn.

Values beyond the ends of a video are set to zero wherever a layer would look at them. Therefore the logits depend
neither on how much padding surrounds a video nor on how it was cut, if `reach` frames are left on each side.

Unlike in that paper, the features of each frame are brought to one scale, and so are the channels before each block.
Features are all positive: without this, dropout would mostly remove parts of their mean, which drowns the differences
between frames, and learning would be slower and end worse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def reach(num_layers: int) -> int:
    """Return how many frames on each side of a frame its logits depend on."""
    return 2**num_layers - 1


class FrameNorm(nn.LayerNorm):
    """A norm that brings the channels of each frame [B, C, T] to mean 0 and variance 1, whatever other frames hold."""

    def forward(self, values_BCT: Tensor) -> Tensor:
        return super().forward(values_BCT.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """A residual block: it adds to each frame what lies at one distance on both sides of it."""

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
        """Frames on each side of a frame that its logits depend on."""
        return reach(len(self.blocks))

    def forward(self, features_BDT: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Classify each frame. `valid_BT` is False outside the video; None means that every place holds a frame."""
        inside = 1.0 if valid_BT is None else valid_BT.unsqueeze(1).to(features_BDT.dtype)
        hidden_BHT = self.project(self.input_dropout(self.standardise(features_BDT)))
        for block in self.blocks:
            hidden_BHT = block(hidden_BHT, inside)
        return self.classify(self.norm(hidden_BHT))

    def set_class_bias(self, bias_K: Tensor) -> None:
        with torch.no_grad():
            self.classify.bias.copy_(bias_K)  # type: ignore[union-attr]
