"""Batch normalisation over the batch of all ranks: what a network learns does not depend on how many there are.

PyTorch's own SyncBatchNorm is for GPUs only; this one works wherever torch.distributed does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm


class SyncedBatchNorm(_BatchNorm):
    """A batch norm that, in train mode, normalises by the statistics of all ranks' batches.

    The batches may differ in size; none may be empty. Results, gradients, running statistics and names in the state
    dict equal those of one BatchNorm on the whole batch. With a loss that is a mean over the batch, the gradients of
    weight and bias are each rank's share: DDP combines them. In eval mode, and without other ranks, this is BatchNorm.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> SyncedBatchNorm:
        """Return one that shares the parameters and buffers of `norm`: an optimizer that has them keeps them."""
        synced = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        synced._parameters, synced._buffers = norm._parameters, norm._buffers
        return synced.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [B, C, ...], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C], [B, C, T], [B, C, H, W] or [B, C, T, H, W]."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        mean_C, var_C, count = self._statistics(input.detach())
        self._follow(mean_C, var_C, count)
        return _Normalised.apply(input, self.weight, self.bias, mean_C, var_C, count, self.eps)

    def _statistics(self, input: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return mean and variance [C] over all ranks, and how many values of each channel the ranks have together."""
        # copies: they only tell the type, float32 with an input of bf16; an input of a single value would spoil them
        mean, var = (None if own is None else own.clone() for own in (self.running_mean, self.running_var))
        own_mean_C, own_var_C = torch.batch_norm_update_stats(input, mean, var, 0.0)
        # float64: the variance is the difference of two numbers that may be large
        mean_C, square_C = own_mean_C.double(), own_var_C.double() + own_mean_C.double().square()
        count = mean_C.new_tensor([input.numel() // input.shape[1]])
        sums = torch.cat([count, count * mean_C, count * square_C])
        dist.all_reduce(sums)
        mean_C, square_C = (sums[1:] / sums[0]).chunk(2)
        var_C = (square_C - mean_C.square()).clamp(min=0)
        return mean_C.to(own_mean_C), var_C.to(own_var_C), float(sums[0])

    def _follow(self, mean_C: Tensor, var_C: Tensor, count: float) -> None:
        """Move the running statistics towards those of this batch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, step)
        self.running_var.lerp_(var_C * (count / max(count - 1, 1)), step)


class _Normalised(torch.autograd.Function):
    """(input - mean) / sqrt(var + eps) * weight + bias, with mean and var over the inputs of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        mean_C: Tensor,
        var_C: Tensor,
        count: float,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(input, weight_C, mean_C, var_C)
        ctx.count, ctx.eps = count, eps
        return F.batch_norm(input, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight_C, mean_C, var_C = ctx.saved_tensors
        # as if mean and var did not depend on the input ...
        of_input, of_weight_C, of_bias_C = torch.ops.aten.native_batch_norm_backward(
            gradient, input, weight_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
        )
        # ... and then what flows through them, from the gradients of all ranks
        sums_2C = torch.stack([of_weight_C, of_bias_C])
        dist.all_reduce(sums_2C)
        through_var_C, through_mean_C = sums_2C / ctx.count
        per_deviation_C = torch.rsqrt(var_C + ctx.eps)
        scale_C = weight_C * per_deviation_C
        slope_C = -scale_C * per_deviation_C * through_var_C
        offset_C = -scale_C * through_mean_C - slope_C * mean_C
        per_channel = (-1, *(1,) * (input.dim() - 2))
        correction = torch.addcmul(offset_C.view(per_channel), input, slope_C.view(per_channel)).to(of_input.dtype)
        return of_input.add_(correction), of_weight_C, of_bias_C, None, None, None, None


def synchronise(module: nn.Module, leave: nn.Module | None = None) -> None:
    """Make each batch norm within `module` a SyncedBatchNorm, in place, except within the frozen `leave`."""
    for name, child in module.named_children():
        if child is leave:
            continue
        if isinstance(child, _BatchNorm):
            setattr(module, name, SyncedBatchNorm.of(child))
        else:
            synchronise(child, leave)
