"""Results in `<video>_outputs.h5`, the file that DeepEthogram's GUI opens.

    /resnet18                   one group for each network; no other top-level objects: the GUI offers each as a result
        thresholds  (K)  f4     logits (T,K) f4     P (T,K) f4     spatial_features, flow_features (T,512) f4
        class_names (K)  str
    /tgmj                       the same without features

What deg adds is in attributes of the group: provenance, and the mark that says the result is whole. The whole file is
written under a temporary name, read back, flushed to disk and renamed; groups of other networks are carried over.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deg.arithmetic.ranges import ranges_of
from deg.data.atomic import remove_parts, replacing
from deg.data.lock import exclusive
from deg.errors import ResultError, show_path

MARK = "deg_mark"
CHECKSUMS = "deg_crc32"
PROVENANCE = "deg_provenance"
DAMAGED = "damaged_frames"
"""Entry of the provenance: frames of the video that were damaged, in half-open ranges; absent if there were none."""
LOCK_SECONDS = 60.0
"""Seconds to wait for another process that writes results into the same folder; then ResultError."""
SPARE_BYTES = 1 << 20
"""Room that is set aside while a file is written: more than HDF5 holds back until the file is closed."""

Blocks = Iterable[Mapping[str, np.ndarray]]
"""Consecutive rows of all per-frame datasets: {name: (rows, columns)}."""


@dataclass(frozen=True)
class Mark:
    """What a finished result was made from. A result is done only if its mark equals the one that is wanted now."""

    frames: int
    weights: Mapping[str, str]
    """sha256 of each weight file, by role."""
    settings: str
    """sha256 of every option that changes the numbers."""
    video_size: int
    video_mtime_ns: int
    source: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that the result depends on, such as the features that a sequence network read."""


@contextmanager
def open_results(path: Path) -> Iterator[h5py.File]:
    """Open an outputs file for reading. Raises ResultError if it is locked, truncated or not an HDF5 file.

    If a file opens but is damaged further in, what HDF5 raises in the block becomes a ResultError too. The block must
    therefore touch nothing but this file.
    """
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except FileNotFoundError:
        raise ResultError(f"{show_path(path)}: there are no results yet. Run `deg infer` first.") from None
    except OSError as error:
        if _is_locked(error):
            problem, remedy = "another program has it open for writing", "Close it there (the GUI?), then run again."
        elif error.errno == errno.EACCES:
            problem, remedy = "permission denied", "Make it readable (chmod u+r, or ask its owner), then run again."
        else:
            problem, remedy = "this is not a readable HDF5 file (truncated?)", "Move it away, then run again."
        raise ResultError(f"{show_path(path)}: {problem}. {remedy}") from error
    try:
        with file:
            yield file
    except (KeyError, RuntimeError, OSError, ValueError) as error:
        raise ResultError(f"{show_path(path)}: the file is damaged ({error}). Move it away, then run again.") from error


def _is_locked(error: OSError) -> bool:
    return error.errno == errno.EAGAIN or "unable to lock file" in str(error)


def describe_refusal(path: Path, error: OSError) -> str:
    """Say in one sentence what the system refused; HDF5 has five lines for a full disk."""
    reason = str(error) if error.errno is None else os.strerror(error.errno)
    return f"{show_path(path)}: {reason}. Make sure that there is room and permission to write, then run again."


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """Make a new HDF5 file to write to. Raises OSError if the disk is full.

    If there is no room for what HDF5 writes when it closes a file, it keeps the file open for good, and crashes the
    process some time later. Rows therefore go to the disk at once. For the rest, a few kilobytes, room is set aside and
    given back before the file is closed, however the block ends.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_sieve_buf_size(0)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_file_locking(False, True)  # nobody else knows of the file
    with tempfile.TemporaryFile(dir=path.parent) as spare:
        os.posix_fallocate(spare.fileno(), 0, SPARE_BYTES)
        with h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_EXCL, fapl=access)) as file:
            try:
                yield file
            finally:
                spare.close()


def checksum(values: np.ndarray, former: int = 0) -> int:
    """Return the CRC-32 of values as float32, continuing `former`, the checksum of the rows before them."""
    return zlib.crc32(np.ascontiguousarray(values, dtype=np.float32).data, former)


def groups(path: Path) -> list[str]:
    """Return the names of the results in an outputs file. Raises ResultError if it cannot be read."""
    with open_results(path) as file:
        return list(file)


def read_mark(path: Path, group: str) -> Mark | None:
    """Read the mark of a group; None if there is no file, group or mark. Raises ResultError for an unreadable file."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    with open_results(path) as file:
        if not isinstance(file.get(group), h5py.Group) or MARK not in file[group].attrs:
            return None
        try:
            return Mark(**json.loads(file[group].attrs[MARK]))
        except (TypeError, ValueError):
            return None  # a mark of another version says nothing; the result is made again


