"""The first layer of a flow generator over sliding windows, computed in the frequency domain; for CPUs.

Neighbouring windows share all frames but one, and the first layer is a third of the work of deg_f: 7 x 7 pixels of 33
channels at full size. Here, each frame is cut into tiles and transformed once for all the windows that contain it. In
the frequency domain a convolution is a multiplication, frequency by frequency; the products of the 33 channels are
summed and transformed back. That takes a tenth of the multiplications, and in float32 it agrees with the direct
computation to within 1e-5 of the largest value.
"""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deg.models.motionnet import TinyMotionNet
from deg.models.two_stream import CLIP_FRAMES, MIDDLE_CHANNELS, TwoStream, TwoStreamOutput

TILE = 22
"""Side of a tile in pixels: 16 of output and, for a kernel of 7, 6 more of input. In trials, 22 and 24 were fastest."""


class SlidingConvolution(nn.Module):
    """A convolution over sliding windows: [window - 1 + B, C, H, W] -> [B, O, H, W].

    It returns what `conv` returns for each `window` consecutive frames, stacked along the channels. `conv` must have
    stride 1 and keep the size.
    """

    real: Tensor
    imaginary: Tensor
    bias: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, conv: nn.Conv2d, window: int):
        super().__init__()
        self.window, self.kernel = window, conv.kernel_size[0]
        self.outputs = TILE - self.kernel + 1
        # the spectrum as (row, column, input, output); conjugate, because networks correlate instead of convolving
        spectrum = torch.fft.rfft2(conv.weight.detach().double(), s=(TILE, TILE)).conj().permute(2, 3, 1, 0)
        spectrum = spectrum.flatten(0, 1)
        # applied to inputs whose real and imaginary parts alternate
        real = torch.stack([spectrum.real, -spectrum.imag], dim=2).flatten(1, 2)
        imaginary = torch.stack([spectrum.imag, spectrum.real], dim=2).flatten(1, 2)
        self.register_buffer("real", real.float())
        self.register_buffer("imaginary", imaginary.float())
        bias = conv.bias.detach() if conv.bias is not None else conv.weight.new_zeros(conv.out_channels)
        self.register_buffer("bias", bias * TILE**2)
        rows, columns = _inverse_transform(self.outputs)
        self.register_buffer("rows", rows.float())
        self.register_buffer("columns", columns.float())

    def forward(self, frames_TCHW: Tensor) -> Tensor:
        T, _, H, W = frames_TCHW.shape
        down, across = -(-H // self.outputs), -(-W // self.outputs)
        spectra = self._spectra(frames_TCHW, down, across)
        channels = self.bias.shape[0]
        size = (T - self.window + 1, down, self.outputs, across, self.outputs, channels)
        maps = spectra.new_empty(size)
        products = spectra.new_empty(2, len(spectra), down * across, channels)
        for first in range(size[0]):  # one window at a time, to stay in the cache
            windows = spectra[:, :, first : first + self.window].flatten(2)
            torch.bmm(windows, self.real, out=products[0])
            torch.bmm(windows, self.imaginary, out=products[1])
            products[0, 0] += self.bias  # the constant part of the spectrum
            half = self.rows @ products.view(2 * TILE, -1)
            tiles = self.columns @ half.view(self.outputs, self.columns.shape[1], -1)
            tiles = tiles.view(self.outputs, self.outputs, down, across, channels)
            maps[first] = tiles.permute(2, 0, 3, 1, 4)
        return maps.view(size[0], down * self.outputs, across * self.outputs, channels)[:, :H, :W].permute(0, 3, 1, 2)

    def _spectra(self, frames_TCHW: Tensor, down: int, across: int) -> Tensor:
        """Return the spectra of all tiles, (frequency, tile, T, 2 * C), with alternating real and imaginary parts."""
        T, C, H, W = frames_TCHW.shape
        edge = self.kernel // 2
        right, below = across * self.outputs - W, down * self.outputs - H
        padded = F.pad(frames_TCHW.float().contiguous(), (edge, edge + right, edge, edge + below))
        tiles = padded.unfold(2, TILE, self.outputs).unfold(3, TILE, self.outputs)
        spectra = torch.view_as_real(torch.fft.rfft2(tiles)).permute(4, 5, 2, 3, 0, 1, 6)
        return spectra.to(frames_TCHW.dtype).reshape(-1, down * across, T, 2 * C)


def _inverse_transform(outputs: int) -> tuple[Tensor, Tensor]:
    """Return, as two matrices, the inverse of a real 2D transform for the first `outputs` rows and columns only.

    The first matrix acts on the rows: (outputs, real or imaginary) from (real or imaginary, frequency). The second acts
    on the columns, half of which are stored: outputs from (real or imaginary, frequency).
    """
    places = torch.arange(outputs, dtype=torch.float64)[:, None]
    angles = places * torch.arange(TILE) * (2 * math.pi / TILE)
    cos, sin = angles.cos() / TILE, angles.sin() / TILE
    rows = torch.stack([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)], dim=1).flatten(0, 1)
    half = TILE // 2 + 1
    # all frequencies but the first and the last also stand for their mirror images
    twice = torch.full((half,), 2.0, dtype=torch.float64)
    twice[0] = twice[-1] = 1.0
    columns = torch.cat([cos[:, :half] * twice, -sin[:, :half] * twice], dim=1)
    return rows, columns


class SlidingTwoStream(nn.Module):
    """A two-stream network over sliding windows: [10 + B, 3, H, W] -> TwoStreamOutput.

    It returns what the network returns for each 11 consecutive frames. For inference only, and for networks that
    `slides` accepts. The network is changed: do not use it by itself afterwards.
    """

    def __init__(self, network: TwoStream):
        super().__init__()
        first: nn.Sequential = network.flow_generator.conv1  # type: ignore[assignment]
        first[0] = SlidingConvolution(first[0], CLIP_FRAMES)  # type: ignore[arg-type]
        self.network = network

    def forward(self, frames_TCHW: Tensor) -> TwoStreamOutput:
        windows = len(frames_TCHW) - CLIP_FRAMES + 1
        flow = self.network.flow_generator(frames_TCHW).half
        middle = (divmod(channel, 3) for channel in range(MIDDLE_CHANNELS.start, MIDDLE_CHANNELS.stop))
        image = torch.stack([frames_TCHW[frame : frame + windows, colour] for frame, colour in middle], dim=1)
        return self.network.classify(image.contiguous(memory_format=torch.channels_last), flow)


def slides(network: nn.Module) -> TypeGuard[TwoStream]:
    """Whether SlidingTwoStream takes a network: the first layer of its flow generator must be large enough to pay."""
    return isinstance(network, TwoStream) and isinstance(network.flow_generator, TinyMotionNet)
