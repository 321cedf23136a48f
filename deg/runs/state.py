"""A run of whichever kind, which answers for itself: what is undone, what is done, how far it has come, and why not.

A new kind of run is a module like `deg.runs.inference`, and an arm of `open_run`.
"""

from __future__ import annotations

from deg.runs.inference import InferenceRun, InferenceStatus
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import RunDir
from deg.runs.training import TrainingRun, TrainingStatus

Run = InferenceRun | TrainingRun
Status = InferenceStatus | TrainingStatus


def open_run(folder: RunDir) -> Run:
    """Open the run in a folder, of whichever kind it is. RunError without a plan that this version can read."""
    plan = folder.load_either_plan()
    return TrainingRun(folder, plan) if isinstance(plan, TrainingPlan) else InferenceRun(folder, plan)
