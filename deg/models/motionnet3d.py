"""The flow generator on clips with a time axis: TinyMotionNet3D (deg_s).

Like motionnet.py, but with the frames of a clip along a time axis of their own. Layers have the names and the order of
DeepEthogram's weight files.
"""

from __future__ import annotations

from torch import Tensor, nn

from deg.models.motionnet import LEAK, FlowPyramid, join

Size = tuple[int, int, int]
"""Size of a kernel or a stride: time, height, width."""

TO_PAIRS: Size = (2, 3, 3)
"""A kernel that turns frames into pairs of frames: T becomes T - 1."""
FLOW = 2
"""Channels of a flow: dx and dy."""


def _conv(inputs: int, outputs: int, kernel: Size, stride: Size = (1, 1, 1)) -> nn.Sequential:
    return nn.Sequential(*_xconv(inputs, outputs, kernel, stride, bias=False), nn.LeakyReLU(LEAK, inplace=True))


def _xconv(inputs: int, outputs: int, kernel: Size = (3, 3, 3), stride: Size = (1, 1, 1), bias: bool = True):
    # An even kernel, TO_PAIRS, gets no padding in time.
    padding = tuple((size - 1) // 2 for size in kernel)
    conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm3d(outputs))


def _deconv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        _double(inputs, outputs, bias=False), nn.BatchNorm3d(outputs), nn.LeakyReLU(LEAK, inplace=True)
    )


def _double(inputs: int, outputs: int, bias: bool) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(inputs, outputs, (1, 4, 4), (1, 2, 2), (0, 1, 1), bias=bias)


def _predict_flow(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, FLOW, 3, padding=1))


class TinyMotionNet3D(nn.Module):
    """The flow generator with a time axis: [B, 3, T, H, W] -> FlowPyramid of [B, 2, T - 1, h, w]."""

    stacks_frames = False
    class_layers: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        half: Size = (1, 2, 2)
        self.conv1 = _conv(3, 16, (7, 7, 7))
        self.conv2 = _conv(16, 32, (5, 5, 5), half)
        self.conv3 = _conv(32, 64, (3, 3, 3), half)
        self.conv4 = _conv(64, 32, (3, 3, 3), half)
        self.conv5 = _conv(32, 32, TO_PAIRS)

        self.deconv3 = _deconv(32, 32)
        self.deconv2 = _deconv(32, 16)
        self.iconv3 = _conv(64, 64, TO_PAIRS)
        self.iconv2 = _conv(32, 32, TO_PAIRS)
        self.xconv3 = _xconv(64 + 32 + FLOW, 32)
        self.xconv2 = _xconv(32 + 16 + FLOW, 16)

        self.predict_flow4 = _predict_flow(32)
        self.predict_flow3 = _predict_flow(32)
        self.predict_flow2 = _predict_flow(16)
        self.upsampled_flow4_to_3 = _double(FLOW, FLOW, bias=True)
        self.upsampled_flow3_to_2 = _double(FLOW, FLOW, bias=True)

    def forward(self, clip: Tensor) -> FlowPyramid:
        conv2 = self.conv2(self.conv1(clip))
        conv3 = self.conv3(conv2)
        conv5 = self.conv5(self.conv4(conv3))
        flow4 = self.predict_flow4(conv5)
        xconv3 = self.xconv3(join(self.iconv3(conv3), self.deconv3(conv5), 2 * self.upsampled_flow4_to_3(flow4)))
        flow3 = self.predict_flow3(xconv3)
        xconv2 = self.xconv2(join(self.iconv2(conv2), self.deconv2(xconv3), 2 * self.upsampled_flow3_to_2(flow3)))
        return FlowPyramid(self.predict_flow2(xconv2), flow3, flow4)
