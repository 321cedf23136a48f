"""Make videos of moving shapes to try everything on, so that nothing has to be downloaded.

A bright square and a dark disc move over a textured ground, each on its own track. The behaviours are `right` (the
square moves to the right) and `fall` (the disc moves down); they may happen together. The square also moves to the left
and the disc up. These have no labels, so that it is not enough to see that something moves.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from deg.errors import VideoError

BEHAVIORS = ("right", "fall")


def write_shapes_video(path: Path, *, num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """Write an MPEG-4 video of moving shapes; return its labels (T, 3): background, right, fall.

    Raises VideoError if the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    ground = _ground(height, width)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 30.0, (width, height))
    if not writer.isOpened():
        raise VideoError(path, "this video cannot be written", "Does the folder exist? Is it writable, the disk full?")
    labels_TK = np.zeros((num_frames, 1 + len(BEHAVIORS)), dtype=np.int8)
    side = min(height, width) // 5
    x, y = width / 2, height / 2
    for frame, (across, down) in enumerate(zip(_script(rng, num_frames), _script(rng, num_frames), strict=True)):
        x = (x + across - side) % (width - 2 * side) + side
        y = (y + down - side) % (height - 2 * side) + side
        labels_TK[frame, 1:] = across > 0, down > 0
        writer.write(_draw(ground, x, y, side, rng))
    writer.release()
    labels_TK[:, 0] = ~labels_TK[:, 1:].any(axis=1)
    return labels_TK


def _script(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Return how many pixels a shape moves along its track in each frame, (T,), in bouts of 12 to 45 frames."""
    moves: list[np.ndarray] = []
    total = 0
    while total < num_frames:
        length = int(rng.integers(12, 46))
        moves.append(np.full(length, rng.choice([0.0, 1.0, 1.0, -1.0]) * rng.uniform(4, 7)))
        total += length
    return np.concatenate(moves)[:num_frames]


def _ground(height: int, width: int) -> np.ndarray:
    """Return the arena, which is the same in every video."""
    noise = np.random.default_rng(0).normal(110, 40, (height, width, 3)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 6)


def _draw(ground: np.ndarray, x: float, y: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the square at `x` on its track, two thirds down the picture, and the disc at `y`, left of the middle."""
    height, width = ground.shape[:2]
    frame = ground.copy()
    cv2.circle(frame, (width // 3, round(y)), side // 2, (40, 40, 40), -1, cv2.LINE_AA)
    corners = cv2.boxPoints(((x, height * 2 / 3), (side, side), 0))
    cv2.fillConvexPoly(frame, corners.astype(np.int32), (60, 160, 240), lineType=cv2.LINE_AA)
    frame += rng.normal(0, 2, (*frame.shape[:2], 1)).astype(np.float32)
    return np.clip(frame, 0, 255).astype(np.uint8)
