"""How training went, epoch by epoch: `classification_metrics.h5`, `opticalflow_metrics.h5`, and metrics.jsonl.

    /train, /val                             one row per epoch in each dataset
        loss  data_loss  reg_loss  fps  lr   lr in train only
        f1_class_mean  f1_by_class  ...      scores at the thresholds chosen in this epoch
        metrics_by_threshold/optimum  ...    curves over 200 thresholds
    /test                                    the same with one row, if there is a test part; DeepEthogram has none
    attributes                               key_metric, key_metric_mode, num_parameters

Names, dtypes and shapes equal those of DeepEthogram 0.5.0, whose inference and GUI read the thresholds here. That
program adds to the file in place, so a killed training leaves it torn. Here the whole file is written under a temporary
name and renamed after each epoch.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import ArrayLike

from deg.arithmetic.metrics import EpochMetrics, ThresholdMetrics
from deg.data.atomic import write_atomically
from deg.data.json_lines import read_lines
from deg.errors import RunError, show_path

Row = Mapping[str, ArrayLike]
"""Results of one pass over a part of the data: {name of the dataset: number or array}."""
Mode = Literal["min", "max"]

PARTS = ("train", "val")
BY_THRESHOLD = "metrics_by_threshold/"
OLD_CURVES = "threshold_curves"
"""Group in which files of older versions keep the curves, such as `threshold_curves/val/optimum`."""
FALLING = frozenset({"loss", "data_loss", "reg_loss", "SSIM", "L1", "smoothness"})
"""Metrics where less is better; files of older versions do not say this of their key metric."""

_FLOAT32 = FALLING | {
    "auroc_class_mean",
    "mAP_class_mean",
    "auroc_by_class",
    "mAP_by_class",
    f"{BY_THRESHOLD}auroc",
    f"{BY_THRESHOLD}mAP",
}
_INT64 = {"binary_confusion", f"{BY_THRESHOLD}confusion"}


def classification_row(by_threshold: ThresholdMetrics, epoch: EpochMetrics, **others: ArrayLike) -> dict[str, Any]:
    """Make a row for a classifier; `others` are loss, data_loss, reg_loss, fps and (in training) lr."""
    return {
        **others,
        **vars(epoch),
        # DeepEthogram has these two names but never a value for them
        "auroc_overall": np.nan,
        "mAP_overall": np.nan,
        "auroc_by_class": by_threshold.auroc,
        "auroc_class_mean": by_threshold.auroc.mean(),
        "mAP_by_class": by_threshold.mAP,
        "mAP_class_mean": by_threshold.mAP.mean(),
        **{BY_THRESHOLD + name: values for name, values in vars(by_threshold).items()},
    }


@dataclass(eq=False)
class MetricsFile:
    """The metrics of one training. Rows are held in memory; each change writes the whole file anew."""

    path: Path
    key_metric: str
    """Name of the metric in `val` that decides which epoch is best."""
    key_metric_mode: Mode
    num_parameters: int | None
    """Number of parameters of the network; None if it is not known."""
    _columns: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=lambda: {"train": {}, "val": {}})
    """{part: {name: one value per epoch}}"""

    @classmethod
    def open(cls, path: Path) -> MetricsFile:
        """Read the file, which may also be one of DeepEthogram. Raises RunError if it cannot be read.

        If DeepEthogram was killed while training, the file may hold an unfinished epoch, which is left out.
        """
        try:
            # No lock: on many shared file systems asking for one fails, and a reader needs none.
            with h5py.File(path, "r", locking=False) as file:
                columns = {part: _read_part(file, part) for part in (*PARTS, "test") if part in file}
                attributes = dict(file.attrs)
        except FileNotFoundError:
            raise RunError(f"{show_path(path)}: expected the metrics of a training, but nothing is there.") from None
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise RunError(
                f"{show_path(path)}: this is not a readable metrics file ({error}). Move it away; the metrics of past "
                "epochs are lost, the networks are not."
            ) from error
        if not set(PARTS) <= columns.keys():
            found = ", ".join(columns) or "neither"
            raise RunError(
                f"{show_path(path)}: expected metrics of train and val, found {found}. Is it the file of a training?"
            )
        epochs = min((len(values) for part in PARTS for values in columns[part].values()), default=0)
        key_metric = str(attributes.get("key_metric", "loss"))
        parameters = attributes.get("num_parameters")
        return cls(
            path=path,
            key_metric=key_metric,
            key_metric_mode=attributes.get("key_metric_mode", "min" if key_metric in FALLING else "max"),
            num_parameters=None if parameters is None else int(parameters),
            _columns={
                part: {name: list(values[: 1 if part == "test" else epochs]) for name, values in of_part.items()}
                for part, of_part in columns.items()
            },
        )

    @property
    def num_epochs(self) -> int:
        """Number of epochs that have rows: 0, 1, ..., num_epochs - 1."""
        return max((len(values) for part in PARTS for values in self._columns[part].values()), default=0)

    def names(self, part: str) -> tuple[str, ...]:
        """Return the names of the metrics of `train`, `val` or `test`; none if that part has no row."""
        return tuple(self._columns.get(part, ()))

    def values(self, part: str, name: str) -> np.ndarray:
        """Return all rows of a dataset, epochs first. Raises KeyError if there is none of this name."""
        return np.stack(self._columns[part][name])

    def best_epoch(self) -> int | None:
        """Return the first epoch in which the key metric was best; None if it never had a value."""
        scores = self._columns["val"].get(self.key_metric, [])
        known = [(float(score), epoch) for epoch, score in enumerate(scores) if np.isfinite(score)]
        if not known:
            return None
        return min(known)[1] if self.key_metric_mode == "min" else min((-score, epoch) for score, epoch in known)[1]

    def append(self, train: Row, val: Row) -> None:
        """Add an epoch. Raises ValueError if its names or shapes differ from those of the epochs before.

        Raises OSError if the disk is full; the file then stays as it was.
        """
        columns = {
            part: {
                name: [*self._columns[part].get(name, []), _typed(name, value)] for name, value in sorted(row.items())
            }
            for part, row in (("train", train), ("val", val))
        }
        epochs = self.num_epochs + 1
        for part, of_part in columns.items():
            expected = self._columns[part]
            if epochs > 1 and of_part.keys() != expected.keys():
                raise ValueError(f"{part}: expected {sorted(expected)}, got {sorted(of_part)}")
            for name, values in of_part.items():
                if values[-1].shape != values[0].shape:
                    raise ValueError(f"{part}/{name}: expected shape {values[0].shape}, got {values[-1].shape}")
        self._write(self._columns | columns)

    def truncate(self, epochs: int) -> None:
        """Keep only the first epochs, for a training that resumes from there. The test part is removed too."""
        if epochs > self.num_epochs:
            raise ValueError(f"expected at most {self.num_epochs} epochs, got {epochs}")
        if epochs < self.num_epochs or "test" in self._columns:
            kept = {name: {key: rows[:epochs] for key, rows in self._columns[name].items()} for name in PARTS}
            self._write(kept if epochs else {"train": {}, "val": {}})

    def write_test(self, row: Row) -> None:
        """Set the one row of the test part."""
        self._write(self._columns | {"test": {name: [_typed(name, value)] for name, value in sorted(row.items())}})

    def _write(self, columns: dict[str, dict[str, list[np.ndarray]]]) -> None:
        """Write the file first, then change what is held in memory: a full disk leaves both as they were."""
        # made in memory: HDF5 itself cannot survive a full disk (see deg.data.results.new_hdf5)
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            file.attrs["key_metric"], file.attrs["key_metric_mode"] = self.key_metric, self.key_metric_mode
            if self.num_parameters is not None:
                file.attrs["num_parameters"] = self.num_parameters
            for part, of_part in columns.items():
                group = file.create_group(part)
                for name, values in of_part.items():
                    rows = np.stack(values)
                    # resizable, with one epoch per chunk, as DeepEthogram makes them
                    group.create_dataset(name, data=rows, maxshape=(None, *rows.shape[1:]), chunks=(1, *rows.shape[1:]))
        write_atomically(self.path, content.getvalue())
        self._columns = columns


def _typed(name: str, value: ArrayLike) -> np.ndarray:
    return np.asarray(value, np.float32 if name in _FLOAT32 else np.int64 if name in _INT64 else np.float64)


def _read_part(file: h5py.File, part: str) -> dict[str, np.ndarray]:
    """Read {name: rows} of a part. What does not grow with the losses belongs to another layout and is left out."""
    found: dict[str, np.ndarray] = {}

    def take(prefix: str, name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim:
            found[prefix + name] = item[()]

    file[part].visititems(lambda name, item: take("", name, item))
    if isinstance(curves := file.get(f"{OLD_CURVES}/{part}"), h5py.Group):
        curves.visititems(lambda name, item: take(BY_THRESHOLD, name, item))
    epochs = len(found.get("loss", ()))
    # there may be one row less: the writer was killed in between
    return {name: rows for name, rows in found.items() if len(rows) >= epochs - 1}


# ---------------------------------------------------------------------------------------------------- metrics.jsonl


def without_tables(row: Row) -> dict[str, Any]:
    """Return a row for metrics.jsonl: plain values without the curves over thresholds, None for what is not finite."""
    return {name: _plain(value) for name, value in row.items() if not name.startswith(BY_THRESHOLD)}


def truncate_lines(path: Path, epochs: int) -> None:
    """Keep the lines of epochs below `epochs`, for a training that resumes from there."""
    kept = [line for line in read_lines(path) if line.get("epoch", epochs) < epochs]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))


def _plain(value: ArrayLike) -> Any:
    """Return a number or lists of numbers, with None for what is not finite: JSON has no NaN."""
    array = np.asarray(value)
    if array.ndim:
        return [_plain(item) for item in array]
    return array.item() if np.isfinite(array) else None
