"""Merge the results of units into one outputs file for each recording.

A recording is merged when each of its frames is there exactly once and reads back as it was written, and neighbouring
spans decoded the same frames where they overlap. Merging again is harmless. Memory does not grow with the length of a
video, and the number of open files does not grow with the number of its spans.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import h5py
import numpy as np

from deg.arithmetic.ranges import ranges_of
from deg.arithmetic.units import spans_by_key
from deg.data.atomic import remove_all_parts, write_atomically
from deg.data.results import DAMAGED, Mark, checksum, describe_refusal, read_mark, write_group
from deg.errors import DegError, ResultError, RunError
from deg.runs.plans import InferencePlan
from deg.runs.rundir import RunDir
from deg.types import Span, Unit

ROWS = 2048
"""Number of rows copied at a time."""

Places = list[tuple[Unit, int]]
"""Where the spans of a recording are, in order of frames: the unit, and the position in it."""


@dataclass(frozen=True)
class Merged:
    """The state of a run's recordings after a merge."""

    done: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    """Recordings that cannot be done, each with its reason."""
    unwritten: Mapping[str, str] = field(default_factory=dict)
    """Recordings whose results are there but cannot be written to the outputs file now, each with its reason: a full
    disk, or a file that is open elsewhere. Merging later loses nothing."""
    waiting: tuple[str, ...] = ()
    """Recordings with units that are not done yet, or whose results were damaged."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do in this run."""
        return not self.waiting and not self.unwritten


class _Fault(DegError):
    """The recording itself is at fault: computing it again would give the same result."""


class _Damaged(DegError):
    """A unit's result was complete, but was damaged on the disk since; it is removed and computed again."""


def wanted_mark(plan: InferencePlan, key: str) -> Mark:
    """Return the mark that the finished result of a recording carries."""
    video = plan.videos[key]
    source = asdict(plan.sources[key]) if key in plan.sources else {}
    if video.image_order != "deepethogram":  # left out otherwise, so that marks of older versions still fit
        source["image_order"] = video.image_order
    return Mark(
        frames=video.num_frames,
        weights={role: file.sha256 for role, file in plan.weights.items()},
        settings=plan.settings,
        video_size=video.size_bytes,
        video_mtime_ns=video.mtime_ns,
        source=source,
    )


def is_done(plan: InferencePlan, key: str) -> bool:
    """Whether the outputs file of a recording holds exactly the result that this plan would give."""
    return read_mark(plan.outputs[key], plan.group) == wanted_mark(plan, key)


def merge(run: RunDir, plan: InferencePlan, *, skip: Collection[str] = ()) -> Merged:
    """Merge every recording that is complete and not merged yet, without looking at those in `skip`."""
    finished = run.finished_units()
    done: list[str] = []
    failed: dict[str, str] = {}
    unwritten: dict[str, str] = {}
    waiting: list[str] = []
    merged_before = _merged_before(run)
    for key, places in spans_by_key(plan.units).items():
        if key in skip:
            continue
        if key in merged_before and _is_done_quietly(plan, key):
            done.append(key)
        elif not all(unit.index in finished for unit, _ in places):
            waiting.append(key)
        else:
            try:
                merge_recording(run, plan, key, places)
                done.append(key)
            except _Fault as error:
                failed[key] = str(error)
            except _Damaged as error:
                run.log_event("unit_damaged", key=key, reason=str(error))
                waiting.append(key)
            except DegError as error:
                unwritten[key] = str(error)
            except OSError as error:
                unwritten[key] = describe_refusal(plan.outputs[key], error)
    return Merged(tuple(done), failed, unwritten, tuple(waiting))


def _is_done_quietly(plan: InferencePlan, key: str) -> bool:
    try:
        return is_done(plan, key)
    except ResultError:
        return False


def finish(run: RunDir, merged: Merged) -> None:
    """Close a complete run: remove the units' results, which are now in the outputs files, and keep its outcome.

    The outcome is written last: a process that is killed before that leaves an open run that `close_if_merged` finds,
    not a closed run whose results take up space for ever. A failed recording is not tried again within this run;
    `deg infer` makes a new run for it.
    """
    if not merged.is_complete:
        raise RunError(f"{run.name}: expected a complete run, but {len(merged.waiting)} recordings wait.")
    for index in run.finished_units():
        run.result_file(index).unlink(missing_ok=True)
    remove_all_parts(run.path)
    write_atomically(run.done_file, json.dumps({"done": list(merged.done), "failed": dict(merged.failed)}, indent=1))
    run.log_event("finished", done=len(merged.done), failed=len(merged.failed))


def close_if_merged(run: RunDir, plan: InferencePlan) -> bool:
    """Finish a run if it was interrupted between its last merge and its end; return whether it was."""
    keys = spans_by_key(plan.units).keys()
    if keys - _merged_before(run):
        return False
    finish(run, Merged(done=tuple(keys)))
    return True


def _merged_before(run: RunDir) -> set[str]:
    """Return the recordings whose outputs file this run has written; it logs the event when the file is on the disk."""
    return {event["key"] for event in run.events() if event["event"] == "merged"}


