"""Feature extractors on stacked images: torchvision's ResNets with any number of input channels and 512 features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from deg.models.initial import kaiming_fan_out

NUM_FEATURES = 512


class ResNet2D(ResNet):
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
        super().__init__(block, list(layers))
        width = 512 * block.expansion
        self.conv1 = nn.Conv2d(images * channels, 64, 7, stride=2, padding=3, bias=False)
        self.fc = nn.Identity()  # type: ignore[assignment]
        self.compression_fc = (
            nn.Identity()
            if width == NUM_FEATURES
            else nn.Sequential(nn.Linear(width, NUM_FEATURES), nn.ReLU(inplace=True))
        )
        self.dropout = nn.Dropout(dropout_p)
        kaiming_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.compression_fc(super().forward(images)))


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
