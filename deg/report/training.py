"""Trained networks in a report: what the metrics files of deg and DeepEthogram say about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from deg.data.metrics_file import BY_THRESHOLD, MetricsFile
from deg.errors import RunError
from deg.options.yamlfile import read_yaml
from deg.projects.project import Project
from deg.report import figures
from deg.report.figures import Picture, Sketchbook
from deg.report.scores import Table, make_table
from deg.runs.networks import CONFIG_FILES, METRICS_FILES, run_date, run_section
from deg.runs.rundir import RunDir

STAGES = ("flow_generator", "feature_extractor", "sequence")


@dataclass(frozen=True)
class Training:
    """One trained network."""

    name: str
    stage: str
    facts: tuple[tuple[str, str], ...]
    curves: tuple[tuple[str, Picture], ...]
    """Learning curves of each phase: its name and the picture."""
    tables: tuple[Table, ...]


def newest_trainings(project: Project, notices: list[str]) -> list[Path]:
    """Return the folders of the newest training of each stage that has metrics, in the order of the stages."""
    newest: dict[str, tuple[datetime, str, Path]] = {}
    for folder in sorted(project.model_path.glob("*/")):
        metrics = [folder / name for name in METRICS_FILES if (folder / name).is_file()]
        if not metrics:
            continue
        try:
            stage = _stage(run_config(folder))
        except RunError as error:
            notices.append(str(error))
            continue
        date = run_date(folder.name) or datetime.fromtimestamp(metrics[0].stat().st_mtime)
        if stage in STAGES and (date, folder.name) > newest.get(stage, (datetime.min, ""))[:2]:
            newest[stage] = (date, folder.name, folder)
    return [newest[stage][2] for stage in STAGES if stage in newest]


def run_config(folder: Path) -> dict[str, Any]:
    """Return the unchecked configuration of a run; empty if there is none. Raises RunError if it cannot be read."""
    file = next((folder / name for name in CONFIG_FILES if (folder / name).is_file()), None)
    return {} if file is None else read_yaml(file, RunError)


def _stage(config: Mapping[str, Any]) -> str:
    return str(run_section(config, "run").get("model") or config.get("model"))


def read_training(folder: Path, project: Project, sketches: Sketchbook) -> Training:
    """Read a training and draw its curves. Raises RunError if its metrics cannot be read."""
    config = run_config(folder)
    metrics = _open_metrics(folder)
    phases = [(phase.name, _open_metrics(phase)) for phase in sorted(folder.glob("curriculum/*/"))]
    best = metrics.best_epoch()
    facts, tables = list(_facts(folder, config, metrics, best)), []
    if best is not None and "binary_confusion" in metrics.names("val"):
        num_classes = len(metrics.values("val", "f1_by_class")[best])
        names = run_section(config, "project").get("class_names")
        if not isinstance(names, list) or len(names) != num_classes:
            names = [f"class {k}" for k in range(num_classes)]
        if names != list(project.class_names):
            facts.append(("classes", f"{', '.join(map(str, names))}: not the classes that the project has now"))
        thresholds_K = metrics.values("val", f"{BY_THRESHOLD}optimum")[best]
        tables.append(_table_of_row(f"Validation, epoch {best}", metrics, "val", best, names, thresholds_K, sketches))
        if "binary_confusion" in metrics.names("test"):
            tables.append(_table_of_row("Test", metrics, "test", 0, names, thresholds_K, sketches))
    return Training(
        name=folder.name,
        stage=_stage(config),
        facts=tuple(facts),
        curves=tuple((name, _curves(phase, sketches)) for name, phase in [*phases, ("", metrics)] if phase.num_epochs),
        tables=tuple(tables),
    )


def _open_metrics(folder: Path) -> MetricsFile:
    found = [folder / name for name in METRICS_FILES if (folder / name).is_file()]
    return MetricsFile.open(found[0] if found else folder / METRICS_FILES[0])


def _facts(
    folder: Path, config: Mapping[str, Any], metrics: MetricsFile, best: int | None
) -> Iterator[tuple[str, str]]:
    yield "network", str(run_section(config, _stage(config)).get("arch") or "unknown")
    if (date := run_date(folder.name)) is not None:
        yield "started", f"{date:%Y-%m-%d %H:%M}"
    if (folder / "plan.json").is_file():
        yield "state", "finished" if RunDir(folder).is_merged() else "not finished: still training, or interrupted"
    yield "epochs", str(metrics.num_epochs)
    if best is not None:
        score = metrics.values("val", metrics.key_metric)[best]
        yield "best epoch", f"{best}, with {_title(metrics.key_metric)} {score:.3g} in validation"
    if "fps" in metrics.names("train") and metrics.num_epochs:
        yield "speed", f"{np.median(metrics.values('train', 'fps')):,.1f} samples/s in training"
    if metrics.num_parameters:
        yield "parameters", f"{metrics.num_parameters:,}"


def _curves(metrics: MetricsFile, sketches: Sketchbook) -> Picture:
    def values(part: str, name: str) -> np.ndarray | None:
        return metrics.values(part, name) if name in metrics.names(part) else None

    panels = []
    for name in dict.fromkeys(("loss", metrics.key_metric)):
        train, val = values("train", name), values("val", name)
        panels.append(figures.Panel(_title(name), train, val, log=figures.spans_decades(train, val)))
    if (by_class := values("val", "f1_by_class")) is not None:
        panels.append(figures.Panel("F1 of each class, validation", by_class_EK=by_class))
    if (lr := values("train", "lr")) is not None:
        panels.append(figures.Panel("learning rate", lr, log=bool((lr > 0).all())))
    return sketches.add("curves", figures.learning_curves(panels, metrics.best_epoch()))


def _title(name: str) -> str:
    return {
        "f1_class_mean": "F1, mean of all classes",
        "f1_class_mean_nobg": "F1, mean without background",
        "f1_overall": "F1, all frames together",
        "accuracy_overall": "accuracy",
        "SSIM": "difference from the frame (SSIM)",
    }.get(name, name)


def _table_of_row(
    title: str,
    metrics: MetricsFile,
    part: str,
    row: int,
    class_names: Sequence[str],
    thresholds_K: np.ndarray,
    sketches: Sketchbook,
) -> Table:
    """Return the scores in a row of the metrics file, at the thresholds of validation, and draw their curves."""

    def of(name: str) -> np.ndarray:
        return metrics.values(part, name)[row]

    curves = []
    grid_S = of(f"{BY_THRESHOLD}thresholds")
    recall_SK, precision_SK = of(f"{BY_THRESHOLD}recall"), of(f"{BY_THRESHOLD}precision")
    for k, threshold in enumerate(thresholds_K):
        # background is predicted where nothing else is, not by its threshold
        chosen = int(np.abs(grid_S - threshold).argmin()) if k > 0 else None
        figure = figures.precision_recall(recall_SK[:, k], precision_SK[:, k], chosen, k)
        curves.append(sketches.add("precision_recall", figure))
    return make_table(
        title, class_names, of("binary_confusion"), of("auroc_by_class"), of("mAP_by_class"), thresholds_K, curves
    )
