"""Batch normalisation over two ranks with batches of different sizes equals that of both batches in one.

The ranks are two real processes that talk by gloo. They write their results, which are compared here with one process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from deg.train.batchnorm import SyncedBatchNorm, synchronise

SIZES = (3, 5)
"""Number of clips that each rank has of a batch of 8."""
SHAPES = {"1d": (4,), "1d in time": (4, 7), "2d": (4, 6, 5), "3d": (4, 3, 4, 5)}
STEPS = 2

RANK = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
from torch import distributed as dist
sys.path.insert(0, sys.argv[1])
from test_batchnorm import SHAPES, SIZES, STEPS, norms, pictures, step, two_layers
from deg.train.batchnorm import synchronise

rank, folder = int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
rendezvous = f"file://{folder / 'rendezvous'}"
dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(seconds=60))
own = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
results = {}
for name in SHAPES:
    for dtype in (torch.float64, torch.float32):
        network = two_layers(name).to(dtype)
        synchronise(network)
        results[name, dtype] = [step(network, pictures(name, number)[own].to(dtype), 8) for number in range(STEPS)]
        results[name, dtype].append(network.state_dict())
    network.eval()
    results[name, "eval"] = network(pictures(name, 0)[own])
    half = norms(name)
    synchronise(half)
    results[name, "bf16"] = half(pictures(name, 0)[own].bfloat16())
torch.save(results, folder / f"{rank}.pt")
dist.destroy_process_group()
"""


def norms(name: str) -> nn.Sequential:
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(SHAPES[name])]
    torch.manual_seed(1)
    network = nn.Sequential(kind(4))
    nn.init.normal_(network[0].weight)
    nn.init.normal_(network[0].bias)
    return network


def two_layers(name: str) -> nn.Sequential:
    """Make two layers, so that the gradient of the first passes through the statistics of the second."""
    first, second = norms(name), norms(name)
    return nn.Sequential(first[0], nn.Tanh(), second[0])


def pictures(name: str, number: int) -> torch.Tensor:
    """Return a batch of 8, far from mean 0 and with a different spread in each channel."""
    shape = SHAPES[name]
    batch = torch.randn(8, *shape, generator=torch.Generator().manual_seed(number))
    channel = torch.arange(1.0, 5).view(4, *(1,) * (len(shape) - 1))
    return batch * channel + 10 * channel


def step(network: nn.Module, part: torch.Tensor, batch_size: int) -> dict[str, torch.Tensor]:
    """Return result and gradients of a loss: a sum over the batch, divided by the size of the whole batch."""
    part = part.clone().requires_grad_()
    network.zero_grad()
    result = network(part)
    weights = torch.linspace(-1, 2, result[0].numel()).view_as(result[0])
    ((result.sigmoid() * weights).sum() / batch_size).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    return {"result": result.detach(), "of input": part.grad, **gradients}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of the two ranks: [{name: ...}, {name: ...}]."""
    folder = tmp_path_factory.mktemp("ranks")
    arguments = [sys.executable, "-c", RANK, str(Path(__file__).parent)]
    processes = [
        subprocess.Popen([*arguments, str(rank), str(folder)], stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


PRECISIONS = ((torch.float64, 1e-10), (torch.float32, 1e-6))
"""Precisions, and the largest allowed difference of numbers near 1."""
each_precision = pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> bool:
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SHAPES)
@each_precision
def test_results_are_those_of_one_batch(ranks, name, dtype, tolerance):
    network = two_layers(name).to(dtype)
    for number in range(STEPS):
        whole = step(network, pictures(name, number).to(dtype), 8)
        for part in ("result", "of input"):
            assert close(torch.cat([rank[name, dtype][number][part] for rank in ranks]), whole[part], tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_of_all_ranks_add_up_to_those_of_one_batch(ranks, name):
    network = two_layers(name).double()
    for number in range(STEPS):
        whole = step(network, pictures(name, number).double(), 8)
        for parameter, _ in network.named_parameters():
            assert close(sum(rank[name, torch.float64][number][parameter] for rank in ranks), whole[parameter], 1e-10)


@pytest.mark.parametrize("name", SHAPES)
@each_precision
def test_state_dicts_are_those_of_one_batch_on_every_rank(ranks, name, dtype, tolerance):
    network = two_layers(name).to(dtype)
    for number in range(STEPS):
        step(network, pictures(name, number).to(dtype), 8)
    for rank in ranks:
        state = rank[name, dtype][STEPS]
        assert list(state) == list(network.state_dict())
        for key, value in network.state_dict().items():
            assert close(state[key], value, tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_in_eval_mode_it_is_plain(ranks, name):
    network = two_layers(name)
    network.load_state_dict(ranks[0][name, torch.float32][STEPS])
    network.eval()
    assert torch.equal(torch.cat([rank[name, "eval"] for rank in ranks]), network(pictures(name, 0)))


@pytest.mark.parametrize("name", SHAPES)
def test_half_precision_stays_so_with_statistics_in_float32(ranks, name):
    result = torch.cat([rank[name, "bf16"] for rank in ranks])
    assert result.dtype == torch.bfloat16
    assert close(result.float(), norms(name)(pictures(name, 0).bfloat16().float()), 0.02)


# ---- without other ranks


def test_alone_it_is_plain():
    network, synced = two_layers("2d"), two_layers("2d")
    synchronise(synced)
    batch = pictures("2d", 0)
    assert torch.equal(network(batch), synced(batch))
    for key, value in network.state_dict().items():
        assert torch.equal(synced.state_dict()[key], value)


def test_parameters_stay_the_same_objects():
    network = two_layers("2d")
    before = dict(network.named_parameters())
    synchronise(network)
    assert all(parameter is before[name] for name, parameter in network.named_parameters())


def test_modes_and_settings_stay():
    network = nn.Sequential(nn.BatchNorm2d(3, eps=0.1, momentum=0.3), nn.BatchNorm1d(2).eval())
    synchronise(network)
    assert (network[0].eps, network[0].momentum, network[0].training) == (0.1, 0.3, True)
    assert not network[1].training


def test_what_is_frozen_is_left():
    network = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2)), nn.Sequential(nn.Sequential(nn.BatchNorm1d(2))))
    synchronise(network, leave=network[0])
    assert type(network[0][0]) is nn.BatchNorm1d
    assert type(network[1][0][0]) is SyncedBatchNorm


def test_a_single_value_on_a_rank_leaves_the_running_statistics_whole(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    norm = SyncedBatchNorm.of(nn.BatchNorm2d(3))
    norm._statistics(torch.randn(1, 3, 1, 1))
    assert norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()
