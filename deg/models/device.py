"""The device that networks run on, and settings that hold for the whole process."""

from __future__ import annotations

import ctypes

import torch


def choose_device() -> torch.device:
    """Return the first GPU that this process can see, or the CPU if there is none."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def prepare_torch(threads: int | str) -> None:
    """Configure torch for the whole process: the same numbers everywhere, and no time lost on denormal numbers."""
    torch.set_flush_denormal(True)  # denormals are 100 times slower than 0 and change no result
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32; for speed there is bf16
    torch.backends.cudnn.allow_tf32 = False
    if threads != "auto":
        torch.set_num_threads(int(threads))


def keep_freed_memory() -> None:
    """Make the C library reuse the memory that torch frees instead of returning each large block to the system.

    A network on the CPU frees and allocates tens of megabytes per layer: without this, a tenth of its time goes into
    page faults. The numbers are glibc's M_MMAP_MAX and M_TRIM_THRESHOLD; a C library without mallopt is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, -1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the GPU or the CPU ran out."""
    # neither the CPU's allocator nor the CUDA libraries besides torch's allocator have an exception of their own
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "out of memory", "ALLOC_FAILED"))
