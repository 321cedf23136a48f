"""The labels of a plan's recordings, as networks learn from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deg.arithmetic.sampling import generator
from deg.data.labels import read_labels, repair, single_positive
from deg.errors import RunError, show_path
from deg.options.schema import Config
from deg.runs.networks import sha256
from deg.runs.plans import TrainingPlan


def planned_labels(plan: TrainingPlan, key: str, config: Config) -> np.ndarray:
    """Labels int8 (T, K) of one recording: 1, 0, or -1 where nobody has looked.

    Frames without any behaviour are background; of classes that exclude each other (softmax) one stays, the same in
    every run of the same seed. RunError if the file is not the one that was planned with, LabelError if it has not one
    row for each frame.
    """
    path = Path(plan.labels[key]["path"])
    try:
        found = sha256(path)
    except OSError as error:
        raise RunError(
            f"{show_path(path)}: the labels went away since the run was planned ({error.strerror}). Put them back, or "
            "train again without this recording."
        ) from error
    if found != plan.labels[key]["sha256"]:
        raise RunError(
            f"{show_path(path)}: the labels have changed since the run was planned: going on would mix two versions. "
            "Train again; it begins anew with the labels as they are now."
        )
    labels_TK = repair(read_labels(path, plan.class_names, plan.videos[key].num_frames))
    if config.feature_extractor.final_activation == "softmax":
        labels_TK = single_positive(labels_TK, generator(config.train.seed, f"labels of {key}", 0))
    return labels_TK
