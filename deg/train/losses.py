"""The losses: classification, optical flow without labels, regularisation. Numbers are those of DeepEthogram 0.5.0.

All are computed in float32, also under autocast: their clamps and squared differences do not survive half precision.
Arrays are named as in deg.types; N counts single images, B x 10 for clips of 11 frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ----------------------------------------------------------------- classification


def class_weights(positives_K: Tensor, negatives_K: Tensor, exponent: float) -> Tensor:
    """Return the weight of the positives of each class: (negatives / positives) ** exponent, float32 [K].

    The counts are frames of the training split. A class that is always present gets 1, one that never is gets 0.
    """
    positives, negatives = positives_K.double(), negatives_K.double()
    ratio = torch.where(positives > 0, negatives / positives, 0.0)
    return torch.where(negatives > 0, ratio, 1.0).pow(exponent).float()


def softmax_class_weights(positives_K: Tensor, exponent: float) -> Tensor:
    """Return the weight of each class for `CrossEntropy`: (1 / positives, of sum 1) ** exponent, float32 [K]."""
    positives = positives_K.double()
    rarity = torch.where(positives > 0, 1 / positives, 0.0)
    return (rarity / rarity.sum()).pow(exponent).float()


class FocalBCE(nn.Module):
    """Binary cross-entropy on smoothed labels, each cell weighted by how wrong it is, to the power gamma.

    It is summed over classes (and time) and averaged over the batch. The gradient flows through the weighting too.
    """

    pos_weight_K: Tensor | None

    def __init__(self, pos_weight_K: Tensor | None = None, *, gamma: float = 1.0, label_smoothing: float = 0.05):
        """Set up the loss. A `label_smoothing` of 0.05 makes the targets 0.05 and 0.95."""
        super().__init__()
        self.gamma, self.label_smoothing = gamma, label_smoothing
        # Not persistent: a checkpoint holds the network, and the weights follow from the training split.
        self.register_buffer("pos_weight_K", pos_weight_K, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar. Logits and labels (1, 0, or -1: ignored) are [B, K] or [B, K, T]."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            per_class = (-1, *(1,) * (logits.ndim - 2))
            probabilities = torch.sigmoid(logits).clamp(1e-7, 1 - 1e-7)
            wrongness = torch.where(labels == 1, 1 - probabilities, probabilities).pow(self.gamma)
            cross_entropy = F.binary_cross_entropy_with_logits(
                logits,
                torch.where(labels == 1, 1 - self.label_smoothing, self.label_smoothing).to(logits.dtype),
                pos_weight=None if self.pos_weight_K is None else self.pos_weight_K.view(per_class),
                reduction="none",
            )
            return (wrongness * cross_entropy * (labels != -1)).sum() / len(logits)


class CrossEntropy(nn.Module):
    """Cross-entropy of classes that exclude each other, summed over time and averaged over the batch."""

    weight_K: Tensor | None

    def __init__(self, weight_K: Tensor | None = None):
        """Set up the loss, with a weight for each class or none. DeepEthogram never weights the classes."""
        super().__init__()
        self.register_buffer("weight_K", weight_K, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Logits are [B, K] or [B, K, T]; labels are [B] or [B, T], the index of the class, or -1: ignored.
        """
        losses = F.cross_entropy(logits.float(), labels, weight=self.weight_K, ignore_index=-1, reduction="none")
        return losses.sum() / len(logits)


# ----------------------------------------------------------------- optical flow

SMOOTHNESS_OF_LEVELS = (0.01, 0.02, 0.04)


def reconstruct(images_NCHW: Tensor, flow_N2HW: Tensor) -> Tensor:
    """Return the images looked up where flow (dx, dy in pixels) points; beyond the border, its pixels are repeated.

    The grid spans the outer edges of the corner pixels, but flow is scaled as if it spanned their centres: a flow of 1
    moves by w / (w - 1) pixels. Trained flow generators depend on it.
    """
    height, width = images_NCHW.shape[-2:]
    x_W = (torch.arange(width, device=flow_N2HW.device, dtype=flow_N2HW.dtype) * 2 + 1) / width - 1
    y_H = (torch.arange(height, device=flow_N2HW.device, dtype=flow_N2HW.dtype) * 2 + 1) / height - 1
    dx_NHW, dy_NHW = flow_N2HW.unbind(1)
    grid_NHW2 = torch.stack((x_W + dx_NHW * 2 / (width - 1), y_H[:, None] + dy_NHW * 2 / (height - 1)), dim=-1)
    return F.grid_sample(images_NCHW, grid_NHW2, mode="bilinear", padding_mode="border", align_corners=False)


