"""A run of either kind, which answers for itself: what is undone, what is done, how far it has come, and why not.

    open_run(folder) -> InferenceRun     units may be done in any order, by any number of workers; then merged
                     -> TrainingRun      units are phases, each begun when the one before is done; all ranks do the same

A new kind of run is a class here, and an arm of `open_run`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from deg.arithmetic.units import spans_by_key
from deg.runs.merge import close_if_merged
from deg.runs.plans import InferencePlan, TrainingPlan
from deg.runs.rundir import RunDir, read_error, steps_done

PHASE = 10**9
"""What a phase counts for in the progress of a training: more than it can have steps."""


@dataclass(frozen=True)
class InferenceRun:
    """An inference."""

    folder: RunDir
    plan: InferencePlan

    verb: ClassVar[Literal["infer"]] = "infer"
    in_order: ClassVar[bool] = False
    """Whether a unit cannot begin before the one before it is done."""
    goes_on_after_failure: ClassVar[bool] = True
    """Whether other units are done after one has failed."""

    def is_unit_done(self, index: int) -> bool:
        return self.folder.result_file(index).exists()

    def undone(self) -> list[int]:
        """Indices of the units that are still to be done; none of a closed run, whose results may be cleared away."""
        if self.folder.done_file.exists():
            return []
        done = self.folder.finished_units()
        return [unit.index for unit in self.plan.units if unit.index not in done]

    def share(self, element: int, elements: int) -> Sequence[int]:
        """Indices of the units that one of several workers does."""
        return range(element, len(self.plan.units), elements)

    def progress(self) -> int:
        """How far the run has come, as a number that grows: units done."""
        return len(self.folder.finished_units())

    def why_undone(self) -> str | None:
        """Why the run cannot be closed: None, for an inference is merged without the units that are not done."""
        return None

    def close_if_complete(self) -> bool:
        """Close the run if all that is left to do is to say so; whether it is closed now."""
        return self.folder.is_merged() or close_if_merged(self.folder, self.plan)

    def has_gaps(self) -> bool:
        """Whether results are missing."""
        return not self.folder.is_merged()

    def units_of(self, recording: str) -> list[int]:
        """Indices of the units that a recording is in."""
        return [unit.index for unit in self.plan.units if any(span.key == recording for span in unit.spans)]

    def failed_recordings(self) -> dict[str, str]:
        """Recordings that cannot be done, each with its reason."""
        if self.folder.done_file.exists():
            told = json.loads(self.folder.done_file.read_text())["failed"]
            return {str(key): str(reason) for key, reason in told.items()}
        finished = self.folder.finished_units()
        found: dict[str, str] = {}
        for key, places in spans_by_key(self.plan.units).items():
            for unit, position in places:
                if unit.index in finished and key not in found:
                    reason = _error_of(self.folder.result_file(unit.index), position)
                    if reason is not None:
                        found[key] = reason
        return found


@dataclass(frozen=True)
class TrainingRun:
    """A training."""

    folder: RunDir
    plan: TrainingPlan

    verb: ClassVar[Literal["train"]] = "train"
    in_order: ClassVar[bool] = True
    goes_on_after_failure: ClassVar[bool] = False

    def is_unit_done(self, index: int) -> bool:
        return self.folder.phase_done_file(index).exists()

    def undone(self) -> list[int]:
        """Indices of the phases that are still to be trained."""
        if self.folder.done_file.exists():
            return []
        return [unit.index for unit in self.plan.units if not self.is_unit_done(unit.index)]

    def share(self, element: int, elements: int) -> Sequence[int]:
        """Indices of the phases that a rank does: all."""
        return range(len(self.plan.units))

    def progress(self) -> int:
        """How far the run has come, as a number that grows: phases done, then steps of the next one."""
        done = sum(self.is_unit_done(unit.index) for unit in self.plan.units)
        steps = steps_done(self.folder.unit_folder(done) / "state") if done < len(self.plan.units) else 0
        return done * PHASE + steps

    def why_undone(self) -> str | None:
        """Why the training is not done; None if it is."""
        for unit in self.plan.units:
            if not self.is_unit_done(unit.index):
                return read_error(self.folder, unit.index) or "its jobs ended before it was done"
        return None

    def close_if_complete(self) -> bool:
        """Whether the run is closed: with what was learned, by whoever merges."""
        return self.folder.done_file.exists()

    def has_gaps(self) -> bool:
        """Whether something is missing of a training whose stage is done: never."""
        return False

    def units_of(self, recording: str) -> list[int]:
        """Indices of the units that a recording is in: none, for all are in every phase."""
        return []

    def failed_recordings(self) -> dict[str, str]:
        """Recordings that cannot be done: none, for they are left out when a training is planned."""
        return {}

    def phase_folder(self, index: int) -> Path:
        """Where a phase leaves its networks and metrics: the last one in the run directory itself."""
        phases = self.plan.phases
        return self.folder.path if index == len(phases) - 1 else self.folder.path / "curriculum" / phases[index]


Run = InferenceRun | TrainingRun


def open_run(folder: RunDir) -> Run:
    """The run in a folder, of whichever kind it is. RunError without a plan that this version can read."""
    plan = folder.load_either_plan()
    return TrainingRun(folder, plan) if isinstance(plan, TrainingPlan) else InferenceRun(folder, plan)


def _error_of(result: Path, position: int) -> str | None:
    """Why a span of a result could not be done; None if it could, or the file cannot be read: the merge finds out."""
    import h5py

    try:
        with h5py.File(result, "r", locking=False) as file:
            reason = file[str(position)].attrs.get("error")
            return None if reason is None else str(reason)
    except (OSError, KeyError):
        return None
