"""Export predictions, as the CSV that DeepEthogram writes or as Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deg.arithmetic.ethogram import Postprocessor
from deg.data.atomic import replacing
from deg.data.labels import is_complete, read_labels, write_labels
from deg.data.results import Predictions, describe_refusal, groups, read_predictions
from deg.errors import DegError, LabelError, ResultError, show_path
from deg.options import schema
from deg.projects.project import Project
from deg.types import Record


@dataclass(frozen=True)
class Exported:
    """Files written, by recording, and recordings that could not be exported, each with its reason."""

    written: Mapping[str, Path]
    failed: Mapping[str, str]
    notices: tuple[str, ...] = ()


def export_recordings(
    project: Project,
    config: schema.Config,
    records: Sequence[Record],
    *,
    file_format: str,
    group: str | None = None,
    folder: Path | None = None,
) -> Exported:
    """Write the predictions of each record to a CSV or Parquet file.

    The file is `<video>_predictions.<format>` beside the video, or `<key>_predictions.<format>` in `folder`. If a
    recording has no results, the others are still exported. `group` is the network whose results are exported; None
    means the sequence network, else the feature extractor.
    """
    labels, notices = _finished_labels(project)
    postprocessor = Postprocessor.from_labels(
        config.postprocessor.type,
        config.postprocessor.min_bout_length,
        labels,
        len(project.class_names),
    )
    written: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for record in records:
        stem = record.outputs_path.name.removesuffix("_outputs.h5")
        path = record.outputs_path.with_name(f"{stem}_predictions.{file_format}")
        if folder is not None:  # by key: videos in different folders may have the same name
            path = folder / f"{record.key}_predictions.{file_format}"
        try:
            chosen = group or choose_group(record.outputs_path, config)
            found = in_project_order(read_predictions(record.outputs_path, chosen), project.class_names, record)
            predictions_TK = decided_by(config, postprocessor, found)(found.probabilities_TK, found.thresholds_K)
            path.parent.mkdir(parents=True, exist_ok=True)
            if file_format == "csv":
                write_labels(path, predictions_TK, project.class_names)
            else:
                _write_parquet(path, found, predictions_TK, chosen)
        except DegError as error:
            failed[record.key] = str(error)
        except OSError as error:
            failed[record.key] = describe_refusal(path, error)
        else:
            written[record.key] = path
    return Exported(written, failed, tuple(notices))


def decided_by(config: schema.Config, postprocessor: Postprocessor, found: Predictions) -> Postprocessor:
    """Return the postprocessor, with argmax if the options ask for it.

    Raises ResultError if they do, but the results are not of a softmax network.
    """
    if not config.inference.argmax:
        return postprocessor
    if (found.activation or config.feature_extractor.final_activation) != "softmax":
        raise ResultError(
            "inference.argmax=true is for softmax networks, but these results are of a sigmoid network, where several "
            "behaviours may happen at once. Leave the option out."
        )
    return replace(postprocessor, argmax=True)


def in_project_order(found: Predictions, class_names: Sequence[str], record: Record) -> Predictions:
    """Return the predictions with columns in the order of the project's classes, which the GUI expects.

    Raises ResultError if the classes are not the project's.
    """
    if list(found.class_names) == list(class_names):
        return found
    if sorted(found.class_names) != sorted(class_names):
        raise ResultError(
            f"{show_path(record.outputs_path)}: results are for {', '.join(found.class_names)}, but the project's "
            f"behaviours are {', '.join(class_names)}. Run `deg infer` with a network trained for them."
        )
    order = [found.class_names.index(name) for name in class_names]
    return replace(
        found,
        probabilities_TK=found.probabilities_TK[:, order],
        thresholds_K=found.thresholds_K[order],
        class_names=tuple(class_names),
    )


def choose_group(path: Path, config: schema.Config) -> str:
    """Return the group that the GUI would choose: the sequence network's, else the feature extractor's.

    Raises ResultError if the file has neither.
    """
    there = groups(path)
    wanted = [
        config.sequence.output_name,
        config.sequence.arch,
        config.sequence.latent_name,
        config.feature_extractor.arch,
    ]
    for name in wanted:
        if name in there:
            return name
    raise ResultError(
        f"{show_path(path)}: expected results named {' or '.join(filter(None, wanted))}, "
        f"found {', '.join(there) or 'none'}. Run `deg infer`, or choose with --group."
    )


def _finished_labels(project: Project) -> tuple[list[np.ndarray], list[str]]:
    """Return the labels of fully labelled recordings, from which bout lengths are learned, and what was left out."""
    finished, notices = [], []
    for record in project.records.values():
        if record.labels is None:
            continue
        try:
            labels_TK = read_labels(record.labels, project.class_names)
        except LabelError as error:
            notices.append(f"labels left out: {error}")
            continue
        if is_complete(labels_TK):
            finished.append(labels_TK)
    return finished, notices


def _write_parquet(path: Path, found: Predictions, predictions_TK: np.ndarray, group: str) -> None:
    """Write one row per frame, with probability and prediction of each class; thresholds and group are metadata."""
    import pandas as pd

    columns: dict[str, np.ndarray] = {"frame": np.arange(len(predictions_TK), dtype=np.int64)}
    for k, name in enumerate(found.class_names):
        columns[f"{name}_probability"] = found.probabilities_TK[:, k]
        columns[f"{name}_prediction"] = predictions_TK[:, k]
    table = pd.DataFrame(columns)
    table.attrs = {
        "group": group,
        "thresholds": dict(zip(found.class_names, map(float, found.thresholds_K), strict=True)),
    }
    with replacing(path) as beside:
        table.to_parquet(beside, index=False)
