"""Options that name files or folders, known by their type: made to mean the same everywhere, and found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from deg.options.schema import IsPath

Options = TypeVar("Options")


def with_full_paths(config: Options, project: Path) -> Options:
    """The options, in which each path means the same in whatever folder, and on whatever host, it is read.

    Relative paths start at the current folder, or at `project` where their type says so. Paths with variables of the
    environment stay as they are: those are of the node.
    """
    return _map_paths(config, lambda text, kind: _full_path(text, kind, project if kind.below_project else Path.cwd()))


def named_paths(config: Any) -> list[Path]:
    """Files and folders that are there and that options name by full paths."""
    found: list[Path] = []

    def note(text: str, kind: IsPath) -> str:
        if text not in kind.unless and Path(text).is_absolute() and Path(text).exists():
            found.append(Path(text))
        return text

    _map_paths(config, note)
    return found


def _full_path(text: str, kind: IsPath, start: Path) -> str:
    path = start / Path(text).expanduser()
    if text in kind.unless or "$" in text or (kind.or_name and not path.exists()):
        return text
    return str(path.absolute())


def _map_paths(options: Any, change: Callable[[str, IsPath], str]) -> Any:
    """A section, or all of them, with `change` applied to every text that names a path."""
    changed: dict[str, Any] = {}
    hints = get_type_hints(type(options), include_extras=True)
    for name, hint in hints.items():
        value = getattr(options, name)
        if dataclasses.is_dataclass(value):
            changed[name] = _map_paths(value, change)
        elif kind := _path_kind(hint):
            if isinstance(value, tuple):
                changed[name] = tuple(change(text, kind) for text in value)
            elif value is not None:
                changed[name] = change(value, kind)
    return dataclasses.replace(options, **changed)


def _path_kind(hint: Any) -> IsPath | None:
    """How a type says that its texts are paths; None where they are not."""
    for part in (*getattr(hint, "__metadata__", ()), *map(_path_kind, get_args(hint))):
        if isinstance(part, IsPath):
            return part
    return None