def structural_similarity(target_NCHW: Tensor, estimate_NCHW: Tensor) -> Tensor:
    """Return the SSIM of each pixel and channel in [0, 1]: Gaussian window 11 x 11, sigma 1.5, zeros outside."""
    # The target needs no gradient, so its moments are not part of the graph.
    mean_t, square_t = _blur(target_NCHW, target_NCHW**2)
    mean_e, square_e, product = _blur(estimate_NCHW, estimate_NCHW**2, target_NCHW * estimate_NCHW)
    variance_t, variance_e, covariance = square_t - mean_t**2, square_e - mean_e**2, product - mean_t * mean_e
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_t * mean_e + c1) * (2 * covariance + c2)) / (
        (mean_t**2 + mean_e**2 + c1) * (variance_t + variance_e + c2)
    )


def _blur(*maps: Tensor) -> tuple[Tensor, ...]:
    """Blur each map with the window of SSIM, all in one pair of convolutions along the axes."""
    offsets = torch.arange(-5, 6, device=maps[0].device, dtype=maps[0].dtype)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()
    planes = torch.stack(maps).flatten(0, 2).unsqueeze(1)
    planes = F.conv2d(planes, window.view(1, 1, 11, 1), padding=(5, 0))
    planes = F.conv2d(planes, window.view(1, 1, 1, 11), padding=(0, 5))
    return planes.view(len(maps), *maps[0].shape).unbind(0)


def charbonnier(difference: Tensor) -> Tensor:
    """Return a smooth absolute value, (d^2 + 1e-8)^0.4, in which large errors, such as occlusions, weigh less."""
    return (difference**2 + 1e-8).pow(0.4)


def roughness(flow_N2HW: Tensor) -> Tensor:
    """Return how fast the flow changes from each pixel to the next, right and below; beyond the edge it is constant."""
    gx = F.pad(flow_N2HW[..., :, 1:] - flow_N2HW[..., :, :-1], (0, 1, 0, 0))
    gy = F.pad(flow_N2HW[..., 1:, :] - flow_N2HW[..., :-1, :], (0, 0, 0, 1))
    return (gx**2 + 1e-14).pow(0.3) + (gy**2 + 1e-14).pow(0.3)


@dataclass(frozen=True, eq=False)
class FlowTerms:
    """The parts of the flow loss for each image [N], summed over levels and already weighted."""

    ssim: Tensor
    """1 - SSIM. Its mean is the key metric of flow training, called `SSIM` in the metrics file."""
    l1: Tensor
    smoothness: Tensor
    sparsity: Tensor
    """Zeros if sparsity is off."""

    @property
    def total(self) -> Tensor:
        """The loss, a scalar: mean over images of the sum of all parts."""
        return (self.ssim + self.l1 + self.smoothness + self.sparsity).mean()


class MotionNetLoss(nn.Module):
    """A loss without labels: how badly the flow explains each frame by the next one, at three sizes."""

    def __init__(self, *, smooth_weight_multiplier: float = 1.0, sparsity_weight: float = 0.0):
        """Set up the loss. A `sparsity_weight` of 0 turns sparsity off (`flow_generator.flow_sparsity=false`)."""
        super().__init__()
        self.smooth_weights = [smooth_weight_multiplier * weight for weight in SMOOTHNESS_OF_LEVELS]
        self.sparsity_weight = sparsity_weight

    def forward(self, clips_BCTHW: Tensor, flows: Sequence[Tensor]) -> FlowTerms:
        """Return the parts of the loss. `clips_BCTHW` are frames in [0, 1], before normalisation; `flows` finest first.

        A flow is [B, 2(T-1), h, w] with (dx, dy) of each pair in turn, or [B, 2, T-1, h, w] as 3D networks give it.
        """
        with torch.autocast(clips_BCTHW.device.type, enabled=False):
            frames_BTCHW = clips_BCTHW.float().transpose(1, 2)
            levels = [
                self._level(frames_BTCHW, flow.float(), smooth_weight)
                for flow, smooth_weight in zip(flows, self.smooth_weights, strict=True)
            ]
            return FlowTerms(*(torch.stack(term).sum(0) for term in zip(*levels, strict=True)))

    def _level(self, frames_BTCHW: Tensor, flow: Tensor, smooth_weight: float) -> tuple[Tensor, ...]:
        batch, num_frames = frames_BTCHW.shape[:2]
        flow_N2HW = flow.transpose(1, 2) if flow.ndim == 5 else flow.unflatten(1, (num_frames - 1, 2))
        flow_N2HW = flow_N2HW.flatten(0, 1)
        small = F.interpolate(
            frames_BTCHW.flatten(0, 1), size=flow_N2HW.shape[-2:], mode="bilinear", align_corners=False
        ).unflatten(0, (batch, num_frames))
        target_NCHW, source_NCHW = small[:, :-1].flatten(0, 1), small[:, 1:].flatten(0, 1)
        estimate_NCHW = reconstruct(source_NCHW, flow_N2HW)

        def mean(values_NCHW: Tensor) -> Tensor:
            return values_NCHW.mean(dim=(1, 2, 3))

        return (
            mean(1 - structural_similarity(target_NCHW, estimate_NCHW)),
            mean(charbonnier(target_NCHW - estimate_NCHW)),
            smooth_weight * mean(roughness(flow_N2HW)),
            self.sparsity_weight * mean(flow_N2HW.abs()),
        )


