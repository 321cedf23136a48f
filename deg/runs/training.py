"""A run of training, which can be asked what is done, what is undone, how far it has come, and why no further.

Its units are phases. Each begins when the one before it is done, and all ranks do the same one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from deg.data.json_lines import read_lines
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import RunDir, read_error, steps_done
from deg.runs.working import AtWork, OutputOf, Working

PHASE = 10**9
"""Number that a finished phase adds to the progress of a training: more than it can have steps."""
SMALLEST_TRIED = 16
"""Batch size that is proposed if the size was `auto`."""
FIGURES = {
    "loss": "loss",
    "f1_class_mean_nobg": "F1 without background",
    "f1_class_mean": "F1",
    "accuracy_overall": "accuracy",
    "SSIM": "1-SSIM",
}
"""Metrics of an epoch that are shown if they are known, each with its name for people."""
KEY_FIGURES = ("f1_class_mean_nobg", "f1_class_mean", "SSIM")
"""Metrics that tell how good a network is: the first that is known counts."""


@dataclass(frozen=True)
class TrainingStatus:
    """State of a run of training at this moment."""

    name: str
    stage: str
    arch: str
    state: str
    """`running`: a process holds it; `finished`; `interrupted`: neither."""
    phase: str
    """Phase that is being trained, or the last one."""
    phases: int
    phases_done: int
    epochs: int
    """Largest number of epochs of a phase."""
    epochs_done: int
    """Number of epochs of this phase that are done."""
    loss: float | None
    """Loss on the validation recordings in the last epoch; None before the first."""
    figure: str | None
    """Name of the key figure of the stage."""
    value: float | None
    """Value of the figure in the last epoch, on the validation recordings."""

    headings: ClassVar[tuple[str, ...]] = ("training", "state", "phase", "epochs", "loss", "validation")

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "train", **asdict(self)}

    @property
    def row(self) -> tuple[str, ...]:
        """Cells under `headings`."""
        return (
            self.name,
            self.state,
            self.phase if self.phases > 1 else "",
            f"{self.epochs_done}/{self.epochs}",
            "" if self.loss is None else f"{self.loss:.3f}",
            self._figure,
        )

    def cells(self, working: Working) -> dict[str, str]:
        """Return cells for the table of a launch, by heading."""
        phase = f"{self.phase}: " if self.phases > 1 else ""
        loss = "" if self.loss is None else f"loss {self.loss:.3f}"
        return {
            "done": f"{phase}epoch {self.epochs_done}/{self.epochs}",
            "speed": "" if working.speed is None else f"{working.speed:.1f} samples/s",
            "": ", ".join(filter(None, (loss, self._figure))),
        }

    @property
    def how_far(self) -> str:
        """Progress of the run, in words."""
        return f"{self.epochs_done} of at most {self.epochs} epochs"

    @property
    def _figure(self) -> str:
        return "" if self.figure is None or self.value is None else f"{FIGURES[self.figure]} {self.value:.3f}"


@dataclass(frozen=True)
class TrainingRun:
    """A run of training."""

    folder: RunDir
    plan: TrainingPlan

    verb: ClassVar[Literal["train"]] = "train"
    in_order: ClassVar[bool] = True
    continues_after_failure: ClassVar[bool] = False

    def is_unit_done(self, index: int) -> bool:
        """Whether a phase is trained."""
        return self.folder.phase_done_file(index).exists()

    def undone(self) -> list[int]:
        """Return the indices of the phases that are still to be trained."""
        if self.folder.done_file.exists():
            return []
        return [unit.index for unit in self.plan.units if not self.is_unit_done(unit.index)]

    def share(self, element: int, elements: int) -> Sequence[int]:
        """Return the indices of the phases that a rank does: all of them."""
        return range(len(self.plan.units))

    def progress(self) -> int:
        """Return the progress as a number that grows: phases done, then steps of the next one."""
        done = sum(self.is_unit_done(unit.index) for unit in self.plan.units)
        steps = steps_done(self.folder.unit_folder(done) / "state") if done < len(self.plan.units) else 0
        return done * PHASE + steps

    def why_undone(self) -> str | None:
        """Return why the training is not done; None if it is."""
        for unit in self.plan.units:
            if not self.is_unit_done(unit.index):
                return read_error(self.folder, unit.index) or "its jobs ended before it was done"
        return None

    def close_if_complete(self) -> bool:
        """Return whether the run is closed. Only merging closes a training, because it records what was learned."""
        return self.folder.done_file.exists()

    def has_gaps(self) -> bool:
        """Whether anything is missing in a training whose stage is done: never."""
        return False

    def units_of(self, recording: str) -> list[int]:
        """Return the indices of the units that a recording is in: none, because every phase uses all recordings."""
        return []

    def failed_recordings(self) -> dict[str, str]:
        """Return the recordings that cannot be done: none, because planning has left them out."""
        return {}

    def smaller_batch(self) -> str:
        """Return an option with which a new training would need less GPU memory. This one cannot be resumed with it."""
        batch = self.plan.config.compute.batch_size
        return f"compute.batch_size={max(batch // 2, 1) if isinstance(batch, int) else SMALLEST_TRIED}"

    def phase_folder(self, index: int) -> Path:
        """Return where a phase leaves its networks and metrics: for the last one, the run directory itself."""
        phases = self.plan.phases
        return self.folder.path if index == len(phases) - 1 else self.folder.path / "curriculum" / phases[index]

    def status(self) -> TrainingStatus:
        """Read from the run's files how far it has come."""
        run, plan = self.folder, self.plan
        done = sum(self.is_unit_done(unit.index) for unit in plan.units)
        current = min(done, len(plan.phases) - 1)
        lines = read_lines(self.phase_folder(current) / "metrics.jsonl")
        epochs = [line for line in lines if isinstance(line.get("val"), dict)]
        last = epochs[-1]["val"] if epochs else {}
        figure = next((name for name in KEY_FIGURES if name in last), None)
        return TrainingStatus(
            name=run.name,
            stage=plan.stage,
            arch=getattr(plan.config, plan.stage).arch,
            state=run.state,
            phase=plan.phases[current],
            phases=len(plan.phases),
            phases_done=done,
            epochs=plan.config.train.num_epochs,
            epochs_done=len(epochs),
            loss=last.get("loss"),
            figure=figure,
            value=None if figure is None else last[figure],
        )

    def working(self, now: AtWork, output_of: OutputOf) -> Working:
        """Return what the ranks are doing at this moment."""
        if not now:
            return Working()
        (index, attempt), *_ = now.items()
        steps = [line for line in read_lines(output_of(attempt)) if line.get("event") == "step"]
        lines = read_lines(self.phase_folder(index) / "metrics.jsonl")
        epochs = self.plan.config.train.num_epochs
        left = epochs * (len(self.plan.phases) - index) - len(lines)
        if steps and steps[-1]["epoch"] == len(lines):
            left -= steps[-1]["batch"] / steps[-1]["of"]
        seconds = list(_epoch_seconds([line["seconds"] for line in lines if "seconds" in line]))
        return Working(
            units=(index,),
            speed=steps[-1]["samples_per_second"] if steps else None,
            ends=round(time.time() + left * seconds[-1]) if seconds else None,
        )


def _epoch_seconds(clock: Sequence[float]) -> Iterator[float]:
    """Yield how long each epoch took, in seconds.

    `clock` holds the time at the end of each, counted from the start of its attempt.
    """
    before = 0.0
    for now in clock:
        yield now - before if now > before else now
        before = now
