"""How far runs have come, read from their files alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deg.arithmetic.units import spans_by_key
from deg.data.json_lines import read_lines
from deg.runs.rundir import RunDir
from deg.runs.state import InferenceRun, TrainingRun, open_run

KEY_FIGURES = ("f1_class_mean_nobg", "f1_class_mean", "SSIM")
"""What tells how good a network is, by the first that its metrics have."""


@dataclass(frozen=True)
class RunStatus:
    """One run of inference, at this moment."""

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
    """Those that cannot be done, and those of units that were put aside."""
    frames: int
    frames_done: int
    frames_per_second: float | None
    """Over the units done, each by its own process; None before the first."""

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "inference", **asdict(self)}


@dataclass(frozen=True)
class TrainingStatus:
    """One run of training, at this moment."""

    name: str
    stage: str
    arch: str
    state: str
    """As of `RunStatus`."""
    phase: str
    """The one at work, or the last."""
    phases: int
    phases_done: int
    epochs: int
    """At most, of a phase."""
    epochs_done: int
    """Number of epochs of this phase that are done."""
    loss: float | None
    """On the validation recordings, in the last epoch; None before the first."""
    figure: str | None
    """Name of the key figure of the stage."""
    value: float | None
    """The figure in the last epoch, on the validation recordings."""

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "train", **asdict(self)}


def read_status(run: RunDir) -> RunStatus | TrainingStatus:
    """The state of a run. RunError if it has no plan that can be read."""
    found = open_run(run)
    return _read_training(found) if isinstance(found, TrainingRun) else _read_inference(found)


def _state(run: RunDir) -> str:
    return "finished" if run.done_file.exists() else "running" if run.is_claimed() else "interrupted"


def _read_inference(found: InferenceRun) -> RunStatus:
    run, plan = found.folder, found.plan
    events = list(run.events())
    finished = set(range(len(plan.units))) if run.is_merged() else run.finished_units()
    done = {event["key"] for event in events if event["event"] == "merged"}
    closed = [event for event in events if event["event"] == "finished"]
    timed = [event for event in events if event["event"] == "unit_done"]
    seconds = sum(event["seconds"] for event in timed)
    aside = [unit for unit in plan.units if unit.index not in finished and run.error_file(unit.index).exists()]
    return RunStatus(
        name=run.name,
        stage=plan.stage,
        group=plan.group,
        state=_state(run),
        units=len(plan.units),
        units_done=len(finished),
        units_failed=len(aside),
        recordings=len(spans_by_key(plan.units)),
        recordings_done=len(done),
        recordings_failed=closed[-1]["failed"] if closed else len({span.key for unit in aside for span in unit.spans}),
        frames=sum(unit.num_frames for unit in plan.units),
        frames_done=sum(unit.num_frames for unit in plan.units if unit.index in finished),
        frames_per_second=round(sum(event["frames"] for event in timed) / seconds, 2) if seconds else None,
    )


def _read_training(found: TrainingRun) -> TrainingStatus:
    run, plan = found.folder, found.plan
    done = sum(found.is_unit_done(unit.index) for unit in plan.units)
    current = min(done, len(plan.phases) - 1)
    lines = read_lines(found.phase_folder(current) / "metrics.jsonl")
    epochs = [line for line in lines if isinstance(line.get("val"), dict)]
    last = epochs[-1]["val"] if epochs else {}
    figure = next((name for name in KEY_FIGURES if name in last), None)
    return TrainingStatus(
        name=run.name,
        stage=plan.stage,
        arch=plan.config[plan.stage]["arch"],
        state=_state(run),
        phase=plan.phases[current],
        phases=len(plan.phases),
        phases_done=done,
        epochs=plan.config["train"]["num_epochs"],
        epochs_done=len(epochs),
        loss=last.get("loss"),
        figure=figure,
        value=None if figure is None else last[figure],
    )
