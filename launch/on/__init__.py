"""Places where units are done: the values of `--on`, a folder each, with a module `place` that holds the place."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deg.launch.stages.place import Place

NAMES = ("local", "slurm")


def place_named(name: str) -> Place:
    """Find the place of one of `NAMES`."""
    place: Place = import_module(f"deg.launch.on.{name}.place").PLACE
    return place
