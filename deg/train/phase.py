"""One phase of a plan on one rank: its device, its precision, its network with starting weights, and its Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy

from deg.errors import ConfigError, RunError, show_path
from deg.models.precision import resolve_precision
from deg.options import schema
from deg.runs.networks import weight_files
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import RunDir
from deg.runs.state import TrainingRun
from deg.train.batchnorm import synchronise
from deg.train.build import build_task
from deg.train.callbacks import Folders
from deg.train.checkpoint import AtomicCheckpoints
from deg.train.data import PhaseData
from deg.train.ranks import Ranks
from deg.train.tasks import ClipTask, Task

LIGHTNING_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
PEER_MINUTES = 30
"""A rank that waits this long for others in one operation fails. If one dies, the launcher ends the rest sooner."""


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
        """Return where a phase leaves networks and metrics: the last one where DeepEthogram looks for them."""
        return TrainingRun(self.run, self.plan).phase_folder(index)

    def choose_precision(self) -> str:
        """Return the precision that this rank would compute in. Raises ConfigError for fp16 on a CPU."""
        wanted = "fp16" if self.config.compute.fp16 else self.config.train.precision
        if wanted == "auto" and self.plan.stage == "sequence":
            return "fp32"  # a small network gains nothing from fewer digits
        precision = resolve_precision(wanted, self.device)
        if precision == "fp16" and self.device.type == "cpu":
            raise ConfigError(
                "train.precision=fp16 (or compute.fp16=true) needs a GPU, and this process sees none. Set "
                "compute.fp16=false, and train.precision to bf16, fp32 or auto."
            )
        return precision

    def build(
        self, data: PhaseData, batch_size: int, lr: float, note: Callable[[str], None], *, alone: bool = False
    ) -> Task:
        """Build the task with its starting weights. `alone` is for a Trainer without the other ranks."""
        before = weight_files(self.results(self.index - 1)) if self.index else ()
        if self.index and not before:
            raise RunError(
                f"{show_path(self.run.path)}: expected the network of phase {self.plan.phases[self.index - 1]}, found "
                "none. Run the same command again: it starts with what is missing."
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
        """Build a Trainer on this rank's device, with all ranks or `alone`. By itself it prints and saves nothing."""
        train, ranks = self.config.train, self.ranks
        together = ranks.count > 1 and not alone
        strategy = DDPStrategy(
            process_group_backend="nccl" if self.device.type == "cuda" else "gloo",
            timeout=timedelta(minutes=PEER_MINUTES),
            find_unused_parameters=self.plan.stage == "sequence",  # tgm and tgmj have some, for their weight files
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
            benchmark=self.device.type == "cuda",  # all batches have one size, except the last of validation
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.run.path,
            callbacks=callbacks,
            **options,
        )


def choose_device(config: schema.Config, ranks: Ranks) -> torch.device:
    """Return this rank's GPU (if alone, `compute.gpu_id`), or the CPU. Raises ConfigError if there are too few GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = ranks.local_rank if ranks.count > 1 else config.compute.gpu_id
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"Expected GPU {index}, counted from 0, but this process sees only {torch.cuda.device_count()} GPU(s). "
            "Lower compute.devices or compute.gpu_id, or ask the scheduler for more GPUs."
        )
    return torch.device("cuda", index)
