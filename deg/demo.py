"""A small project of moving shapes, to try everything on: made here, so nothing has to be downloaded.

A bright square and a dark disc on a textured ground. Behaviours: `right` (the square moves to the right) and `spin` (it
turns); they may happen together. It also moves to the left, which has no label: that something moves is not the answer.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from deg.errors import VideoError

BEHAVIORS = ("right", "spin")


def write_shapes_video(path: Path, *, num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """Write an MPEG-4 video of moving shapes; returns its labels (T, 3): background, right, spin.

    VideoError if the file cannot be written.
    """
    rng = np.random.default_rng(seed)
    ground = _ground(rng, height, width)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 30.0, (width, height))
    if not writer.isOpened():
        raise VideoError(path, "this video cannot be written", "Is the folder there and writable, the disk full?")
    script = _script(rng, num_frames)
    labels_TK = np.zeros((num_frames, 1 + len(BEHAVIORS)), dtype=np.int8)
    side, x, angle = min(height, width) // 5, width / 2, 0.0
    for frame, (step, turn) in enumerate(script):
        x = (x + step - side) % (width - 2 * side) + side
        angle += turn
        labels_TK[frame, 1:] = step > 0, turn != 0
        writer.write(_draw(ground, x, height / 2, side, angle, rng))
    writer.release()
    labels_TK[:, 0] = ~labels_TK[:, 1:].any(axis=1)
    return labels_TK


def _script(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """For each frame the step to the right in pixels and the turn in degrees: (T, 2); bouts of 12 to 45 frames."""
    moves: list[np.ndarray] = []
    total = 0
    while total < num_frames:
        length = int(rng.integers(12, 46))
        step = rng.choice([0.0, 0.0, 1.0, -1.0]) * rng.uniform(2, 4)
        turn = rng.choice([0.0, 0.0, 1.0]) * rng.uniform(6, 12)
        moves.append(np.tile([step, turn], (length, 1)))
        total += length
    return np.concatenate(moves)[:num_frames]


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    noise = rng.normal(110, 40, (height, width, 3)).astype(np.float32)
    ground = cv2.GaussianBlur(noise, (0, 0), 6)
    cv2.circle(ground, (width // 4, height // 4), min(height, width) // 10, (40, 40, 40), -1)
    return ground


def _draw(ground: np.ndarray, x: float, y: float, side: int, angle: float, rng: np.random.Generator) -> np.ndarray:
    corners = cv2.boxPoints(((x, y), (side, side), angle))
    frame = ground.copy()
    cv2.fillConvexPoly(frame, corners.astype(np.int32), (60, 160, 240), lineType=cv2.LINE_AA)
    mark = (corners[0] + corners[1]) / 2  # tells a turned square from one that was not
    cv2.circle(frame, (int(mark[0]), int(mark[1])), max(side // 8, 2), (240, 240, 240), -1)
    frame += rng.normal(0, 2, (*frame.shape[:2], 1)).astype(np.float32)
    return np.clip(frame, 0, 255).astype(np.uint8)
