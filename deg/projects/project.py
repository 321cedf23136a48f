"""Open a project folder, or create one.

    PROJECT/project_config.yaml      DATA/split.yaml      DATA/<recording>/...      models/<run>/...

Opening writes nothing: many jobs open a project at once, and the paths in its YAML may be from another machine.
`deg.projects.add` adds recordings.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from deg.arithmetic.splits import PARTS, Parts
from deg.configs import project_template
from deg.data.atomic import write_atomically
from deg.data.labels import BACKGROUND
from deg.data.stats import parse_normalization
from deg.errors import ProjectError, show_path
from deg.options.schema import Normalization
from deg.options.yamlfile import read_yaml, yaml_text
from deg.projects.inventory import discover
from deg.types import Record

CONFIG_FILES = ("project.yaml", "project_config.yaml")
"""Names of a project's configuration, the preferred one first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Project:
    """A project on this machine; all paths are absolute."""

    path: Path
    config_file: Path
    config: Mapping[str, Any]
    """Unchecked content of project_config.yaml; `deg.options.load.load_config` returns the options."""
    data_path: Path
    model_path: Path
    """Folder of training and inference runs; it may not exist yet."""
    pretrained_path: Path | None
    """Folder of downloaded weights; None if there is none."""
    class_names: tuple[str, ...]
    """The behaviours, background first."""
    records: Mapping[str, Record]
    """The recordings by name, in alphabetical order."""

    @property
    def normalization(self) -> Normalization:
        """The statistics in the project file. Raises ProjectError if they make no sense."""
        return normalization_of(self.config, self.config_file)

    def split_file(self, named: str | None = None) -> Path:
        """Return the split file: the one named in the configuration, else split.yaml in the data folder."""
        return self.data_path / "split.yaml" if named is None else self.path / named


def open_project(path: Path | str) -> Project:
    """Open the project in a folder, or of a configuration file, without writing. ProjectError says what is missing."""
    config_file = _config_file(Path(path).expanduser().absolute())
    with disk_errors(config_file):
        return _opened(config_file)


