"""Check that PyTorch, the GPUs and their driver fit each other and compute correctly.

`python -m deg.launch.doctor.gpu` measures, in a process of its own; the `judge_...` functions need no GPU stack.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deg.launch.devices import driver_version
from deg.launch.doctor.child import Child
from deg.launch.doctor.machine import gib
from deg.launch.findings import Finding, State

LEAST_DRIVERS = {13: 580, 12: 525, 11: 450}
"""Oldest driver for each major version of CUDA (NVIDIA's table of minor version compatibility)."""
TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2}
"""Greatest tolerated error in a product of matrices, relative to its greatest value."""
SECONDS = 120.0
"""Time limit for importing PyTorch from a slow disk and computing on every GPU."""
NV_LIBRARIES = "/.singularity.d/libs/"
"""Folder where `apptainer --nv` shows the host's driver."""


def ask_pytorch() -> dict[str, Any]:
    """Return what PyTorch sees of this machine, measured in another process; `failure` says why that did not work."""
    return Child("deg.launch.doctor.gpu").answer(SECONDS)


def judge_pytorch(
    measured: Mapping[str, Any], asked: int | None = None, *, in_image: bool = False, needed: bool = True
) -> list[Finding]:
    """Judge the answer of `ask_pytorch`.

    `asked` is the number of GPUs requested from the scheduler; None outside a job. `needed` is false if the work will
    run in an image: then PyTorch need not be installed here.
    """
    if "failure" in measured:
        return [judge_failure(measured["failure"], needed=needed)]
    driver = driver_version()
    has_driver = driver is not None or Path("/dev/nvidiactl").exists()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [judge_stack(measured), judge_count(measured, asked, has_driver=has_driver, chosen=chosen)]
    if has_driver:
        found.append(judge_driver(measured["cuda"], driver))
    if in_image and measured["libcuda"]:
        found.append(judge_libcuda(measured["libcuda"]))
    found += [judge_gpu(index, gpu, measured["arches"]) for index, gpu in enumerate(measured["gpus"])]
    if not measured["gpus"]:
        found.append(judge_computation("computing on the CPU", measured["cpu"]))
    return found


def judge_failure(reason: str, *, needed: bool) -> Finding:
    """Judge that PyTorch could not be imported, or that the process that tried it died."""
    if not needed:
        return Finding("PyTorch", "not tried", "not here, and not needed: jobs use the image's")
    return Finding(
        "PyTorch",
        "fault",
        reason,
        "PyTorch to be importable",
        "Install the GPU stack, `pip install 'deg-hpc[train]'`, or work in the image.",
    )


def judge_stack(measured: Mapping[str, Any]) -> Finding:
    cuda = f"CUDA {measured['cuda']}" if measured["cuda"] else "without CUDA"
    libraries = f"{measured['libraries']}; imported in {measured['seconds']:.0f} s"
    return Finding("PyTorch", "ok", f"torch {measured['torch']} ({cuda}), {libraries}")


def judge_count(measured: Mapping[str, Any], asked: int | None, *, has_driver: bool, chosen: str | None) -> Finding:
    """Judge how many GPUs PyTorch sees. `asked` is the number requested; `chosen` is CUDA_VISIBLE_DEVICES."""
    visible = len(measured["gpus"])
    found = f"{visible} visible to PyTorch" + (f", CUDA_VISIBLE_DEVICES={chosen}" if chosen is not None else "")
    why = f" ({measured['problem']})" if measured["problem"] else ""
    if asked and visible != asked:
        if not has_driver:
            remedy = "No NVIDIA driver is visible here: does this node have GPUs, and did the image start with --nv?"
        else:
            remedy = "See the driver below, and how this site wants GPUs requested (cluster.gpu_flag)."
        return Finding("GPUs", "fault", found + why, f"{asked}, as asked for", remedy)
    if visible or asked == 0:
        return Finding("GPUs", "ok", found)
    if has_driver and chosen not in ("", "-1"):
        remedy = "See the driver below; was this PyTorch built with CUDA?"
        return Finding("GPUs", "fault", found + why, "the GPUs of this machine, which has an NVIDIA driver", remedy)
    return Finding("GPUs", "warning", found, "a GPU", "Everything works on the CPU, about fifty times slower.")


def judge_driver(cuda: str | None, driver: str | None) -> Finding:
    """Judge whether the kernel's driver is new enough for PyTorch's CUDA."""
    if cuda is None:
        remedy = "Install a PyTorch with CUDA, or work in the image."
        return Finding("GPU driver", "warning", f"driver {driver}, PyTorch without CUDA", "PyTorch with CUDA", remedy)
    least = LEAST_DRIVERS.get(int(cuda.split(".")[0]))
    if driver is None or least is None:
        return Finding("GPU driver", "not tried", f"driver {driver or 'unknown'}, CUDA {cuda}: nothing to compare")
    found = f"driver {driver}, CUDA {cuda}"
    if int(driver.split(".")[0]) < least:
        remedy = "Use the image of flavour cu12 (driver 525 or newer), or have the driver updated."
        return Finding("GPU driver", "fault", found, f"driver {least} or newer", remedy)
    return Finding("GPU driver", "ok", found)


