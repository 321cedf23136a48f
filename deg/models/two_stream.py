"""The feature extractor as a whole: a spatial stream on images, a flow stream on generated flow, and their fusion.

Source: Bohnslav et al., "DeepEthogram", eLife 2021. Submodules have the names and the order of its weight files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deg.errors import ConfigError
from deg.models.motionnet import MotionNet, TinyMotionNet
from deg.models.motionnet3d import TinyMotionNet3D
from deg.models.resnet import NUM_FEATURES, BasicBlock, Bottleneck, ResNet2D
from deg.models.resnet3d import ResNet3D

CLIP_FRAMES = 11
"""Frames of a clip; the middle one is classified."""

MIDDLE_CHANNELS = slice(16, 19)
"""Channels, out of 33 stacked ones, that the spatial stream sees: green and blue of frame 5 and red of frame 6. This is
an off-by-one error of DeepEthogram (11 / 2 * 3, rounded down); all published and user-trained weights depend on it."""

EXTRACTORS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet2D, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet2D, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet2D, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet2D, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet2D, Bottleneck, (3, 8, 36, 3)),
    "resnet3d_34": partial(ResNet3D, (3, 4, 6, 3)),
}
"""Constructors (images=, channels=, dropout_p=) of networks that turn images into 512 features."""

FLOW_GENERATORS: dict[str, Callable[[int], nn.Module]] = {
    "TinyMotionNet": TinyMotionNet,
    "MotionNet": MotionNet,
    "TinyMotionNet3D": lambda n_rgb: TinyMotionNet3D(),
}
"""Constructors (n_rgb) of networks that turn a clip of n_rgb frames into a FlowPyramid."""


class TwoStreamOutput(NamedTuple):
    """The outputs of the feature extractor for B clips."""

    logits: Tensor
    """Logits [B, K], before sigmoid or softmax."""
    spatial_features: Tensor
    """Features [B, 512], as the last linear layer gets them."""
    flow_features: Tensor
    """Features [B, 512], as the last linear layer gets them."""
    spatial_logits: Tensor | None
    """Logits [B, K] of this stream alone; None if the streams have no classifiers of their own."""
    flow_logits: Tensor | None
    """Logits [B, K] of this stream alone; None if the streams have no classifiers of their own."""


class Stream(nn.Sequential):
    """A network for features and its classifier: `0` the network, `1` a linear layer, `2` a batch norm if `final_bn`.

    If `num_classes` is None, there is no classifier: the features go to the fusion.
    """

    def __init__(self, network: nn.Module, num_classes: int | None, final_bn: bool = False):
        super().__init__(network)
        if num_classes is not None:
            self.append(nn.Linear(network.num_features, num_classes, bias=not final_bn))  # type: ignore[arg-type]
            if final_bn:
                self.append(nn.BatchNorm1d(num_classes))
        self.class_layers = tuple(str(index) for index in range(1, len(self)))

    def features(self, images: Tensor) -> Tensor:
        """Return the features [B, 512]."""
        return self[0](images)

    def classify(self, features: Tensor) -> Tensor | None:
        """Return the logits [B, K], or None if the stream has no classifier."""
        if not self.class_layers:
            return None
        for layer in list(self)[1:]:
            features = layer(features)
        return features

    def set_class_bias(self, bias_K: Tensor) -> None:
        _set_bias(self[-1], bias_K)


class Average(nn.Module):
    """The mean of the streams' logits, in which flow counts one and a half times."""

    class_layers: tuple[str, ...] = ()

    def forward(self, spatial: Tensor, flow: Tensor) -> Tensor:
        return (spatial + 1.5 * flow) / 2.5


class Concatenate(nn.Module):
    """One linear layer on the features of both streams."""

    class_layers: tuple[str, ...] = ("fc",)

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(num_features, num_classes)

    def forward(self, spatial: Tensor, flow: Tensor) -> Tensor:
        return self.fc(torch.cat([spatial, flow], dim=1))


