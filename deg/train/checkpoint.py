"""Networks and states on disk, each written to a temporary file and then renamed.

    checkpoint.pt                             the newest network          for DeepEthogram and deg
    lightning_checkpoints/epoch=E-step=S.ckpt   the best one so far        (keys as DeepEthogram 0.5.0 has them)
    lightning_checkpoints/last.ckpt           the newest again
    units/0000N/state/step-S.ckpt             all that resuming needs: network, optimizer, course, counters

They hold only tensors and plain values, so that they can be read without running code from them.
"""

from __future__ import annotations

import errno
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import CheckpointIO
from torch import Tensor

from deg.data.atomic import remove_parts, replacing
from deg.errors import RunError, show_path
from deg.models.weights import UNREADABLE
from deg.runs.networks import CHECKPOINTS

log = logging.getLogger(__name__)

KEPT_STATES = 2
"""States that are kept: the newest, and the one before it in case the newest turns out to be damaged."""


def save(content: Mapping[str, Any], path: Path) -> None:
    """Write a file with torch. Raises RunError if the disk refuses; a former file of this name then stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        remove_parts(path)
        with replacing(path) as part:
            torch.save(dict(content), part)
    except (OSError, RuntimeError) as error:
        # torch's writer turns a full disk into a RuntimeError that does not say so
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if isinstance(error, RuntimeError) and not _has_room(path.parent):
            reason = os.strerror(errno.ENOSPC)
        raise RunError(
            f"{show_path(path)}: expected to write a checkpoint, but the disk refused: {reason}. Files "
            "written before are intact. Make room, then run the same command again: it resumes from the last state."
        ) from error


def _has_room(folder: Path) -> bool:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize > 2**20


def save_newest(folder: Path, state: Mapping[str, Tensor], *, epoch: int, step: int, about: Mapping[str, Any]) -> None:
    """Save the network after an epoch, in both forms. `about` is what one must know to use it."""
    plain = {"epoch": epoch, "state_dict": dict(state), "optimizer": None, "hyperparameters": None, "deg": dict(about)}
    save(plain, folder / "checkpoint.pt")
    save(_lightning(state, epoch, step, about), folder / CHECKPOINTS / "last.ckpt")


def save_best(folder: Path, state: Mapping[str, Tensor], *, epoch: int, step: int, about: Mapping[str, Any]) -> Path:
    """Save the network after the best epoch so far, then delete the former best."""
    checkpoints = folder / CHECKPOINTS
    path = checkpoints / f"epoch={epoch}-step={step}.ckpt"
    save(_lightning(state, epoch, step, about), path)
    for former in checkpoints.glob("epoch=*.ckpt"):
        if former != path:
            former.unlink(missing_ok=True)
    return path


def _lightning(state: Mapping[str, Tensor], epoch: int, step: int, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "global_step": step,
        "pytorch-lightning_version": pl.__version__,
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "loops": {},
        "hyper_parameters": {},
        "deg": dict(about),
    }


# ---------------------------------------------------------------------------------------------------- states


def state_path(folder: Path, batches: int) -> Path:
    return folder / f"step-{batches:09d}.ckpt"


def newest_state(folder: Path) -> Path | None:
    """Return the newest state in a folder that can be read; None if there is none. The log names damaged ones."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        try:
            with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
                damaged = archive.testzip()
            if damaged is None and "deg" in torch.load(path, map_location="cpu", weights_only=True):
                return path
            reason: Any = f"{damaged} is damaged" if damaged else "it is not a state of deg"
        except (OSError, zipfile.BadZipFile, *UNREADABLE) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("%s: skipped, because it cannot be read (%s)", show_path(path), reason)
    return None


def forget_older_states(folder: Path) -> None:
    """Delete all but the newest states."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True)[KEPT_STATES:]:
        path.unlink(missing_ok=True)


class AtomicCheckpoints(CheckpointIO):
    """The plugin by which Lightning's Trainer writes and reads states."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        save(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
