"""A place where stages are done in the test's own process."""

from __future__ import annotations

from collections.abc import Sequence

from scripted_engine import FeatureSpans, SequenceSpans

from deg.execute import run_unit
from deg.launch.stages.place import Hear, Outcome, Progress
from deg.launch.stages.request import StageRequest
from deg.options.schema import Config
from deg.runs.rundir import RunDir
from deg.types import Unit
from deg.work import Silent, StopFlag
from scenes.training import leave_trained


class Here:
    """A place of a third kind: its workers are this process, with scripted engines and trainings that learn nothing."""

    def how_many(self, request: StageRequest) -> int:
        return 1

    def do_units(self, run: RunDir, units: Sequence[Unit], config: Config, progress: Progress) -> Outcome:
        plan = run.load_plan()
        engine = (FeatureSpans if plan.stage == "feature_extractor" else SequenceSpans)(plan)
        for unit in units:
            run_unit(run, plan, unit, engine, StopFlag(), Silent())
            progress(unit.num_frames, True)
        return Outcome()

    def train(self, run: RunDir, unit: int, config: Config, hear: Hear) -> Outcome:
        leave_trained(run, unit)
        return Outcome()
