"""Find trained networks on disk, both DeepEthogram's and deg's, by the files in the folders of their runs.

A run is a folder with a config.yaml (older ones: hyperparameters.yaml) that says what was trained, and a weight file.
A folder that cannot be understood is skipped with a note in the log; one bad folder never hides the others.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol

import h5py
import numpy as np

from deg.data.digest import sha256
from deg.errors import ConfigError, WeightsError, show_path
from deg.options.load import read_run_config
from deg.runs.planned import PlannedFile

log = logging.getLogger(__name__)

CONFIG_FILES = ("hyperparameters.yaml", "config.yaml")
METRICS_FILES = ("classification_metrics.h5", "opticalflow_metrics.h5")
CHECKPOINTS = "lightning_checkpoints"
PLAN, DONE = "plan.json", "done.json"
"""Files that every run of deg has, and that it has once it is done."""
THRESHOLDS = ("val/metrics_by_threshold/optimum", "threshold_curves/val/optimum")
NOT_RUNS = frozenset({CHECKPOINTS, "lightning_logs", "figures", "units", "jobs"})
"""Folders inside runs that never contain runs and are not searched; some hold thousands of files."""


class ModelFolders(Protocol):
    """Where a project keeps its networks."""

    @property
    def model_path(self) -> Path: ...
    @property
    def pretrained_path(self) -> Path | None: ...


# ---------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class TrainedRun:
    """A folder that holds a trained network."""

    folder: Path
    model: str
    """flow_generator, feature_extractor or sequence."""
    arch: str
    date: datetime
    """Date in the folder's name, else when the weights were written; local time."""
    weights: Path
    """The first of `weight_files(folder)`."""

    @property
    def is_ended(self) -> bool:
        """Whether it was trained to its end. DeepEthogram's runs do not tell, and count as ended."""
        return not (self.folder / PLAN).exists() or (self.folder / DONE).exists()


@dataclass(frozen=True)
class RunFiles:
    """The files beside a weight file."""

    folder: Path
    config: dict[str, Any] | None
    """Configuration that it was trained with."""
    metrics: Path | None


def scan(root: Path) -> list[TrainedRun]:
    """Return all trained networks in `root` and its sub-folders, oldest first. Links to folders are followed."""
    runs = [run for folder in _folders(root) if (run := _read_run(folder)) is not None]
    return sorted(runs, key=lambda run: (run.date, run.folder.name))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a run, best first: best checkpoints by epoch, then last.ckpt, then checkpoint.pt.

    A run with several best checkpoints was trained by curriculum, and the earlier ones lack a stream: if parts of the
    network are missing from the first file, the caller must try the next.
    """
    checkpoints = folder / CHECKPOINTS
    best = sorted(checkpoints.glob("*epoch*.ckpt"), key=_checkpoint_order, reverse=True)
    return tuple(path for path in (*best, checkpoints / "last.ckpt", folder / "checkpoint.pt") if path.is_file())


def require_planned(weights: Mapping[str, PlannedFile]) -> None:
    """Raise WeightsError if a weight file has changed since the run was planned: results would be of two networks."""
    for planned in weights.values():
        path = planned.path
        try:
            found = sha256(path)
        except OSError as error:
            raise WeightsError(
                f"{show_path(path)}: the weights cannot be read ({error.strerror}), but the run was planned with them. "
                "Put them back, or run again with others."
            ) from error
        if found != planned.sha256:
            raise WeightsError(
                f"{show_path(path)}: the weights have changed since the run was planned; is a training still writing "
                "them? Run again when they are final: what was computed with the old ones is then computed again."
            )


def companion(weights: Path) -> RunFiles:
    """Return the configuration and metrics file of a weight file, from its folder or the folder above."""
    folders = (weights.parent, weights.parent.parent)
    configs = [path for folder in folders for path in _existing(folder, CONFIG_FILES)]
    metrics = [path for folder in folders for path in _existing(folder, METRICS_FILES)]
    folder = configs[0].parent if configs else folders[weights.parent.name == CHECKPOINTS]
    return RunFiles(folder, _read_config(configs[0]) if configs else None, metrics[0] if metrics else None)


def run_section(config: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Return section `name` of a run's configuration; empty if absent. The oldest files have only the architecture."""
    content = (config or {}).get(name)
    if isinstance(content, str):
        return {"arch": content}
    return dict(content) if isinstance(content, Mapping) else {}


def run_date(name: str) -> datetime | None:
    """Return the date in the name of a run's folder, written as `yymmdd_HHMMSS`; None if there is none."""
    for stamp in re.findall(r"(?<!\d)\d{6}_\d{6}(?!\d)", name):
        try:
            return datetime.strptime(stamp, "%y%m%d_%H%M%S")
        except ValueError:
            continue
    return None


def _folders(root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, subfolders, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if name not in NOT_RUNS)
        yield Path(folder)


