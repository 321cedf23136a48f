"""Puts the results of units together, one outputs file for each recording.

A recording is merged when every frame of it is there exactly once and neighbouring spans decoded the same frames where they
overlap. Merging again is harmless. Memory does not grow with the length of a video.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deg.data.atomic import write_atomically
from deg.data.store import Mark, read_mark, write_group
from deg.errors import DegError, ResultError, RunError
from deg.plan import spans_by_key
from deg.rundir import Plan, RunDir
from deg.types import Unit

ROWS = 8192
"""Rows copied at a time."""

Places = list[tuple[Unit, int]]
"""Where the spans of a recording are: unit, and position in it; in order of frames."""


@dataclass(frozen=True)
class Merged:
    """How far the recordings of a run have come."""

    done: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    """Recordings that cannot be done, each with its reason."""
    waiting: tuple[str, ...] = ()
    """Recordings whose units are not all there yet."""


def wanted_mark(plan: Plan, key: str) -> Mark:
    """The mark that the finished result of a recording carries."""
    video = plan.videos[key]
    return Mark(
        frames=video.num_frames,
        weights={role: weights["sha256"] for role, weights in plan.weights.items()},
        settings=plan.settings,
        video_size=video.size_bytes,
        video_mtime_ns=video.mtime_ns,
        source=plan.sources.get(key, {}),
    )


def is_done(plan: Plan, key: str) -> bool:
    """Whether the outputs file of a recording holds just the result that this plan would give."""
    return read_mark(plan.outputs[key], plan.group) == wanted_mark(plan, key)


def merge(run: RunDir, plan: Plan, *, skip: Mapping[str, str] | None = None) -> Merged:
    """Merge every recording that is complete and not merged yet; `skip` names recordings already known to have failed.

    When nothing waits any more, the run is marked as done and the units' results, now in two places, are removed.
    """
    finished = run.finished_units()
    done: list[str] = []
    failed: dict[str, str] = dict(skip or {})
    waiting: list[str] = []
    merged_before = {event["key"] for event in run.events() if event["event"] == "merged"}
    for key, places in spans_by_key(plan.units).items():
        if key in failed:
            continue
        if key in merged_before and _is_done_quietly(plan, key):
            done.append(key)
        elif all(unit.index in finished for unit, _ in places):
            try:
                merge_recording(run, plan, key, places)
                done.append(key)
            except (DegError, OSError) as error:
                failed[key] = str(error)
        else:
            waiting.append(key)
    return Merged(tuple(done), failed, tuple(waiting))


def _is_done_quietly(plan: Plan, key: str) -> bool:
    try:
        return is_done(plan, key)
    except ResultError:
        return False


def finish(run: RunDir, merged: Merged) -> None:
    """Close a run of which nothing waits: keep its outcome, drop the units' results of what has reached the outputs files.

    A failed recording is not tried again within this run; `deg infer` makes a new one for it.
    """
    write_atomically(run.done_file, json.dumps({"done": list(merged.done), "failed": dict(merged.failed)}, indent=1))
    for index in run.finished_units():
        run.result_file(index).unlink(missing_ok=True)
    run.log_event("finished", done=len(merged.done), failed=len(merged.failed))


def merge_recording(run: RunDir, plan: Plan, key: str, places: Places) -> None:
    """Write the outputs of one recording from its spans.

    Raises DegError with the reason if a unit could not do its part, if frames are missing or double, or if neighbouring
    spans disagree about the frames between them.
    """
    with ExitStack() as files:
        spans = [_open_span(files, run, unit, position) for unit, position in places]
        _check_cover(key, [unit.spans[position] for unit, position in places], plan.videos[key].num_frames)
        _check_seams(key, spans)
        columns = {name: spans[0][name].shape[1] for name in spans[0]}
        engines = sorted({str(span.file.attrs["engine"]) for span in spans})
        write_group(
            plan.outputs[key],
            plan.group,
            num_frames=plan.videos[key].num_frames,
            columns=columns,
            blocks=_rows(spans, columns),
            class_names=plan.class_names,
            thresholds_K=np.asarray(plan.thresholds),
            mark=wanted_mark(plan, key),
            provenance=_provenance(run, plan, engines),
        )
    run.log_event("merged", key=key, frames=plan.videos[key].num_frames)


def _open_span(files: ExitStack, run: RunDir, unit: Unit, position: int) -> h5py.Group:
    path = run.result_file(unit.index)
    try:
        span = files.enter_context(h5py.File(path, "r", locking="best-effort"))[str(position)]
    except (OSError, KeyError) as error:
        path.unlink(missing_ok=True)  # was whole when it got its name: the disk lost it; it is done again
        raise RunError(f"{path}: the unit's result cannot be read ({error}). It was removed; run again.") from error
    if "error" in span.attrs:
        raise ResultError(str(span.attrs["error"]))
    return span


def _check_cover(key: str, spans: list[Any], num_frames: int) -> None:
    at = 0
    for span in spans:
        if span.start != at:
            raise RunError(f"{key}: the plan has frames [{at}, {span.start}) twice or not at all; this is a defect of deg.")
        at = span.stop
    if at != num_frames:
        raise RunError(f"{key}: the plan ends at frame {at} of {num_frames}; this is a defect of deg.")


def _check_seams(key: str, spans: list[h5py.Group]) -> None:
    """Both sides of a cut decoded the frames around it: were they the same?"""
    for left, right in zip(spans, spans[1:], strict=False):
        if "tail_frames" not in left.attrs:
            continue
        ours = dict(zip(left.attrs["tail_frames"], left.attrs["tail_crc32"], strict=True))
        theirs = dict(zip(right.attrs["head_frames"], right.attrs["head_crc32"], strict=True))
        if wrong := [frame for frame in sorted(set(ours) & set(theirs)) if ours[frame] != theirs[frame]]:
            raise ResultError(
                f"{key}: frame {wrong[0]} decodes differently when the video is entered in the middle. Re-encode the video "
                "(ffmpeg -i VIDEO -c:v libx264 -crf 17 NEW.mp4), or make one unit of it with inference.units_per_device=1."
            )


def _rows(spans: list[h5py.Group], columns: Mapping[str, int]) -> Iterator[dict[str, np.ndarray]]:
    for span in spans:
        length = len(next(iter(span.values())))
        for start in range(0, length, ROWS):
            yield {name: span[name][start : start + ROWS] for name in columns}


def _provenance(run: RunDir, plan: Plan, engines: list[str]) -> dict[str, Any]:
    provenance: dict[str, Any] = {"run": run.name, "stage": plan.stage, "weights": plan.weights}
    provenance["engines"] = [json.loads(engine) for engine in engines]
    file: Path = run.path / "provenance.json"
    if file.exists():
        provenance.update(json.loads(file.read_text()))
    return provenance

