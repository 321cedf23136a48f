"""Colour statistics of videos, with which every frame is normalised before a network sees it.

`N` counts sampled frames, not pixels. (DeepEthogram before 0.1 counted pixels; projects with N above 1e9 exist.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from deg.data.atomic import write_atomically
from deg.errors import ProjectError, show_path
from deg.options.schema import Normalization
from deg.options.yamlfile import read_yaml, yaml_text

STRIDE = 10
"""Interval between the frames that are sampled when a video is added: every tenth frame."""
STATS_FILE = "stats.yaml"

_LEVELS = np.arange(256) / 255


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared distance from the mean of samples, one mean and one sum per channel."""

    n: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def of(cls, frame_HWC: np.ndarray) -> Moments:
        """Compute the moments of the pixels of a uint8 frame, scaled to 0..1."""
        counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(frame_HWC, -1, 0)])
        n = int(counts[0].sum())
        mean = counts @ _LEVELS / n
        return cls(n, mean, (counts * (_LEVELS - mean[:, None]) ** 2).sum(axis=1))

    def __add__(self, other: Moments) -> Moments:
        """Compute the moments of both sets of samples together (Chan, Golub and LeVeque, 1979)."""
        n = self.n + other.n
        if n == 0:
            return self
        apart = other.mean - self.mean
        mean = (self.n * self.mean + other.n * other.mean) / n
        return Moments(n, mean, self.m2 + other.m2 + apart**2 * (self.n * other.n / n))

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation."""
        return np.sqrt(self.m2 / self.n)


NOTHING = Moments(0, np.zeros(3), np.zeros(3))


def video_statistics(frames: Iterable[np.ndarray], stride: int = STRIDE) -> Normalization:
    """Compute mean and standard deviation over all pixels of frames 0, stride, 2 stride, ... (uint8 RGB HWC)."""
    moments = [Moments.of(frame) for frame in islice(frames, 0, None, stride)]
    if not moments:
        raise ValueError("a video without frames has no statistics")
    total = reduce(Moments.__add__, moments)
    return _normalization(len(moments), total.mean, total.std)


def updated(project: Normalization, video: Normalization) -> Normalization:
    """Return a project's statistics after a video was added: averages of means and of standard deviations, by frames.

    Averaging standard deviations loses the differences between videos. It is DeepEthogram's rule, and models trained by
    either program depend on the numbers; `pooled` gives the exact statistics.
    """
    total = project.N + video.N
    mean, std = (
        (project.N * np.asarray(old) + video.N * np.asarray(new)) / total
        for old, new in ((project.mean, video.mean), (project.std, video.std))
    )
    return _normalization(total, mean, std)


def pooled(videos: Iterable[Normalization]) -> Normalization:
    """Return the statistics of all frames of all videos together, as if each frame had the same number of pixels."""
    total = sum((Moments(v.N, np.asarray(v.mean), v.N * np.asarray(v.std) ** 2) for v in videos), NOTHING)
    return _normalization(total.n, total.mean, total.std) if total.n else Normalization()


def read_stats(path: Path) -> Normalization:
    """Read the statistics in a stats.yaml. Raises ProjectError if they make no sense, OSError if there is no file."""
    return parse_normalization(read_yaml(path, ProjectError).get("normalization"), where=show_path(path))


def write_stats(path: Path, statistics: Normalization) -> None:
    write_atomically(path, yaml_text({"normalization": as_dict(statistics)}))


def parse_normalization(content: Any, *, where: str) -> Normalization:
    """Parse `{N, mean, std}` as found in YAML. Raises ProjectError if it makes no sense."""
    try:
        n, mean, std = content["N"], content["mean"], content["std"]
        numbers = [float(number) for number in (n, *mean, *std)]
        sound = len(mean) == len(std) == 3 and all(map(math.isfinite, numbers)) and n >= 0
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ProjectError(
            f"{where}: expected `normalization` with N (frames), mean and std (three numbers each), found {content!r}. "
            "Correct it, or remove it and add the videos again."
        )
    return _normalization(int(n), mean, std)


def as_dict(statistics: Normalization) -> dict[str, Any]:
    """Return statistics in the form in which DeepEthogram reads them."""
    return {"N": statistics.N, "mean": list(statistics.mean), "std": list(statistics.std)}


def _normalization(n: int, mean: Iterable[float], std: Iterable[float]) -> Normalization:
    red, green, blue = (float(value) for value in mean)
    std_red, std_green, std_blue = (float(value) for value in std)
    return Normalization(n, (red, green, blue), (std_red, std_green, std_blue))
