"""Feature extractors on stacked images: residual networks with any number of input channels and 512 features.

Layers have the names that torchvision gives them, so that its ImageNet weights fit. Its own classes are not used here:
to import them brings PyTorch's compiler along, 4 of the 8 seconds of processor time that a worker needs to start.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016; the stride of a bottleneck is in its
3x3 convolution, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from deg.models.initial import kaiming_fan_out

NUM_FEATURES = 512


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: `width` maps from `inputs`."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = _convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(maps)))
        return self.relu(self.bn2(self.conv2(out)) + self.downsample(maps))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut: four times `width` maps from `inputs`."""

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
    """[B, images * channels, H, W] -> features [B, 512], all of them >= 0: `images` images stacked in the channel axis.

    The wide networks (Bottleneck, 2048 features) are compressed to 512 by a linear layer and a ReLU.
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
    """Copy torchvision's ImageNet weights of the same architecture, all but its classifier.

    A stem for other than three channels gets the mean of the three slices for each channel, not rescaled.
    """
    state = {key: value for key, value in imagenet.items() if not key.startswith("fc.")}
    channels = network.conv1.in_channels
    if channels != 3:
        state["conv1.weight"] = state["conv1.weight"].mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)
    missing, unexpected = network.load_state_dict(state, strict=False)
    if unexpected or any(not key.startswith("compression_fc.") for key in missing):
        raise ValueError(f"these ImageNet weights are of another network: {unexpected or missing}")


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(blocks - 1)))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The maps as they are, or a 1x1 convolution of them where their shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
