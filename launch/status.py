"""How far runs have come, read from their files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deg.errors import RunError, show_path
from deg.plan import spans_by_key
from deg.rundir import RunDir, find_runs


@dataclass(frozen=True)
class RunStatus:
    """One run, at this moment."""

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
    frames: int
    frames_done: int
    frames_per_second: float | None
    """Over the units done, each by its own process; None before the first."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_status(run: RunDir) -> RunStatus:
    """The state of a run. RunError if it has no plan that can be read."""
    plan = run.load_plan()
    events = list(run.events())
    finished = set(range(len(plan.units))) if run.is_merged() else run.finished_units()
    done = {event["key"] for event in events if event["event"] == "merged"}
    closed = [event for event in events if event["event"] == "finished"]
    timed = [event for event in events if event["event"] == "unit_done"]
    seconds = sum(event["seconds"] for event in timed)
    return RunStatus(
        name=run.name,
        stage=plan.stage,
        group=plan.group,
        state="finished" if run.is_merged() else "running" if run.is_claimed() else "interrupted",
        units=len(plan.units),
        units_done=len(finished),
        units_failed=sum(run.error_file(unit.index).exists() for unit in plan.units if unit.index not in finished),
        recordings=len(spans_by_key(plan.units)),
        recordings_done=len(done),
        recordings_failed=closed[-1]["failed"] if closed else 0,
        frames=sum(unit.num_frames for unit in plan.units),
        frames_done=sum(unit.num_frames for unit in plan.units if unit.index in finished),
        frames_per_second=round(sum(event["frames"] for event in timed) / seconds, 2) if seconds else None,
    )


def runs_at(path: Path) -> Sequence[RunDir]:
    """The runs meant by a run directory or a project; newest first. RunError or ProjectError if it is neither."""
    if (path / "plan.json").exists():
        return [RunDir(path)]
    from deg.project import open_project

    project = open_project(path)
    runs = find_runs(project.model_path)
    if not runs:
        raise RunError(f"{show_path(project.path)}: no runs of deg yet. `deg infer {show_path(path)}` makes one.")
    return runs
