"""`deg infer` under random SIGKILLs, while a reader looks at its files.

reference    a project: deg infer runs once, undisturbed
project      a copy: deg infer is killed, runs again, a worker is killed, ..., exit 0; compared; wiped; repeated
             reader: another process, which polls every file there that has its final name
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import watching
from scenes.project import make_project, place
from watching import Expected, differences, outputs_of, read_outputs, runs_of

from deg.launch.selftest import write_untrained_weights
from deg.projects.shapes import write_shapes_video
from deg.runs.rundir import RunDir

LENGTHS = {"long": 1600, "short": 40, "odd": 517, "even": 512}
TOKEN = "DEG_KILLS"
"""Environment variable that identifies the processes of a command, even after their parent has changed."""
MOST_IN_ONE_COMMAND = 2
"""Kills that a unit must survive silently: `deg` gives a unit up when it has killed three workers."""
POLL_SECONDS = 0.004
ORPHAN_SECONDS = 20.0
VICTIMS = {"command": 45, "worker": 25, "all workers": 8, "decoder": 12, "everything": 10}
MOMENTS = {"soon": 25, "any time": 45, "planning": 6, "unit done": 10, "merging": 10, "finishing": 4}


def make_whole_project(folder: Path, lengths: Mapping[str, int]) -> Path:
    """Make a project of untrained networks and videos of 48 x 64: two workers, several units of the longest video."""
    make_project(
        folder,
        project={"path": None},  # its copies are projects of their own
        flow_generator={"weights": "latest"},
        feature_extractor={"weights": "latest"},
        inference={"batch_size": 64, "devices": 2, "units_per_device": 6, "threads": 1},
    )
    for seed, (key, frames) in enumerate(lengths.items()):
        write_shapes_video(place(folder, key), num_frames=frames, height=48, width=64, seed=seed)
    write_untrained_weights(folder)
    return folder


def start_command(project: Path, *words: str, token: str, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, TOKEN: token, "CUDA_VISIBLE_DEVICES": ""}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "deg.launch.cli", "infer", *words, str(project)],
            stdout=output,
            stderr=output,
            cwd=project,
            env=environment,
            start_new_session=True,
        )


# ----------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Process:
    pid: int
    kind: str
    """Role of the process: command, worker, decoder or other."""

    def kill(self) -> bool:
        """Kill the process; return whether it still existed."""
        try:
            if Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
            os.kill(self.pid, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True


def processes(token: str) -> list[Process]:
    """Return all living processes of the commands of `token`."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if f"{TOKEN}={token}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        kinds = {b"deg.launch.cli": "command", b"deg.execute": "worker", b"deg.data.video.child": "decoder"}
        found.append(Process(int(folder.name), next((kinds[word] for word in words if word in kinds), "other")))
    return found


def chosen(victim: str, living: list[Process], draw: random.Random) -> list[Process]:
    """Return the processes to kill; empty if there are none of that kind."""
    by_kind = {
        kind: [process for process in living if process.kind == kind] for kind in ("command", "worker", "decoder")
    }
    if victim in ("command", "everything"):
        return by_kind["command"] if victim == "command" else living
    if victim == "all workers":
        return by_kind["worker"]
    return draw.sample(by_kind[victim], min(1, len(by_kind[victim])))


# -------------------------------------------------------------------------------------------------------------- driver


