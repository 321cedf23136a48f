"""Trains one phase of a plan, as one of its ranks: builds what Lightning's Trainer needs, and lets it go on or begin.

Every rank calls `train_phase`; the first one alone writes. Killed at any moment, the next call goes on from the newest
state; called for a phase that is done, it does nothing.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy

from deg.data.atomic import write_atomically
from deg.data.metrics_file import MetricsFile
from deg.errors import ConfigError, RunError, show_path
from deg.models.device import keep_freed_memory, prepare_torch
from deg.models.precision import resolve_precision
from deg.models.weights import load_weights
from deg.options import schema
from deg.options.load import as_dict, restore
from deg.runs.networks import METRICS_FILES, require_planned, weight_files
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import RunDir
from deg.runs.state import TrainingRun
from deg.train.auto import Chosen, choose
from deg.train.batchnorm import synchronise
from deg.train.build import build_task
from deg.train.callbacks import Bookkeeping, Folders
from deg.train.checkpoint import AtomicCheckpoints, newest_state
from deg.train.data import PhaseData, open_data
from deg.train.ranks import Ranks
from deg.train.tasks import ClipTask, Task
from deg.types import Unit
from deg.version import __version__
from deg.work import StopFlag, Teller

log = logging.getLogger(__name__)

LIGHTNING_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
PEER_MINUTES = 30
"""How long a rank waits for the others in one operation; the launcher ends them sooner when one of them dies."""
WORTH_COMPILING = 5000
"""Steps of a training from which compiling for minutes on a GPU pays."""


def train_phase(run: RunDir, plan: TrainingPlan, unit: Unit, stop: StopFlag, tell: Teller) -> None:
    """Train the phase `plan.phases[unit.index]` to its end.

    Raises Stopped when a signal came (the state is saved), and DegError for what a user can act on.
    """
    if run.phase_done_file(unit.index).exists():
        return
    ranks = Ranks.from_environment()
    config = restore(plan.config)
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
    """ConfigError if a rank would have nothing to judge: it would not wait for the others where they wait for it."""
    for part, samples in data.parts.items():
        if len(samples) < ranks.count:
            raise ConfigError(
                f"{part}: expected at least one sample for each of {ranks.count} ranks, found {len(samples)}. Set "
                "compute.devices (on a cluster cluster.nodes, cluster.tasks_per_node) lower, or label more."
            )


@dataclass(frozen=True)
class Phase:
    """One phase of a plan on one rank."""

    run: RunDir
    plan: TrainingPlan
    config: schema.Config
    index: int
    ranks: Ranks
    device: torch.device

    @property
    def name(self) -> str:
        return self.plan.phases[self.index]

    @property
    def folders(self) -> Folders:
        return Folders(self.results(self.index), self.run.unit_folder(self.index) / "state")

    @property
    def is_last(self) -> bool:
        return self.index == len(self.plan.phases) - 1

    def results(self, index: int) -> Path:
        """Where a phase leaves networks and metrics: the last one where DeepEthogram looks for them."""
        return TrainingRun(self.run, self.plan).phase_folder(index)

    def choose_precision(self) -> str:
        """What this rank would compute with. ConfigError for fp16 on a CPU."""
        wanted = "fp16" if self.config.compute.fp16 else self.config.train.precision
        if wanted == "auto" and self.plan.stage == "sequence":
            return "fp32"  # a small network, that gains nothing from less
        precision = resolve_precision(wanted, self.device)
        if precision == "fp16" and self.device.type == "cpu":
            raise ConfigError("train.precision=fp16 (compute.fp16=true) needs a GPU. On a CPU set bf16, fp32 or auto.")
        return precision

    def build(
        self, data: PhaseData, batch_size: int, lr: float, note: Callable[[str], None], *, alone: bool = False
    ) -> Task:
        """The task with its first weights; `alone`: for a trainer without the other ranks."""
        before = weight_files(self.results(self.index - 1)) if self.index else ()
        if self.index and not before:
            raise RunError(
                f"{show_path(self.run.path)}: expected the network of phase {self.plan.phases[self.index - 1]}, found "
                "none. Run the same command again: it begins with what is missing."
            )
        task = build_task(
            self.plan,
            self.config,
            self.name,
            labels_NK=data.train.labels_NK,
            num_features=data.num_features,
            before=before[0] if before else None,
            batch_size=batch_size,
            lr=lr,
            describe=data.train.describe,
            note=note,
        )
        if getattr(task.model, "stacks_frames", False):
            task.model.to(memory_format=torch.channels_last)
        if self.ranks.count > 1 and not alone:
            synchronise(task.model, leave=task.model.flow_generator if isinstance(task, ClipTask) else None)
        return task

    def trainer(
        self, callbacks: list[pl.Callback], precision: str, *, alone: bool = False, **options: Any
    ) -> pl.Trainer:
        """A Trainer on this rank's device, with all ranks or `alone`; nothing is printed, nothing saved by itself."""
        train, ranks = self.config.train, self.ranks
        together = ranks.count > 1 and not alone
        strategy = DDPStrategy(
            process_group_backend="nccl" if self.device.type == "cuda" else "gloo",
            timeout=timedelta(minutes=PEER_MINUTES),
            find_unused_parameters=self.plan.stage == "sequence",  # tgm and tgmj have some in their weight files
            gradient_as_bucket_view=True,
        )
        under_slurm = together and ranks.launched_by_slurm
        devices: Any = ranks.count // ranks.nodes if together else 1
        if self.device.type == "cuda" and not together:
            devices = [self.device.index]
        return pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=devices,
            num_nodes=ranks.nodes if together else 1,
            strategy=strategy if together else "auto",
            plugins=[
                SLURMEnvironment(auto_requeue=False) if under_slurm else LightningEnvironment(),
                AtomicCheckpoints(),
            ],
            precision=LIGHTNING_PRECISIONS[precision],  # type: ignore[arg-type]
            accumulate_grad_batches=train.accumulate,
            gradient_clip_val=train.gradient_clip,
            benchmark=self.device.type == "cuda",  # batches are of one size, but for the last of validation
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.run.path,
            callbacks=callbacks,
            **options,
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
        note(f"Going on from {state.name}.")
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
    """The best network on the test part, with the thresholds that validation chose for it; once, at the end."""
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
    """The metrics so far, or none yet; a file that cannot be read is set aside with a note, not lost."""
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
    """What one must know to use a network, as its checkpoints tell it."""
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
        "flow_generator": dict(plan.weights.get("flow_generator", {})),
        "config": as_dict(config),
    }


