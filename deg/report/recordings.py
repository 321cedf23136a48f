"""Recordings in a report: what was predicted in each, and how it agrees with the labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deg.arithmetic.ethogram import Postprocessor
from deg.arithmetic.metrics import binary_confusion, epoch_metrics
from deg.arithmetic.ranges import show_ranges
from deg.arithmetic.splits import PARTS
from deg.data.labels import is_complete, read_labels, repair
from deg.data.results import PROVENANCE, Predictions, open_results, read_damaged, read_predictions
from deg.data.video.probing import probe_all
from deg.errors import DegError, LabelError, ProjectError, ResultError, show_path
from deg.options import schema
from deg.projects.export import choose_group, decided_by, in_project_order
from deg.projects.project import Project, read_split
from deg.report import figures
from deg.report.figures import Picture, Sketchbook
from deg.report.scores import Agreement, Table
from deg.types import Record, VideoInfo

NO_PART = ""
"""The part of recordings that the split does not name."""
TITLES = {"test": "Test", "val": "Validation", "train": "Training", NO_PART: "Not in the split"}
"""Titles of the parts. Those whose scores matter most come first."""


@dataclass(frozen=True)
class RecordingView:
    """One recording that was drawn."""

    key: str
    part: str
    group: str
    frames: int
    frames_per_column: int
    strip: Picture
    f1: tuple[float | None, ...]
    """F1 by class; None for a class that neither occurs nor was predicted, and without labels."""
    mean_f1: float | None
    """Mean F1 of the behaviours that have one; None if none has."""
    labelled: int
    """Number of frames that are compared with labels."""
    note: str


@dataclass(frozen=True)
class Network:
    """A network that made results, and how many recordings have them."""

    group: str
    weights: tuple[str, ...]
    thresholds: tuple[float, ...]
    recordings: int


@dataclass(frozen=True)
class PartSummary:
    """What a part of the split holds."""

    name: str
    recordings: int
    labelled: int
    """Number of recordings whose frames are all labelled."""
    frames: int
    positives: tuple[int, ...]
    """Positive frames of each class."""


@dataclass(frozen=True)
class Recordings:
    """Everything that a report says about recordings."""

    views: tuple[RecordingView, ...]
    """Recordings with the worst agreement with their labels come first, recordings without labels last."""
    tables: tuple[Table, ...]
    """Agreement with the labels, by part of the split."""
    networks: tuple[Network, ...]
    parts: tuple[PartSummary, ...]
    failed: Mapping[str, str]
    """Recordings that could not be drawn, each with its reason."""


def look_at_recordings(
    project: Project,
    config: schema.Config,
    records: Mapping[str, Record],
    group: str | None,
    sketches: Sketchbook,
    notices: list[str],
) -> Recordings:
    """Draw each record and compare it with its labels, one after the other: only one result is held in memory.

    If `group` is None, it is chosen as in the GUI. Labels and splits that cannot be read are added to `notices`.
    """
    # labels of the whole project, whatever is drawn: bout lengths are learned from all of them
    labels = _read_labels(project, notices)
    part_of = _read_parts(project, config, notices)
    postprocessor = Postprocessor.from_labels(
        config.postprocessor.type,
        config.postprocessor.min_bout_length,
        [labels_TK for labels_TK in labels.values() if is_complete(labels_TK)],
        len(project.class_names),
    )
    views: list[RecordingView] = []
    failed: dict[str, str] = {}
    agreement: dict[str, Agreement] = {}
    networks: Counter[tuple[str, tuple[str, ...], tuple[float, ...]]] = Counter()
    for key, record in records.items():
        part = part_of.get(key, NO_PART)
        try:
            chosen = group or choose_group(record.outputs_path, config)
            found = in_project_order(read_predictions(record.outputs_path, chosen), project.class_names, record)
            _check(found, record.outputs_path, chosen)
            decide = decided_by(config, postprocessor, found)
            weights = _weights_used(record.outputs_path, chosen, project)
            damaged = read_damaged(record.outputs_path)
        except DegError as error:
            failed[key] = str(error)
            continue
        view, compared = _draw(key, part, chosen, found, damaged, decide, labels.get(key), sketches)
        views.append(view)
        networks[chosen, weights, tuple(round(float(threshold), 4) for threshold in found.thresholds_K)] += 1
        if compared is not None:
            exclusive = (found.activation or config.feature_extractor.final_activation) == "softmax"
            of_part = agreement.setdefault(part, Agreement.zero(len(project.class_names)))
            of_part.add(found.probabilities_TK, *compared, exclusive=exclusive)
    return Recordings(
        views=tuple(sorted(views, key=lambda view: (view.mean_f1 is None, view.mean_f1, view.key))),
        tables=tuple(
            agreement[part].table(title, project.class_names) for part, title in TITLES.items() if part in agreement
        ),
        networks=tuple(Network(*which, recordings=count) for which, count in networks.most_common()),
        parts=tuple(_summarise(project, config, records, labels, part_of, views)),
        failed=failed,
    )


def _draw(
    key: str,
    part: str,
    group: str,
    found: Predictions,
    damaged: tuple[range, ...],
    decide: Postprocessor,
    labels_TK: np.ndarray | None,
    sketches: Sketchbook,
) -> tuple[RecordingView, tuple[np.ndarray, np.ndarray] | None]:
    """Return what the page shows of a recording; and predictions and labels, if they can be compared."""
    predictions_TK = decide(found.probabilities_TK, found.thresholds_K)
    note = f"Damaged frames of the video: {show_ranges(damaged)}. " if damaged else ""
    if labels_TK is not None and len(labels_TK) != len(predictions_TK):
        note += f"Labels left out: they have {len(labels_TK)} rows, the results {len(predictions_TK)} frames."
        labels_TK = None
    lines = {} if decide.argmax else dict(enumerate(found.thresholds_K[1:].tolist(), start=1))
    figure = figures.ethogram_strip(found.probabilities_TK, predictions_TK, labels_TK, lines)
    f1: tuple[float | None, ...] = (None,) * len(found.class_names)
    labelled = 0
    if labels_TK is not None:
        confusion_K22 = binary_confusion(predictions_TK, labels_TK)
        labelled = int(confusion_K22[0].sum())
        # if a class does not occur and was not predicted, F1 says nothing
        matters_K = confusion_K22[:, 0, 0] < labelled
        by_class = zip(epoch_metrics(confusion_K22).f1_by_class.tolist(), matters_K, strict=True)
        f1 = tuple(score if matters else None for score, matters in by_class)
    known = [score for score in f1[1:] if score is not None]
    view = RecordingView(
        key=key,
        part=part,
        group=group,
        frames=len(predictions_TK),
        frames_per_column=figures.frames_per_column(len(predictions_TK)),
        strip=sketches.add("recording", figure),
        f1=f1,
        mean_f1=sum(known) / len(known) if known else None,
        labelled=labelled,
        note=note,
    )
    return view, (predictions_TK, labels_TK) if labels_TK is not None and labelled else None


def _read_labels(project: Project, notices: list[str]) -> dict[str, np.ndarray]:
    """Return the labels of the recordings that have some, by key, repaired as for training."""
    labels = {}
    for record in project.records.values():
        if record.labels is None:
            continue
        try:
            labels[record.key] = repair(read_labels(record.labels, project.class_names))
        except LabelError as error:
            notices.append(f"Labels left out. {error}")
    return labels


def _read_parts(project: Project, config: schema.Config, notices: list[str]) -> dict[str, str]:
    """Return the part of the split that each recording is in."""
    file = project.split_file(config.split.file)
    if not file.is_file():
        return {}
    try:
        parts, _ = read_split(file)
    except ProjectError as error:
        notices.append(str(error))
        return {}
    return {key: part for part in reversed(PARTS) for key in parts[part]}


def _check(found: Predictions, path: Path, group: str) -> None:
    if len(found.probabilities_TK) == 0 or not np.isfinite(found.probabilities_TK).all():
        problem = "not all are numbers" if len(found.probabilities_TK) else "there are none"
        raise ResultError(
            f"{show_path(path)}: expected probabilities in group {group}, but {problem}. "
            "Run `deg infer --overwrite` for this video."
        )


def _weights_used(path: Path, group: str, project: Project) -> tuple[str, ...]:
    """Return the weights that the results were made with, as they say; files of DeepEthogram do not say."""
    with open_results(path) as file:
        weights = json.loads(file[group].attrs.get(PROVENANCE, "{}")).get("weights", {})
    used = []
    for role, of_role in weights.items():
        weight_file = Path(of_role["path"])
        inside = weight_file.is_relative_to(project.path)
        used.append(f"{role}: {show_path(weight_file.relative_to(project.path) if inside else weight_file)}")
    return tuple(used)


def _summarise(
    project: Project,
    config: schema.Config,
    records: Mapping[str, Record],
    labels: Mapping[str, np.ndarray],
    part_of: Mapping[str, str],
    views: Sequence[RecordingView],
) -> list[PartSummary]:
    """Count recordings and frames by part. A video is opened only if neither results nor labels tell its length."""
    frames = {key: len(labels_TK) for key, labels_TK in labels.items()} | {view.key: view.frames for view in views}
    unknown = {key: record.video for key, record in records.items() if key not in frames and record.video is not None}
    found = probe_all(list(unknown.values()), image_order=config.project.image_order)
    for key, info in zip(unknown, found, strict=True):
        frames[key] = info.num_frames if isinstance(info, VideoInfo) else 0
    parts = []
    for part in (*PARTS, NO_PART):
        keys = [key for key in records if part_of.get(key, NO_PART) == part]
        if keys:
            known = [labels[key] for key in keys if key in labels]
            positives_K = sum(((table == 1).sum(axis=0) for table in known), np.zeros(len(project.class_names), int))
            complete = sum(is_complete(table) for table in known)
            total = sum(frames.get(key, 0) for key in keys)
            parts.append(PartSummary(part, len(keys), complete, total, tuple(positives_K.tolist())))
    return parts