class TwoStream(nn.Module):
    """The feature extractor: clips -> TwoStreamOutput.

    Clips are normalised and have 11 frames, the middle one of which is classified. They are [B, 33, H, W] if
    `stacks_frames` (frame by frame, RGB inside a frame), else [B, 3, 11, H, W].

    The flow generator is not trained: it has no gradient and is always in eval mode. With batch statistics in training
    and running statistics in inference, the flow stream would see other flows than those it learned from.
    """

    def __init__(self, spatial: Stream, flow_generator: nn.Module, flow: Stream, fusion: Average | Concatenate):
        super().__init__()
        self.spatial_classifier = spatial
        self.flow_generator = flow_generator.requires_grad_(False)
        self.flow_classifier = flow
        self.fusion = fusion
        self.stacks_frames: bool = flow_generator.stacks_frames  # type: ignore[assignment]
        self.class_layers = tuple(
            f"{name}.{layer}"
            for name, part in (("spatial_classifier", spatial), ("flow_classifier", flow), ("fusion", fusion))
            for layer in part.class_layers
        )

    def train(self, mode: bool = True) -> TwoStream:
        super().train(mode)
        self.flow_generator.eval()
        return self

    def forward(self, clip: Tensor) -> TwoStreamOutput:
        with torch.no_grad():
            flow = self.flow_generator(clip).half
        image = clip[:, MIDDLE_CHANNELS] if self.stacks_frames else clip
        return self.classify(image, flow)

    def classify(self, image: Tensor, flow: Tensor) -> TwoStreamOutput:
        """Classify from what the spatial stream sees, and from the finest flow."""
        spatial_features = self.spatial_classifier.features(image)
        flow_features = self.flow_classifier.features(flow)
        spatial_logits = self.spatial_classifier.classify(spatial_features)
        flow_logits = self.flow_classifier.classify(flow_features)
        if spatial_logits is None or flow_logits is None:
            logits = self.fusion(spatial_features, flow_features)
        else:
            logits = self.fusion(spatial_logits, flow_logits)
        return TwoStreamOutput(logits, spatial_features, flow_features, spatial_logits, flow_logits)

    def set_class_bias(self, bias_K: Tensor) -> None:
        """Set the bias of the last layer, of each stream or of the fusion; see `deg.models.initial.log_odds`."""
        if isinstance(self.fusion, Concatenate):
            _set_bias(self.fusion.fc, bias_K)
        else:
            self.spatial_classifier.set_class_bias(bias_K)
            self.flow_classifier.set_class_bias(bias_K)


def build_flow_generator(flow_generator: Any) -> nn.Module:
    """Build the network that the section `flow_generator` of a configuration describes."""
    constructor = _registered(FLOW_GENERATORS, "flow_generator.arch", flow_generator.arch)
    return constructor(flow_generator.n_rgb)


def build_two_stream(feature_extractor: Any, flow_generator: Any, num_classes: int) -> TwoStream:
    """Build the network that the sections `feature_extractor` and `flow_generator` of a configuration describe.

    Raises ConfigError if the two do not go together.
    """
    options = feature_extractor
    concatenates = _concatenates(options)
    constructor = _registered(EXTRACTORS, "feature_extractor.arch", options.arch)

    def stream(images: int, channels: int) -> Stream:
        network = constructor(images=images, channels=channels, dropout_p=options.dropout_p)
        return Stream(network, None if concatenates else num_classes, options.final_bn)

    generator = build_flow_generator(flow_generator)
    spatial = stream(images=options.n_rgb, channels=3)
    flow = stream(images=options.n_flows, channels=2)
    _check_clip(options, flow_generator, spatial[0].stacks_frames, generator.stacks_frames)
    fusion = Concatenate(2 * NUM_FEATURES, num_classes) if concatenates else Average()
    return TwoStream(spatial, generator, flow, fusion)


def _concatenates(feature_extractor: Any) -> bool:
    if feature_extractor.fusion not in ("average", "concatenate"):
        raise ConfigError(f"feature_extractor.fusion is {feature_extractor.fusion!r}; expected average or concatenate.")
    concatenates = feature_extractor.fusion == "concatenate"
    if concatenates and feature_extractor.final_bn:
        raise ConfigError(
            "feature_extractor.final_bn=true normalises the logits of each stream, but with fusion=concatenate the "
            "streams have none. Set feature_extractor.final_bn=false or feature_extractor.fusion=average."
        )
    return concatenates


def _check_clip(feature_extractor: Any, flow_generator: Any, extractor_stacks: Any, generator_stacks: Any) -> None:
    if extractor_stacks != generator_stacks:
        layout = {True: "frames stacked in channels", False: "clips with a time axis"}
        raise ConfigError(
            f"feature_extractor.arch {feature_extractor.arch} takes {layout[extractor_stacks]}, but "
            f"flow_generator.arch {flow_generator.arch} takes {layout[generator_stacks]}. Choose both from one preset."
        )
    if flow_generator.n_rgb != CLIP_FRAMES or feature_extractor.n_flows != CLIP_FRAMES - 1:
        raise ConfigError(
            f"A clip has {CLIP_FRAMES} frames and {CLIP_FRAMES - 1} flows, but flow_generator.n_rgb is "
            f"{flow_generator.n_rgb} and feature_extractor.n_flows is {feature_extractor.n_flows}. Set them to "
            f"{CLIP_FRAMES} and {CLIP_FRAMES - 1}."
        )
    if extractor_stacks and feature_extractor.n_rgb != 1:
        raise ConfigError(
            f"feature_extractor.n_rgb is {feature_extractor.n_rgb}, but {feature_extractor.arch} takes one image, the "
            "middle of the clip. Set feature_extractor.n_rgb=1."
        )


def _registered(registry: dict[str, Callable[..., nn.Module]], option: str, name: str) -> Callable[..., nn.Module]:
    if name not in registry:
        raise ConfigError(f"{option} is {name!r}; expected one of {', '.join(registry)}.")
    return registry[name]


def _set_bias(layer: nn.Module, bias_K: Tensor) -> None:
    with torch.no_grad():
        layer.bias.copy_(bias_K)  # type: ignore[union-attr,operator]
