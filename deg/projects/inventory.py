"""Tell the kinds of files in a project by their names, as DeepEthogram does.

Both programs must see the same files, so DeepEthogram's rules are kept as they are, pitfalls included; `warnings`
reports the pitfalls. Only where DeepEthogram sees no video, one of another container is taken. A folder is read afresh
each time; record.yaml is written for DeepEthogram and never read.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from deg.data.atomic import PART, write_atomically
from deg.data.video import image_names
from deg.data.video.faults import require_readable
from deg.errors import VideoError, show_path
from deg.options.yamlfile import yaml_text
from deg.types import ImageOrder, Issue, Record

VIDEO_EXTENSIONS = (".avi", ".mp4", ".h5", ".mov")
"""Endings of the videos that DeepEthogram sees."""
OTHER_EXTENSIONS = (
    *(".m4v", ".mkv", ".webm", ".wmv", ".asf", ".flv", ".ogv", ".3gp", ".mxf"),
    *(".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".vob"),
)
"""Endings of videos that deg reads and DeepEthogram does not see."""
LABEL_EXTENSIONS = (".csv", ".h5")
HIDING_WORDS = ("flow", "label", "output", "score")

KINDS = ("rgb", "flow", "label", "output", "stats", "keypoint")
"""The kinds of files, in DeepEthogram's words."""


def discover(data_path: Path) -> list[Record]:
    """Return the recordings of a data folder: every folder directly in it, sorted by name.

    A broken link is a recording without a video; nobody would notice if it were left out. Folders whose names begin
    with a dot are not recordings: they are unfinished ones (`.mouse1.part`) or hidden by other programs.
    """
    folders = (entry for entry in data_path.iterdir() if _is_recording(entry) and not entry.name.startswith("."))
    return [read_record(folder) for folder in sorted(folders)]


def read_record(folder: Path) -> Record:
    """Return the recording in one folder, with the file of each kind that DeepEthogram would choose.

    If DeepEthogram would find no video, it is the first one that DeepEthogram does not see.
    """
    try:
        chosen = {kind: choose(paths) for kind, paths in find_files(folder).items()}
        chosen["rgb"] = chosen["rgb"] or next(iter(find_unseen(folder)), None)
    except OSError:  # `why_no_video` reports it; the other recordings can be used
        chosen = dict.fromkeys(KINDS)
    return Record(
        key=folder.name,
        folder=folder,
        video=chosen["rgb"],
        labels=chosen["label"],
        outputs=chosen["output"],
        keypoints=chosen["keypoint"],
    )


def find_files(folder: Path) -> dict[str, list[Path]]:
    """Return all candidates of each kind in the order that `choose` expects: by name; videos before folders of images.

    A folder with the extension of a video is listed twice, which decides between two folders of images.
    """
    entries = sorted(entry for entry in folder.iterdir() if not _is_ours_and_unfinished(entry))
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir()]
    videos = [entry for entry in entries if entry.suffix.lower() in VIDEO_EXTENSIONS]
    return {
        "rgb": [path for path in (*videos, *folders) if _shows(path)],
        "flow": [path for path in files if path.suffix in (".avi", ".mp4", ".h5") and "flow" in path.name]
        + [path for path in folders if "flow" in path.name and "frame" in path.name],
        "label": [path for path in files if "label" in path.name.lower() or "score" in path.name.lower()],
        "output": [path for path in files if "output" in path.name.lower() and path.suffix.lower() == ".h5"],
        "stats": [path for path in files if "stats" in path.name and path.suffix == ".yaml"],
        "keypoint": [path for path in files if "dlc" in path.name.lower() and path.suffix == ".csv"],
    }


def find_unseen(folder: Path) -> list[Path]:
    """Return the videos in a recording's folder that DeepEthogram does not see because of their container, by name."""
    entries = sorted(entry for entry in folder.iterdir() if not _is_ours_and_unfinished(entry))
    return [entry for entry in entries if _is_unseen(entry) and _shows(entry)]


def unlike_deepethogram(video: Path, image_order: ImageOrder) -> str | None:
    """Return how DeepEthogram sees a video otherwise than deg does, and what to do; None if both see the same."""
    if video.is_dir():
        return image_names.unlike_deepethogram(video) if image_order == "natural" else None
    if not _is_unseen(video):
        return None
    command = shlex.join(["ffmpeg", "-i", show_path(video.name), "-c", "copy", f"{show_path(video.stem)}.mp4"])
    return (
        f"{show_path(video)}: deg reads this video, but DeepEthogram sees only {', '.join(VIDEO_EXTENSIONS)}: its GUI "
        "cannot open it, and its inference of all recordings stops at this one. To use both programs, put the video "
        f"into another container (`{command}`; leave out `-c copy` only if ffmpeg refuses) and keep only that file."
    )