def merge_recording(run: RunDir, plan: InferencePlan, key: str, places: Places) -> None:
    """Write the outputs of one recording from its spans.

    Raises DegError with the reason if a unit could not do its part, if frames are missing or there twice, or if
    neighbouring spans disagree about the frames between them. Raises ResultError or OSError if the outputs file cannot
    be written.
    """
    _check_cover(key, [unit.spans[position] for unit, position in places], plan.videos[key].num_frames)
    columns, engines, damaged = _check_spans(run, key, places)
    write_group(
        plan.outputs[key],
        plan.group,
        num_frames=plan.videos[key].num_frames,
        columns=columns,
        blocks=_rows(run, places),
        class_names=plan.class_names,
        thresholds_K=np.asarray(plan.thresholds),
        mark=wanted_mark(plan, key),
        provenance=_provenance(run, plan, engines) | ({DAMAGED: damaged} if damaged else {}),
    )
    run.log_event("merged", key=key, frames=plan.videos[key].num_frames)


@contextmanager
def _opened(run: RunDir, unit: Unit, position: int) -> Iterator[h5py.Group]:
    """Open one span of a unit's result. If the file is damaged, it is removed and _Damaged is raised."""
    path = run.result_file(unit.index)
    try:
        with h5py.File(path, "r", locking=False) as file:
            group = file[str(position)]
            if json.loads(group.attrs["span"]) != [*_values(unit.spans[position])]:
                raise ValueError(f"another span: {group.attrs['span']}")
            yield group
    except OSError as error:
        if error.errno is not None:
            raise  # the system is at fault (too many open files, say), not the file
        path.unlink(missing_ok=True)
        raise _Damaged(f"{path}: {error}") from error
    except (KeyError, ValueError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise _Damaged(f"{path}: {error}") from error


def _values(span: Span) -> tuple[str, int, int]:
    return span.key, span.start, span.stop


def _check_cover(key: str, spans: Sequence[Span], num_frames: int) -> None:
    at = 0
    for span in spans:
        if span.start != at:
            raise _Fault(f"{key}: the plan has frames [{at}, {span.start}) twice or not at all, a defect of deg.")
        at = span.stop
    if at != num_frames:
        raise _Fault(f"{key}: the plan ends at frame {at} of {num_frames}, a defect of deg.")


def _check_spans(run: RunDir, key: str, places: Places) -> tuple[dict[str, int], list[str], list[tuple[int, int]]]:
    """Return the columns' widths, the engines that made them, and damaged frames that were kept, in ranges.

    Raises _Fault if a span failed or does not fit.
    """
    columns: dict[str, int] = {}
    damaged: set[int] = set()
    engines: set[str] = set()
    tail: dict[int, int] = {}
    for unit, position in places:
        with _opened(run, unit, position) as span:
            if "error" in span.attrs:
                raise _Fault(str(span.attrs["error"]))
            columns = {name: span[name].shape[1] for name in json.loads(span.attrs["crc32"])}
            engines.add(str(span.file.attrs["engine"]))
            for start, stop in span.attrs.get("damaged", ()):
                damaged.update(range(start, stop))
            _check_seam(key, tail, _frames_around(span, "head"))
            tail = _frames_around(span, "tail")
    return columns, sorted(engines), [(one.start, one.stop) for one in ranges_of(sorted(damaged))]


def _frames_around(span: h5py.Group, end: str) -> dict[int, int]:
    """Return {frame: checksum} of the frames decoded around an end of a span; empty for networks that decode none."""
    if f"{end}_frames" not in span.attrs:
        return {}
    return dict(zip(span.attrs[f"{end}_frames"].tolist(), span.attrs[f"{end}_crc32"].tolist(), strict=True))


def _check_seam(key: str, left: Mapping[int, int], right: Mapping[int, int]) -> None:
    """Raise _Fault unless both sides of a cut decoded the same frames around it."""
    if wrong := [frame for frame in sorted(left.keys() & right.keys()) if left[frame] != right[frame]]:
        raise _Fault(
            f"{key}: frame {wrong[0]} decodes differently if decoding starts in the middle of the video. Re-encode the "
            "video (ffmpeg -i VIDEO -c:v libx264 -crf 17 NEW.mp4), or process it in one piece: inference.devices=1 "
            "inference.units_per_device=1."
        )


def _rows(run: RunDir, places: Places) -> Iterator[dict[str, np.ndarray]]:
    """Yield all rows, and compare them with the checksums of the units on the way."""
    for unit, position in places:
        with _opened(run, unit, position) as span:
            expected = json.loads(span.attrs["crc32"])
            found = dict.fromkeys(expected, 0)
            length = len(unit.spans[position])
            for start in range(0, length, ROWS):
                block = {name: span[name][start : start + ROWS] for name in expected}
                found = {name: checksum(values, found[name]) for name, values in block.items()}
                yield block
            if found != expected:
                raise ValueError("the rows do not read back as they were written")


def _provenance(run: RunDir, plan: InferencePlan, engines: list[str]) -> dict[str, Any]:
    weights = {role: file.as_dict() for role, file in plan.weights.items()}
    provenance: dict[str, Any] = {"run": run.name, "stage": plan.stage, "weights": weights}
    provenance["engines"] = [json.loads(engine) for engine in engines]
    file = run.path / "provenance.json"
    if file.exists():
        provenance.update(json.loads(file.read_text()))
    return provenance
