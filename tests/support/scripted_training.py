"""A training that learns nothing: replaces deg.train in a job, where it counts steps, and `run_ranks` in a test.

The script is JSON in the environment variable SCRIPT; all keys are optional:

    steps     number of steps of each phase, with `pause` seconds for each
    fail      {stage: message}: this stage cannot be trained
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # a job has only the folder `scripted`

from scenes.training import leave_trained

from deg.errors import DegError
from deg.launch.stages.place import Outcome
from deg.runs.rundir import steps_done


class Ranks:
    """Replaces deg.train.ranks, which needs torch."""

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
    """Replaces `run_ranks` and records its calls; `then` says what happens in each call instead of training."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        """Calls so far: run, unit and number of devices."""
        self.then: list[object] = []
        """Events of the next calls: `stop`, `nothing` or an exception; once they are used up, phases are trained."""

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