def warnings(record: Record, image_order: ImageOrder = "natural") -> list[Issue]:
    """Return issues with files in a recording's folder that DeepEthogram probably does not see as their owner does."""
    try:
        found = find_files(record.folder)
    except OSError:
        return [Issue(record.key, "error", why_no_video(record.folder))]
    issues = list(_video_issues(record, [*found["rgb"], *find_unseen(record.folder)], image_order))
    for kind, chosen in (("label", record.labels), ("output", record.outputs), ("keypoint", record.keypoints)):
        if len(found[kind]) > 1:
            issues.append(_several(record, f"{kind} files", found[kind], chosen))
    if record.labels is not None and record.labels.suffix not in LABEL_EXTENSIONS:
        issues.append(
            _warning(
                record,
                f"{_show(record.labels)} is taken for the labels because of its name, but DeepEthogram reads labels "
                "only from .csv and .h5 files. Rename it, or save it as .csv.",
            )
        )
    if record.video is not None and record.outputs not in (None, record.outputs_path):
        issues.append(
            _warning(
                record,
                f"DeepEthogram shows the results in {_show(record.outputs)}, but results of {_show(record.video)} are "
                f"written to {_show(record.outputs_path)}. Move the other file out of the folder.",
            )
        )
    return issues


def record_listing(folder: Path) -> dict[str, object]:
    """Return what record.yaml says about a folder."""
    listing: dict[str, object] = {"key": folder.name}
    for kind, paths in find_files(folder).items():
        chosen = choose(paths)
        listing[kind] = {"all": [path.name for path in paths], "default": [] if chosen is None else chosen.name}
    return listing


def write_record_yaml(folder: Path) -> None:
    """Write record.yaml. Only by this file does DeepEthogram's GUI know that a video belongs to a project."""
    write_atomically(folder / "record.yaml", yaml_text(record_listing(folder)))


def choose(candidates: Sequence[Path]) -> Path | None:
    """Return the file that DeepEthogram takes: the last one of the first type that occurs, else the first file."""
    by_type = {_type(path): path for path in candidates}
    for wanted in ("directory", ".h5", ".avi", ".mp4"):
        if wanted in by_type:
            return by_type[wanted]
    return candidates[0] if candidates else None


def hiding_word(name: str) -> str | None:
    """Return the word in a file name that keeps DeepEthogram from taking the file for a video; None without one."""
    return next((word for word in HIDING_WORDS if word in name), None)


def why_no_video(folder: Path) -> str:
    """Return why no video was found in a recording's folder, and what to do."""
    where = show_path(folder)
    try:
        require_readable(folder)
    except VideoError as error:
        return str(error)
    if not os.access(folder, os.R_OK | os.X_OK):
        return f"{where}: permission denied. Make the folder readable (chmod u+rx, or ask its owner)."
    extensions = VIDEO_EXTENSIONS + OTHER_EXTENSIONS
    hidden = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in extensions]
    if names := [path.name for path in hidden if not path.name.endswith("_outputs.h5")]:
        words = ", ".join(f"`{word}`" for word in HIDING_WORDS)
        return (
            f"{where}: no video was found in this folder. {_show(*names)} is not taken for one because its name "
            f"contains one of {words}. Rename it."
        )
    return (
        f"{where}: no video was found in this folder, and no folder of images. Put the recording there, or take the "
        "folder out of the project."
    )


def _video_issues(record: Record, candidates: Sequence[Path], image_order: ImageOrder) -> Iterator[Issue]:
    if record.video is None:
        yield Issue(record.key, "error", why_no_video(record.folder))
        return
    different = sorted(set(candidates))
    if len(different) > 1:
        yield _several(record, "videos", different, record.video)
    if told := unlike_deepethogram(record.video, image_order):
        yield _warning(record, told)
    if record.video.suffix == ".h5" and "dlc" in record.video.name.lower():
        yield _warning(
            record,
            f"{_show(record.video)} looks like keypoints of DeepLabCut, but is taken for the video, because .h5 is "
            "preferred to .avi and .mp4. Move it out of the folder, or keep only its .csv.",
        )


def _several(record: Record, what: str, candidates: Sequence[Path], chosen: Path | None) -> Issue:
    assert chosen is not None
    return _warning(
        record,
        f"{len(candidates)} {what} ({_show(*candidates)}): {_show(chosen)} is used. Move the others out of the folder.",
    )


def _warning(record: Record, message: str) -> Issue:
    return Issue(record.key, "warning", message)


def _show(*paths: Path | str) -> str:
    return ", ".join(show_path(Path(path).name) for path in paths)


def _type(path: Path) -> str:
    """Return the type by which `choose` compares, with the case kept as in DeepEthogram: `.MP4` is not `.mp4`.

    A folder has the type `directory` only if its name contains `frame`.
    """
    if path.is_dir():
        return "directory" if "frame" in path.name else ""
    return path.suffix


def _shows(path: Path) -> bool:
    return hiding_word(path.name) is None


def _is_unseen(path: Path) -> bool:
    return path.suffix.lower() in OTHER_EXTENSIONS and not path.is_dir()


def _is_recording(entry: Path) -> bool:
    return entry.is_dir() or (entry.is_symlink() and not entry.exists())


def _is_ours_and_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(PART)
