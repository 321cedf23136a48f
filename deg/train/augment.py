"""The random changes made to clips in training, on the device: flips, rotation, colour jitter, grey.

There is one draw for each clip, the same for all of its frames. Draws depend only on the seed and the number of the
batch. They are made for the whole batch of all ranks, and each rank takes its part: a resumed training, or one on other
devices, sees the same clips. Order, probabilities and arithmetic are those of DeepEthogram with kornia 0.6.6 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
)
from kornia.geometry import rotate
from torch import Tensor

from deg.arithmetic.sampling import generator
from deg.options import schema

ROTATED = 0.5
"""Probability that a clip is rotated at all if `augs.degrees` is not 0. DeepEthogram has no option for it."""
UNCHANGED = np.array([1.0, 1.0, 1.0, 0.0])
"""Brightness, contrast, saturation and hue that leave a clip as it is."""

# ----------------------------------------------------------------- draws


@dataclass(frozen=True, eq=False)
class Draws:
    """What happens to each of B clips."""

    mirrored_B: np.ndarray
    """Whether the clip is flipped left to right; bool."""
    upended_B: np.ndarray
    """Whether the clip is flipped upside down; bool."""
    degrees_B: np.ndarray
    """Rotation about the centre, in degrees, positive counter-clockwise; 0 for none. float32."""
    jitter_B4: np.ndarray
    """Factors of brightness, contrast and saturation, and turns of hue; `UNCHANGED` without jitter. float32."""
    order: tuple[int, ...]
    """Order in which these four are applied, the same for the whole batch."""
    grey_B: np.ndarray
    """Whether the clip loses its colour; bool."""

    def part(self, clips: range) -> Draws:
        """Return the draws for some of the clips."""
        own = slice(clips.start, clips.stop)
        return Draws(
            self.mirrored_B[own],
            self.upended_B[own],
            self.degrees_B[own],
            self.jitter_B4[own],
            self.order,
            self.grey_B[own],
        )


def draw(augs: schema.Augs, count: int, *, seed: int, batch: int) -> Draws:
    """Draw for the `count` clips of batch number `batch`, all ranks together."""
    rng = generator(seed, "augmentation", batch)
    order = tuple(int(step) for step in rng.permutation(4))
    # Everything is drawn for every clip, whatever the options: changing one option changes no other draw.
    chances = rng.random((count, 10))
    mirrored, upended, turned, angle, jittered, grey = chances[:, :6].T
    spread = np.array([augs.brightness, augs.contrast, augs.saturation, augs.hue])
    low, high = np.maximum(UNCHANGED - spread, [0, 0, 0, -0.5]), UNCHANGED + spread
    jitter_B4 = low + (high - low) * chances[:, 6:]
    return Draws(
        mirrored_B=mirrored < augs.LR,
        upended_B=upended < augs.UD,
        degrees_B=np.where(turned < ROTATED, (2 * angle - 1) * augs.degrees, 0).astype(np.float32),
        jitter_B4=np.where(jittered[:, None] < augs.color_p, jitter_B4, UNCHANGED).astype(np.float32),
        order=order,
        grey_B=grey < augs.grayscale,
    )


# ----------------------------------------------------------------- changes


def augment(clips_BCTHW: Tensor, draws: Draws) -> Tensor:
    """Return clips in [0, 1], changed as drawn: float32 even under autocast, no gradient, stored frame by frame."""
    frames_BTCHW = clips_BCTHW.float().transpose(1, 2)
    if frames_BTCHW.device.type != "cpu":
        return _changed(frames_BTCHW.contiguous(), draws).transpose(1, 2)
    # One clip goes through all steps, then the next: it stays in the cache, which halves the time.
    changed_BTCHW = frames_BTCHW.new_empty(frames_BTCHW.shape)

    def change(i: int) -> None:
        one = slice(i, i + 1)
        changed_BTCHW[one] = _changed(frames_BTCHW[one].contiguous(), draws.part(range(i, i + 1)))

    _on_all_threads(change, len(frames_BTCHW))
    return changed_BTCHW.transpose(1, 2)


def _on_all_threads(work: Callable[[int], None], count: int) -> None:
    """Call work(0) ... work(count - 1) on as many threads as PyTorch has here, each of which computes alone.

    PyTorch itself would make all threads meet after each of a hundred small operations, where a late one keeps the
    others waiting; and it rotates an image on one thread only.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, range(count)))
    finally:
        torch.set_num_threads(threads)  # the 1 is for the pool's threads, but threads started later would get it, too


