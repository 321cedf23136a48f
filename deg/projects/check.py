"""Find out what is in a project and what is wrong with it, before days of computing are lost.

Videos are read in child processes (`deg.data.video.decoder`), so that a damaged one cannot crash the check. Nothing is
written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deg.arithmetic.ranges import show_ranges
from deg.arithmetic.splits import PARTS, Parts
from deg.data.atomic import PART
from deg.data.labels import inspect_labels, is_complete
from deg.data.results import check_writable, open_results, read_predictions
from deg.data.stats import STATS_FILE, read_stats
from deg.data.video.decoder import Inspection
from deg.data.video.probing import inspect_all, probe_all
from deg.errors import ProjectError, ResultError, VideoError, show_path
from deg.options.schema import Config
from deg.projects.inventory import warnings
from deg.projects.project import Project, read_split
from deg.runs.networks import TrainedRun, scan
from deg.types import Issue, Record, VideoInfo

PROJECT = ""
"""The key of issues that concern no particular recording."""
PIXELS_NOT_FRAMES = 100_000_000
"""From this count on, statistics were made from pixels, not frames: DeepEthogram before 0.1 counted pixels."""


@dataclass(frozen=True)
class RecordingReport:
    """What one recording holds."""

    key: str
    video: str | None
    frames: int | None
    """Number of frames that the container claims; None if the video cannot be opened."""
    frames_decoded: int | None
    """Number of frames that can be decoded; None without `deep`, or if the video cannot be opened."""
    width: int | None
    height: int | None
    fps: float | None
    labels: str
    """State of the labels: none, complete, partial (some frames are -1) or unusable."""
    frames_labelled: int
    positives: Mapping[str, int]
    """Positive frames of each class; empty where there are no usable labels."""
    results: Mapping[str, int]
    """Number of frames in each group of the outputs file."""
    part: str | None
    """Part of the split: train, val or test; None if the split file does not name the recording."""


@dataclass(frozen=True)
class WeightsReport:
    """A trained network that can be used."""

    model: str
    arch: str
    path: str


@dataclass(frozen=True)
class CheckReport:
    """Everything that was found. Issues of the project come first, then those of each recording."""

    path: str
    deep: bool
    class_names: tuple[str, ...]
    recordings: tuple[RecordingReport, ...]
    positives: Mapping[str, Mapping[str, int]]
    """Positive frames of each class in each part of the split, over completely labelled recordings."""
    weights: tuple[WeightsReport, ...]
    issues: tuple[Issue, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no issues other than warnings."""
        return all(issue.severity != "error" for issue in self.issues)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self) | {"ok": self.ok}


def check_project(project: Project, config: Config, deep: bool = False) -> CheckReport:
    """Read everything in a project; with `deep`, decode every frame. Faults become issues, not exceptions."""
    parts, issues = _check_split(project, config)
    part_of = {key: name for name in reversed(PARTS) for key in parts[name]}
    records = list(project.records.values())
    seen = _look(records, config, deep)

    recordings = []
    for record in records:
        report, found = _check_record(record, project, config, seen.get(record.key), part_of.get(record.key))
        recordings.append(report)
        issues += found
    weights = _trained(project)
    positives = _positives_by_part(recordings, project.class_names)
    issues += _check_classes(recordings, positives, project.class_names)
    issues += _check_normalization(project)
    issues += _check_folder(project)
    if not any(run.model == "feature_extractor" for run in weights):
        issues.append(_warn(PROJECT, "there are no weights of a feature extractor: train one before inference."))
    return CheckReport(
        path=show_path(project.path),
        deep=deep,
        class_names=project.class_names,
        recordings=tuple(recordings),
        positives=positives,
        weights=tuple(WeightsReport(run.model, run.arch, show_path(run.weights)) for run in weights),
        issues=tuple(
            Issue(show_path(issue.key), issue.severity, issue.message)
            for issue in sorted(issues, key=lambda issue: (issue.key, issue.severity))
        ),
    )


# ---------------------------------------------------------------------------------------------------- recordings


Seen = Inspection | VideoInfo | VideoError
"""What was learned by decoding a whole video, or by only opening it, or why it cannot be opened."""


def _look(records: Iterable[Record], config: Config, deep: bool) -> dict[str, Seen]:
    videos = {record.key: record.video for record in records if record.video is not None}
    paths = list(videos.values())
    image_order, seen = config.project.image_order, list[Seen]()
    if deep:
        seen += inspect_all(paths, image_order=image_order)
    else:
        seen += probe_all(paths, frame_count=config.inference.frame_count, image_order=image_order)
    return dict(zip(videos, seen, strict=True))


