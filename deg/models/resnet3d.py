"""The feature extractor on clips and flow stacks with a time axis: a residual network of 3D basic blocks (deg_s).

Source: Hara, Kataoka, Satoh, "Can spatiotemporal 3D CNNs retrace the history of 2D CNNs and ImageNet?", 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from deg.models.initial import kaiming_fan_out
from deg.models.resnet import NUM_FEATURES, BasicBlock


class ResNet3D(nn.Module):
    """A 3D residual network: [B, channels, T, H, W] -> features [B, 512], all of them >= 0.

    T may have any length: `images` is only there because ResNet2D has it.
    """

    stacks_frames = False
    num_features = NUM_FEATURES
    class_layers: tuple[str, ...] = ()

    def __init__(self, layers: Sequence[int], *, images: int, channels: int, dropout_p: float = 0.0):
        super().__init__()
        self.conv1 = nn.Conv3d(channels, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, layers[0], stride=1)
        self.layer2 = _stage(64, 128, layers[1], stride=2)
        self.layer3 = _stage(128, 256, layers[2], stride=2)
        self.layer4 = _stage(256, NUM_FEATURES, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout_p)
        kaiming_fan_out(self)

    def forward(self, clip: Tensor) -> Tensor:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(clip))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return self.dropout(self.avgpool(maps).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, dimensions=3)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, dimensions=3) for _ in range(blocks - 1)))
