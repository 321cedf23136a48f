"""Find the options that name files or folders, which their type tells, and make their paths absolute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from deg.options.schema import IsPath

Options = TypeVar("Options")


def with_full_paths(config: Options, project: Path) -> Options:
    """Return the options with absolute paths, which mean the same in every folder and on every host.

    Relative paths start at the current folder, or at `project` where their type says so. Paths with environment
    variables stay as they are, because the node's variables are meant.
    """
    return _map_paths(config, lambda text, kind: _full_path(text, kind, project if kind.below_project else Path.cwd()))


def named_paths(config: Any) -> list[Path]:
    """Return the existing files and folders that options name by absolute paths."""
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
    """Return a section, or the whole configuration, with `change` applied to every text that names a path."""
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
    """Return the mark by which a type says that its texts are paths; None if they are not."""
    for part in (*getattr(hint, "__metadata__", ()), *map(_path_kind, get_args(hint))):
        if isinstance(part, IsPath):
            return part
    return None
