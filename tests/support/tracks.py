"""Keypoints as DeepLabCut writes them, of a mouse that walks about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deg.data.keypoints import PARTS

MOUSE = np.array([[8, 0], [6, 1], [6, -1], [2, 2], [2, -2], [0, 0], [-3, -3]], float)
"""Positions of the PARTS of a mouse with its tailbase at 0, its nose along x, and its tail bent to one side."""


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Return points (..., 2) turned about 0."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def walk(num_frames: int, seed: int = 0) -> np.ndarray:
    """Return the points (T, 7, 2) of a mouse that walks about and twists a little."""
    rng = np.random.default_rng(seed)
    return turned(MOUSE + rng.normal(0, 0.3, (num_frames, 7, 2)), rng.uniform(-3, 3)) + rng.normal(50, 9, 2)


def write_csv(
    path: Path, points_TP2: np.ndarray, likelihood_TP: np.ndarray | None = None, parts: Sequence[str] = PARTS
) -> Path:
    """Write a file of these points; by default, the tracker is sure of all of them."""
    likelihood_TP = np.ones(points_TP2.shape[:2]) if likelihood_TP is None else likelihood_TP
    lines = [
        ",".join(["scorer", *["DLC_resnet50"] * 3 * len(parts)]),
        ",".join(["bodyparts", *[part for part in parts for _ in range(3)]]),
        ",".join(["coords", *["x", "y", "likelihood"] * len(parts)]),
    ]
    for t, (points_P2, likelihood_P) in enumerate(zip(points_TP2, likelihood_TP, strict=True)):
        lines.append(",".join(map(str, [t, *np.column_stack([points_P2, likelihood_P]).ravel()])))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_keypoints(path: Path, num_frames: int, seed: int = 0) -> Path:
    return write_csv(path, walk(num_frames, seed))
