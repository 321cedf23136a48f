"""A project folder: opened as it is, made new, added to.

    PROJECT/project_config.yaml      DATA/split.yaml      DATA/<recording>/...      models/<run>/...

Opening rewrites nothing: many jobs open a project at once, and the paths in its YAML may be those of another machine.
What does write holds the project's lock, and leaves the project as it was if anything fails.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from deg.configs import project_template
from deg.data.atomic import PART, flush, write_atomically
from deg.data.decode import Decoder
from deg.data.faults import require_readable
from deg.data.inventory import VIDEO_EXTENSIONS, discover, hiding_word, read_record, write_record_yaml
from deg.data.labels import BACKGROUND, inspect_labels, write_labels
from deg.data.stats import (
    STATS_FILE,
    STRIDE,
    as_dict,
    parse_normalization,
    pooled,
    read_stats,
    updated,
    video_statistics,
    write_stats,
)
from deg.data.yamlfile import read_yaml, yaml_text
from deg.errors import LabelError, ProjectError, VideoError, show_path
from deg.schema import Normalization
from deg.splits import PARTS, Parts
from deg.types import Record

CONFIG_FILES = ("project.yaml", "project_config.yaml")
"""Names of a project's configuration, the preferred one first."""
LOCK_FILE = ".deg.lock"
LOCK_SECONDS = 30.0