def check_writable(path: Path) -> None:
    """Find out, before hours of work, whether results can be written to `path`. Raises ResultError if not."""
    folder = path.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ResultError(f"{show_path(folder)}: results go here, but it is not writable. Change its permissions.")
    if not path.exists():
        return
    if not path.stat().st_mode & 0o222:  # os.access lets root write, but a read-only file is meant to be left alone
        raise ResultError(f"{show_path(path)}: the file is read-only. Make it writable (chmod u+w) or move it away.")
    if path.stat().st_size:
        with open_results(path):
            pass


def write_group(
    path: Path,
    group: str,
    *,
    num_frames: int,
    columns: Mapping[str, int],
    blocks: Blocks,
    class_names: Sequence[str],
    thresholds_K: np.ndarray,
    mark: Mark,
    provenance: Mapping[str, Any],
) -> None:
    """Write one network's result for one video, replacing that group alone. Memory does not grow with `num_frames`.

    `columns` gives the width of each per-frame dataset, in the order in which they are made; `blocks` gives their rows.
    The file under its final name is whole at all times: it is the former one or the new one. Raises ResultError if the
    file cannot be replaced or the rows do not add up to `num_frames`, OSError if the disk is full.
    """
    check_writable(path)
    with exclusive(path.parent, seconds=LOCK_SECONDS, busy=_busy(path)), replacing(path) as beside:
        remove_parts(path)
        with new_hdf5(beside) as file:
            _carry_over(path, file, leave_out=group)
            _fill(file.create_group(group), num_frames, columns, blocks, class_names, thresholds_K)
            file[group].attrs[PROVENANCE] = json.dumps(provenance, sort_keys=True)
            file[group].attrs[MARK] = json.dumps(asdict(mark), sort_keys=True)
        verify_group(beside, group, num_frames)


def _carry_over(path: Path, file: h5py.File, *, leave_out: str) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    names = [name for name in groups(path) if name != leave_out]
    with h5py.File(path, "r", locking="best-effort") as former:
        for name in names:
            _copy(former, name, file)


def _copy(former: h5py.File, name: str, file: h5py.File) -> None:
    try:
        former.copy(name, file)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ResultError(
            f"{show_path(former.filename)}: group {name} is damaged and cannot be carried over ({error}). "
            "Move the file away, then run again."
        ) from error


def _fill(
    target: h5py.Group,
    num_frames: int,
    columns: Mapping[str, int],
    blocks: Blocks,
    class_names: Sequence[str],
    thresholds_K: np.ndarray,
) -> None:
    target.create_dataset("thresholds", data=np.asarray(thresholds_K, dtype=np.float32))
    datasets = {
        name: target.create_dataset(name, shape=(num_frames, width), dtype=np.float32)
        for name, width in columns.items()
    }
    checksums = dict.fromkeys(columns, 0)
    row = 0
    for block in blocks:
        rows = {len(values) for values in block.values()}
        if set(block) != set(columns) or len(rows) != 1:
            raise ValueError(
                f"expected equal rows of {sorted(columns)}, got { {k: v.shape for k, v in block.items()} }"
            )
        end = row + rows.pop()
        if end > num_frames:
            raise ResultError(f"{target.file.filename}: expected {num_frames} frames of results, got at least {end}.")
        for name, values in block.items():
            datasets[name][row:end] = values
            checksums[name] = checksum(values, checksums[name])
        row = end
    if row != num_frames:
        raise ResultError(f"{target.file.filename}: expected {num_frames} frames of results, got {row}.")
    # the GUI matches columns to classes by these names; DeepEthogram drops what is not ASCII, deg keeps it, as HDF5 can
    target.create_dataset("class_names", data=list(class_names), dtype=h5py.string_dtype("utf-8"))
    target.attrs[CHECKSUMS] = json.dumps(checksums)


def verify_group(path: Path, group: str, num_frames: int, *, rows: int = 2048) -> None:
    """Read a group back and compare it with its checksums. Raises ResultError about the first dataset that differs."""
    with open_results(path) as file:
        if group not in file or CHECKSUMS not in file[group].attrs:
            raise ResultError(f"{show_path(path)}: group {group} is missing or was not written by deg.")
        for name, expected in json.loads(file[group].attrs[CHECKSUMS]).items():
            data = file[group][name]
            found = 0
            for start in range(0, len(data), rows):
                found = checksum(data[start : start + rows], found)
            if found != expected or len(data) != num_frames:
                raise ResultError(
                    f"{show_path(path)}: {group}/{name} does not read back as it was written "
                    f"({len(data)} of {num_frames} frames, checksum {found:08x} instead of {expected:08x}). "
                    "Is the disk failing?"
                )


