"""The container image: one definition for Apptainer, and the wheels that go into it, locked, in two flavours.

Flavours differ in the version of CUDA, and so in the oldest driver and the oldest GPU that they run with. All of their
wheels are on PyPI. `cu13.in` says what a flavour asks for, `cu13.txt` what it gets, with hashes; docs/image.md tells
how the one is made from the other.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

from deg.errors import ConfigError

__all__ = ["Flavour", "FLAVOURS", "flavour", "definition"]


@dataclass(frozen=True)
class Flavour:
    """What an image of this kind holds, and what it needs of the host."""

    name: str
    cuda: str
    """As torch.version.cuda tells it."""
    min_driver: int
    """Major version of the NVIDIA driver (docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility)."""
    compute_capability: str
    """Of the oldest GPU that the wheels of torch have code for."""

    @property
    def lock(self) -> str:
        """The locked requirements."""
        return (files(__name__) / f"{self.name}.txt").read_text(encoding="utf-8")

    @property
    def lock_sha256(self) -> str:
        return hashlib.sha256(self.lock.encode()).hexdigest()

    @property
    def torch(self) -> str:
        """Version of torch, as locked."""
        found = re.search(r"^torch==(\S+)", self.lock, re.MULTILINE)
        assert found is not None
        return found[1]


FLAVOURS = {
    "cu13": Flavour("cu13", cuda="13.2", min_driver=580, compute_capability="7.5"),  # Turing
    "cu12": Flavour("cu12", cuda="12.8", min_driver=525, compute_capability="7.0"),  # Volta
}


def flavour(name: str) -> Flavour:
    """The flavour of that name. ConfigError if there is none."""
    if name not in FLAVOURS:
        raise ConfigError(f"There is no image of flavour {name!r}. Choose one of {', '.join(FLAVOURS)}.")
    return FLAVOURS[name]


def definition() -> str:
    """The text of Apptainer's definition file; its arguments are filled in by `apptainer build --build-arg`."""
    return (files(__name__) / "deg.def").read_text(encoding="utf-8")