@torch.no_grad()
def _changed(frames_BTCHW: Tensor, draws: Draws) -> Tensor:
    with torch.autocast(frames_BTCHW.device.type, enabled=False):
        frames = _where(draws.mirrored_B, frames_BTCHW, lambda frames: frames.flip(-1))
        frames = _where(draws.upended_B, frames, lambda frames: frames.flip(-2))
        frames = _where(draws.degrees_B != 0, frames, _turn, draws.degrees_B)
        for step in draws.order:
            values_B = draws.jitter_B4[:, step]
            frames = _where(values_B != UNCHANGED[step], frames, JITTER[step], values_B)
        return _where(draws.grey_B, frames, lambda frames: rgb_to_grayscale(frames).expand_as(frames))


def _where(chosen_B: np.ndarray, frames_BTCHW: Tensor, change: Callable[..., Tensor], *values_B: np.ndarray) -> Tensor:
    """Apply `change(frames, *values)` to the chosen clips, and leave the others as they are."""
    if not chosen_B.any():
        return frames_BTCHW
    device = frames_BTCHW.device
    values = [torch.from_numpy(each[chosen_B]).to(device, non_blocking=True) for each in values_B]
    if chosen_B.all():
        return change(frames_BTCHW, *values)
    rows = torch.from_numpy(np.flatnonzero(chosen_B)).to(device, non_blocking=True)
    return frames_BTCHW.index_copy(0, rows, change(frames_BTCHW[rows], *values))


def _turn(frames_BTCHW: Tensor, degrees_B: Tensor) -> Tensor:
    """Rotate bilinearly, with black outside the image and one grid for all frames of a clip."""
    return rotate(frames_BTCHW.flatten(1, 2), degrees_B, align_corners=True).view_as(frames_BTCHW)


def _turn_hue(frames_BTCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Turn the hue by fractions of a full turn: kornia's `adjust_hue` to 1e-5, in an eighth of its time on a CPU.

    Each colour is a function of hue alone, between the least and the greatest of the three: a plateau of a third of a
    turn with slopes of a sixth on both sides, shifted by a third of a turn from one colour to the next.
    """
    red, green, blue = frames_BTCHW.unbind(2)
    greatest, least = frames_BTCHW.amax(2), frames_BTCHW.amin(2)
    chroma = greatest - least
    # selected by lerp with weights 0 and 1: torch.where takes 20 times as long
    from_green = (blue - red).add_(chroma, alpha=2)
    from_blue = (red - green).add_(chroma, alpha=4)
    sixths = torch.lerp(from_blue, from_green, green.clone().ge_(blue))
    sixths = torch.lerp(sixths, green - blue, red.clone().eq_(greatest))
    # plus 1, so that frac() sees no negative number; a grey pixel has chroma 0, so that any hue will do
    hue = (sixths / chroma.clamp(min=1e-12)).div_(6).add_(turns_B.view(-1, 1, 1, 1) + 1)
    turned = torch.empty_like(frames_BTCHW)
    for channel, shift in enumerate((0.0, 2 / 3, 1 / 3)):
        height = (hue + shift).frac_().mul_(6).sub_(3).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(least, chroma, height, out=turned[:, :, channel])
    return turned


JITTER: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
    _turn_hue,
)

# ----------------------------------------------------------------- input of the network


def normalise(clips_BCTHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (clips - mean) / std of each colour."""
    mean_C, std_C = (clips_BCTHW.new_tensor(values).view(3, 1, 1, 1) for values in (mean, std))
    return (clips_BCTHW - mean_C).div_(std_C)


def stack_frames(clips_BCTHW: Tensor) -> Tensor:
    """Return [B, 3 * T, H, W], frame by frame and RGB inside a frame, without copying what `augment` returned."""
    return clips_BCTHW.transpose(1, 2).flatten(1, 2)