def _existing(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _read_run(folder: Path) -> TrainedRun | None:
    configs = _existing(folder, CONFIG_FILES)
    weights = weight_files(folder) if configs else ()
    if not weights:
        return None
    config = _read_config(configs[0])
    if config is None:
        return None
    model, arch = _identity(config)
    if model is None or arch is None:
        log.warning("%s: skipped, because it does not say which network was trained", show_path(configs[0]))
        return None
    date = run_date(folder.name) or datetime.fromtimestamp(weights[0].stat().st_mtime)
    return TrainedRun(folder, model, arch, date, weights[0])


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        return read_run_config(path)
    except ConfigError as error:
        log.warning("skipped: %s", error)
        return None


def _identity(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the network and architecture that a configuration names; None for what it does not name."""
    if "model" in config:
        model = config["model"]
        spare = (config.get("classifier") if model == "feature_extractor" else None) or config.get("arch")
        arch = run_section(config, str(model)).get("arch") or spare
    else:
        model = run_section(config, "run").get("model")
        arch = run_section(config, str(model)).get("arch")
    return model if isinstance(model, str) else None, arch if isinstance(arch, str) else None


def _is_of_deg(weights: Path) -> bool:
    """Whether deg trained these weights. If so, each phase of a curriculum has its own folder and metrics file."""
    return any((folder / PLAN).exists() for folder in list(weights.parents)[:4])


def _checkpoint_order(path: Path) -> tuple[int, int, int, str]:
    """Return epoch, step and version of `epoch=E-step=S-vN.ckpt` as numbers, and the name."""
    numbers = {key: int(number) for key, number in re.findall(r"(epoch=|step=|-v)(\d+)", path.name)}
    return numbers.get("epoch=", -1), numbers.get("step=", -1), numbers.get("-v", 0), path.name


# ---------------------------------------------------------------------------------------------------- which weights


def resolve_weights(
    value: str | None, *, model: str, arch: str, project: ModelFolders, reload_latest: bool = False
) -> Path | None:
    """Return the weight file that `<model>.weights = value` stands for; None only for null without `reload.latest`.

    `pretrained` and `latest` are the newest of this network and architecture. A path may be of a weight file or of a
    run's folder, and starts at the working directory or else at the project's models. Raises WeightsError, which says
    where it looked and what it found.
    """
    if value is None and not reload_latest:
        return None
    if value == "pretrained":
        root, advice = (
            project.pretrained_path,
            f"Put pretrained weights there, or set {model}.weights to latest or a path.",
        )
        if model == "sequence" or root is None:
            reason = "this project has no folder of" if root is None else "for sequence networks there are no"
            raise WeightsError(
                f"{model}.weights = pretrained: {reason} pretrained weights. Set it to latest, a path or null."
            )
    elif value is None or value == "latest":
        root, advice = (
            project.model_path,
            f"Train one with `deg train {model}`, or set {model}.arch or {model}.weights.",
        )
    else:
        return _at_path(value, model, project)
    runs = scan(root)
    chosen = _newest(runs, model, arch, root, advice)
    if value == "pretrained" or chosen.is_ended:
        return chosen.weights
    # an unfinished training still changes its weights, and when it is resumed it must not begin with its own
    ended = [run for run in runs if run.is_ended]
    if not any((run.model, run.arch) == (model, arch) for run in ended):
        raise WeightsError(
            f"{model}.weights = latest: the only {model} {arch} of this project, {show_path(chosen.folder)}, is not "
            f"trained to the end yet. Resume it with `deg train {model}`, or name its weights by their path."
        )
    return _newest(ended, model, arch, root, advice).weights


def _newest(runs: list[TrainedRun], model: str, arch: str, root: Path, advice: str) -> TrainedRun:
    of_model = [run for run in runs if run.model == model]
    fitting = [run for run in of_model if run.arch == arch]
    if not fitting:
        known = ", ".join(sorted({run.arch for run in of_model})) or "none"
        raise WeightsError(
            f"No trained {model} of architecture {arch} in {show_path(root)}; trained architectures found: {known}. "
            f"{advice}"
        )
    return fitting[-1]


def _at_path(value: str, model: str, project: ModelFolders) -> Path:
    given = Path(value).expanduser()
    places = list(dict.fromkeys([Path.cwd() / given, project.model_path / given]))
    for place in places:
        if place.is_file():
            return place
        if files := weight_files(place):
            return files[0]
    looked = " and ".join(show_path(place) for place in places)
    raise WeightsError(
        f"{model}.weights = {value}: no weight file is there, nor a run's folder with {CHECKPOINTS} or "
        f"checkpoint.pt. Looked for {looked}. Set it to an existing path, pretrained or latest."
    )


def training_flow_weights(run_config: Mapping[str, Any], project: ModelFolders) -> tuple[Path | None, str]:
    """Return the flow generator that a feature extractor was trained with, and a sentence that says which and why.

    `run_config` is the training run's configuration. The flow generator is None if the configuration does not name one.
    Raises WeightsError if it does, but the file cannot be found: other flow weights would change the results.
    """
    flow = run_section(run_config, "flow_generator")
    value, arch = flow.get("weights"), str(flow.get("arch") or "TinyMotionNet")
    name = PureWindowsPath(str(run_section(run_config, "run").get("dir") or "of the feature extractor")).name
    advice = f"Run {name} was trained with {value}. Copy that here, or name it with flow_generator.weights."
    if "weights" not in flow:
        return None, f"The configuration of run {name} does not say which flow generator was used."
    if value is None and not run_section(run_config, "reload").get("latest"):
        return None, f"By its configuration, run {name} was trained without a trained flow generator."
    if value is None or value == "latest":
        date = run_date(name)
        runs = [run for run in scan(project.model_path) if date is None or run.date < date]
        chosen = _newest(runs, "flow_generator", arch, project.model_path, advice)
        which = f"newest {arch} before run {name}" if date else f"newest {arch}, as run {name} has no date"
        return chosen.weights, f"Flow generator {chosen.folder.name}: the {which}, which was trained with `latest`."
    if value == "pretrained":
        path = resolve_weights(value, model="flow_generator", arch=arch, project=project)
        return path, f"Flow generator {path}: run {name} was trained with `pretrained`."
    path = _moved(str(value), project)
    if path is None:
        raise WeightsError(f"{value}: not found here, nor its run in {show_path(project.model_path)}. {advice}")
    return path, f"Flow generator {show_path(path)}: named in the configuration of run {name}."


def _moved(value: str, project: ModelFolders) -> Path | None:
    """Find a path from this or another machine here, by its last parts: the run's folder and what follows it."""
    if Path(value).is_absolute() and Path(value).is_file():
        return Path(value)
    there = PureWindowsPath(value)  # takes both kinds of slashes
    parts = [part for part in there.parts if part not in (there.anchor, "..")]
    for start in range(len(parts) - 1):
        for root in filter(None, (project.model_path, project.pretrained_path)):
            if (candidate := root.joinpath(*parts[start:])).is_file():
                return candidate
    return None


# ---------------------------------------------------------------------------------------------------- thresholds


@dataclass(frozen=True)
class Thresholds:
    """Probability above which each behaviour is predicted."""

    values: np.ndarray
    """float64, one for each class."""
    source: str
    """A sentence for the log that says where the values are from."""
    assumed: bool
    """Whether no validation results were found and 0.5 is used instead, which is worth a warning."""


def read_thresholds(weights: Path, num_classes: int) -> Thresholds:
    """Return the thresholds that validation found best at the epoch of `weights`; 0.5 for every class without them.

    The row of the metrics file is the epoch E of `epoch=E-step=S.ckpt`, or the last row for other weight files. Raises
    WeightsError if the number of classes is not `num_classes`.
    """
    run = companion(weights)
    if run.metrics is None:
        return _assumed(num_classes, f"there is no {METRICS_FILES[0]} beside {show_path(weights)}")
    try:
        # No lock: on many shared file systems asking for one fails, and a reader needs none.
        with h5py.File(run.metrics, "r", locking=False) as file:
            name = next((name for name in THRESHOLDS if name in file), None)
            rows = None if name is None else np.asarray(file[name], dtype=np.float64)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        return _assumed(num_classes, f"{show_path(run.metrics)} cannot be read ({error})")
    if rows is None or rows.ndim != 2 or len(rows) == 0:
        return _assumed(num_classes, f"{show_path(run.metrics)} holds no thresholds")
    if rows.shape[1] != num_classes:
        raise WeightsError(
            f"{show_path(run.metrics)}: thresholds of {rows.shape[1]} behaviours, but {num_classes} were expected. The "
            f"weights were trained with other behaviours than project.class_names has now: train again, or use others."
        )
    row, reason = _threshold_row(weights, run.config, len(rows))
    if not np.isfinite(rows[row]).all():
        return _assumed(num_classes, f"row {row} of {show_path(run.metrics)} is not finite")
    return Thresholds(rows[row], f"Thresholds: row {row} of {show_path(run.metrics)}, {reason}.", assumed=False)


def _assumed(num_classes: int, reason: str) -> Thresholds:
    return Thresholds(np.full(num_classes, 0.5), f"Thresholds: 0.5 for every behaviour, as {reason}.", assumed=True)


def _threshold_row(weights: Path, config: Mapping[str, Any] | None, num_rows: int) -> tuple[int, str]:
    """Return the row of the metrics file that belongs to a weight file, and why."""
    epoch = _checkpoint_order(weights)[0]
    if epoch < 0:
        return num_rows - 1, "the last epoch's"
    curriculum = run_section(config, "feature_extractor").get("curriculum") and not _is_of_deg(weights)
    if _identity(config or {})[0] == "feature_extractor" and curriculum:
        # The three stages of a curriculum share the file, and each counts its epochs from 0.
        return num_rows - 1, "the last epoch's, as stages of a curriculum share the file and the epoch is ambiguous"
    if epoch >= num_rows:
        return num_rows - 1, f"the last one, as the file has no row for epoch {epoch}"
    return epoch, f"of epoch {epoch}"
