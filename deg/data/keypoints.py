"""Keypoints of a mouse, tracked by DeepLabCut, as features that a sequence network reads.

The CSV has three rows of names (scorer, bodyparts, coords), then one row per frame: its number, and x, y and likelihood
of each part. Points that the tracker was not sure of are put on the line between the nearest frames where it was sure.
DeepEthogram means to do so, but tests the coordinate instead of the likelihood, and never repairs the ends.

    nose - forepaws - hindpaws - tailbase - tailtip, and the centroid of the paws
        positions, as the camera sees them and as the mouse does (tailbase at 0, nose along x): 32
        angles of the tail and of each paw: 5     distances within the body: 6     its area: 1

Letters in the names of arrays: T frames, P parts, D features.
"""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from deg.errors import ProjectError, show_path

PARTS = ("nose", "forepaw_l", "forepaw_r", "hindpaw_l", "hindpaw_r", "tailbase", "tailtip")
NUM_KEYPOINT_FEATURES = 44
SURE = 0.9
"""Lowest likelihood at which a point is trusted."""
LEAST_STD = 1e-6
"""Smallest standard deviation that a feature is divided by."""

_HEADER = ("scorer", "bodyparts", "coords")
_COORDS = ("x", "y", "likelihood")


class KeypointReader:
    """Reads the keypoint features of one recording; used like `deg.data.results.FeatureReader`."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> KeypointReader:
        points_TP2, likelihood_TP = read_keypoints(self.path)
        self._features_TD = standardise(expand(interpolate(points_TP2, likelihood_TP, self.path))).astype(np.float32)
        return self

    def __exit__(self, *exception: Any) -> None:
        del self._features_TD

    @property
    def num_frames(self) -> int:
        return len(self._features_TD)

    @property
    def num_features(self) -> int:
        return self._features_TD.shape[1]

    def __call__(self, start: int, stop: int) -> np.ndarray:
        return self._features_TD[start:stop]


def read_keypoints(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read points (T, 7, 2) in pixels and likelihoods (T, 7) of PARTS, by name. Raises ProjectError if it fails."""
    import pandas as pd  # imported here: it takes half the time in which `deg` starts

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = [[cell.strip() for cell in row] for row in islice(csv.reader(file), len(_HEADER))]
        columns = _columns(path, header)
        table = pd.read_csv(path, header=None, skiprows=len(_HEADER), encoding="utf-8-sig")
        values = table.iloc[:, columns].to_numpy(dtype=np.float64)
    except OSError as error:
        raise _error(path, f"cannot be read ({error.strerror or error})", "Restore the file.") from error
    except pd.errors.EmptyDataError as error:
        raise _error(path, "there are names, but no row of keypoints", "Track the video again.") from error
    except (ValueError, IndexError) as error:  # not UTF-8, rows of unequal length, cells that are not numbers
        raise _error(path, f"not a table of numbers below its three rows of names ({error})", _REMEDY) from error
    values_TPC = values.reshape(len(values), len(PARTS), len(_COORDS))
    return values_TPC[..., :2], values_TPC[..., 2]


_REMEDY = "Save it as DeepLabCut does, one animal per file."


def _columns(path: Path, header: list[list[str]]) -> list[int]:
    """Return the columns of x, y and likelihood of each of PARTS in turn."""
    names = [row[0].lower() if row else "" for row in header]
    if names != list(_HEADER):
        remedy = "Export each animal to a file of its own." if "individuals" in names else _REMEDY
        raise _error(path, f"expected rows that begin with {', '.join(_HEADER)}, found {', '.join(names)}", remedy)
    place = {name: column for column, name in enumerate(zip(header[1], header[2], strict=False)) if column}
    found = sorted({part for part, _ in place})
    if set(found) != set(PARTS):
        raise _error(
            path,
            f"expected the parts {', '.join(PARTS)}, found {', '.join(found) or 'none'}",
            "Rename the parts, or train on features (sequence.input_type=features).",
        )
    wanted = [(part, coord) for part in PARTS for coord in _COORDS]
    if missing := [" ".join(name) for name in wanted if name not in place]:
        raise _error(path, f"expected x, y and likelihood of each part; {', '.join(missing)} missing", _REMEDY)
    return [place[name] for name in wanted]


