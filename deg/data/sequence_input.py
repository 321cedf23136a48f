"""What a sequence network reads for a recording: features in its outputs file, or keypoints in a CSV file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deg.data.keypoints import KeypointReader
from deg.data.results import FeatureReader, read_mark
from deg.errors import ProjectError, ResultError, show_path
from deg.types import Record

ROWS = 4096
"""Number of frames that are checked together: 16 MB of features."""


def open_input(path: Path, group: str) -> FeatureReader | KeypointReader:
    """Return a context manager with num_frames, num_features, and float32 (stop - start, D) for a call (start, stop).

    `group` of an outputs file holds features; a .csv file holds keypoints and has no group. Using the context raises
    ResultError or ProjectError if they cannot be read.
    """
    return KeypointReader(path) if path.suffix.lower() == ".csv" else FeatureReader(path, group)


def keypoints_of(record: Record) -> Path:
    """Return the CSV of DeepLabCut in the recording's folder. Raises ProjectError if there is none."""
    if record.keypoints is None:
        raise ProjectError(
            f"{show_path(record.folder)}: there are no keypoints. Put the .csv of DeepLabCut, with `DLC` in its name, "
            "into this folder."
        )
    return record.keypoints


def describe_mark(path: Path, group: str) -> str:
    """Return text that differs between versions of an input. Empty for features of DeepEthogram, which leaves no mark.

    Raises ProjectError or ResultError if the file cannot be read.
    """
    if path.suffix.lower() == ".csv":
        try:
            status = path.stat()
        except OSError as error:
            raise ProjectError(f"{show_path(path)}: keypoints cannot be read ({error.strerror}).") from error
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    mark = read_mark(path, group)
    return "" if mark is None else json.dumps(asdict(mark), sort_keys=True)


def require_finite(features_TD: np.ndarray, what: str, *, first: int = 0) -> None:
    """Raise ResultError if a feature is NaN or infinite. The message begins with `what`; row 0 is frame `first`."""
    if np.isfinite(features_TD).all():
        return
    frame, feature = np.argwhere(~np.isfinite(features_TD))[0]
    raise ResultError(
        f"{what}: feature {feature} of frame {first + frame} is {features_TD[frame, feature]}, and no network can "
        "learn from it. Run `deg infer feature_extractor --overwrite` for this recording; if that gives the same, its "
        "weights are damaged."
    )


def require_all_finite(read: Callable[[int, int], np.ndarray], num_frames: int, what: str) -> None:
    """Check a whole recording with `require_finite`, block by block. `read` is what `open_input` gives."""
    for start in range(0, num_frames, ROWS):
        require_finite(read(start, min(start + ROWS, num_frames)), what, first=start)
