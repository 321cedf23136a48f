"""YAML files, read without running anything that stands in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deg.errors import ProjectError, show_path

_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file. ProjectError naming file and line if it cannot be read, OSError if it is not there."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = yaml.load(text, Loader=_loader(text))
    except UnicodeDecodeError as error:
        raise ProjectError(f"{show_path(path)}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ProjectError(f"{show_path(path)}{where}: expected YAML, but {problem}. Correct the file.") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ProjectError(f"{show_path(path)}: expected `key: value` lines, found {found}. Correct the file.")
    return content


def yaml_text(content: dict[str, Any]) -> str:
    """Block style with sorted keys, as DeepEthogram writes it; names that are not UTF-8 keep their bytes as escapes."""
    return yaml.safe_dump(content)


def _loader(text: str) -> Any:
    """libyaml is ten times as fast, but refuses the escapes of bytes that are not UTF-8 (`\\uDC80` to `\\uDCFF`)."""
    return yaml.SafeLoader if "\\uDC" in text else _FastLoader
