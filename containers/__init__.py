"""The container image: one definition for Apptainer, and the locked wheels that go into it, in two flavours.

Flavours differ in the version of CUDA, and therefore in the oldest driver and the oldest GPU that they run with. All of
their wheels are on PyPI. `cu13.in` says what a flavour asks for, `cu13.txt` what it gets, with hashes; docs/image.md
tells how the second is made from the first.
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
    """CUDA version of the wheels, as `torch.version.cuda` gives it."""
    min_driver: int
    """Oldest driver, as major version (docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility)."""
    compute_capability: str
    """Compute capability of the oldest GPU that the wheels of torch have code for."""

    @property
    def lock(self) -> str:
        """The locked requirements."""
        return (files(__name__) / f"{self.name}.txt").read_text(encoding="utf-8")

    @property
    def lock_sha256(self) -> str:
        return hashlib.sha256(self.lock.encode()).hexdigest()

    @property
    def torch(self) -> str:
        """Version of torch in the lock."""
        found = re.search(r"^torch==(\S+)", self.lock, re.MULTILINE)
        assert found is not None
        return found[1]


FLAVOURS = {
    "cu13": Flavour("cu13", cuda="13.2", min_driver=580, compute_capability="7.5"),  # Turing
    "cu12": Flavour("cu12", cuda="12.8", min_driver=525, compute_capability="7.0"),  # Volta
}


def flavour(name: str) -> Flavour:
    """Return the flavour of that name. Raise ConfigError if there is none."""
    if name not in FLAVOURS:
        raise ConfigError(f"There is no image of flavour {name!r}. Choose one of {', '.join(FLAVOURS)}.")
    return FLAVOURS[name]


def definition() -> str:
    """Return the text of Apptainer's definition file, whose arguments `apptainer build --build-arg` fills in."""
    return (files(__name__) / "deg.def").read_text(encoding="utf-8")
