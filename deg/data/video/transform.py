"""What is done to each frame before a network sees it: centre crop, then resize, then black margin.

The random crop of training changes only where the crop lies; sizes stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from deg.errors import ConfigError


@dataclass(frozen=True)
class FrameTransform:
    """The `augs.crop_size`, `augs.resize` and `augs.pad` of a configuration, as a function of one frame.

        >>> FrameTransform(resize=(224, 224)).output_size(480, 640)
        (224, 224)

    Resizing is bilinear by OpenCV, as in DeepEthogram, and equal to it to the last bit.
    """

    crop_size: int | Sequence[int] | None = None
    """(height, width) cut from the centre; one number for a square."""
    resize: int | Sequence[int] | None = None
    """(height, width); one number is the length of the shorter side, the other follows the shape of the frame."""
    pad: int | Sequence[int] | None = None
    """(left, right, top, bottom) black pixels; one number for all four."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_size", _numbers("crop_size", self.crop_size, 2, low=1, spread=True))
        object.__setattr__(self, "resize", _numbers("resize", self.resize, 2, low=1, spread=False))
        object.__setattr__(self, "pad", _numbers("pad", self.pad, 4, low=0, spread=True))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the result for a frame of this size. Raises ConfigError if the crop is larger."""
        height, width = self._resized(*self._cropped(height, width))
        left, right, top, bottom = self.pad or (0, 0, 0, 0)  # type: ignore[misc]
        return height + top + bottom, width + left + right

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Transform a uint8 frame in any channel order; the order stays."""
        height, width = frame_HWC.shape[:2]
        if self.crop_size is not None:
            height, width = self._cropped(height, width)
            top, left = (round((size - crop) / 2) for size, crop in zip(frame_HWC.shape, (height, width), strict=False))
            frame_HWC = frame_HWC[top : top + height, left : left + width]
        new_height, new_width = self._resized(height, width)
        if (new_height, new_width) != (height, width):
            frame_HWC = cv2.resize(frame_HWC, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        if self.pad is not None:
            left, right, top, bottom = self.pad  # type: ignore[misc]
            frame_HWC = np.pad(frame_HWC, ((top, bottom), (left, right), (0, 0)))
        return frame_HWC

    def as_dict(self) -> dict[str, Any]:
        """Return the arguments that make an equal transform, as JSON values."""
        return {"crop_size": self.crop_size, "resize": self.resize, "pad": self.pad}

    def _cropped(self, height: int, width: int) -> tuple[int, int]:
        if self.crop_size is None:
            return height, width
        crop_height, crop_width = self.crop_size  # type: ignore[misc]
        if crop_height > height or crop_width > width:
            raise ConfigError(
                f"augs.crop_size is {crop_height} x {crop_width} (height x width) but a frame is only {height} x "
                f"{width}. Choose a crop that fits into every video of the project."
            )
        return crop_height, crop_width

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, int):
            short = min(height, width)
            return int(self.resize * height / short), int(self.resize * width / short)
        new_height, new_width = self.resize
        return new_height, new_width


def _numbers(name: str, value: Any, count: int, *, low: int, spread: bool) -> int | tuple[int, ...] | None:
    """Check that `value` is None, `count` whole numbers, or one; `spread` repeats the one."""
    if value is None:
        return None
    numbers: tuple[Any, ...] = (
        (value,) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    )
    whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= low for number in numbers)
    if len(numbers) not in (1, count) or not whole or isinstance(value, str):
        raise ConfigError(
            f"augs.{name}: expected null, one number or {count} numbers, none below {low}; found {value!r}."
        )
    integers = tuple(int(number) for number in numbers)
    if len(integers) == 1:
        return integers * count if spread else integers[0]
    return integers