def judge_libcuda(path: str) -> Finding:
    """Judge whose driver library, at `path`, was loaded in a container."""
    if path.startswith(NV_LIBRARIES):
        return Finding("driver library", "ok", "the host's")
    remedy = "Remove it from the image: only the host's fits the host's kernel."
    return Finding("driver library", "fault", f"{path}, from the image", f"one from {NV_LIBRARIES}", remedy)


def judge_gpu(index: int, gpu: Mapping[str, Any], arches: Sequence[str]) -> Finding:
    check = f"GPU {index}"
    major, minor = gpu["capability"]
    about = f"{gpu['name']}, {gib(gpu['free'])} free of {gib(gpu['total'])}, compute capability {major}.{minor}"
    if not is_supported((major, minor), arches):
        remedy = "Use the image of flavour cu12, for Volta or newer, or other GPUs (cluster.constraint)."
        return Finding(check, "fault", about, f"one that PyTorch was built for: {', '.join(arches)}", remedy)
    computed = judge_computation(check, gpu)
    if computed.state != "ok":
        return computed
    if gpu["free"] < gpu["total"] / 2:
        remedy = "Find out with nvidia-smi who uses it, or choose another GPU with CUDA_VISIBLE_DEVICES."
        return Finding(check, "warning", about, "a GPU that nobody else uses", remedy)
    return Finding(check, "ok", f"{about}; {computed.found}")


def is_supported(capability: tuple[int, int], arches: Sequence[str]) -> bool:
    """Whether PyTorch built for `arches` runs on a GPU of this compute capability.

    Code for one capability runs on later ones of the same generation; PTX (compute_...) on all later ones.
    """
    for arch in arches:
        if matched := re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", arch):
            kind, built = matched[1], (int(matched[2]), int(matched[3]))
            if built <= capability and (kind == "compute" or built[0] == capability[0]):
                return True
    return False


def judge_computation(check: str, device: Mapping[str, Any]) -> Finding:
    """Judge a device by its `errors` in each precision, or by its `failure`."""
    if device.get("failure"):
        remedy = "Try again; if it fails again, the GPU, its driver or PyTorch is broken: tell the administrators."
        return Finding(check, "fault", device["failure"], "a product of matrices", remedy)
    errors = device["errors"]
    found = "computes correctly: " + ", ".join(f"{name} to {error:.0e}" for name, error in errors.items())
    wrong = [name for name, error in errors.items() if not error < TOLERANCES[name]]
    if not wrong:
        return Finding(check, "ok", found)
    state: State = "fault" if "fp32" in wrong else "warning"
    remedy = "It computes wrong numbers: do not use it." if state == "fault" else "Set inference.precision=fp32."
    shown = ", ".join(f"{name} is wrong by {errors[name]:.0e}" for name in wrong)
    return Finding(check, state, shown, ", ".join(f"{name} to {TOLERANCES[name]:.0e}" for name in wrong), remedy)


def measure() -> dict[str, Any]:
    """Measure what PyTorch sees on this machine. Imports it."""
    began = time.monotonic()
    import kornia
    import pytorch_lightning
    import torch
    import torchvision

    seconds = time.monotonic() - began
    problem = ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # no GPU, a driver that is too old, or a PyTorch without CUDA
        problem = str(error).strip().splitlines()[0]
    count = 0 if problem else torch.cuda.device_count()
    others = {"torchvision": torchvision, "Lightning": pytorch_lightning, "kornia": kornia}
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "libraries": ", ".join(f"{name} {library.__version__}" for name, library in others.items()),
        "seconds": seconds,
        "arches": torch.cuda.get_arch_list() if count else [],
        "problem": problem,
        "libcuda": _loaded("libcuda.so"),
        "gpus": [_measure_gpu(index) for index in range(count)],
        "cpu": {} if count else {"errors": _errors(torch.device("cpu"))},
    }


def _measure_gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    found = {"name": properties.name, "capability": [properties.major, properties.minor]}
    try:
        free, total = torch.cuda.mem_get_info(index)
        return {**found, "free": free, "total": total, "errors": _errors(torch.device("cuda", index))}
    except RuntimeError as error:
        message = str(error).strip().splitlines()[0]
        return {**found, "free": properties.total_memory, "total": properties.total_memory, "failure": message}


def _errors(device: Any) -> dict[str, float]:
    """Return the greatest error of a product of two matrices in each precision, relative to its greatest value."""
    import torch

    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(256, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    right = first @ second
    errors = {}
    for name, precision in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        product = (first.to(device, precision) @ second.to(device, precision)).cpu().double()
        errors[name] = float((product - right).abs().max() / right.abs().max())
    return errors


def _loaded(name: str) -> str:
    """Return the path of a library that this process has loaded; empty if it has not."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.partition("/")[2]
        if path.rpartition("/")[2].startswith(name):
            return f"/{path}"
    return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()) + "\n")
