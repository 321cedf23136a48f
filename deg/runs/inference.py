"""A run of inference, which can be asked what is done, what is undone, how far it has come, and why no further.

Any number of workers may do its units, in any order. Then they are merged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from deg.arithmetic.units import spans_by_key
from deg.runs.merge import close_if_merged
from deg.runs.plans import InferencePlan
from deg.runs.rundir import RunDir
from deg.runs.working import AtWork, OutputOf, Working, told_frames


@dataclass(frozen=True)
class InferenceStatus:
    """State of a run of inference at this moment."""

    name: str
    stage: str
    group: str
    state: str
    """`running`: a process holds it; `finished`; `interrupted`: neither."""
    units: int
    units_done: int
    units_failed: int
    recordings: int
    recordings_done: int
    recordings_failed: int
    """Number of recordings that cannot be done, or have units that were given up."""
    frames: int
    frames_done: int
    frames_per_second: float | None
    """Average speed of one worker over the units that are done, in frames/s; None before the first."""

    headings: ClassVar[tuple[str, ...]] = (
        "inference", "state", "units", "recordings", "failed", "frames", "frames/s",
    )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "inference", **asdict(self)}

    @property
    def row(self) -> tuple[str, ...]:
        """Cells under `headings`."""
        return (
            self.name,
            self.state,
            f"{self.units_done}/{self.units}",
            f"{self.recordings_done}/{self.recordings}",
            str(self.recordings_failed),
            f"{self.frames_done}/{self.frames}",
            "" if self.frames_per_second is None else f"{self.frames_per_second:.1f}",
        )

    def cells(self, working: Working) -> dict[str, str]:
        """Return cells for the table of a launch, by heading."""
        failed = f", {self.recordings_failed} failed" if self.recordings_failed else ""
        return {
            "done": f"{self.units_done}/{self.units} units",
            "running": str(len(working.units) or ""),
            "failed": str(self.units_failed or ""),
            "recordings": f"{self.recordings_done}/{self.recordings}{failed}",
            "speed": "" if working.speed is None else f"{working.speed:.1f} frames/s",
        }

    @property
    def how_far(self) -> str:
        """Progress of the run, in words."""
        return f"{self.units_done} of {self.units} units done"


@dataclass(frozen=True)
class InferenceRun:
    """A run of inference."""

    folder: RunDir
    plan: InferencePlan

    verb: ClassVar[Literal["infer"]] = "infer"
    in_order: ClassVar[bool] = False
    """Whether a unit cannot begin before the one before it is done."""
    continues_after_failure: ClassVar[bool] = True
    """Whether other units are done after one has failed."""

    def is_unit_done(self, index: int) -> bool:
        """Whether a unit has a result."""
        return self.folder.result_file(index).exists()

    def undone(self) -> list[int]:
        """Return the indices of the units that are still to be done.

        A closed run has none, though its results may have been cleared away.
        """
        if self.folder.done_file.exists():
            return []
        done = self.folder.finished_units()
        return [unit.index for unit in self.plan.units if unit.index not in done]

    def share(self, element: int, elements: int) -> Sequence[int]:
        """Return the indices of the units that one of several workers does."""
        return range(element, len(self.plan.units), elements)

    def progress(self) -> int:
        """Return the progress as a number that grows: the number of units done."""
        return len(self.folder.finished_units())

    def why_undone(self) -> str | None:
        """Return why the run cannot be closed: None, because an inference is merged without its undone units."""
        return None

    def close_if_complete(self) -> bool:
        """Close the run if everything is merged. Return whether it is closed now."""
        return self.folder.is_merged() or close_if_merged(self.folder, self.plan)

    def has_gaps(self) -> bool:
        """Whether results are missing."""
        return not self.folder.is_merged()

    def units_of(self, recording: str) -> list[int]:
        """Return the indices of the units that a recording is in."""
        return [unit.index for unit in self.plan.units if any(span.key == recording for span in unit.spans)]

    def failed_recordings(self) -> dict[str, str]:
        """Return the recordings that cannot be done, each with its reason."""
        if self.folder.done_file.exists():
            told = json.loads(self.folder.done_file.read_text())["failed"]
            return {str(key): str(reason) for key, reason in told.items()}
        finished = self.folder.finished_units()
        found: dict[str, str] = {}
        for key, places in spans_by_key(self.plan.units).items():
            for unit, position in places:
                if unit.index in finished and key not in found:
                    reason = error_of(self.folder.result_file(unit.index), position)
                    if reason is not None:
                        found[key] = reason
        return found

    def smaller_batch(self) -> str | None:
        """Return an option with which the run would need less GPU memory: None, because none is known."""
        return None

    def status(self) -> InferenceStatus:
        """Read from the run's files how far it has come."""
        run, plan = self.folder, self.plan
        events = list(run.events())
        finished = set(range(len(plan.units))) if run.is_merged() else run.finished_units()
        done = {event["key"] for event in events if event["event"] == "merged"}
        closed = [event for event in events if event["event"] == "finished"]
        timed = [event for event in events if event["event"] == "unit_done"]
        seconds = sum(event["seconds"] for event in timed)
        lost = [unit for unit in plan.units if unit.index not in finished and run.error_file(unit.index).exists()]
        return InferenceStatus(
            name=run.name,
            stage=plan.stage,
            group=plan.group,
            state=run.state,
            units=len(plan.units),
            units_done=len(finished),
            units_failed=len(lost),
            recordings=len(spans_by_key(plan.units)),
            recordings_done=len(done),
            recordings_failed=closed[-1]["failed"] if closed else len({s.key for unit in lost for s in unit.spans}),
            frames=sum(unit.num_frames for unit in plan.units),
            frames_done=sum(unit.num_frames for unit in plan.units if unit.index in finished),
            frames_per_second=round(sum(event["frames"] for event in timed) / seconds, 2) if seconds else None,
        )

    def working(self, now: AtWork, output_of: OutputOf) -> Working:
        """Return what the workers are doing at this moment."""
        run, plan = self.folder, self.plan
        finished = run.finished_units()
        timed = [event for event in run.events() if event["event"] == "unit_done"]
        usual = sum(event["frames"] for event in timed) / max(sum(event["seconds"] for event in timed), 1e-9)
        frames, speeds = 0, []
        for attempt in now.values():
            told, speed = told_frames(output_of(attempt), attempt)
            frames += told
            speeds.append(speed or usual)
        speed = sum(speeds) or None
        units = [unit for unit in plan.units if unit.index not in finished and not run.error_file(unit.index).exists()]
        left = sum(unit.num_frames for unit in units) - frames
        return Working(
            units=tuple(now),
            recordings=len({span.key for index in now for span in plan.units[index].spans}),
            frames=frames,
            speed=None if speed is None else round(speed, 2),
            ends=None if speed is None else round(time.time() + max(left, 0) / speed),
        )


def error_of(result: Path, position: int) -> str | None:
    """Return why a span of a result could not be done; None if it could.

    Also None if the file cannot be read: merging reports that.
    """
    import h5py

    try:
        with h5py.File(result, "r", locking=False) as file:
            reason = file[str(position)].attrs.get("error")
            return None if reason is None else str(reason)
    except (OSError, KeyError):
        return None
