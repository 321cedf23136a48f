"""From a decoded picture to an array: the pixels that OpenCV makes of it, to the last bit.

DeepEthogram's networks are trained on OpenCV's pixels. OpenCV converts to BGR with bicubic interpolation of colour and
the matrix of BT.601, whatever the file says. It turns the picture as the file asks, maps HDR to the range of a screen,
and brings all pictures of a file to the size of the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

HDR = (16, 18)
"""Transfer functions of HDR pictures, PQ and HLG (ITU-T H.273, table 3)."""
BT709 = 1


class Converter:
    """Converts pictures of one video to the size of its first, which is converted first."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._size: dict[str, int] | None = None

    def bgr(self, picture: VideoFrame) -> np.ndarray:
        """Return uint8 (H, W, 3) BGR. The array shares memory that is only its own."""
        self._size = self._size or {"width": picture.width, "height": picture.height}
        mapped = {"dst_color_trc": BT709, "dst_color_primaries": BT709} if picture.color_trc in HDR else {}
        wanted: dict[str, Any] = {"format": "bgr24", "interpolation": "BICUBIC", "threads": 1, **self._size, **mapped}
        bgr = self._reformatter.reformat(picture, **wanted)
        plane = bgr.planes[0]
        padded_HS = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: bgr.height]
        frame_HWC = padded_HS[:, : 3 * bgr.width].reshape(bgr.height, bgr.width, 3)
        turns = round(picture.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(frame_HWC, turns)) if turns else frame_HWC
