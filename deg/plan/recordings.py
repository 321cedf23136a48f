"""Find the recordings that a network can be trained with, and why the others cannot be used. Nothing is written.

flow_generator       recordings with a video that can be read
feature_extractor    ... and with a label for every frame
sequence             recordings with a label for every frame, and with features (or keypoints) in place of the video
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deg.data.labels import UNLABELLED, is_complete, read_labels, repair
from deg.data.results import Mark, read_mark, read_predictions
from deg.data.sequence_input import describe_mark, open_input, require_all_finite
from deg.data.video.probing import probe_all
from deg.errors import LabelError, ProjectError, ResultError, VideoError, show_path
from deg.options.schema import Config
from deg.projects.inventory import why_no_video
from deg.projects.project import Project
from deg.runs.planned import PlannedInput
from deg.types import NUM_FEATURES, ImageOrder, Record, VideoInfo

MOST_NAMED = 10
"""Largest number of recordings that a message names; it counts the rest."""


@dataclass
class Trainable:
    """The recordings of a project as one stage of training sees them."""

    videos: dict[str, VideoInfo] = field(default_factory=dict)
    """Videos of the recordings that can be used, by key."""
    positives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Positive frames of each class in those of the videos whose frames are all labelled, by key."""
    inputs: dict[str, PlannedInput] = field(default_factory=dict)
    """Inputs of a sequence network by recording, as in `deg.runs.plans.TrainingPlan`."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why each of the other recordings cannot be used, by key."""
    notices: list[str] = field(default_factory=list)


def find_trainable(stage: str, project: Project, config: Config) -> Trainable:
    """Return the recordings that a stage can be trained with.

    Raises ProjectError if there are fewer than two. Raises ResultError or ProjectError if features are of several
    networks or of other behaviours: nothing can be learned from a mixture, and no single recording is at fault.
    """
    if stage != "sequence":
        found = _with_videos(project, config.project.image_order, labelled=stage == "feature_extractor")
    elif config.sequence.input_type == "keypoints":
        found = _with_keypoints(project)
    else:
        found = _with_features(project, config.sequence.latent_name or config.feature_extractor.arch)
    _require_two(stage, project, found)
    return found


def named(keys: Iterable[str]) -> str:
    """Return the names of recordings for a message."""
    names = [f"`{show_path(key)}`" for key in keys]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


# ---------------------------------------------------------------------------------------------------- videos, labels


def image_notices(videos: Mapping[str, VideoInfo]) -> list[str]:
    """Return a notice that names the recordings whose frames differ from DeepEthogram's; none if there are none."""
    keys = [key for key, video in videos.items() if video.image_order == "natural"]
    if not keys:
        return []
    return [
        f"Warning: the frames of {named(keys)} are images whose order or number is another one in DeepEthogram. "
        "`deg check` says more; project.image_order=deepethogram takes DeepEthogram's."
    ]


def _with_videos(project: Project, image_order: ImageOrder, *, labelled: bool) -> Trainable:
    found = Trainable()
    wanted: dict[str, Path] = {}
    for record in project.records.values():
        if record.video is None:
            found.left_out[record.key] = why_no_video(record.folder)
        elif labelled and record.labels is None:
            found.left_out[record.key] = _no_labels(record)
        else:
            wanted[record.key] = record.video
    for key, video in zip(wanted, probe_all(wanted.values(), image_order=image_order), strict=True):
        if isinstance(video, VideoError):
            found.left_out[key] = str(video)
            continue
        labels = project.records[key].labels
        try:
            if labels is not None:
                found.positives[key] = _positives(labels, project.class_names, video.num_frames)
        except LabelError as error:
            if labelled:
                found.left_out[key] = str(error)
                continue
        found.videos[key] = video
    found.notices += image_notices(found.videos)
    return found


def _positives(path: Path, class_names: Sequence[str], num_frames: int) -> tuple[int, ...]:
    """Count positive frames by class. Raises LabelError if a frame has no label, or the labels do not fit the video."""
    labels_TK = read_labels(path, class_names, num_frames)
    if not is_complete(labels_TK):
        open_T = (labels_TK == UNLABELLED).any(axis=1)
        raise LabelError(
            f"{show_path(path)}: {int(open_T.sum())} of {num_frames} frames are not labelled yet (-1), the first is "
            f"frame {int(open_T.argmax())}. Finish them in the GUI: training takes only recordings that are labelled "
            "completely."
        )
    return tuple(int(count) for count in (repair(labels_TK) == 1).sum(axis=0))


def _no_labels(record: Record) -> str:
    return (
        f"{show_path(record.folder)}: there is no label file. Label the video in the GUI, or put "
        f"{show_path(record.key)}_labels.csv into this folder."
    )


# ---------------------------------------------------------------------------------------------------- features