@dataclass
class Tally:
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of kills by victim and phase."""
    commands: int = 0
    completed: int = 0
    rounds: Counter[str] = field(default_factory=Counter)
    """Number of projects done from nothing, or repeated with --overwrite, and compared."""
    abandoned: int = 0
    """Number of folders whose making was killed before they became runs."""
    longest_orphan: float = 0.0
    """Longest time that a process outlived its command, in seconds."""
    reference_seconds: float = 0.0
    seconds: float = 0.0
    polls: int = 0
    files: int = 0
    violations: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        kills = [{"victim": victim, "phase": phase, "kills": n} for (victim, phase), n in sorted(self.kills.items())]
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "kills": kills}


class Campaign:
    """A series of kills; after the last one, the work is completed."""

    def __init__(self, folder: Path, kills: int, seed: int, pace: float, minutes: float):
        self._folder, self._wanted, self._pace, self._minutes = folder, kills, pace, minutes
        self._random = random.Random(seed)
        self._token = uuid.uuid4().hex
        self._log = folder / "commands.log"
        self._project = folder / "project"
        self.tally = Tally()

    def run(self) -> Tally:
        reference = self._make_reference()
        shutil.copytree(reference, self._project)
        wipe(self._project)
        expected = read_outputs(reference)
        reader = subprocess.Popen(
            [sys.executable, watching.__file__, str(self._project), str(reference)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started = time.monotonic()
        try:
            while not self._is_enough() and not self.tally.violations:
                self._round(expected)
        finally:
            for process in processes(self._token):
                process.kill()
            said, _ = reader.communicate()
        self.tally.seconds = time.monotonic() - self._started
        seen = json.loads(said)
        self.tally.polls, self.tally.files = seen["polls"], seen["files"]
        self.tally.violations += seen["violations"]
        return self.tally

    def _is_enough(self) -> bool:
        minutes = (time.monotonic() - self._started) / 60
        return sum(self.tally.kills.values()) >= self._wanted or minutes > self._minutes

    def _make_reference(self) -> Path:
        reference = make_whole_project(self._folder / "reference", LENGTHS)
        started = time.monotonic()
        status = start_command(reference, "all", token=self._token, log=self._log).wait()
        self.tally.reference_seconds = time.monotonic() - started
        if status:
            raise RuntimeError(f"the undisturbed run ended with {status}:\n{self._log.read_text()}")
        if wrong := differences(reference, read_outputs(reference)):
            raise RuntimeError(f"the undisturbed run left {wrong}")
        return reference

    def _round(self, expected: Expected) -> None:
        """Complete the work, from nothing or over existing results, and compare it with the undisturbed results."""
        if outputs_of(self._project) and self._random.random() < 0.3:
            self._complete("feature_extractor", "--overwrite")
            self._complete("sequence", "--overwrite")
            kind = "overwritten"
        else:
            wipe(self._project)
            self._complete("all")
            kind = "from nothing"
        self._await_orphans()
        self.tally.violations += differences(self._project, expected)
        self.tally.rounds[kind] += 1
        self.tally.abandoned += sum(
            not (folder / "plan.json").exists() for folder in self._project.glob("models/*_inference*")
        )

    def _complete(self, *words: str) -> None:
        while not self._command_ends_well(*words) and not self.tally.violations:
            if self._random.random() < 0.3:  # otherwise the next command meets processes of the last one
                self._await_orphans()

    def _command_ends_well(self, *words: str) -> bool:
        """Run one command and its kills; return whether it completed."""
        begun = self._log.stat().st_size
        command = start_command(self._project, *words, token=self._token, log=self._log)
        self.tally.commands += 1
        strikes = 0
        while command.poll() is None:
            if self._is_enough() or (strikes == MOST_IN_ONE_COMMAND and self._random.random() < 0.5):
                command.wait()
            elif self._moment_comes(command):
                strikes += self._strike(command, "command" if strikes == MOST_IN_ONE_COMMAND else self._pick(VICTIMS))
        if command.returncode == 0:
            self.tally.completed += 1
        elif command.returncode != -signal.SIGKILL:
            said = self._log.read_bytes()[begun:].decode(errors="replace")
            self.tally.violations.append(f"`deg infer {' '.join(words)}` ended with {command.returncode}:\n{said}")
        return command.returncode == 0

    def _strike(self, command: subprocess.Popen[bytes], victim: str) -> bool:
        """Kill the victims; return whether the command outlives them."""
        phase, living = self._phase(), processes(self._token)
        victims = chosen(victim, living, self._random)
        if not victims:
            victim, victims = "command", chosen("command", living, self._random)
        if any([process.kill() for process in victims]):
            self.tally.kills[victim, phase] += 1
            self._log_kill(victim, phase)
        if victim in ("command", "everything"):
            command.wait()
        return victim not in ("command", "everything")

    def _log_kill(self, victim: str, phase: str) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"--- kill {sum(self.tally.kills.values())}: {victim}, {phase}\n")

    def _pick(self, weights: Mapping[str, int]) -> str:
        return self._random.choices(list(weights), list(weights.values()))[0]

    def _moment_comes(self, command: subprocess.Popen[bytes]) -> bool:
        """Wait for the moment to kill; return False if the command ends first."""
        moment = self._pick(MOMENTS)
        if moment == "soon":
            return not ends_within(command, self._pace * self._random.uniform(0, 4))
        if moment == "any time":
            return not ends_within(command, self._pace * min(self._random.expovariate(1 / 4.5), 15))
        before = self._signs()[moment]
        while self._signs()[moment] <= before:
            if command.poll() is not None:
                return False
            time.sleep(POLL_SECONDS)
        return not ends_within(command, self._random.uniform(0, 0.04))

    def _signs(self) -> dict[str, int]:
        """Return numbers that grow whenever something happens."""
        models, data = self._project / "models", self._project / "DATA"
        runs = runs_of(self._project)
        return {
            "planning": sum(1 for _ in models.glob("*_inference*")),
            "unit done": sum(event["event"] == "unit_done" for run in runs for event in run.events()),
            "merging": sum(1 for _ in data.glob("*/.*.part")),
            "finishing": sum(self._is_all_merged(run) for run in runs),
        }

    def _is_all_merged(self, run: RunDir) -> bool:
        merged = {event["key"] for event in run.events() if event["event"] == "merged"}
        return len(merged) == len(LENGTHS)

    def _phase(self) -> str:
        if any(self._project.glob("DATA/*/.*.part")):
            return "merging"
        open_runs = [run for run in runs_of(self._project) if not run.is_merged()]
        if any(self._is_all_merged(run) for run in open_runs):
            return "finishing"
        if any(self._project.glob("models/*/units/*/.*.part")):
            return "in a unit"
        return "between units" if any(run.finished_units() for run in open_runs) else "starting"

    def _await_orphans(self) -> None:
        """Check that no process outlives its command for long."""
        started = time.monotonic()
        while living := processes(self._token):
            waited = time.monotonic() - started
            if waited > ORPHAN_SECONDS:
                self.tally.violations.append(f"alive {waited:.0f} s after their command: {living}")
                return
            time.sleep(0.05)
        self.tally.longest_orphan = max(self.tally.longest_orphan, time.monotonic() - started)


def ends_within(command: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        command.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wipe(project: Path) -> None:
    """Remove all results, and runs before them, because a finished run promises results."""
    for folder in project.glob("models/*_inference*"):
        (folder / "done.json").unlink(missing_ok=True)
        shutil.rmtree(folder)
    for path in outputs_of(project):
        path.unlink()


def kill_inference(folder: Path, *, kills: int, seed: int = 0, pace: float = 1.0, minutes: float = math.inf) -> Tally:
    """Run the whole campaign in an empty folder, and return its tally.

    A `pace` below 1 leaves less time between kills, for workers that start faster. After `minutes` nothing is killed.
    """
    return Campaign(folder, kills, seed, pace, minutes).run()