def _check_record(
    record: Record, project: Project, config: Config, seen: Seen | None, part: str | None
) -> tuple[RecordingReport, list[Issue]]:
    key, issues = record.key, warnings(record, config.project.image_order)
    info, decoded = (seen.info, seen.decodable) if isinstance(seen, Inspection) else (seen, None)
    if isinstance(info, VideoError):
        issues.append(Issue(key, "error", str(info)))
        info = None
    believed = info.num_frames if info else None
    if isinstance(seen, Inspection) and seen.error:
        if seen.is_complete and config.inference.damaged_frames == "keep":
            message = f"{show_path(seen.path)}: damaged frames are kept, as inference.damaged_frames=keep says"
            issues.append(_warn(key, f"{message}: {show_ranges(seen.damaged)}."))
        elif info and config.inference.frame_count == "decoded":
            believed = decoded
            message = f"{show_path(info.path)}: claims {info.num_frames} frames, {decoded} can be decoded and are used"
            issues.append(
                _warn(key, f"{message}, as inference.frame_count=decoded says. Its labels need {decoded} rows.")
            )
        else:
            issues.append(Issue(key, "error", str(seen.error)))

    labels_TK, status = None, "none"
    if record.labels is not None:
        labels_TK, found = inspect_labels(record.labels, project.class_names, believed, key=key)
        issues += found
        status = "unusable" if labels_TK is None else "complete" if is_complete(labels_TK) else "partial"
        if labels_TK is not None:
            issues += _check_marks(key, labels_TK)
    results, found = _check_results(record, project.class_names, believed)
    report = RecordingReport(
        key=show_path(key),
        video=show_path(record.video.name) if record.video else None,
        frames=info.num_frames if info else None,
        frames_decoded=decoded if info else None,
        width=info.width if info else None,
        height=info.height if info else None,
        fps=info.fps if info else None,
        labels=status,
        frames_labelled=0 if labels_TK is None else int((labels_TK >= 0).all(axis=1).sum()),
        positives={} if labels_TK is None else _count(labels_TK, project.class_names),
        results=results,
        part=part,
    )
    return report, issues + found


def _check_marks(key: str, labels_TK: np.ndarray) -> Iterator[Issue]:
    nothing = int((labels_TK == 0).all(axis=1).sum())
    if nothing:
        yield _warn(
            key, f"{nothing} frames have no label at all, not even background; training takes them for background."
        )
    both = int(((labels_TK[:, 0] == 1) & (labels_TK[:, 1:] == 1).any(axis=1)).sum())
    if both:
        yield _warn(key, f"{both} frames are background and a behaviour at once. Correct them in the label file.")


def _check_results(
    record: Record, class_names: Sequence[str], num_frames: int | None
) -> tuple[dict[str, int], list[Issue]]:
    key, path = record.key, record.outputs
    issues = []
    try:
        if record.video is not None:
            check_writable(record.outputs_path)
    except ResultError as error:
        issues.append(Issue(key, "error", str(error)))
    if path is None:
        return {}, issues
    try:
        with open_results(path) as file:
            groups = list(file)
    except ResultError as error:
        # a fault of the file that results are written to was found just now
        return {}, issues if path == record.outputs_path and issues else [*issues, _warn(key, str(error))]
    if not groups:
        issues.append(
            _warn(key, f"{show_path(path)}: holds no results; a crash may have left it. Run `deg infer` again.")
        )
    results = {}
    for group in groups:
        try:
            predictions = read_predictions(path, group)
        except ResultError as error:
            issues.append(_warn(key, str(error)))
            continue
        results[group] = len(predictions.probabilities_TK)
        where = f"{show_path(path)}: group {group}"
        if num_frames is not None and results[group] != num_frames:
            issues.append(
                _warn(key, f"{where} has {results[group]} frames, the video {num_frames}. Run `deg infer --overwrite`.")
            )
        if missing := [name for name in class_names if name not in predictions.class_names]:
            issues.append(
                _warn(
                    key,
                    f"{where} has no column for {', '.join(missing)}: made before the behaviours changed. Train again.",
                )
            )
    return results, issues


# ---------------------------------------------------------------------------------------------------- the whole


def _check_split(project: Project, config: Config) -> tuple[Parts, list[Issue]]:
    path = project.split_file(config.split.file)
    parts: Parts = {name: [] for name in PARTS}
    if not path.exists():
        if config.split.file is None:
            return parts, []
        return parts, [
            Issue(PROJECT, "error", f"{show_path(path)}: split.file names it, but it is not there. Correct it.")
        ]
    try:
        parts, _ = read_split(path)
    except ProjectError as error:
        return parts, [Issue(PROJECT, "error", str(error))]
    places = defaultdict(list)
    for name in PARTS:
        for key in parts[name]:
            places[key].append(name)
    issues = [
        _warn(
            PROJECT,
            f"{show_path(path)}: recording `{show_path(key)}` is in {name}, but not in the project; it is skipped.",
        )
        for key, (name, *_) in places.items()
        if key not in project.records
    ]
    issues += [
        _warn(
            key,
            f"{show_path(path)}: it is in {' and '.join(names)}, so scores on it are too good. Keep it in one of them.",
        )
        for key, names in places.items()
        if len(names) > 1
    ]
    if places and (new := [key for key in project.records if key not in places]):
        issues.append(
            _warn(PROJECT, f"{len(new)} recordings are not in {show_path(path)} yet; training will assign them.")
        )
    return parts, issues


