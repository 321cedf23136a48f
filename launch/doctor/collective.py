"""Check that ranks can talk to each other: they sum by NCCL, or by gloo if not every rank has a GPU of its own.

    python -m deg.launch.doctor.collective RANK COUNT LOCAL_RANK ADDRESS PORT nccl|gloo

runs one rank, in a process of its own, because a collective operation that goes wrong hangs.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from deg.launch.devices import free_port
from deg.launch.doctor.child import Child
from deg.launch.findings import Finding

SECONDS = 120.0
"""Time limit for a rank to import PyTorch, to meet the others and to sum."""
MEET_SECONDS = 60
VALUES = 2**23
"""Number of values in a sum: 32 MiB, like the gradients of a small network."""
REPEATS = 3
CHECK = "ranks together"

SLOW_LOCAL = "NET"
"""NCCL's name for a connection through the network."""


def start_rank(rank: int, count: int, local: int, address: str, port: int, *, backend: str) -> Child:
    """Start one rank of `count`; rank 0 listens at `port` of `address`."""
    words = [str(rank), str(count), str(local), address, str(port), backend]
    return Child("deg.launch.doctor.collective", words)


def backend_for(ranks_here: int, gpus: int) -> str:
    """Return `nccl`, which needs a GPU for each rank on a host, if there are enough; else `gloo`."""
    return "nccl" if gpus >= ranks_here else "gloo"


def check_local_ranks(gpus: int) -> Finding:
    """Check that two ranks on this machine can sum."""
    port, backend = free_port(), backend_for(2, gpus)
    ranks = [start_rank(rank, 2, rank, "127.0.0.1", port, backend=backend) for rank in range(2)]
    answers = [rank.answer(SECONDS) for rank in ranks]
    return judge_ranks(answers, hosts=1)


def judge_ranks(answers: Sequence[Mapping[str, Any]], hosts: int) -> Finding:
    """Judge the answers of all ranks, or one answer that speaks for all.

    An answer holds `failure`, or `backend`, `ranks`, `right`, `gb_per_second` and NCCL's `ways`.
    """
    failures = [str(answer["failure"]) for answer in answers if "failure" in answer]
    expected = "ranks that can sum their gradients"
    if failures:
        remedy = (
            "Set the network interface in cluster.setup (export NCCL_SOCKET_IFNAME=... GLOO_SOCKET_IFNAME=...), and "
            "ask which ports are open between nodes; until then train with cluster.nodes=1."
            if hosts > 1
            else "Train with compute.devices=1 until this works; NCCL_DEBUG=INFO shows more."
        )
        return Finding(CHECK, "fault", failures[0], expected, remedy)
    answer = answers[0]
    if not all(each["right"] for each in answers):
        remedy = "Do not train with several ranks here: the sums are wrong."
        return Finding(CHECK, "fault", f"{answer['backend']} computes wrong sums", expected, remedy)
    ways = sorted({way for each in answers for way in each["ways"]})
    by = f"{answer['backend']}{' via ' + ', '.join(ways) if ways else ''}"
    speed = min(each["gb_per_second"] for each in answers)
    found = f"{answer['ranks']} ranks on {hosts} host(s) by {by}: {speed:.1f} GB/s"
    if hosts == 1 and any(way.startswith(SLOW_LOCAL) for way in ways):
        return Finding(
            CHECK,
            "warning",
            found,
            "ranks of one host to communicate by P2P or shared memory",
            "Try cluster.apptainer_options=[--sharens], and remove --contain if it is there.",
        )
    return Finding(CHECK, "ok", found)


def ways_of(log: str) -> list[str]:
    """Read from NCCL's log how it connects the ranks: P2P/CUMEM, SHM, NET/Socket..."""
    return sorted(set(re.findall(r" via ((?:P2P|SHM|NET)(?:/[A-Za-z]+)?)", log)))


def measure(rank: int, count: int, local: int, address: str, port: int, backend: str, folder: Path) -> dict[str, Any]:
    """Do one rank's part and return its answer; NCCL writes its log into `folder`.

    PyTorch raises RuntimeError if the ranks do not meet.
    """
    log = folder / "nccl.log"
    os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,P2P,SHM,NET", "NCCL_DEBUG_FILE": str(log)}
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    store = dist.TCPStore(address, port, count, is_master=rank == 0, timeout=timedelta(seconds=MEET_SECONDS))
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=MEET_SECONDS))
    values = torch.full((VALUES,), float(rank + 1), device=device)
    dist.all_reduce(values)
    right = bool((values == count * (count + 1) / 2).all())
    began = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(values)
    if backend == "nccl":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / REPEATS
    dist.barrier()
    dist.destroy_process_group()
    return {
        "backend": backend,
        "ranks": count,
        "right": right,
        "gb_per_second": 4 * VALUES / seconds / 1e9,
        "ways": ways_of(log.read_text(errors="replace")) if log.exists() else [],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as own:
        rank, count, local, address, port, backend = sys.argv[1:]
        document = measure(int(rank), int(count), int(local), address, int(port), backend, Path(own))
    sys.stdout.write(json.dumps(document) + "\n")