def create_project(folder: Path | str, behaviors: Iterable[str], name: str | None = None) -> Project:
    """Create an empty project in DeepEthogram's layout, with background as first class.

    Raises ProjectError if `folder` already holds a project.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ProjectError(f"{show_path(folder)} is a file. Choose a folder that does not exist yet.")
    if show_path(folder) != str(folder):
        raise ProjectError(
            f"{show_path(folder)}: expected a path in UTF-8, because it is written into project_config.yaml, found "
            "other bytes. Choose another folder, or rename the one above it."
        )
    for taken in (*CONFIG_FILES, "DATA"):
        if (folder / taken).exists():
            raise ProjectError(f"{show_path(folder)} already holds a project ({taken}). Choose another folder.")
    given = [behavior.strip() for behavior in behaviors if behavior.strip()]
    class_names = [BACKGROUND, *(behavior for behavior in given if behavior != BACKGROUND)]
    config_file = folder / "project_config.yaml"
    if len(class_names) < 2:
        raise ProjectError("a project needs at least one behaviour besides background, found none. Name them.")
    _class_names(class_names, config_file)

    config = project_template()
    config["project"] = config.get("project", {}) | {
        "class_names": class_names,
        "name": name or folder.name.removesuffix("_deepethogram"),
        "path": str(folder),
    }
    with disk_errors(folder):
        # the last one is for downloaded weights; without it, DeepEthogram refuses to work on the project
        for subfolder in ("DATA", "models", "models/pretrained_models"):
            (folder / subfolder).mkdir(parents=True, exist_ok=True)
        write_atomically(config_file, yaml_text(config))
    return open_project(config_file)


def read_split(path: Path) -> tuple[Parts, tuple[float, float, float] | None]:
    """Return the keys of each part, and the shares by which new recordings are assigned, if the file has them.

    Raises ProjectError if either makes no sense.
    """
    content = read_yaml(path, ProjectError)
    parts: Parts = {}
    for name in PARTS:
        keys = content.get(name) or []
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ProjectError(
                f"{show_path(path)}: expected a list of recordings under `{name}`, found {keys!r}. Put names that look "
                "like numbers or dates in quotes; or remove the file, and a new split is drawn."
            )
        parts[name] = keys
    metadata = content.get("metadata")
    shares = metadata.get("split") if isinstance(metadata, dict) else None
    if shares is None:
        return parts, None
    try:
        train, val, test = (float(share) for share in shares)
        if min(train, val, test) < 0 or train + val + test <= 0:
            raise ValueError
    except (TypeError, ValueError):
        raise ProjectError(
            f"{show_path(path)}: expected three shares under metadata.split, found {shares!r}. Correct them."
        ) from None
    return parts, (train, val, test)


def write_split(path: Path, parts: Parts, fractions: Sequence[float]) -> None:
    """Write a split file as DeepEthogram does. Raises ProjectError if the disk refuses."""
    content = {"metadata": {"split": [float(share) for share in fractions]}}
    with disk_errors(path):
        write_atomically(path, yaml_text(content | {name: list(parts[name]) for name in PARTS}))


# ---------------------------------------------------------------------------------------------------- opening


def _opened(config_file: Path) -> Project:
    folder = config_file.parent
    config = read_yaml(config_file, ProjectError)
    section = config.get("project")
    if not isinstance(section, dict):
        raise ProjectError(
            f"{show_path(config_file)}: expected a section `project`, found none. Is this the file of a project?"
        )
    class_names = _class_names(section.get("class_names"), config_file)
    stale = section.get("path")
    data_path = _located(section.get("data_path") or "DATA", folder, stale)
    if not data_path.is_dir():
        raise ProjectError(
            f"{show_path(config_file)}: expected the recordings in {show_path(data_path)}, which is not there. "
            "Correct project.data_path, or bring the folder to this machine."
        )
    model_path = _located(section.get("model_path") or "models", folder, stale)
    pretrained = section.get("pretrained_path") or "pretrained_models"
    places = (_located(pretrained, root, stale) for root in (model_path, folder, folder / "models"))
    return Project(
        path=folder,
        config_file=config_file,
        config=config,
        data_path=data_path,
        model_path=model_path,
        pretrained_path=next((place for place in places if place.is_dir()), None),
        class_names=class_names,
        records={record.key: record for record in discover(data_path)},
    )


def _config_file(path: Path) -> Path:
    if path.is_file():
        return path
    where = show_path(path)
    if not path.is_dir():
        raise ProjectError(f"{where}: expected a project folder or its project_config.yaml, but nothing is there.")
    for name in CONFIG_FILES:
        if (path / name).is_file():
            return path / name
    above = next((folder for folder in path.parents if any((folder / name).is_file() for name in CONFIG_FILES)), None)
    remedy = f"Did you mean {show_path(above)}?" if above else "Make a project with `deg new`"
    raise ProjectError(f"{where}: expected a file project_config.yaml in this folder, found none. {remedy}")


def _class_names(names: Any, config_file: Path) -> tuple[str, ...]:
    where = f"{show_path(config_file)}: project.class_names"
    if not isinstance(names, list) or not names:
        raise ProjectError(
            f"{where}: expected a list of behaviours, found {names!r}. Write them there, background first."
        )
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ProjectError(f"{where}: expected names, found {name!r}. Put names like yes, no or 1 in quotes.")
    if names[0] != BACKGROUND:
        raise ProjectError(
            f"{where}: expected `{BACKGROUND}` first, found {names}. Put it first, in the label files too: columns are "
            "identified by their position."
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ProjectError(f"{where}: {', '.join(twice)} occurs more than once. Behaviours need different names.")
    return tuple(names)


def _located(given: object, folder: Path, stale: object) -> Path:
    """Return where a path in the YAML is on this machine. It may be relative, from another machine, or from Windows.

    A path inside the project's former folder, `stale`, is looked for inside the present folder first: a copied project
    must not write into the one that it was copied from.
    """
    text = str(given)
    kind = PureWindowsPath if "\\" in text or re.match(r"[A-Za-z]:", text) else PurePosixPath
    path = kind(text)
    if not path.is_absolute():
        return folder.joinpath(*path.parts)
    places = [] if kind is PureWindowsPath else [Path(text)]
    if stale is not None and path.is_relative_to(kind(str(stale))):
        places.insert(0, folder.joinpath(*path.relative_to(kind(str(stale))).parts))
    places.append(folder / path.name)
    return next((place for place in places if place.exists()), places[0])


def normalization_of(config: Mapping[str, Any], config_file: Path) -> Normalization:
    """Return the statistics in a project's configuration; the defaults if there are none."""
    augs = config.get("augs")
    content = augs.get("normalization") if isinstance(augs, dict) else None
    if content is None:
        return Normalization()
    return parse_normalization(content, where=f"{show_path(config_file)}: augs.normalization")


# ---------------------------------------------------------------------------------------------------- errors


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise ProjectError, which says what a disk refused and that nothing was changed, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        where = show_path(os.fsdecode(error.filename)) if error.filename else show_path(path)
        raise ProjectError(
            f"{where}: {error.strerror or error}. Check permissions and free space; the project was not changed."
        ) from error