@dataclass(frozen=True)
class Predictions:
    """What the GUI and the exports need from one group."""

    probabilities_TK: np.ndarray
    thresholds_K: np.ndarray
    class_names: tuple[str, ...]
    activation: str | None = None
    """`sigmoid` or `softmax`; None in results of DeepEthogram, which does not say."""


def read_predictions(path: Path, group: str) -> Predictions:
    """Read probabilities, thresholds and class names of a group. Raises ResultError if they are missing or disagree."""
    with open_results(path) as file:
        found = _group(file, group, ("P", "thresholds", "class_names"))
        names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in found["class_names"][()])
        predictions = Predictions(found["P"][()], found["thresholds"][()].reshape(-1), names, _activation(found))
    columns = predictions.probabilities_TK.shape[1] if predictions.probabilities_TK.ndim == 2 else -1
    if not columns == len(predictions.thresholds_K) == len(names):
        raise ResultError(
            f"{show_path(path)}: group {group} has {columns} columns of P, {len(predictions.thresholds_K)} thresholds "
            f"and {len(names)} class names; all should be equal. Run `deg infer --overwrite` for this video."
        )
    return predictions


def _activation(group: h5py.Group) -> str | None:
    engines = json.loads(group.attrs.get(PROVENANCE, "{}")).get("engines") or [{}]
    return engines[0].get("activation")


def read_damaged(path: Path) -> tuple[range, ...]:
    """Return the frames of the video that were damaged when results were made from it, by any group of the file."""
    with open_results(path) as file:
        provenances = [json.loads(group.attrs.get(PROVENANCE, "{}")) for group in file.values()]
    frames = {frame for found in provenances for start, stop in found.get(DAMAGED, ()) for frame in range(start, stop)}
    return ranges_of(sorted(frames))


class FeatureReader:
    """Reads features of one video, spatial before flow: `reader(start, stop)` gives (stop - start, D) float32."""

    def __init__(self, path: Path, group: str):
        self.path, self.group = path, group

    def __enter__(self) -> FeatureReader:
        self._context = open_results(self.path)
        file = self._context.__enter__()
        try:
            found = _group(file, self.group, ("spatial_features", "flow_features"))
            self._parts = (found["spatial_features"], found["flow_features"])
            if self._parts[0].ndim != 2 or self._parts[0].shape[0] != self._parts[1].shape[0]:
                raise ResultError(
                    f"{show_path(self.path)}: features of group {self.group} have shapes {self._parts[0].shape} and "
                    f"{self._parts[1].shape}; their numbers of frames should be equal. "
                    "Run `deg infer feature_extractor --overwrite`."
                )
        except Exception as error:
            if not self._context.__exit__(type(error), error, error.__traceback__):  # it says if the file is damaged
                raise
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(None, None, None)  # an error in the block need not be the file's fault

    @property
    def num_frames(self) -> int:
        return len(self._parts[0])

    @property
    def num_features(self) -> int:
        return sum(part.shape[1] for part in self._parts)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        try:
            return np.concatenate([part[start:stop] for part in self._parts], axis=1).astype(np.float32, copy=False)
        except (OSError, RuntimeError) as error:
            raise ResultError(
                f"{show_path(self.path)}: features of frames {start} to {stop} cannot be read ({error}). "
                "Run `deg infer feature_extractor --overwrite` for this video."
            ) from error


def _group(file: h5py.File, group: str, names: Sequence[str]) -> h5py.Group:
    where = show_path(file.filename)
    if not isinstance(file.get(group), h5py.Group):
        there = ", ".join(file) or "none"
        raise ResultError(
            f"{where}: there is no group {group} (groups: {there}). Choose one of these, or run `deg infer`."
        )
    if missing := [name for name in names if name not in file[group]]:
        raise ResultError(
            f"{where}: group {group} lacks {', '.join(missing)}; an interrupted program may have left it so. "
            "Run `deg infer --overwrite` for this video."
        )
    return file[group]


def _busy(path: Path) -> ResultError:
    # if two processes carried groups over at the same time, the new group of one would be lost
    return ResultError(
        f"{show_path(path)}: another process has been writing results into this folder for {LOCK_SECONDS:.0f} s. "
        "Wait for it to end, or end it, then run again."
    )