def _with_features(project: Project, group: str) -> Trainable:
    found = Trainable()
    marks: dict[str, Mark | None] = {}
    for record in project.records.values():
        path = record.outputs_path
        try:
            mark = read_mark(path, group)
            _take(found, record, path, group, mark, project.class_names)
            marks[record.key] = mark
        except (LabelError, ResultError) as error:
            found.left_out[record.key] = str(error)
    for key in marks:
        _require_classes(project.records[key].outputs_path, group, project.class_names)
    _require_one_network(marks, group)
    settings = {mark.settings for mark in marks.values() if mark is not None}
    if len(settings) > 1:
        found.notices.append(
            f"Warning: features of group {group} were made with {len(settings)} different settings (size of the "
            "frames, precision, ...). `deg infer feature_extractor --overwrite` makes them all alike."
        )
    return found


def _with_keypoints(project: Project) -> Trainable:
    found = Trainable()
    for record in project.records.values():
        try:
            if record.keypoints is None:
                raise ProjectError(
                    f"{show_path(record.folder)}: there are no keypoints. Put the .csv of DeepLabCut, with `DLC` in "
                    "its name, into this folder."
                )
            _take(found, record, record.keypoints, "", None, project.class_names)
        except (LabelError, ProjectError, ResultError) as error:
            found.left_out[record.key] = str(error)
    return found


def _take(
    found: Trainable, record: Record, path: Path, group: str, mark: Mark | None, class_names: Sequence[str]
) -> None:
    """Add a recording with the input in `path`. Raises LabelError, ResultError or ProjectError if it cannot be used."""
    if record.labels is None:
        raise LabelError(_no_labels(record))
    where = f"{show_path(path)}: group {group}" if group else show_path(path)
    with open_input(path, group) as read:
        num_frames = read.num_frames
        positives = _positives(record.labels, class_names, num_frames)
        if group and read.num_features != NUM_FEATURES:
            raise ResultError(
                f"{where}: expected {NUM_FEATURES} features a frame, found {read.num_features}. Run `deg infer "
                "feature_extractor --overwrite` for this video."
            )
        _require_same_video(record, mark)
        require_all_finite(read, num_frames, f"{where}, recording `{show_path(record.key)}`")
    size, mtime = (mark.video_size, mark.video_mtime_ns) if mark is not None else (0, 0)
    found.videos[record.key] = VideoInfo(record.video or path, num_frames, 0, 0, 0.0, size, mtime)
    found.positives[record.key] = positives
    found.inputs[record.key] = PlannedInput(path, group, describe_mark(path, group))


def _require_same_video(record: Record, mark: Mark | None) -> None:
    """Raise ResultError if the video was replaced after its features were made."""
    if mark is None or record.video is None or not record.video.is_file():
        return
    status = record.video.stat()
    if (status.st_size, status.st_mtime_ns) != (mark.video_size, mark.video_mtime_ns):
        raise ResultError(
            f"{show_path(record.outputs_path)}: its features are of another version of {record.video.name}. "
            "Run `deg infer feature_extractor` for it first."
        )


def _require_classes(path: Path, group: str, class_names: Sequence[str]) -> None:
    found = read_predictions(path, group).class_names
    if found != tuple(class_names):
        raise ProjectError(
            f"{show_path(path)}: expected group {group} to be of a network for the project's behaviours "
            f"({', '.join(class_names)}), found one for {', '.join(found)}: it is from another project, or the "
            "behaviours were changed since. Train the feature extractor, then run `deg infer feature_extractor "
            "--overwrite`."
        )


def _require_one_network(marks: Mapping[str, Mark | None], group: str) -> None:
    """Raise ResultError unless all features were made with the same weights. Those without a mark count as alike."""
    made_by: dict[str, list[str]] = {}
    for key, mark in marks.items():
        weights = "a network unknown to deg"
        if mark is not None:
            weights = " + ".join(f"{role} {digest[:12]}" for role, digest in sorted(mark.weights.items()))
        made_by.setdefault(weights, []).append(key)
    if len(made_by) > 1:
        found = "; ".join(f"those of {named(keys)} by {weights}" for weights, keys in made_by.items())
        raise ResultError(
            f"group {group}: expected features made by one network in all recordings, found {found}. "
            "Run `deg infer feature_extractor --overwrite`, so that one makes them all."
        )


# ---------------------------------------------------------------------------------------------------- enough?


def _require_two(stage: str, project: Project, found: Trainable) -> None:
    """Raise ProjectError, with the reason for each recording that cannot be used, if fewer than two can be used."""
    if len(found.videos) >= 2:
        return
    flow = stage == "flow_generator"
    if found.videos:
        remedy = "Add another with `deg add`" if flow else "Label another one"
        remedy += ", or cut this one in two" + (", with its labels." if found.positives else ".")
    else:
        remedy = "Add videos with `deg add`." if flow or not project.records else "Label two of them completely."
    reasons = [f"`{show_path(key)}`: {reason}" for key, reason in list(found.left_out.items())[:MOST_NAMED]]
    if len(found.left_out) > MOST_NAMED:
        reasons.append(f"And {len(found.left_out) - MOST_NAMED} more: `deg check` lists them.")
    raise ProjectError(
        f"{show_path(project.path)}: expected at least two recordings to train the {stage}, one to learn from and one "
        f"to evaluate on; found {len(found.videos)} of {len(project.records)} that can be used"
        + (f" ({named(found.videos)}). " if found.videos else ". ")
        + " ".join([remedy, *reasons])
    )
