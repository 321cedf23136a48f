"""YAML files with what differs from the defaults in deg.options.schema: presets, cluster profiles, new projects."""

from __future__ import annotations

import difflib
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from deg.errors import ConfigError, show_path

__all__ = [
    "preset_names",
    "preset",
    "project_template",
    "own_cluster_folder",
    "cluster_folders",
    "cluster_profiles",
    "cluster_profile",
]


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets, in alphabetical order."""
    entries = (files(__name__) / "presets").iterdir()
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml")))


def preset(name: str) -> dict[str, Any]:
    """Return the options that preset `name` sets. Raises ConfigError if there is no such preset."""
    if name not in preset_names():
        raise ConfigError(f"preset = {name!r}: there is no such preset. Choose one of {', '.join(preset_names())}.")
    return yaml.safe_load((files(__name__) / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))


def project_template() -> dict[str, Any]:
    """Return the content of a new project's project_config.yaml, with name, path and behaviours yet to be filled in."""
    return yaml.safe_load((files(__name__) / "project.yaml").read_text(encoding="utf-8"))


def own_cluster_folder() -> Path:
    """Return the folder of this user's cluster profiles. Raises ConfigError if the user has no home."""
    folders = _below("XDG_CONFIG_HOME", "~/.config")
    if not folders:
        raise ConfigError(
            "Neither HOME nor XDG_CONFIG_HOME is set, so there is no folder for cluster profiles. Set one."
        )
    return folders[0]


def cluster_folders() -> tuple[Path, ...]:
    """Return the folders that are searched for cluster profiles, in order: $DEG_CLUSTERS, user's, site's, deg's own."""
    named = [_expanded(folder).absolute() for folder in os.environ.get("DEG_CLUSTERS", "").split(":") if folder]
    ours = Path(__file__).parent / "clusters"
    return (*named, *_below("XDG_CONFIG_HOME", "~/.config"), *_below("XDG_CONFIG_DIRS", "/etc/xdg"), ours)


def _below(variable: str, default: str) -> list[Path]:
    """Return deg/clusters in each folder of an XDG variable; the XDG specification says to ignore relative ones."""
    folders = [Path(folder) for folder in os.environ.get(variable, "").split(":")]
    absolute = [folder for folder in folders if folder.is_absolute()] or [_expanded(default)]
    return [folder / "deg" / "clusters" for folder in absolute if folder.is_absolute()]


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 - leaves a ~ without a home as it is, where pathlib raises


def cluster_profiles() -> dict[str, Path]:
    """Return the file of each cluster profile by its name, in alphabetical order."""
    found: dict[str, Path] = {}
    for folder in cluster_folders():
        for path in folder.glob("*.yaml"):
            if not path.name.startswith("."):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def cluster_profile(name: str, folder: Path) -> Path:
    """Return the file of a profile, given by name or by a path from `folder`. Raises ConfigError if there is none."""
    path = (folder / _expanded(name)).absolute()
    if path.is_file():
        return path
    remedy = "`deg cluster init` writes one; with cluster=null on the command line, none is needed."
    if "/" in name or name.endswith(".yaml"):
        raise ConfigError(
            f"cluster = {name!r}: expected a cluster profile, but there is no file {show_path(path)}. {remedy}"
        )
    known = cluster_profiles()
    if name in known:
        return known[name]
    near = " or ".join(difflib.get_close_matches(name, known, n=2))
    raise ConfigError(
        f"cluster = {name!r}: there is no such cluster profile.{f' Did you mean {near}?' if near else ''} "
        f"Found: {', '.join(known)}. Looked in {', '.join(map(show_path, cluster_folders()))}. {remedy}"
    )
