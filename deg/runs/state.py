"""A run of any kind, which can be asked what is done, what is undone, how far it has come, and why no further.

A new kind of run is a module like `deg.runs.inference`, and a branch of `open_run`.
"""

from __future__ import annotations

from deg.runs.inference import InferenceRun, InferenceStatus
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import RunDir
from deg.runs.training import TrainingRun, TrainingStatus

Run = InferenceRun | TrainingRun
Status = InferenceStatus | TrainingStatus


def open_run(folder: RunDir) -> Run:
    """Open the run in a folder. Raises RunError if it has no plan that this version can read."""
    plan = folder.load_either_plan()
    return TrainingRun(folder, plan) if isinstance(plan, TrainingPlan) else InferenceRun(folder, plan)
