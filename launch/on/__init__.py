"""Places where units are done, which are the values of `--on`. Each is a folder with a module `place`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deg.launch.stages.place import Place

NAMES = ("local", "slurm")


def place_named(name: str) -> Place:
    """Return the place with one of the `NAMES`."""
    place: Place = import_module(f"deg.launch.on.{name}.place").PLACE
    return place
