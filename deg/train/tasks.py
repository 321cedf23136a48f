"""What each network learns: a batch in, a loss and predictions out. Lightning's Trainer runs the loop around it.

    Task                what all share: steps, scores, optimizer, the state to resume from
    ├── FlowTask        flow generator: explains each frame by the next, no labels
    ├── ClipTask        feature extractor: classifies the middle frame of clips, whole or one stream of it
    └── SequenceTask    sequence network: classifies each frame of stretches of features

All that is random in a batch depends only on the seed and the batch's number: no random state has to be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from deg.arithmetic.sampling import generator, share
from deg.errors import RunError
from deg.models.fold import fold_batchnorm
from deg.models.two_stream import CLIP_FRAMES, MIDDLE_CHANNELS, TwoStream
from deg.options import schema
from deg.train.augment import augment, draw, normalise, stack_frames
from deg.train.losses import L2, L2SP, MotionNetLoss
from deg.train.optimisation import Course
from deg.train.tally import Row, Tally

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


class Task(pl.LightningModule):
    """A network that learns. It is the attribute `model`, which is also its name in checkpoints."""

    key_metric: str
    mode: Literal["min", "max"] = "max"
    num_classes: int | None
    losses: tuple[str, ...] = ("data_loss", "reg_loss", "loss")
    """Names, in a metrics file, of the losses that `compute` returns and of those that are added to them."""
    allow_zero_length_dataloader_with_multiple_devices = True  # a rank may get nothing of a small validation set

    def __init__(
        self,
        model: nn.Module,
        config: schema.Config,
        *,
        pretrained: Mapping[str, Tensor],
        batch_size: int,
        lr: float,
        describe: Callable[[int], str],
    ):
        """Set up training, with `batch_size` samples on all ranks together.

        `pretrained` are the weights to which L2-SP pulls; `describe` names a training sample.
        """
        super().__init__()
        self.model = model
        self.config, self.batch_size, self.lr = config, batch_size, lr
        self._pretrained, self._describe = pretrained, describe
        self._regularization: L2 | L2SP | None = None
        self._frozen: list[nn.Module] = []
        self.batches_done = 0
        """Number of batches that this network has learned from, over all epochs and restarts."""
        self.tallies = {part: Tally(self.losses, self.num_classes) for part in ("train", "val", "test")}
        self.course: Course | None = None
        self.restored: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------- for each network

    def compute(self, batch: Batch, training: bool) -> tuple[Losses, Tensor | None, Tensor | None]:
        """Return losses by name, with the `data_loss` to learn by; probabilities [N, K]; and labels [N, K]."""
        raise NotImplementedError

    def compile_parts(self) -> None:
        """Have the slow parts compiled at their first batch; in place, so that names in checkpoints stay the same."""
        self.model.compile()

    # ------------------------------------------------------------------------------------- steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        number = self.batches_done
        # for dropout: different on each rank, and the same when the batch is repeated
        torch.manual_seed(int(generator(self.config.train.seed, f"dropout {self.global_rank}", number).integers(2**62)))
        losses, probabilities, labels = self.compute(batch, training=True)
        self._regularize(losses)
        self._require_finite(losses, batch, number)
        self.tallies["train"].add(losses, len(batch["sample"]), probabilities, labels)
        self.batches_done += 1
        return losses["loss"]

    def _regularize(self, losses: Losses) -> None:
        """Add the loss of the regularisation, and the sum that is minimised."""
        if self._regularization is None:
            # only now, because the weights to which L2-SP pulls are copied to the device of the parameters
            options = self.config.train.regularization
            if options.style == "l2":
                self._regularization = L2(self.model, alpha=options.alpha)
            else:
                self._regularization = L2SP(self.model, self._pretrained, alpha=options.alpha, beta=options.beta)
        losses["reg_loss"] = torch.as_tensor(self._regularization())
        losses["loss"] = losses["data_loss"] + losses["reg_loss"]

    def _require_finite(self, losses: Losses, batch: Batch, number: int) -> None:
        """Raise RunError before the optimizer turns every weight into NaN."""
        if torch.isfinite(losses["loss"]):
            return
        samples = [self._describe(int(sample)) for sample in batch["sample"][:8].tolist()]
        found = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
        raise RunError(
            f"Batch {number} of the training: expected a finite loss, found {found}. It was computed from "
            f"{', '.join(samples)}{', ...' if len(batch['sample']) > 8 else ''}. Nothing was learned from it. Try a "
            "lower train.lr, train.gradient_clip=1 or train.precision=fp32, and check these recordings."
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._judge(batch, "test")

    def _judge(self, batch: Batch, part: str) -> None:
        losses, probabilities, labels = self.compute(batch, training=False)
        self._regularize(losses)
        self.tallies[part].add(losses, len(batch["sample"]), probabilities, labels)

    def on_train_epoch_start(self) -> None:
        self.tallies["train"].reset()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:
            self.tallies["train"].start_clock()

    def on_validation_epoch_start(self) -> None:
        self.tallies["val"].reset()

    def on_test_epoch_start(self) -> None:
        self.tallies["test"].reset()

    def row(self, part: str, thresholds_K: np.ndarray | None = None) -> Row:
        """Return what the batches of `train`, `val` or `test` add up to. Every rank must call it."""
        return self.tallies[part].row(self.device, thresholds_K)

    # ------------------------------------------------------------------------------------- learning

    def leave_out(self, modules: Iterable[nn.Module]) -> None:
        """Leave these out of training: no gradient, and always eval mode."""
        for module in modules:
            self._frozen.append(module.requires_grad_(False))

    def train(self, mode: bool = True) -> Task:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # fp16 scales gradients, and to clip them the fused optimizer would have to know by how much
        optimizer = torch.optim.Adam(parameters, self.lr, fused=self.trainer.precision != "16-mixed")
        self.course = Course(self.config.train, optimizer, self.mode)
        return optimizer

    # ------------------------------------------------------------------------------------- resuming

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.course is not None
        checkpoint["deg"] = {
            "batches_done": self.batches_done,
            "course": self.course.state(),
            "train_tally": self.tallies["train"].state(self.device),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.restored = checkpoint["deg"]
        self.batches_done = self.restored["batches_done"]

    def on_train_start(self) -> None:
        if self.restored is None:
            return
        assert self.course is not None
        self.course.restore(self.restored["course"])
        if self.global_rank == 0:
            self.tallies["train"].restore(self.restored["train_tally"])
        self.restored = None


class _ClipsTask(Task):
    """What flow generator and feature extractor share: the way from pixels to the network."""

    def _prepared(self, batch: Batch, training: bool, stacks_frames: bool) -> tuple[Tensor, Tensor]:
        """Return clips [B, 3, 11, H, W] in [0, 1], augmented in training, and the same as the network takes them."""
        clips_BCTHW = batch["clips"].permute(0, 4, 1, 2, 3).float().div_(255)
        augs = self.config.augs
        if training:
            draws = draw(augs, self.batch_size, seed=self.config.train.seed, batch=self.batches_done)
            own = share(self.batch_size, self.global_rank, self.trainer.world_size)
            clips_BCTHW = augment(clips_BCTHW, draws.part(own))
        inputs = normalise(clips_BCTHW, augs.normalization.mean, augs.normalization.std)
        if not stacks_frames:
            return clips_BCTHW, inputs.contiguous(memory_format=torch.channels_last_3d)
        return clips_BCTHW, stack_frames(inputs).contiguous(memory_format=torch.channels_last)


class FlowTask(_ClipsTask):
    """The flow generator: how well its flow turns each frame into the one before."""

    key_metric, mode, num_classes = "SSIM", "min", None

    def __init__(self, model: nn.Module, config: schema.Config, **others: Any):
        sparsity = ("flow_sparsity",) if config.flow_generator.flow_sparsity else ()
        self.losses = (*Task.losses, "SSIM", "L1", "smoothness", *sparsity)
        super().__init__(model, config, **others)
        options = config.flow_generator
        self._loss = MotionNetLoss(
            smooth_weight_multiplier=options.smooth_weight_multiplier,
            sparsity_weight=options.sparsity_weight if options.flow_sparsity else 0.0,
        )

    def compute(self, batch: Batch, training: bool) -> tuple[Losses, Tensor | None, Tensor | None]:
        clips, inputs = self._prepared(batch, training, bool(self.model.stacks_frames))
        terms = self._loss(clips.clamp(0, 1), self.model(inputs))
        losses = {"SSIM": terms.ssim, "L1": terms.l1, "smoothness": terms.smoothness}
        if self.config.flow_generator.flow_sparsity:
            losses["flow_sparsity"] = terms.sparsity
        return {"data_loss": terms.total} | {name: term.mean() for name, term in losses.items()}, None, None


class ClipTask(_ClipsTask):
    """The feature extractor, or one stream of it: which behaviours the middle frame of each clip shows."""

    key_metric = "f1_class_mean_nobg"
    model: TwoStream
    _folded: nn.Module | None = None
    _compiles = False

    def __init__(self, model: TwoStream, config: schema.Config, loss: nn.Module, *, phase: str, **others: Any):
        """Set up a phase: `both` streams, or only `spatial` or `flow`, while the other stays as it is."""
        self.num_classes = int(loss.num_classes)  # type: ignore[arg-type]
        super().__init__(model, config, **others)
        self._loss, self._phase = loss, phase
        self._original = config.train.flow_batchnorm == "original"
        self.leave_out([model.flow_generator])
        if phase != "both":
            self.leave_out([model.flow_classifier if phase == "spatial" else model.spatial_classifier, model.fusion])

    def train(self, mode: bool = True) -> ClipTask:
        super().train(mode)
        if self._original:
            self.model.flow_generator.train(mode)  # still without gradient: only its statistics follow the batches
        return self

    def compute(self, batch: Batch, training: bool) -> tuple[Losses, Tensor | None, Tensor | None]:
        _, inputs = self._prepared(batch, training, self.model.stacks_frames)
        logits_BK = self._logits(inputs)
        labels_BK = batch["labels"]
        data_loss, probabilities = self._loss(logits_BK, labels_BK)
        return {"data_loss": data_loss}, probabilities, labels_BK

    def compile_parts(self) -> None:
        # `classify` calls the streams one by one, and the flow generator is the folded copy, made at the first batch
        for part in (self.model.spatial_classifier[0], self.model.flow_classifier[0]):
            part.compile()
        self._compiles = True

    def _logits(self, inputs: Tensor) -> Tensor:
        model = self.model
        if self._phase == "spatial":
            logits = model.spatial_classifier(self._middle_frame(inputs))
        else:
            with torch.no_grad():
                flow = self._flow(inputs)
            if self._phase == "flow":
                logits = model.flow_classifier(flow)
            else:
                image = inputs[:, MIDDLE_CHANNELS] if model.stacks_frames else inputs
                logits = model.classify(image, flow).logits
        return logits

    def _flow(self, inputs: Tensor) -> Tensor:
        """Return the finest flow. The flow generator does not change: a copy with fewer operations computes it."""
        generator = self.model.flow_generator
        if self._original:
            return generator(inputs).half
        if self._folded is None:
            layout = torch.channels_last if self.model.stacks_frames else torch.channels_last_3d
            dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.trainer.precision, torch.float32)
            folded = fold_batchnorm(generator).to(dtype).to(memory_format=layout)
            if self._compiles:
                folded.compile()
            object.__setattr__(self, "_folded", folded)  # as a submodule it would be in every checkpoint
        assert self._folded is not None
        with torch.autocast(inputs.device.type, enabled=False):
            return self._folded(inputs.to(next(self._folded.parameters()).dtype)).half

    def _middle_frame(self, inputs: Tensor) -> Tensor:
        """Return the middle frame in RGB: DeepEthogram's spatial stream, trained alone, is not off by one."""
        first = CLIP_FRAMES // 2 * 3
        return inputs[:, first : first + 3] if self.model.stacks_frames else inputs


class SequenceTask(Task):
    """A sequence network: which behaviours each frame of a stretch of features shows."""

    key_metric = "f1_class_mean"

    def __init__(self, model: nn.Module, config: schema.Config, loss: nn.Module, **others: Any):
        self.num_classes = int(loss.num_classes)  # type: ignore[arg-type]
        super().__init__(model, config, **others)
        self._loss = loss

    def compute(self, batch: Batch, training: bool) -> tuple[Losses, Tensor | None, Tensor | None]:
        valid = (batch["valid"],) if "valid" in batch else ()
        logits, labels = self.model(batch["features"], *valid), batch["labels"]
        data_loss, probabilities = self._loss(logits, labels)
        if logits.ndim == 3:  # [B, K, T] as rows of frames
            probabilities, labels = (each.transpose(1, 2).flatten(0, 1) for each in (probabilities, labels))
        return {"data_loss": data_loss}, probabilities, labels