def _positives_by_part(recordings: Iterable[RecordingReport], class_names: Sequence[str]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for recording in recordings:
        if recording.labels == "complete":
            counts = total.setdefault(recording.part or "unassigned", dict.fromkeys(class_names, 0))
            for name, count in recording.positives.items():
                counts[name] += count
    return total


def _check_classes(
    recordings: Sequence[RecordingReport], positives: Mapping[str, Mapping[str, int]], class_names: Sequence[str]
) -> Iterator[Issue]:
    complete = sum(recording.labels == "complete" for recording in recordings)
    if complete < 2:
        yield _warn(
            PROJECT,
            f"{complete} of {len(recordings)} recordings are labelled completely; training needs at least two, one to "
            "learn from and one to evaluate on. Label more, or import labels.",
        )
    for name in class_names if complete else ():
        if not any(counts[name] for counts in positives.values()):
            yield _warn(PROJECT, f"no labelled recording has a frame of `{name}`: it cannot be learned.")
        elif "unassigned" not in positives:
            for part in ("train", "val"):
                if not positives.get(part, {}).get(name):
                    yield _warn(
                        PROJECT,
                        f"no labelled recording of {part} has a frame of `{name}`. Label more recordings, or move one "
                        "in the split file.",
                    )


def _check_normalization(project: Project) -> Iterator[Issue]:
    try:
        statistics = project.normalization
    except ProjectError as error:
        yield Issue(PROJECT, "error", str(error))
        return
    where = f"{show_path(project.config_file)}: augs.normalization"
    if min(statistics.std) <= 0 or not all(0 <= mean <= 1 for mean in statistics.mean) or max(statistics.std) > 0.5:
        yield Issue(
            PROJECT,
            "error",
            f"{where}: expected means from 0 to 1 and standard deviations above 0 and up to 0.5, found mean "
            f"{list(statistics.mean)}, std {list(statistics.std)}. Correct it, or add the videos to a new project.",
        )
        return
    if statistics.N >= PIXELS_NOT_FRAMES:
        yield _warn(PROJECT, f"{where}.N counts pixels ({statistics.N}), not frames; new videos hardly change it.")
        return
    counted = 0
    for record in project.records.values():
        path = record.folder / STATS_FILE
        try:
            counted += read_stats(path).N if path.exists() else 0
        except PermissionError:
            return  # reported with the recording
        except ProjectError as error:
            yield _warn(record.key, str(error))
            return
    if counted != statistics.N:
        yield _warn(
            PROJECT,
            f"{where}: made from {statistics.N} frames, but the recordings' {STATS_FILE} count {counted}: videos were "
            "added twice, removed, or added by hand. Networks that are already trained need the numbers as they are.",
        )


def _check_folder(project: Project) -> Iterator[Issue]:
    by_stem = defaultdict(list)
    for record in project.records.values():
        if record.video is not None:
            by_stem[record.video.stem].append(record.key)
    for stem, keys in by_stem.items():
        if len(keys) > 1:
            yield _warn(
                PROJECT,
                f"{len(keys)} recordings have a video called `{show_path(stem)}` ({show_path(', '.join(keys))}): files "
                "exported from them will have the same name. Is one a copy of the other?",
            )
    for left in sorted(project.data_path.glob(f".*{PART}")):
        yield _warn(
            PROJECT, f"{show_path(left)}: left by a `deg add` that was killed. Remove it, unless one is running now."
        )
    if not project.records:
        yield _warn(PROJECT, f"{show_path(project.data_path)} holds no recordings. Add videos with `deg add`.")


def _trained(project: Project) -> list[TrainedRun]:
    roots: list[Path] = [root for root in (project.model_path, project.pretrained_path) if root and root.is_dir()]
    runs = {run.weights.resolve(): run for root in roots for run in scan(root)}
    return list(runs.values())


def _count(labels_TK: np.ndarray, class_names: Sequence[str]) -> dict[str, int]:
    return dict(zip(class_names, (int(count) for count in (labels_TK == 1).sum(axis=0)), strict=True))


def _warn(key: str, message: str) -> Issue:
    return Issue(key, "warning", message)
