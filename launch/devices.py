"""What this machine offers: GPUs and their driver, CPU cores."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deg.work import CORES, available_cores


@dataclass(frozen=True)
class Device:
    """One worker's share of the machine."""

    index: int
    environment: Mapping[str, str]
    """Variables that bind a worker to its share."""


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the indices or UUIDs of the GPUs that this process may use; empty if there are none.

    CUDA_VISIBLE_DEVICES, which schedulers set, is trusted; else nvidia-smi is asked, so that torch need not be loaded.
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
    """Return one worker for each GPU, or one for the CPU; or as many as wanted, which share GPUs and cores evenly.

    On a CPU one worker with all cores needs the least memory; more workers help only where one leaves cores idle.
    """
    gpus = visible_gpus()
    count = max(len(gpus), 1) if wanted == "auto" else int(wanted)
    cores = str(max(available_cores() // count, 1))
    shares = []
    for index in range(count):
        environment = {"OMP_NUM_THREADS": cores, CORES: cores}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        shares.append(Device(index, environment))
    return shares


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Return the version of the kernel's NVIDIA driver, such as 580.65.06; None without one."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _asked_driver()
    matched = re.search(r"Kernel Module\D*?(?:x86_64|aarch64)?\s+(\d+\.\d+(?:\.\d+)?)", text)
    return matched[1] if matched else None


def _asked_driver() -> str | None:
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = asked.stdout.split()
    return lines[0] if asked.returncode == 0 and lines else None


def free_port() -> int:
    """Find a TCP port of this machine that nobody uses at this moment."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
