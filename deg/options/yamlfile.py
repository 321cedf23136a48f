"""Read and write YAML, without running anything in it.

1e-4 is read as a number, 2026-11-22 and 8:00:00 as text, as people mean them. YAML 1.1 reads the last as 28800.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from deg.errors import DegError, show_path


def parse_yaml(text: str) -> Any:
    """Return the value of YAML text. Raises yaml.YAMLError."""
    # libyaml is ten times as fast, but refuses the escapes of bytes that are not UTF-8 (\uDC80 to \uDCFF)
    return yaml.load(text, Loader=_ExactLoader if "\\uDC" in text else _FastLoader)


def read_yaml(path: Path, wrong: type[DegError]) -> dict[str, Any]:
    """Return the keys and values in a file; none if it is empty. Raises `wrong` with file and line, or OSError."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise wrong(f"{show_path(path)}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise wrong(f"{show_path(path)}{_explain(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise wrong(
            f"{show_path(path)}: expected `key: value` lines, found a {type(content).__name__}. Correct the file."
        )
    return {str(key): value for key, value in content.items()}


def yaml_text(content: dict[str, Any]) -> str:
    """Return YAML in block style with sorted keys, as DeepEthogram writes it.

    Names that are not UTF-8 keep their bytes as escapes.
    """
    return yaml.safe_dump(content)


def _explain(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{where}: not valid YAML: {problem or error}. Check the indentation there, the colons and the quotes."


def _as_people_mean(loader: Any) -> Any:
    """Return a safe loader with other rules for what looks like a number or a date."""

    class Loader(loader):  # type: ignore[misc]
        yaml_implicit_resolvers = {  # noqa: RUF012 - as in the class above
            first: [
                ("tag:yaml.org,2002:str", re.compile(r"^[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?$")),
                *((tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"),
            ]
            for first, resolvers in loader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    return Loader


_ExactLoader = _as_people_mean(yaml.SafeLoader)
_FastLoader = _as_people_mean(getattr(yaml, "CSafeLoader", yaml.SafeLoader))
