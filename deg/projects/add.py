"""Add recordings to a project: video, labels and statistics, either all of them or nothing.

A recording is built in a hidden folder beside its final place and renamed when it is complete. The project's lock is
held only while renaming and writing the project file, so that a long copy keeps nobody waiting.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from deg.data.atomic import PART, flush, write_atomically
from deg.data.labels import inspect_labels, write_labels
from deg.data.lock import exclusive
from deg.data.stats import STATS_FILE, STRIDE, as_dict, pooled, read_stats, updated, video_statistics, write_stats
from deg.data.video.decoder import Decoder
from deg.data.video.faults import require_readable
from deg.data.video.stretch import Stretch
from deg.errors import LabelError, ProjectError, VideoError, show_path
from deg.options.schema import Normalization
from deg.options.yamlfile import read_yaml, yaml_text
from deg.projects.inventory import (
    OTHER_EXTENSIONS,
    VIDEO_EXTENSIONS,
    discover,
    hiding_word,
    read_record,
    unlike_deepethogram,
    write_record_yaml,
)
from deg.projects.project import Project, disk_errors, normalization_of
from deg.types import ImageOrder, Record

LOCK_SECONDS = 30.0

Mode = Literal["copy", "link", "move"]
FrameCount = Literal["claimed", "decoded"]

log = logging.getLogger(__name__)


def add_recording(
    project: Project,
    video: Path | str,
    labels: Path | str | None = None,
    mode: Mode = "copy",
    *,
    frame_count: FrameCount = "claimed",
    pooled_statistics: bool = False,
    image_order: ImageOrder = "natural",
) -> Record:
    """Add a video, and its labels, to the project. If anything fails, nothing is added.

    The whole video is decoded for its statistics. With `frame_count="claimed"` it must have as many frames as it
    claims; with "decoded" only the frames that can be decoded count. The project's statistics are updated as
    DeepEthogram does, which averages standard deviations; with `pooled_statistics` they are computed exactly, from all
    recordings. `image_order` says how the frames of a folder of images are found. Where DeepEthogram sees the video
    otherwise, the log says so. Raises ProjectError, VideoError or LabelError.
    """
    video = Path(video).expanduser().absolute()
    key = _key_of(video)
    folder, part = project.data_path / key, project.data_path / f".{key}.{secrets.token_hex(4)}{PART}"
    _refuse_second(video, folder)
    with disk_errors(project.path), ExitStack() as undo:
        undo.callback(_remove, part)
        part.mkdir()
        num_frames, statistics = _examine(video, frame_count, image_order)
        write_stats(part / STATS_FILE, statistics)
        if labels is not None:
            _import_labels(Path(labels).expanduser(), part / f"{key}_labels.csv", project.class_names, num_frames)
        if _place(video, part / video.name, mode):
            undo.callback((part / video.name).rename, video)
        with exclusive(project.path, seconds=LOCK_SECONDS, busy=_busy(project)):
            _refuse_second(video, folder)
            config = _with_statistics(project, statistics, video, pooled_statistics)
            part.rename(folder)
            undo.callback(folder.rename, part)
            write_record_yaml(folder)
            write_atomically(project.config_file, yaml_text(config))
        undo.pop_all()
    if mode == "move":
        _remove(video)
    if told := unlike_deepethogram(folder / video.name, image_order):
        log.warning("%s", told)
    return read_record(folder)


def _key_of(video: Path) -> str:
    """Return the name of the recording that a video becomes. Raises VideoError if DeepEthogram could not find it."""
    extensions = VIDEO_EXTENSIONS + OTHER_EXTENSIONS
    if video.suffix.lower() not in extensions and not video.is_dir():
        expected = ", ".join(extensions)
        raise VideoError(
            video, f"expected {expected} or a folder of images, found `{video.suffix}`", "Convert it to .mp4."
        )
    word = hiding_word(video.name) or next((word for word in ("label", "score") if word in video.name.lower()), None)
    if word:
        raise VideoError(
            video, f"its name contains `{word}`, by which DeepEthogram recognises other files", "Rename it."
        )
    if video.name.startswith("."):
        raise VideoError(video, "its name begins with a dot, so its folder would be hidden", "Rename it.")
    require_readable(video)
    return video.name if video.is_dir() else video.stem


def _refuse_second(video: Path, folder: Path) -> None:
    if os.path.lexists(folder):
        raise ProjectError(
            f"{show_path(video)}: the project already has a recording of this name, {show_path(folder)}. "
            "Rename the video, or remove that folder if it holds the same video."
        )


def _examine(video: Path, frame_count: FrameCount, image_order: ImageOrder) -> tuple[int, Normalization]:
    """Decode a whole video; return its number of frames and their statistics."""
    with Decoder() as decoder:
        info = decoder.probe(video, frame_count=frame_count, image_order=image_order)
        stretch = Stretch(info, 0, info.num_frames)
        if frame_count == "decoded":
            stretch = replace(stretch, frame_count=info.num_frames)  # they are counted now
        frames = itertools.chain.from_iterable(decoder.blocks(stretch, stretch.block_frames(STRIDE)))
        return info.num_frames, video_statistics(frames)


def _import_labels(source: Path, path: Path, class_names: Sequence[str], num_frames: int) -> None:
    labels_TK, issues = inspect_labels(source, class_names, num_frames)
    if labels_TK is None:
        raise LabelError(issues[0].message)
    for issue in issues:
        log.warning("%s", issue.message)
    write_labels(path, labels_TK, class_names)


def _with_statistics(project: Project, statistics: Normalization, video: Path, exact: bool) -> dict[str, Any]:
    """Return the project file's content, updated by the new video. Raises VideoError if nothing varies in the video."""
    config = read_yaml(project.config_file, ProjectError)
    if exact:
        total = pooled([*_statistics_of(project), statistics])
    else:
        total = updated(normalization_of(config, project.config_file), statistics)
    if not min(total.std) > 0:
        raise VideoError(
            video, "every pixel has the same colour in all sampled frames", "Look at the video: is it empty?"
        )
    augs = config.get("augs") or {}
    return {**config, "augs": {**augs, "normalization": as_dict(total)}}


def _statistics_of(project: Project) -> Iterator[Normalization]:
    """Yield the statistics of each recording in the project. Raises ProjectError if one has none."""
    for record in discover(project.data_path):
        try:
            yield read_stats(record.folder / STATS_FILE)
        except FileNotFoundError:
            raise ProjectError(
                f"{show_path(record.folder)}: expected {STATS_FILE} to pool statistics from, found none. Add the "
                "recording again, or leave out --pooled-statistics"
            ) from None


def _place(video: Path, placed: Path, mode: Mode) -> bool:
    """Put a video into its place. Return whether it was moved there, so that it can be moved back.

    A video on another disk is copied, and so is a link, which may be relative; the caller removes the original at the
    end.
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


def _busy(project: Project) -> ProjectError:
    return ProjectError(
        f"{show_path(project.path)}: another `deg add` has been writing to this project for {LOCK_SECONDS:.0f} s. "
        "Wait until it has ended and try again."
    )
