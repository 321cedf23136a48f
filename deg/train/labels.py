"""The labels of a plan's recordings, as networks learn from them."""

from __future__ import annotations

import numpy as np

from deg.arithmetic.sampling import generator
from deg.data.digest import sha256
from deg.data.labels import read_labels, repair, single_positive
from deg.errors import RunError, show_path
from deg.options.schema import Config
from deg.runs.plans import TrainingPlan


def planned_labels(plan: TrainingPlan, key: str, config: Config) -> np.ndarray:
    """Return the labels of one recording, int8 (T, K): 1, 0, or -1 where nobody has looked.

    Frames without any behaviour are background. If classes exclude each other (softmax), each frame keeps one label,
    the same in every run with the same seed. Raises RunError if the file is not the one of the plan, LabelError if it
    does not have one row for each frame.
    """
    path = plan.labels[key].path
    try:
        found = sha256(path)
    except OSError as error:
        raise RunError(
            f"{show_path(path)}: the labels cannot be read ({error.strerror}), but the run was planned with them. Put "
            "them back, or train again without this recording."
        ) from error
    if found != plan.labels[key].sha256:
        raise RunError(
            f"{show_path(path)}: the labels have changed since the run was planned: resuming would mix two versions. "
            "Train again: a new run starts with the labels as they are now."
        )
    labels_TK = repair(read_labels(path, plan.class_names, plan.videos[key].num_frames))
    if config.feature_extractor.final_activation == "softmax":
        labels_TK = single_positive(labels_TK, generator(config.train.seed, f"labels of {key}", 0))
    return labels_TK