def _finish(phase: Phase, metrics: MetricsFile, bookkeeping: Bookkeeping, seconds: float) -> None:
    """Say that the phase is done; from now on there is nothing to go on from."""
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


def choose_device(config: schema.Config, ranks: Ranks) -> torch.device:
    """This rank's GPU, `compute.gpu_id` where one trains alone; or the CPU. ConfigError if there are too few GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = ranks.local_rank if ranks.count > 1 else config.compute.gpu_id
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"GPU {index} is asked for, and this process sees {torch.cuda.device_count()}. Lower compute.devices or "
            "compute.gpu_id, or ask the scheduler for more GPUs."
        )
    return torch.device("cuda", index)


def _compile(task: Task, phase: Phase, batches: int, note: Callable[[str], None]) -> None:
    """Compile in place, so that names in checkpoints stay, where it is asked for or pays."""
    wanted, train = phase.config.train.compile, phase.config.train
    if wanted == "auto":
        wanted = phase.device.type == "cuda" and train.num_epochs * batches >= WORTH_COMPILING
    if wanted:
        # where the compiler fails, torch goes on without it and says so
        torch._dynamo.config.suppress_errors = True
        task.compile_parts()
        note("The network is compiled at its first batch: that takes a minute or more.")


def _hush_lightning() -> None:
    """Advice that does not apply here: loaders are chosen by measurement, and going on within an epoch is exact."""
    warnings.filterwarnings("ignore", module="pytorch_lightning.*")
    warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.`.*")
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
