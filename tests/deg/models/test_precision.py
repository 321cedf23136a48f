"""Which precision `auto` takes: measured times decide, not the name of the processor."""

from __future__ import annotations

import logging

import pytest
import torch

from deg.models import precision
from deg.models.precision import resolve_precision, time_convolution

CPU = torch.device("cpu")


@pytest.fixture
def unmeasured():
    """Measurements are forgotten, as in a new process, before and after the test."""
    precision._faster.cache_clear()
    yield
    precision._faster.cache_clear()


@pytest.mark.parametrize("named", ["fp32", "bf16", "fp16"])
def test_a_named_precision_is_obeyed_and_nothing_is_measured(monkeypatch, named):
    monkeypatch.setattr(precision, "time_convolution", None)
    assert resolve_precision(named, CPU) == named


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [((2.6, 1.3), "bf16"), ((7.8, 1.3), "bf16"), ((1.3, 1.6), "fp32"), ((2.0, 17.0), "fp32"), ((1.3, 1.2), "fp32")],
    ids=["Zen 4", "AMX", "AVX-512 BF16 without AMX", "emulated", "hardly faster"],
)
def test_auto_on_a_cpu_is_what_is_clearly_faster_there(monkeypatch, unmeasured, milliseconds, chosen):
    fp32, bf16 = (value / 1000 for value in milliseconds)
    monkeypatch.setattr(precision, "time_convolution", lambda: (fp32, bf16))
    assert resolve_precision("auto", CPU) == chosen


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_on_a_gpu_is_told_by_its_kind(monkeypatch, unmeasured, capability, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device("cuda", 0)) == chosen


def test_auto_is_measured_once_and_the_log_says_which_and_why(unmeasured, caplog):
    caplog.set_level(logging.INFO)
    first = resolve_precision("auto", CPU)
    assert first in ("fp32", "bf16") and resolve_precision("auto", CPU) == first
    [line] = caplog.messages
    assert line.startswith(f"precision auto: {first}, because a convolution takes ")
    assert line.count(" ms in ") == 2


def test_a_convolution_takes_time_in_both(one_thread):
    fp32, bf16 = time_convolution()
    assert 0 < fp32 < 1 and 0 < bf16 < 10