def interpolate(points_TP2: np.ndarray, likelihood_TP: np.ndarray, path: Path) -> np.ndarray:
    """Move points that are not sure onto the line between the nearest sure ones.

    Before the first sure point and after the last one, that point is repeated. Raises ProjectError if a part is never
    sure.
    """
    sure_TP = (likelihood_TP >= SURE) & np.isfinite(points_TP2).all(axis=2)
    frames = np.arange(len(points_TP2))
    repaired_TP2 = points_TP2.copy()
    for p, part in enumerate(PARTS):
        sure_T = sure_TP[:, p]
        if not sure_T.any():
            raise _error(
                path,
                f"{part} has no frame with a likelihood of {SURE} or more",
                "Track the video again with a better network, or take the recording out of the project.",
            )
        for axis in range(2):
            repaired_TP2[~sure_T, p, axis] = np.interp(frames[~sure_T], frames[sure_T], points_TP2[sure_T, p, axis])
    return repaired_TP2


def expand(points_TP2: np.ndarray) -> np.ndarray:
    """Compute 44 features (T, D) from the points (T, 7, 2) of PARTS.

    They are in DeepEthogram's order. DeepEthogram first divides by the size of the picture; `standardise` undoes that.
    """
    paws_TP2 = points_TP2[:, 1:5]
    points_TP2 = np.concatenate([points_TP2, paws_TP2.mean(axis=1, keepdims=True)], axis=1)
    aligned_TP2 = _aligned(points_TP2)
    nose, forepaw_l, forepaw_r, hindpaw_l, hindpaw_r, tailbase, tailtip, _ = np.moveaxis(points_TP2, 1, 0)

    def distance(one_T2: np.ndarray, other_T2: np.ndarray) -> np.ndarray:
        return np.linalg.norm(one_T2 - other_T2, axis=1)

    distances = [
        distance(nose, tailbase),
        distance(tailbase, tailtip),
        (distance(forepaw_l, hindpaw_l) + distance(forepaw_r, hindpaw_r)) / 2,
        (distance(nose, forepaw_l) + distance(nose, forepaw_r)) / 2,
        distance(forepaw_l, forepaw_r),
        distance(hindpaw_l, hindpaw_r),
    ]
    outline_TP2 = np.stack([forepaw_l, nose, forepaw_r, hindpaw_r, tailbase, hindpaw_l], axis=1)
    return np.column_stack(
        [
            points_TP2.reshape(len(points_TP2), -1),
            aligned_TP2.reshape(len(points_TP2), -1),
            _angle(aligned_TP2[:, 6]),
            _angle(aligned_TP2[:, 1:5] - aligned_TP2[:, 7:]),
            *distances,
            _area(outline_TP2),
        ]
    )


def standardise(features_TD: np.ndarray) -> np.ndarray:
    """Subtract from each feature its mean over the recording, and divide it by its standard deviation there."""
    return (features_TD - features_TD.mean(axis=0)) / np.maximum(features_TD.std(axis=0), LEAST_STD)


def _aligned(points_TP2: np.ndarray) -> np.ndarray:
    """Return points as the mouse sees them: the tailbase at the origin, the nose on the positive side of the x axis."""
    nose, tailbase = PARTS.index("nose"), PARTS.index("tailbase")
    from_tailbase_TP2 = points_TP2 - points_TP2[:, tailbase : tailbase + 1]
    heading_T1 = _angle(from_tailbase_TP2[:, nose])[:, None]
    x_TP, y_TP = from_tailbase_TP2[..., 0], from_tailbase_TP2[..., 1]
    cos, sin = np.cos(heading_T1), np.sin(heading_T1)
    return np.stack([cos * x_TP + sin * y_TP, cos * y_TP - sin * x_TP], axis=2)


def _angle(vectors: np.ndarray) -> np.ndarray:
    """Return the angles of vectors (..., 2) from the x axis, in radians, in (-pi, pi]."""
    return np.arctan2(vectors[..., 1], vectors[..., 0])


def _area(outline_TP2: np.ndarray) -> np.ndarray:
    """Return the area of polygons by the shoelace formula."""
    x_TP, y_TP = outline_TP2[..., 0], outline_TP2[..., 1]
    following_x, following_y = np.roll(x_TP, -1, axis=1), np.roll(y_TP, -1, axis=1)
    return np.abs((x_TP * following_y - following_x * y_TP).sum(axis=1)) / 2


def _error(path: Path, problem: str, remedy: str) -> ProjectError:
    return ProjectError(f"{show_path(path)}: {problem}. {remedy}")
