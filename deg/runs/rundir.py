"""The run directory: every path of a run, and its state, which is given by the files that exist.

    PROJECT/models/<yymmdd_HHMMSS>_<stage>_inference[_notes]/
        config.yaml   plan.json   provenance.json   events.jsonl   done.json
        units/00042/  log.txt   result.h5 (present = done)   error.json

A training run has its networks, metrics and checkpoints beside those, where DeepEthogram looks for them; its units
have `state/` in place of result.h5, and done.json once the phase is trained.

Processes that plan, execute or merge write it, and any process may read it. There is no server, no database, and no
state that is only in memory.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from deg.data.atomic import write_atomically
from deg.data.json_lines import append_line, read_lines
from deg.data.lock import exclusive, is_held
from deg.errors import ConfigError, RunError, show_path
from deg.runs.plans import InferencePlan, TrainingPlan, plan_from_json

Loaded = TypeVar("Loaded")

CLAIM_SECONDS = 2.0
"""After trying this long, a run counts as in use. `deg status` holds a run for an instant to see whether it is."""


@dataclass(frozen=True)
class RunDir:
    """One run. Methods read the disk each time, so that they are right even after a crash elsewhere."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def done_file(self) -> Path:
        return self.path / "done.json"

    def phase_done_file(self, index: int) -> Path:
        """Return the file of a training run that exists once the phase is trained."""
        return self.unit_folder(index) / "done.json"

    def unit_folder(self, index: int) -> Path:
        return self.path / "units" / f"{index:05d}"

    def result_file(self, index: int) -> Path:
        return self.unit_folder(index) / "result.h5"

    def error_file(self, index: int) -> Path:
        return self.unit_folder(index) / "error.json"

    def log_file(self, index: int) -> Path:
        return self.unit_folder(index) / "log.txt"

    def load_plan(self) -> InferencePlan:
        """Return the plan of an inference run. Raises RunError if there is none that this version can read."""
        return self._load(InferencePlan.from_json)

    def load_training_plan(self) -> TrainingPlan:
        """Return the plan of a training run. Raises RunError if there is none that this version can read."""
        return self._load(TrainingPlan.from_json)

    def load_either_plan(self) -> InferencePlan | TrainingPlan:
        """Return the plan of a run of either kind. Raises RunError if there is none that this version can read."""
        return self._load(plan_from_json)

    def _load(self, parse: Callable[[str], Loaded]) -> Loaded:
        try:
            return parse(self.plan_file.read_text())
        except FileNotFoundError:
            raise RunError(f"{show_path(self.path)}: expected a run directory with a plan.json, found none.") from None
        except OSError as error:
            raise RunError(f"{show_path(self.plan_file)}: cannot be read ({error.strerror}).") from None
        except (ConfigError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"{show_path(self.plan_file)}: not a plan that this version of deg can read ({error})."
            ) from None

    def finished_units(self) -> set[int]:
        """Return the indices of the units with a complete result."""
        return {int(file.parent.name) for file in self.path.glob("units/*/result.h5")}

    def is_merged(self) -> bool:
        """Whether the run is done: all results are in the outputs files of their videos, or all phases are trained."""
        return self.done_file.exists()

    def log_event(self, kind: str, **details: Any) -> None:
        """Append one line to events.jsonl."""
        now = round(time.time(), 3)
        append_line(self.events_file, {"time": now, "pid": os.getpid(), "event": kind, **details})

    def events(self) -> Sequence[dict[str, Any]]:
        """Return the events so far, oldest first. They are a log: the state is in the unit folders."""
        return read_lines(self.events_file)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run for this process, at most until it ends. Raises RunError if another process works on the run."""
        busy = RunError(
            f"{self.name}: another `deg` is working on this run. Watch it with `deg status`, or end it first."
        )
        with exclusive(self.path, seconds=CLAIM_SECONDS, busy=busy):
            self.log_event("claimed", host=socket.gethostname())
            yield

    def is_claimed(self) -> bool:
        """Whether a process that this machine can see is working on the run."""
        return is_held(self.path)

    @property
    def state(self) -> str:
        """`finished`; `running`: a process holds it; `interrupted`: neither."""
        return "finished" if self.done_file.exists() else "running" if self.is_claimed() else "interrupted"

    def holder(self) -> tuple[str, int] | None:
        """Return host and number of the process that claimed the run last; None if none has."""
        claims = [event for event in self.events() if event["event"] == "claimed"]
        return (str(claims[-1]["host"]), int(claims[-1]["pid"])) if claims else None


def create_run(
    models: Path,
    *,
    stage: str,
    kind: str,
    plan: InferencePlan | TrainingPlan,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    now: datetime,
    name: str | None = None,
    notes: str | None = None,
) -> RunDir:
    """Create a run directory with its plan. The plan is written last: a folder without one is not a run.

    The name begins with the date, as DeepEthogram's GUI expects, and is unique: a second run in the same second gets a
    number. Raises RunError if `name` is taken.
    """
    if name is not None and not re.fullmatch(r"[\w.+-]+", name):
        raise RunError(f"--run {name!r}: expected letters, digits and . _ + - only.")
    notes = re.sub(r"[^\w.+-]+", "-", notes or "")  # a slash would put the run where nobody looks for it
    base = name or "_".join(filter(None, [now.strftime("%y%m%d_%H%M%S"), stage, kind, notes]))
    for attempt in range(1, 1000):
        path = models / (base if attempt == 1 else f"{base}_{attempt}")
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            if name is not None and {file.name for file in path.iterdir()} <= {"config.yaml", "provenance.json"}:
                break  # the process that began to create it was killed
            if name is not None:
                raise RunError(f"{show_path(path)}: a run of this name exists. Choose another --run.") from None
    else:
        raise RunError(f"{show_path(models / base)}: too many runs of this name.")
    run = RunDir(path)
    full = {**config, "run": {"type": kind, "model": stage, "dir": str(path)}}
    write_atomically(run.config_file, yaml.safe_dump(full, sort_keys=True))
    write_atomically(path / "provenance.json", json.dumps(provenance, indent=1))
    write_atomically(run.plan_file, plan.to_json())
    run.log_event("planned", units=len(plan.units), frames=sum(unit.num_frames for unit in plan.units))
    return run


def find_runs(models: Path) -> list[RunDir]:
    """Return all runs with a plan under `models`, newest first."""
    runs = [RunDir(file.parent) for file in models.glob("*/plan.json")]
    return sorted(runs, key=lambda run: (run.plan_file.stat().st_mtime_ns, run.name), reverse=True)


def unfinished_runs(models: Path, stage: str) -> list[tuple[RunDir, InferencePlan]]:
    """Return the runs of a stage that are not done, newest first. Runs that this version cannot read are left out."""
    found = []
    for run in find_runs(models):
        if run.is_merged():
            continue
        try:
            plan = run.load_plan()
        except RunError:
            continue
        if plan.stage == stage:
            found.append((run, plan))
    return found


def read_error(run: RunDir, index: int) -> str | None:
    """Return why a unit was given up; None if it was not."""
    try:
        return str(json.loads(run.error_file(index).read_text(encoding="utf-8"))["message"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def steps_done(state_folder: Path) -> int:
    """Return the number of batches after which the newest state of a training was saved; 0 without one."""
    return max((int(path.stem.removeprefix("step-")) for path in state_folder.glob("step-*.ckpt")), default=0)


def tail(text: str, lines: int = 5) -> Sequence[str]:
    """Return the last lines of a log, for a message."""
    return [line for line in text.splitlines() if line.strip()][-lines:]
