"""Folders of images whose order of frames differs between deg and DeepEthogram."""

from __future__ import annotations

from pathlib import Path

import videos


def write_unpadded(folder: Path, num_frames: int) -> Path:
    """Write images img0.png, img1.png, ... of frames 0, 1, ...: DeepEthogram takes img10.png before img2.png."""
    videos.write_images(folder, num_frames)
    for number in range(num_frames):
        (folder / f"{number:09d}.png").rename(folder / f"img{number}.png")
    return folder
