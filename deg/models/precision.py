"""The precisions that networks compute in, and which of them `auto` stands for on this device.

The features of a CPU do not tell whether bf16 is faster on it than fp32: bf16 is six times as fast with AMX, twice as
fast on AMD's Zen 4, slower on an Intel CPU with AVX-512 BF16 but without AMX, and takes ten times as long where it is
emulated. Therefore one convolution is timed in both.
"""

from __future__ import annotations

import functools
import logging
import time

import torch
from torch import nn

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

WORTHWHILE = 1.2
"""bf16 is chosen if it is at least this many times as fast as fp32: a smaller gain is not worth the lost digits."""
CHANNELS, SIZE = 64, 56
"""Channels and side of the square of the 3 x 3 convolution that is timed, a middle layer of a ResNet at 224 pixels."""
ROUNDS = 3
"""Times that it is timed in each precision."""


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return `precision`, or the faster of bf16 and fp32 on this device if it is `auto`."""
    return _faster(device) if precision == "auto" else precision


@functools.cache
def _faster(device: torch.device) -> str:
    """Return the faster of bf16 and fp32, measured once per process."""
    chosen, why = _judge_gpu(device) if device.type == "cuda" else _judge(*time_convolution())
    log.info("precision auto: %s, because %s", chosen, why)
    return chosen


def _judge_gpu(device: torch.device) -> tuple[str, str]:
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return "bf16", f"{name} has units for it"
    return "fp32", f"{name} is older than Ampere and has no units for bf16"


def _judge(fp32_seconds: float, bf16_seconds: float) -> tuple[str, str]:
    """Return the precision to take, and why, from the times of one convolution."""
    chosen = "bf16" if fp32_seconds >= WORTHWHILE * bf16_seconds else "fp32"
    return chosen, f"a convolution takes {bf16_seconds * 1e3:.2f} ms in bf16 and {fp32_seconds * 1e3:.2f} ms in fp32"


def time_convolution() -> tuple[float, float]:
    """Return the seconds of one convolution on the CPU in fp32 and in bf16; this takes some tens of milliseconds.

    The two are timed alternately, and the shortest times count: other work on the machine then affects both alike, or
    neither.
    """
    convolutions = [_convolution(torch.float32), _convolution(torch.bfloat16)]
    rounds = [[_seconds(convolution) for convolution in convolutions] for _ in range(1 + ROUNDS)]
    fp32, bf16 = (min(times) for times in zip(*rounds[1:], strict=True))  # the first round selects the kernels
    return fp32, bf16


def _convolution(dtype: torch.dtype) -> functools.partial[torch.Tensor]:
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False, dtype=dtype).to(memory_format=torch.channels_last)
    images = torch.ones(1, CHANNELS, SIZE, SIZE, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return functools.partial(layer, images)


@torch.inference_mode()
def _seconds(convolution: functools.partial[torch.Tensor]) -> float:
    start = time.perf_counter()
    convolution()
    return time.perf_counter() - start
