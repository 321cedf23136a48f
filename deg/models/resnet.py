"""Feature extractors on stacked images: residual networks with any number of input channels and 512 features.

Layers have the names that torchvision gives them, so that its ImageNet weights fit. Torchvision's own classes are not
used here: importing them also imports PyTorch's compiler, which takes 4 of the 8 seconds of processor time that a
worker needs to start.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016; the stride of a bottleneck is in its
3x3 convolution, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from deg.models.initial import kaiming_fan_out

NUM_FEATURES = 512

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
"""Layers by number of dimensions: 2 for images, 3 for clips with a time axis."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (3x3x3 in three dimensions) beside a shortcut, from `inputs` to `width` maps."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, *, dimensions: int = 2):
        super().__init__()
        self.conv1 = _convolution(inputs, width, 3, stride, dimensions)
        self.bn1 = NORMS[dimensions](width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 3, dimensions=dimensions)
        self.bn2 = NORMS[dimensions](width)
        self.downsample = _shortcut(inputs, width, stride, dimensions)

    def forward(self, maps: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(maps)))
        return self.relu(self.bn2(self.conv2(out)) + self.downsample(maps))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, from `inputs` to four times `width` maps."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = _convolution(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, maps: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(maps)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.downsample(maps))


class ResNet2D(nn.Module):
    """A 2D residual network: [B, images * channels, H, W] -> features [B, 512], all of them >= 0.

    The images are stacked along the channel axis. The 2048 features of the wide networks (Bottleneck) are compressed to
    512 by a linear layer and a ReLU.
    """

    stacks_frames = True
    num_features = NUM_FEATURES
    class_layers: tuple[str, ...] = ()

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        *,
        images: int,
        channels: int,
        dropout_p: float = 0.0,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(images * channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, layers[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, layers[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, layers[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        width = 512 * block.expansion
        self.compression_fc = (
            nn.Identity()
            if width == NUM_FEATURES
            else nn.Sequential(nn.Linear(width, NUM_FEATURES), nn.ReLU(inplace=True))
        )
        self.dropout = nn.Dropout(dropout_p)
        kaiming_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return self.dropout(self.compression_fc(self.avgpool(maps).flatten(1)))


def start_from_imagenet(network: ResNet2D, imagenet: Mapping[str, Tensor]) -> None:
    """Copy torchvision's ImageNet weights of the same architecture, except those of its classifier.

    If the first layer takes other than three channels, each gets the mean of the three slices, not rescaled.
    """
    state = {key: value for key, value in imagenet.items() if not key.startswith("fc.")}
    channels = network.conv1.in_channels
    if channels != 3:
        state["conv1.weight"] = state["conv1.weight"].mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)
    missing, unexpected = network.load_state_dict(state, strict=False)
    if unexpected or any(not key.startswith("compression_fc.") for key in missing):
        raise ValueError(f"these ImageNet weights belong to another network: {unexpected or missing}")


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(blocks - 1)))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, dimensions: int = 2) -> nn.Conv2d | nn.Conv3d:
    return CONVOLUTIONS[dimensions](inputs, outputs, size, stride, padding=size // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int, dimensions: int = 2) -> nn.Module:
    """Return the identity or, where the shape of the maps changes, a convolution of size 1."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_convolution(inputs, outputs, 1, stride, dimensions), NORMS[dimensions](outputs))
