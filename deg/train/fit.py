"""Train one phase of a plan, as one of its ranks: build what Lightning's Trainer needs, then start or resume it.

Every rank calls `train_phase`; only the first one writes. After a kill at any moment, the next call resumes from the
newest state. For a phase that is done, the call does nothing.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from deg.data.atomic import write_atomically
from deg.data.metrics_file import MetricsFile
from deg.errors import ConfigError, RunError, show_path
from deg.models.device import keep_freed_memory, prepare_torch
from deg.models.weights import load_weights
from deg.options.load import as_dict
from deg.runs.networks import METRICS_FILES, require_planned, weight_files
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import RunDir
from deg.train.auto import Chosen, choose
from deg.train.callbacks import Bookkeeping
from deg.train.checkpoint import newest_state
from deg.train.data import PhaseData, open_data
from deg.train.phase import Phase, choose_device
from deg.train.ranks import Ranks
from deg.train.tasks import ClipTask, Task
from deg.types import Unit
from deg.version import __version__
from deg.work import StopFlag, Teller

log = logging.getLogger(__name__)

WORTH_COMPILING = 5000
"""Batches of a training above which compiling, which takes minutes, pays on a GPU."""


def train_phase(run: RunDir, plan: TrainingPlan, unit: Unit, stop: StopFlag, tell: Teller) -> None:
    """Train the phase `plan.phases[unit.index]` to its end.

    Raises Stopped after a signal, once the state is saved, and DegError for faults that a user can act on.
    """
    if run.phase_done_file(unit.index).exists():
        return
    ranks = Ranks.from_environment()
    config = plan.config
    device = choose_device(config, ranks)
    prepare_torch(config.compute.threads)
    if device.type == "cpu":
        keep_freed_memory()
    if ranks.is_first:
        require_planned(plan.weights)

    def note(message: str) -> None:
        log.info("%s", message)
        if ranks.is_first:
            tell.say("note", message=message)

    folder = run.unit_folder(unit.index)
    folder.mkdir(parents=True, exist_ok=True)
    phase = Phase(run, plan, config, unit.index, ranks, device)
    with open_data(plan, config, ranks, stop=stop, tell=tell, note=note) as data:
        _require_enough(data, ranks)
        chosen = choose(folder, phase, data, note)
        _fit(phase, data, chosen, stop, tell, note)


def _require_enough(data: PhaseData, ranks: Ranks) -> None:
    """Raise ConfigError if a rank would get no samples: the others would wait for it for ever."""
    for part, samples in data.parts.items():
        if len(samples) < ranks.count:
            raise ConfigError(
                f"{part}: expected at least one sample for each of {ranks.count} ranks, found {len(samples)}. Lower "
                "compute.devices (on a cluster: cluster.nodes or cluster.tasks_per_node), or label more recordings."
            )


def _fit(
    phase: Phase, data: PhaseData, chosen: Chosen, stop: StopFlag, tell: Teller, note: Callable[[str], None]
) -> None:
    config, ranks, folders = phase.config, phase.ranks, phase.folders
    for path in (folders.results, folders.state):
        path.mkdir(parents=True, exist_ok=True)
    task = phase.build(data, chosen.batch_size, chosen.lr, note)
    batches = data.batches_per_epoch(chosen.batch_size)
    _compile(task, phase, batches, note)
    metrics = _open_metrics(folders.results, task, phase.plan.stage)
    bookkeeping = Bookkeeping(
        folders,
        metrics,
        batches_per_epoch=batches,
        accumulate=config.train.accumulate,
        checkpoint_seconds=config.train.checkpoint_every * 60,
        phase=phase.name,
        stop=stop,
        tell=tell,
        about=lambda thresholds: about(phase, thresholds),
    )
    trainer = phase.trainer(
        [bookkeeping],
        chosen.precision,
        max_epochs=config.train.num_epochs,
        logger=TensorBoardLogger(folders.results, "lightning_logs", 0) if ranks.is_first else False,
    )
    state = newest_state(folders.state)
    if state is not None:
        note(f"Resuming from {state.name}.")
    tell.say("ready", device=str(phase.device), ranks=ranks.count, **asdict(chosen))
    started = time.monotonic()
    with warnings.catch_warnings():
        _hush_lightning()
        trainer.fit(
            task,
            data.train_loader(chosen.batch_size, first=lambda: task.batches_done),
            data.loader("val", chosen.batch_size),
            ckpt_path=state,
            weights_only=True,
        )
        if phase.is_last and phase.plan.parts.get("test"):
            _test(trainer, task, data, chosen, metrics, ranks)
    if ranks.is_first:
        _finish(phase, metrics, bookkeeping, time.monotonic() - started)


def _test(trainer: pl.Trainer, task: Task, data: PhaseData, chosen: Chosen, metrics: MetricsFile, ranks: Ranks) -> None:
    """Judge the best network on the test part, once, at the end, with the thresholds that validation chose for it."""
    best = weight_files(Path(metrics.path).parent)
    load_weights(task.model, best[0], strict=True)
    trainer.test(task, data.loader("test", chosen.batch_size), verbose=False)
    epoch, thresholds = metrics.best_epoch(), None
    if task.num_classes is not None and epoch is not None:
        thresholds = metrics.values("val", "metrics_by_threshold/optimum")[epoch]
    row = task.row("test", thresholds)
    if ranks.is_first:
        metrics.write_test(row)


def _open_metrics(folder: Path, task: Task, stage: str) -> MetricsFile:
    """Open the metrics so far, or new ones. A file that cannot be read is renamed with a warning, not lost."""
    path = folder / METRICS_FILES[stage == "flow_generator"]
    if path.exists():
        try:
            return MetricsFile.open(path)
        except RunError as error:
            aside = path.with_suffix(".damaged.h5")
            path.replace(aside)
            log.warning("%s It is now %s.", error, show_path(aside))
    counted = task.model.spatial_classifier if isinstance(task, ClipTask) else task.model
    parameters = sum(parameter.numel() for parameter in counted.parameters())
    return MetricsFile(path, key_metric=task.key_metric, key_metric_mode=task.mode, num_parameters=parameters)


def about(phase: Phase, thresholds: np.ndarray | None) -> dict[str, Any]:
    """Return what one must know to use a network; its checkpoints contain it."""
    plan, config = phase.plan, phase.config
    normalization = config.augs.normalization
    return {
        "deg": __version__,
        "stage": plan.stage,
        "phase": phase.name,
        "class_names": list(plan.class_names),
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "thresholds": None if thresholds is None else [float(value) for value in thresholds],
        "flow_generator": flow.as_dict() if (flow := plan.weights.get("flow_generator")) else {},
        "config": as_dict(config),
    }


def _finish(phase: Phase, metrics: MetricsFile, bookkeeping: Bookkeeping, seconds: float) -> None:
    """Record that the phase is done, and delete its states: there is nothing left to resume."""
    epoch = metrics.best_epoch()
    score = None if epoch is None else float(metrics.values("val", metrics.key_metric)[epoch])
    done = {
        "phase": phase.name,
        "epochs": metrics.num_epochs,
        "reason": bookkeeping.reason,
        "best_epoch": epoch,
        "key_metric": metrics.key_metric,
        "score": score,
        "weights": str(weight_files(phase.results(phase.index))[0]),
        "seconds": round(seconds, 1),
    }
    write_atomically(phase.run.phase_done_file(phase.index), json.dumps(done, indent=1))
    phase.run.log_event("unit_done", unit=phase.index, **done)
    for state in phase.folders.state.glob("step-*.ckpt"):
        state.unlink()


def _compile(task: Task, phase: Phase, batches: int, note: Callable[[str], None]) -> None:
    """Compile the network if that is wanted or pays; in place, so that names in checkpoints stay the same."""
    wanted, train = phase.config.train.compile, phase.config.train
    if wanted == "auto":
        wanted = phase.device.type == "cuda" and train.num_epochs * batches >= WORTH_COMPILING
    if wanted:
        # if the compiler fails, torch says so and continues without it
        torch._dynamo.config.suppress_errors = True
        task.compile_parts()
        note("The network will be compiled at its first batch, which takes a minute or more.")


def _hush_lightning() -> None:
    """Silence advice that does not apply here: loaders are chosen by measurement, and resuming mid-epoch is exact."""
    warnings.filterwarnings("ignore", module="pytorch_lightning.*")
    warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.`.*")
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
