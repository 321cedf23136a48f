"""YAML that says only what differs from the defaults in `deg.schema`: presets, and the template of a new project."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from deg.errors import ConfigError

__all__ = ["preset_names", "preset", "project_template"]


def preset_names() -> tuple[str, ...]:
    """Names of the presets, in alphabetical order."""
    entries = (files(__name__) / "presets").iterdir()
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml")))


def preset(name: str) -> dict[str, Any]:
    """The options that preset `name` sets. Raises ConfigError if there is none of that name."""
    if name not in preset_names():
        raise ConfigError(f"preset = {name!r}: there is no such preset. Choose one of {', '.join(preset_names())}.")
    return yaml.safe_load((files(__name__) / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))


def project_template() -> dict[str, Any]:
    """Content of a new project's project_config.yaml, with name, path and behaviours still to be filled in."""
    return yaml.safe_load((files(__name__) / "project.yaml").read_text(encoding="utf-8"))
