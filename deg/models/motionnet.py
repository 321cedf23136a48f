"""Flow generators on stacked frames: TinyMotionNet (deg_f) and MotionNet (deg_m).

Source: Zhu, Lan, Newsam, Hauptmann, "Hidden two-stream convolutional networks for action recognition", 2017, in the
form that DeepEthogram 0.5.0 gave them. Layers have the names and the order of its weight files.

A generator takes a clip of n_rgb frames, stacked along the channel axis (frame by frame, RGB inside a frame), and
returns three flow stacks of n_rgb - 1 flows, finest first, at about 1/2, 1/4 and 1/8 of the size: (dx, dy) of pair 0,
(dx, dy) of pair 1, ..., in pixels at that scale. The flow of pair i warps frame i + 1 onto frame i.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

LEAK = 0.1
"""Slope of every LeakyReLU of the flow generators for negative inputs."""


class FlowPyramid(NamedTuple):
    """Flow stacks at about 1/2, 1/4 and 1/8 of the size of the clip: [B, 2 * flows, h, w], or [B, 2, flows, h, w]."""

    half: Tensor
    quarter: Tensor
    eighth: Tensor


def join(*maps: Tensor) -> Tensor:
    """Concatenate maps along channels, each cropped at the bottom and right to the smallest height and width.

    The sizes differ by a pixel or so where the clip's height or width is not a multiple of the network's stride.
    """
    height, width = min(each.shape[-2] for each in maps), min(each.shape[-1] for each in maps)
    return torch.cat([each[..., :height, :width] for each in maps], dim=1)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_xconv(inputs, outputs, kernel, stride), nn.LeakyReLU(LEAK, inplace=True))


def _xconv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _deconv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1), nn.LeakyReLU(LEAK, inplace=True))


def _predict_flow(inputs: int, flow: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, flow, 3, padding=1, bias=False)


def _upsampled_flow(flow: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(flow, flow, 4, 2, padding=1)


class TinyMotionNet(nn.Module):
    """The small flow generator: [B, 3 * n_rgb, H, W] -> FlowPyramid of [B, 2 * (n_rgb - 1), h, w]."""

    stacks_frames = True
    class_layers: tuple[str, ...] = ()

    def __init__(self, n_rgb: int = 11):
        super().__init__()
        flow = 2 * (n_rgb - 1)
        self.conv1 = _conv(3 * n_rgb, 64, kernel=7)
        self.conv2 = _conv(64, 128, kernel=5, stride=2)
        self.conv3 = _conv(128, 256, kernel=3, stride=2)
        self.conv4 = _conv(256, 128, kernel=3, stride=2)

        self.deconv3 = _deconv(128, 128)
        self.deconv2 = _deconv(128, 64)
        self.xconv3 = _xconv(256 + 128 + flow, 128)
        self.xconv2 = _xconv(128 + 64 + flow, 64)

        self.predict_flow4 = _predict_flow(128, flow)
        self.predict_flow3 = _predict_flow(128, flow)
        self.predict_flow2 = _predict_flow(64, flow)
        self.upsampled_flow4_to_3 = _upsampled_flow(flow)
        self.upsampled_flow3_to_2 = _upsampled_flow(flow)

    def forward(self, clip: Tensor) -> FlowPyramid:
        conv2 = self.conv2(self.conv1(clip))
        conv3 = self.conv3(conv2)
        conv4 = self.conv4(conv3)
        flow4 = self.predict_flow4(conv4)
        # A flow in pixels doubles when the pixels become half as large.
        xconv3 = self.xconv3(join(conv3, self.deconv3(conv4), 2 * self.upsampled_flow4_to_3(flow4)))
        flow3 = self.predict_flow3(xconv3)
        xconv2 = self.xconv2(join(conv2, self.deconv2(xconv3), 2 * self.upsampled_flow3_to_2(flow3)))
        return FlowPyramid(self.predict_flow2(xconv2), flow3, flow4)


class MotionNet(nn.Module):
    """The large flow generator: [B, 3 * n_rgb, H, W] -> FlowPyramid of [B, 2 * (n_rgb - 1), h, w].

    Inside, it has two more levels, at 1/16 and 1/32 of the size.
    """

    stacks_frames = True
    class_layers: tuple[str, ...] = ()

    def __init__(self, n_rgb: int = 11):
        super().__init__()
        flow = 2 * (n_rgb - 1)
        self.conv1 = _conv(3 * n_rgb, 64, kernel=3)
        self.conv1_1 = _conv(64, 64, kernel=3)
        self.conv2 = _conv(64, 128, kernel=3, stride=2)
        self.conv2_1 = _conv(128, 128, kernel=3)
        self.conv3 = _conv(128, 256, kernel=3, stride=2)
        self.conv3_1 = _conv(256, 256, kernel=3)
        self.conv4 = _conv(256, 512, kernel=3, stride=2)
        self.conv4_1 = _conv(512, 512, kernel=3)
        self.conv5 = _conv(512, 512, kernel=3, stride=2)
        self.conv5_1 = _conv(512, 512, kernel=3)
        self.conv6 = _conv(512, 1024, kernel=3, stride=2)
        self.conv6_1 = _conv(1024, 1024, kernel=3)

        self.deconv5 = _deconv(1024, 512)
        self.deconv4 = _deconv(512 + 512 + flow, 256)
        self.deconv3 = _deconv(512 + 256 + flow, 128)
        self.deconv2 = _deconv(256 + 128 + flow, 64)
        self.xconv5 = _xconv(512 + 512 + flow, 512)
        self.xconv4 = _xconv(512 + 256 + flow, 256)
        self.xconv3 = _xconv(256 + 128 + flow, 128)
        self.xconv2 = _xconv(128 + 64 + flow, 64)

        self.predict_flow6 = _predict_flow(1024, flow)
        self.predict_flow5 = _predict_flow(512, flow)
        self.predict_flow4 = _predict_flow(256, flow)
        self.predict_flow3 = _predict_flow(128, flow)
        self.predict_flow2 = _predict_flow(64, flow)
        self.upsampled_flow6_to_5 = _upsampled_flow(flow)
        self.upsampled_flow5_to_4 = _upsampled_flow(flow)
        self.upsampled_flow4_to_3 = _upsampled_flow(flow)
        self.upsampled_flow3_to_2 = _upsampled_flow(flow)

        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.uniform_(layer.bias)

    def forward(self, clip: Tensor) -> FlowPyramid:
        conv2 = self.conv2_1(self.conv2(self.conv1_1(self.conv1(clip))))
        conv3 = self.conv3_1(self.conv3(conv2))
        conv4 = self.conv4_1(self.conv4(conv3))
        conv5 = self.conv5_1(self.conv5(conv4))
        conv6 = self.conv6_1(self.conv6(conv5))

        # Unlike in the tiny network, the deconvolutions take the concatenation itself, not the output of xconv.
        flow6 = self.predict_flow6(conv6)
        concat5 = join(conv5, self.deconv5(conv6), 2 * self.upsampled_flow6_to_5(flow6))
        flow5 = self.predict_flow5(self.xconv5(concat5))
        concat4 = join(conv4, self.deconv4(concat5), 2 * self.upsampled_flow5_to_4(flow5))
        flow4 = self.predict_flow4(self.xconv4(concat4))
        concat3 = join(conv3, self.deconv3(concat4), 2 * self.upsampled_flow4_to_3(flow4))
        flow3 = self.predict_flow3(self.xconv3(concat3))
        concat2 = join(conv2, self.deconv2(concat3), 2 * self.upsampled_flow3_to_2(flow3))
        return FlowPyramid(self.predict_flow2(self.xconv2(concat2)), flow3, flow4)
