"""What this machine offers: GPUs, CPU cores. Asked once; everything else is told."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from deg.data.decode import available_cores


@dataclass(frozen=True)
class Device:
    """One worker's share of the machine."""

    index: int
    environment: Mapping[str, str]
    """Variables that bind a worker to its share."""


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Indices or UUIDs of the GPUs that this process may use; empty where there are none.

    CUDA_VISIBLE_DEVICES, which schedulers set, is believed; else nvidia-smi is asked, so that torch need not be loaded.
    """
    if (named := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() and gpu.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except subprocess.TimeoutExpired:
        return []
    return asked.stdout.split() if asked.returncode == 0 else []


def devices(wanted: int | str) -> list[Device]:
    """One worker for each GPU, or one for the CPU; or as many as wanted, which then share GPUs and cores evenly.

    On a CPU one worker with all cores needs the least memory; more workers help only where one leaves cores idle.
    """
    gpus = visible_gpus()
    count = max(len(gpus), 1) if wanted == "auto" else int(wanted)
    threads = max(available_cores() // count, 1)
    shares = []
    for index in range(count):
        environment = {"OMP_NUM_THREADS": str(threads)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        shares.append(Device(index, environment))
    return shares
