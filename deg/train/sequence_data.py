"""What sequence networks learn from: stretches of the features of labelled recordings.

A recording is cut into stretches of L = `sequence.sequence_length` frames. The last is filled up with zeros, which have
no labels:

    frames  0 ........ 179 | 180 ...... 359 | 360 .. 411 0 0 0 |

With `sequence.nonoverlapping=false`, training takes a stretch around each frame instead.

The mlp has one label for each window of L frames, that of the frame in its middle, in training and validation alike.
The tcn also gets the frames on both sides of each stretch that its output depends on. They have no labels here, because
they have them in their own stretches. Thus it learns and is judged from exactly what it sees at inference, where a
video is not cut at all. `valid` marks what lies outside the video; networks know nothing else about recordings.

Arrays are named as in deg.types; L counts the frames of a stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from deg.data.keypoints import NUM_KEYPOINT_FEATURES
from deg.data.sequence_input import describe_mark, open_input, require_finite
from deg.errors import ResultError, RunError, show_path
from deg.models import tcn
from deg.options.schema import Config
from deg.runs.plans import TrainingPlan
from deg.train.labels import planned_labels
from deg.types import NUM_FEATURES, Span

IN_MEMORY_BYTES = 4 << 30
"""Features of a part are kept in memory up to this size (a million frames, nine hours); larger ones stay on disk."""
MOST_CONTEXT = tcn.reach(10)
"""Most frames on each side of a stretch: all that 10 layers see. A deeper tcn sees more at inference."""

Item = dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Recording:
    key: str
    labels_TK: np.ndarray
    read: Callable[[int, int], np.ndarray]
    """Features (stop - start, D) of the frames [start, stop), which must lie within the recording."""


class SequenceData(Dataset):
    """One part (train, val or test) of a plan, as stretches that follow each other in the order of the plan.

    An item is {"features": float32 [D, L] (mlp: [D * L]), "labels": int64 [K, L] (mlp: [K]), "sample": its index}, and
    for the tcn also {"valid": bool [L]}, False outside the video; there L includes the frames on both sides. Labels are
    1, 0, or -1 for unknown, padding or context.
    """

    def __init__(self, plan: TrainingPlan, part: str, config: Config):
        """Open the recordings of a part.

        Raises RunError if labels or features have changed since the plan was made, and ResultError, ProjectError or
        LabelError if they cannot be used.
        """
        section = config.sequence
        self._length, self._flat = section.sequence_length, section.arch == "mlp"
        self._context = min(tcn.reach(section.tcn_layers), MOST_CONTEXT) if section.arch == "tcn" else 0
        self._masked = section.arch == "tcn"
        keypoints = section.input_type == "keypoints"
        self._width = width = NUM_KEYPOINT_FEATURES if keypoints else NUM_FEATURES
        frames = sum(plan.videos[key].num_frames for key in plan.parts[part])
        in_memory = keypoints or frames * width * np.dtype(np.float32).itemsize <= IN_MEMORY_BYTES
        self._recordings = [
            _Recording(key, planned_labels(plan, key, config), _reader(plan, key, width, in_memory))
            for key in plan.parts[part]
        ]
        by_frame = self._flat or (part == "train" and not section.nonoverlapping)
        starts = [self._starts(len(recording.labels_TK), by_frame) for recording in self._recordings]
        self._starts_N = np.concatenate([np.empty(0, np.int64), *starts])
        self._recording_N = np.repeat(np.arange(len(starts)), [len(each) for each in starts])
        self.num_features = width * self._length if self._flat else width
        """Number of features that the network is built for: those of a frame or, for the mlp, those of a window."""
        self.labels_NK = np.concatenate(
            [np.empty((0, len(plan.class_names)), np.int8), *(recording.labels_TK for recording in self._recordings)]
        )
        """Labels (N, K) of all frames of the part, each once."""

    def __len__(self) -> int:
        return len(self._starts_N)

    def __getitem__(self, index: int) -> Item:
        recording, start = self._recordings[self._recording_N[index]], int(self._starts_N[index])
        labels_TK, num_frames = recording.labels_TK, len(recording.labels_TK)
        first, stop = start - self._context, start + self._length + self._context
        inside = slice(max(first, 0), min(stop, num_frames))
        place = slice(inside.start - first, inside.stop - first)
        features_LD = np.zeros((stop - first, self._width), np.float32)
        features_LD[place] = recording.read(inside.start, inside.stop)
        features_DL = torch.from_numpy(features_LD.T.copy())
        if self._flat:
            centre_K = labels_TK[start + self._length // 2]
            labels = torch.from_numpy(centre_K.astype(np.int64))
            return {"features": features_DL.flatten(), "labels": labels, "sample": int(index)}
        labels_LK = np.full((stop - first, labels_TK.shape[1]), -1, np.int64)
        own = slice(max(start, 0), min(start + self._length, num_frames))
        labels_LK[own.start - first : own.stop - first] = labels_TK[own]
        item = {"features": features_DL, "labels": torch.from_numpy(labels_LK.T.copy()), "sample": int(index)}
        if self._masked:
            valid_L = np.zeros(stop - first, bool)
            valid_L[place] = True
            item["valid"] = torch.from_numpy(valid_L)
        return item

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        return [self[index] for index in indices]

    def span(self, sample: int) -> Span:
        """Return the frames of a sample, without those outside the video and without context."""
        recording, start = self._recordings[self._recording_N[sample]], int(self._starts_N[sample])
        return Span(recording.key, max(start, 0), min(start + self._length, len(recording.labels_TK)))

    def describe(self, sample: int) -> str:
        span = self.span(sample)
        return f"recording {show_path(span.key)}, frames [{span.start}, {span.stop})"

    def _starts(self, num_frames: int, by_frame: bool) -> np.ndarray:
        """Return the first frame of each stretch; negative if the stretch begins before the video."""
        if by_frame:
            return np.arange(num_frames) - self._length // 2
        return np.arange(0, num_frames, self._length)


def _reader(plan: TrainingPlan, key: str, width: int, in_memory: bool) -> Callable[[int, int], np.ndarray]:
    """Return a function that reads the features of a recording, after checking that they are those of the plan."""
    given, num_frames = plan.inputs[key], plan.videos[key].num_frames
    path, group = given.path, given.group
    what = f"{show_path(path)}, recording `{show_path(key)}`"
    if describe_mark(path, group) != given.mark:
        raise RunError(
            f"{what}: the features have changed since the run was planned: resuming would mix those of two networks. "
            "Train again: a new run starts with the features as they are now."
        )
    with open_input(path, group) as read:
        if (read.num_frames, read.num_features) != (num_frames, width):
            raise ResultError(
                f"{what}: expected {width} features for each of {num_frames} frames, found {read.num_features} for "
                f"each of {read.num_frames}. Run `deg infer feature_extractor --overwrite` for this recording."
            )
        features_TD = read(0, num_frames) if in_memory else None

    def from_disk(start: int, stop: int) -> np.ndarray:
        with open_input(path, group) as read:
            features_TD = read(start, stop)
        require_finite(features_TD, what, first=start)
        return features_TD

    if features_TD is None:
        return from_disk
    require_finite(features_TD, what)
    return lambda start, stop: features_TD[start:stop]
