"""A training that learns nothing: in place of deg.train in a job, which counts steps, and of `run_ranks` in a test.

The script is JSON in the environment variable SCRIPT; all keys are optional:

    steps     of each phase; `pause` seconds for each
    fail      {stage: message}: it cannot be trained
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # a job has the folder `scripted` alone

from scenes.training import leave_trained

from deg.errors import DegError
from deg.launch.stages.place import Outcome
from deg.runs.rundir import steps_done


class Ranks:
    """In place of deg.train.ranks, which needs torch."""

    def __init__(self, first):
        self.is_first = first

    @classmethod
    def from_environment(cls):
        return cls(os.environ.get("SLURM_PROCID", "0") == "0")


def train_phase(run, plan, unit, stop, tell):
    script = json.loads(os.environ.get("SCRIPT", "{}"))
    if plan.stage in script.get("fail", {}):
        raise DegError(script["fail"][plan.stage])
    first, state = Ranks.from_environment().is_first, run.unit_folder(unit.index) / "state"
    begun = steps_done(state)
    for step in range(begun, script.get("steps", 3)):
        time.sleep(script.get("pause", 0))
        if first:
            state.mkdir(exist_ok=True)
            (state / f"step-{step + 1}.ckpt").touch()
        stop.check()
    if first:
        run.log_event("trained_from", stage=plan.stage, step=begun)
        leave_trained(run, unit.index)


class ScriptedRanks:
    """In place of `run_ranks`: remembers its calls; `then` says what happens instead of training, once for each."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        """Run, unit and number of devices."""
        self.then: list[object] = []
        """`stop`, `nothing` or an exception; when they are used up, phases are trained."""

    def __call__(self, run, unit, devices, hear) -> Outcome:
        self.calls.append((run.name, unit, len(devices)))
        what = self.then.pop(0) if self.then else None
        if isinstance(what, Exception):
            raise what
        if what == "stop":
            (run.path / "checkpoint.pt").write_bytes(b"half trained")
            return Outcome(stopped=True)
        if what != "nothing":
            leave_trained(run, unit)
        return Outcome()
