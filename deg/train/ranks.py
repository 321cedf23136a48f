"""The ranks that train one network together: who this process is, and sums over all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among the `count` that work on the same unit."""

    rank: int
    count: int
    local_rank: int
    """Rank among those on this host; also the index of its GPU."""
    nodes: int
    launched_by_slurm: bool = False

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read what the launcher (torchrun's names) or Slurm's srun has set; without either, this process is alone."""
        given = os.environ
        if "RANK" in given:
            rank, count, local = int(given["RANK"]), int(given["WORLD_SIZE"]), int(given["LOCAL_RANK"])
            return cls(rank, count, local, max(count // int(given.get("LOCAL_WORLD_SIZE", count)), 1))
        if "SLURM_PROCID" in given and int(given.get("SLURM_NTASKS", 1)) > 1:
            rank, count, local = int(given["SLURM_PROCID"]), int(given["SLURM_NTASKS"]), int(given["SLURM_LOCALID"])
            return cls(rank, count, local, int(given.get("SLURM_NNODES", 1)), launched_by_slurm=True)
        return cls(0, 1, 0, 1)

    def share_of(self, cores: int) -> int:
        """Return this rank's part of the cores of its host."""
        return max(cores * self.nodes // self.count, 1)

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def summed(values: np.ndarray, device: torch.device) -> np.ndarray:
    """Return the sum over all ranks, exact for integers; with one rank, the values themselves."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(device)
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


def any_of(flags: list[bool], device: torch.device) -> list[bool]:
    """Return, for each flag, whether it is set on any rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flags
    tensor = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in tensor.tolist()]


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, rank by rank, on the CPU."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows.cpu()
    parts: list[np.ndarray | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows.cpu().numpy())
    return torch.from_numpy(np.concatenate([part for part in parts if part is not None]))