# ----------------------------------------------------------------- regularisation


def regularized_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable weights of convolutions, linear layers and attention, by name; no biases, no norms."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.ndim > 1
        and not any(word in name for word in ("bn", "batchnorm", "bias"))
    }


class _SumOfSquares(torch.autograd.Function):
    """The sum of squares over all elements of all tensors, in one fused operation forward and one backward.

    Accumulated in float64: over a hundred million weights, float32 norms are wrong in the fourth digit on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        norms = torch._foreach_norm(tensors, 2, torch.float64)
        return torch.stack(norms).square().sum().to(tensors[0].dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch._foreach_mul(ctx.saved_tensors, 2 * gradient))


def half_sum_of_squares(tensors: Iterable[Tensor]) -> Tensor | float:
    """Return half the sum of squares over all elements of all tensors; 0.0 if there are none."""
    tensors = tuple(tensors)
    return _SumOfSquares.apply(*tensors) / 2 if tensors else 0.0


class L2:
    """alpha / 2 times the sum of squares of the regularised weights: part of the loss, not weight decay.

    The weights are those that are trainable now: freeze first what is to be frozen.
    """

    def __init__(self, model: nn.Module, *, alpha: float):
        self.alpha = alpha
        self.parameters = list(regularized_parameters(model).values())

    def __call__(self) -> Tensor | float:
        return self.alpha * half_sum_of_squares(self.parameters)


class L2SP:
    """A pull of weights towards those of a pretrained network (alpha), or towards 0 if it does not have them (beta).

    It is not a module, so that no checkpoint holds the pretrained weights a second time. They are copied to the device
    of each parameter: move the model there first.
    """

    def __init__(self, model: nn.Module, pretrained: Mapping[str, Tensor], *, alpha: float, beta: float):
        """Take from `pretrained`, a state dict, what fits by name and shape. If it is empty, this is L2 with beta."""
        self.alpha, self.beta = alpha, beta
        self.pulled: list[Tensor] = []
        self.starting_points: list[Tensor] = []
        self.others: list[Tensor] = []
        for name, parameter in regularized_parameters(model).items():
            start = pretrained.get(name)
            if start is not None and start.shape == parameter.shape:
                self.pulled.append(parameter)
                self.starting_points.append(start.detach().to(parameter.device, parameter.dtype, copy=True))
            else:
                self.others.append(parameter)

    def __call__(self) -> Tensor | float:
        moved = torch._foreach_sub(self.pulled, self.starting_points) if self.pulled else ()
        return self.alpha * half_sum_of_squares(moved) + self.beta * half_sum_of_squares(self.others)


class Classification(nn.Module):
    """The loss and the probabilities of a classifier whose labels are columns of 1, 0 and -1 (not known)."""

    def __init__(self, loss: FocalBCE | CrossEntropy, num_classes: int):
        super().__init__()
        self.loss, self.num_classes = loss, num_classes

    def forward(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the probabilities, [B, K] or [B, K, T] like logits and labels."""
        if isinstance(self.loss, FocalBCE):
            return self.loss(logits, labels), torch.sigmoid(logits.float())
        known, index = (labels == 1).max(dim=1)
        return self.loss(logits, torch.where(known, index, -1)), torch.softmax(logits.float(), dim=1)