Mode = Literal["copy", "link", "move"]
FrameCount = Literal["claimed", "decoded"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Project:
    """A project as it lies on this machine; all paths are absolute."""

    path: Path
    config_file: Path
    config: Mapping[str, Any]
    """project_config.yaml as it stands there; `deg.config.load_config` gives the options."""
    data_path: Path
    model_path: Path
    """May not exist yet."""
    pretrained_path: Path | None
    """None where there are no downloaded weights."""
    class_names: tuple[str, ...]
    """The behaviours, background first."""
    records: Mapping[str, Record]
    """The recordings by name, in alphabetical order."""

    @property
    def normalization(self) -> Normalization:
        """The statistics as they stand in the project file. ProjectError if they make no sense."""
        return _normalization_of(self.config, self.config_file)

    def split_file(self, named: str | None = None) -> Path:
        """The split file: the one named in the configuration, else split.yaml in the data folder."""
        return self.data_path / "split.yaml" if named is None else self.path / named


def open_project(path: Path | str) -> Project:
    """The project in a folder, or of a configuration file. ProjectError says what is missing; nothing is written."""
    config_file = _config_file(Path(path).expanduser().absolute())
    with _disk_errors(config_file):
        return _opened(config_file)


def create_project(folder: Path | str, behaviors: Iterable[str], name: str | None = None) -> Project:
    """A new, empty project in DeepEthogram's layout; background is put first. ProjectError if `folder` holds one."""
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ProjectError(f"{show_path(folder)} is a file. Choose the name of a folder that is not there yet.")
    for taken in (*CONFIG_FILES, "DATA"):
        if (folder / taken).exists():
            raise ProjectError(f"{show_path(folder)} already holds a project ({taken}). Choose another folder.")
    given = [behavior.strip() for behavior in behaviors]
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
    with _disk_errors(folder):
        for subfolder in ("DATA", "models"):
            (folder / subfolder).mkdir(parents=True, exist_ok=True)
        write_atomically(config_file, yaml_text(config))
    return open_project(config_file)


def add_recording(
    project: Project,
    video: Path | str,
    labels: Path | str | None = None,
    mode: Mode = "copy",
    *,
    frame_count: FrameCount = "claimed",
    pooled_statistics: bool = False,
) -> Record:
    """Take a video, and its labels, into the project: all of it or, if anything fails, nothing.

    The whole video is decoded for its statistics. With `frame_count="claimed"` it must give as many frames as it
    claims; with "decoded" it is taken as far as it goes. The project's statistics are updated as DeepEthogram does,
    which averages standard deviations, or made anew from all recordings, exactly. Raises ProjectError, VideoError or
    LabelError.
    """
    video = Path(video).expanduser().absolute()
    key = _key_of(video)
    folder, part = project.data_path / key, project.data_path / f".{key}.{secrets.token_hex(4)}{PART}"
    _refuse_second(video, folder)
    with _disk_errors(project.path), ExitStack() as undo:
        undo.callback(_remove, part)
        part.mkdir()
        num_frames, statistics = _examine(video, frame_count)
        write_stats(part / STATS_FILE, statistics)
        if labels is not None:
            _import_labels(Path(labels).expanduser(), part / f"{key}_labels.csv", project.class_names, num_frames)
        if _place(video, part / video.name, mode):
            undo.callback((part / video.name).rename, video)
        with _locked(project):
            _refuse_second(video, folder)
            config = _with_statistics(project, statistics, video, pooled_statistics)
            part.rename(folder)
            undo.callback(folder.rename, part)
            write_record_yaml(folder)
            write_atomically(project.config_file, yaml_text(config))
        undo.pop_all()
    if mode == "move":
        _remove(video)
    return read_record(folder)


def read_split(path: Path) -> tuple[Parts, tuple[float, float, float] | None]:
    """The keys of each part, and the shares by which new recordings are drawn. ProjectError if they make no sense."""
    content = read_yaml(path)
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
    """Write a split file as DeepEthogram does. ProjectError if the disk refuses."""
    content = {"metadata": {"split": [float(share) for share in fractions]}}
    with _disk_errors(path):
        write_atomically(path, yaml_text(content | {name: list(parts[name]) for name in PARTS}))


# ---------------------------------------------------------------------------------------------------- opening


def _opened(config_file: Path) -> Project:
    folder = config_file.parent
    config = read_yaml(config_file)
    section = config.get("project")
    if not isinstance(section, dict):
        raise ProjectError(
            f"{show_path(config_file)}: expected a section `project`, found none. Is it a project's file?"
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
    remedy = f"Is {show_path(above)} meant?" if above else "Make a project with `deg new`"
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
            "known by their position."
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ProjectError(f"{where}: {', '.join(twice)} stands there more than once. Behaviours need different names.")
    return tuple(names)


def _located(given: object, folder: Path, stale: object) -> Path:
    """Where a path of the YAML lies on this machine: it may be relative, of another machine, or of Windows.

    What lay inside the project where it stood before is looked for inside the project where it stands now, first of
    all: a copied project must not write into the one it was copied from.
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


def _normalization_of(config: Mapping[str, Any], config_file: Path) -> Normalization:
    augs = config.get("augs")
    content = augs.get("normalization") if isinstance(augs, dict) else None
    if content is None:
        return Normalization()
    return parse_normalization(content, where=f"{show_path(config_file)}: augs.normalization")


# ---------------------------------------------------------------------------------------------------- adding


def _key_of(video: Path) -> str:
    """The name of the recording that a video becomes. VideoError if DeepEthogram could not find the video again."""
    require_readable(video)
    if not video.is_dir() and video.suffix.lower() not in VIDEO_EXTENSIONS:
        expected = ", ".join(VIDEO_EXTENSIONS)
        raise VideoError(
            video, f"expected {expected} or a folder of images, found `{video.suffix}`", "Convert it, to .mp4."
        )
    word = hiding_word(video.name) or next((word for word in ("label", "score") if word in video.name.lower()), None)
    if word:
        raise VideoError(
            video, f"its name contains `{word}`, by which DeepEthogram knows other kinds of files", "Rename it."
        )
    if video.name.startswith("."):
        raise VideoError(video, "its name begins with a dot, so its folder would be hidden", "Rename it.")
    return video.name if video.is_dir() else video.stem


def _refuse_second(video: Path, folder: Path) -> None:
    if os.path.lexists(folder):
        raise ProjectError(
            f"{show_path(video)}: the project already has a recording of this name, {show_path(folder)}. "
            "Rename the video, or remove that folder if it is the same one."
        )


def _examine(video: Path, frame_count: FrameCount) -> tuple[int, Normalization]:
    """Decode a whole video: how many frames it has, and their statistics."""
    with Decoder() as decoder:
        num_frames = decoder.probe(video, frame_count=frame_count).num_frames
        count: FrameCount | int = "claimed" if frame_count == "claimed" else num_frames
        blocks = decoder.blocks(video, 0, num_frames, block_frames=STRIDE, frame_count=count)
        return num_frames, video_statistics((block_THWC[0] for block_THWC in blocks), stride=1)


def _import_labels(source: Path, path: Path, class_names: Sequence[str], num_frames: int) -> None:
    labels_TK, issues = inspect_labels(source, class_names, num_frames)
    if labels_TK is None:
        raise LabelError(issues[0].message)
    for issue in issues:
        log.warning("%s", issue.message)
    write_labels(path, labels_TK, class_names)


def _with_statistics(project: Project, statistics: Normalization, video: Path, exact: bool) -> dict[str, Any]:
    """The project file's content with the new video counted in. VideoError if nothing is to be seen in it."""
    config = read_yaml(project.config_file)
    if exact:
        total = pooled([*_statistics_of(project), statistics])
    else:
        total = updated(_normalization_of(config, project.config_file), statistics)
    if not min(total.std) > 0:
        raise VideoError(
            video, "every pixel has the same colour in all sampled frames", "Look at the video: is it empty?"
        )
    augs = config.get("augs") or {}
    return {**config, "augs": {**augs, "normalization": as_dict(total)}}


def _statistics_of(project: Project) -> Iterator[Normalization]:
    """The statistics of each recording that is there. ProjectError if one has none."""
    for record in discover(project.data_path):
        try:
            yield read_stats(record.folder / STATS_FILE)
        except FileNotFoundError:
            raise ProjectError(
                f"{show_path(record.folder)}: expected {STATS_FILE} to pool statistics from, found none. Add the "
                "recording again, or leave out --pooled-statistics"
            ) from None


def _place(video: Path, placed: Path, mode: Mode) -> bool:
    """Bring a video to its place. True if it was moved there, so that it can be moved back.

    Across disks, and for a link, which may be relative, a move is a copy; the original is removed when all is done.
    """
    if mode == "link":
        placed.symlink_to(video.resolve())
        return False
    if mode == "move" and not video.is_symlink():
        try:
            video.rename(placed)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            return True
    _copy(video, placed)
    return False


def _copy(video: Path, placed: Path) -> None:
    if not video.is_dir():
        shutil.copy2(video, placed)
        flush(placed)
        return
    shutil.copytree(video, placed)
    for path in placed.rglob("*"):
        flush(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(project: Project) -> Iterator[None]:
    """One at a time may change the project. The lock ends with the process; without locks on the disk there is none."""
    descriptor = os.open(project.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ProjectError(
                        f"{show_path(project.path)}: another `deg add` has been at work here for {LOCK_SECONDS:.0f} s. "
                        "Wait until it has ended and try again."
                    ) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    break
                raise
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Say what a disk refused, and that nothing was changed."""
    try:
        yield
    except OSError as error:
        where = show_path(os.fsdecode(error.filename)) if error.filename else show_path(path)
        raise ProjectError(
            f"{where}: {error.strerror or error}. Check permissions and free space; the project is as it was."
        ) from error
