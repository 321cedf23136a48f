"""The numbers that networks compute with, and what `auto` stands for on this device.

Which of bf16 and fp32 is faster on a CPU cannot be told from its features: AMX computes bf16 six times as fast as fp32,
AMD's Zen 4 twice, an Intel with AVX-512 BF16 and no AMX more slowly, and where bf16 is emulated it takes ten times as
long. One convolution is timed in both.
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
"""How many times as fast as fp32 bf16 must be to be chosen: for less nobody gives up digits."""
CHANNELS, SIZE = 64, 56
"""The convolution that is timed: 3 x 3 over this many channels and this square, a middle layer of a ResNet at 224."""
ROUNDS = 3


def resolve_precision(precision: str, device: torch.device) -> str:
    """`precision`, or the faster of bf16 and fp32 on this device where it is `auto`."""
    return _faster(device) if precision == "auto" else precision


@functools.cache
def _faster(device: torch.device) -> str:
    """Measured once a process."""
    chosen, why = _judge_gpu(device) if device.type == "cuda" else _judge(*time_convolution())
    log.info("precision auto: %s, as %s", chosen, why)
    return chosen


def _judge_gpu(device: torch.device) -> tuple[str, str]:
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return "bf16", f"{name} has units for it"
    return "fp32", f"{name} is older than Ampere and has no units for bf16"


def _judge(fp32_seconds: float, bf16_seconds: float) -> tuple[str, str]:
    """The precision to take, and why, by the times of one convolution."""
    chosen = "bf16" if fp32_seconds >= WORTHWHILE * bf16_seconds else "fp32"
    return chosen, f"a convolution takes {bf16_seconds * 1e3:.2f} ms in bf16 and {fp32_seconds * 1e3:.2f} ms in fp32"


def time_convolution() -> tuple[float, float]:
    """Seconds of one convolution on the CPU in fp32 and in bf16; takes some tens of milliseconds.

    Taken in turn, and the shortest counts: what else runs on the machine then weighs on both alike, or on none.
    """
    convolutions = [_convolution(torch.float32), _convolution(torch.bfloat16)]
    rounds = [[_seconds(convolution) for convolution in convolutions] for _ in range(1 + ROUNDS)]
    fp32, bf16 = (min(times) for times in zip(*rounds[1:], strict=True))  # the first finds its kernel
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
