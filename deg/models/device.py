"""The device that networks run on, and settings that hold for the whole process."""

from __future__ import annotations

import ctypes

import torch


def choose_device() -> torch.device:
    """The first GPU that this process may see, else the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def prepare_torch(threads: int | str) -> None:
    """Settings that hold for the whole process: numbers equal everywhere, no time lost on denormal numbers."""
    torch.set_flush_denormal(True)  # 100 times slower than 0, and no different from it in any result
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32; who wants speed asks for bf16
    torch.backends.cudnn.allow_tf32 = False
    if threads != "auto":
        torch.set_num_threads(int(threads))


def keep_freed_memory() -> None:
    """Have the C library use again what torch frees, where it would hand each large block back to the system.

    A network on the CPU frees and takes again tens of megabytes per layer: a tenth of its time went into page faults.
    The numbers are glibc's M_MMAP_MAX and M_TRIM_THRESHOLD; a C library without mallopt is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, -1)


def is_out_of_memory(error: BaseException) -> bool:
    # the CPU's allocator has no exception of its own, nor have the CUDA libraries beside torch's allocator
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "out of memory", "ALLOC_FAILED"))
