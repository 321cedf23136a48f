"""What the processes of runs wrote, merged in order of time, each line with the name of its source.

    file                                  written by                     name of the source
    RUN/units/*/log.txt                   the worker of a unit           unit 3
    RUN/jobs/local-0.log, rank-0.log      processes on this machine      local 0, rank 0
    LAUNCH/jobs/12_3_0_log.err and .out   processes of jobs              12_3; with several ranks 12 rank 1

A line without a time belongs to the line before it. A worker writes its own lines to the log of its unit and to that of
its job; they are shown once. Its JSON lines are put into words, or left out if there are many.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from deg.errors import RunError
from deg.launch.scheduler.launches import LaunchDir
from deg.launch.stages.progress import figures
from deg.launch.watch.target import Watched
from deg.runs.attempts import Attempt, read_attempts
from deg.runs.rundir import RunDir
from deg.runs.state import open_run

STAMP = re.compile(r"(?:submitit \w+ \()?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})")
OUTPUT = re.compile(r"(?P<job>\d+(?:_\d+)?)_(?P<rank>\d+)_log\.(?:out|err)")
LOCAL = re.compile(r"(?P<kind>local|rank)-(?P<rank>\d+)\.log")
LOOK_SECONDS = 1.0
"""Interval between two looks at the files, in seconds."""
LATE_SECONDS = 60.0
"""How long after the end of an attempt its job's script may still write about it, in seconds."""


@dataclass(frozen=True)
class Selection:
    """Which logs are wanted; None selects all."""

    unit: int | None = None
    recording: str | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Source:
    """One file, and which part of it is wanted."""

    name: str
    path: Path
    is_bad: bool = False
    """Whether something went wrong there."""
    spans: tuple[tuple[float, float], ...] | None = None
    """Times of the lines that are wanted, each `[from, to)` in seconds since 1970; None for all lines."""


@dataclass(frozen=True)
class Line:
    """One line of a log."""

    source: str
    time: float
    text: str

    def __str__(self) -> str:
        return f"{self.source} | {self.text}"


def sources(watched: Watched, chosen: Selection) -> list[Source]:
    """Return the files that are there now. RunError if the chosen unit or recording does not exist."""
    found: list[Source] = []
    for launch in watched.launches:
        found += _of_launch(launch, chosen)
    for run in watched.runs:
        found += _of_run(run, chosen)
    return found


def last_lines(found: Sequence[Source], count: int) -> list[Line]:
    """Return the last lines of the sources where something went wrong; if nothing did, those of all sources."""
    bad = [source for source in found if source.is_bad]
    return merged(bad or found)[-count:]


def merged(found: Sequence[Source]) -> list[Line]:
    """Return all lines in order of time, each once. Lines of one file keep their order."""
    lines = [line for source in found for line in read_source(source)]
    seen: set[tuple[float, str]] = set()
    result = []
    for line in sorted(lines, key=lambda line: line.time):
        if not STAMP.match(line.text) or (line.time, line.text) not in seen:
            result.append(line)
        seen.add((line.time, line.text))
    return result


def follow(
    watched: Watched,
    chosen: Selection,
    count: int,
    *,
    is_over: Callable[[], bool],
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Line]:
    """Yield the last lines, then those that are added until it is over. Files that appear meanwhile are included."""
    readers: dict[Path, _Reader] = {}

    def added() -> list[Line]:
        lines = []
        for source in sources(watched, chosen):
            reader = readers.setdefault(source.path, _Reader(source.name, source.path))
            lines += reader.read()
        return sorted(lines, key=lambda line: line.time)

    shown = last_lines(sources(watched, chosen), count)
    added()
    yield from shown
    while True:
        over = is_over()
        yield from added()
        if over:
            return
        wait(LOOK_SECONDS)


@dataclass
class _Reader:
    """Reads what was added to a file since the last time."""

    name: str
    path: Path
    offset: int = 0

    def read(self) -> list[Line]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                whole, _, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        if not whole:
            return []
        self.offset += len(whole) + 1
        return list(_lines(self.name, whole.decode("utf-8", "replace"), time.time()))


# ---------------------------------------------------------------------------------------------------- which files


def _of_launch(folder: LaunchDir, chosen: Selection) -> list[Source]:
    launch = folder.load()
    runs = {index: launch.run_of(index) for index, stage in enumerate(launch.stages) if stage.run}
    planned = {index: run for index, run in runs.items() if run.plan_file.exists()}
    if chosen.unit is not None or chosen.recording is not None:
        # the last stage that has such a unit is the one that people ask about
        for index in sorted(planned, reverse=True):
            if units := _units(planned[index], chosen):
                return [source for unit in units for source in _of_unit(planned[index], unit, chosen, folder)]
        raise _nothing(chosen, folder.name)
    found = [source for run in planned.values() for source in _of_run(run, chosen)]
    bad = {
        (attempt.job, attempt.restart)
        for run in planned.values()
        for unit in sorted(run.path.glob("units/*"))
        for attempt in _gone_wrong(read_attempts(unit))
    }
    return found + _outputs(folder, chosen, {job for job, _ in bad} | _failed_merges(folder))


def _failed_merges(folder: LaunchDir) -> set[str]:
    """Return the newest merge jobs of the stages that failed."""
    newest = {job.stage: job.job for job in folder.jobs() if job.role == "merge"}
    return {job for stage, job in newest.items() if (found := folder.verdict(stage)) and found.state == "failed"}


def _of_run(run: RunDir, chosen: Selection) -> list[Source]:
    if chosen.unit is not None or chosen.recording is not None:
        units = _units(run, chosen)
        if not units:
            raise _nothing(chosen, run.name)
        return [source for unit in units for source in _of_unit(run, unit, chosen)]
    found = []
    for file in sorted(run.path.glob("jobs/*.log")):
        match = LOCAL.fullmatch(file.name)
        if match is not None and chosen.rank in (None, int(match["rank"])):
            found.append(Source(f"{match['kind']} {match['rank']}", file))
    if chosen.rank is None:
        for unit in sorted(run.path.glob("units/*")):
            found.append(_log(run, int(unit.name)))
    return [source for source in found if source.path.exists()]


def _units(run: RunDir, chosen: Selection) -> list[int]:
    """Return the chosen units of a run."""
    found = open_run(run)
    if chosen.unit is not None:
        return [chosen.unit] if chosen.unit < len(found.plan.units) else []
    return found.units_of(str(chosen.recording))


def _log(run: RunDir, unit: int) -> Source:
    return Source(f"unit {unit}", run.log_file(unit), is_bad=run.error_file(unit).exists())


def _of_unit(run: RunDir, unit: int, chosen: Selection, folder: LaunchDir | None = None) -> list[Source]:
    """Return the log of a unit, and what the jobs that worked on it wrote during that time."""
    found = [_log(run, unit)]
    if folder is not None:
        attempts = read_attempts(run.unit_folder(unit))
        for job in dict.fromkeys(attempt.job for attempt in attempts):
            mine = [attempt for attempt in attempts if attempt.job == job]
            spans = tuple((attempt.time - 1.0, (attempt.ended or 1e12) + LATE_SECONDS) for attempt in mine)
            for source in _outputs(folder, chosen, set(), only=job):
                found.append(Source(source.name, source.path, bool(_gone_wrong(mine)), spans))
    return [source for source in found if source.path.exists()]


def _outputs(folder: LaunchDir, chosen: Selection, bad: set[str], only: str | None = None) -> list[Source]:
    found = []
    files = sorted(folder.jobs_folder.glob("*_log.*"))
    matches = [(file, match) for file in files if (match := OUTPUT.fullmatch(file.name)) is not None]
    several = {match["job"] for _, match in matches if match["rank"] != "0"}
    for file, match in matches:
        if only not in (None, match["job"]) or chosen.rank not in (None, int(match["rank"])):
            continue
        name = f"{match['job']} rank {match['rank']}" if match["job"] in several else match["job"]
        found.append(Source(name, file, is_bad=match["job"] in bad))
    return found


def _gone_wrong(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return the attempts that failed or died; none if the last attempt has done the unit."""
    if attempts and attempts[-1].end == "done":
        return []
    dead = [attempt for attempt in attempts if attempt.end is None and attempt.status is not None]
    return dead + [attempt for attempt in attempts if attempt.end == "failed"]


def _nothing(chosen: Selection, name: str) -> RunError:
    if chosen.recording is not None:
        return RunError(f"{name}: none of the stages planned so far has a recording {chosen.recording!r}.")
    return RunError(f"{name}: none of the stages planned so far has a unit {chosen.unit}.")


# ---------------------------------------------------------------------------------------------------- reading


def read_source(source: Source) -> list[Line]:
    """Return the lines of a source that are wanted; none if its file does not exist."""
    try:
        text = source.path.read_text(encoding="utf-8", errors="replace")
        changed = source.path.stat().st_mtime
    except FileNotFoundError:
        return []
    lines = list(_lines(source.name, text, changed))
    if source.spans is None:
        return lines
    return [line for line in lines if any(start <= line.time < stop for start, stop in source.spans)]


def _lines(name: str, text: str, changed: float) -> Iterator[Line]:
    """Yield the lines of a text to which something was last added at `changed`, in seconds since 1970."""
    lines = text.splitlines()
    for line, moment in zip(lines, moments(lines, changed), strict=True):
        said = in_words(line)
        if said is not None and said.strip():
            yield Line(name, moment, said)


def moments(lines: Sequence[str], changed: float) -> list[float]:
    """Return when each line was written, in seconds since 1970.

    A line without a time belongs to the line before it. JSON lines, of which a worker writes one a second, are spread
    evenly up to the next time, or up to the last change of the file.
    """
    known = [(index, moment) for index, line in enumerate(lines) if (moment := stamp(line)) is not None]
    before, found = known[0][1] if known else changed, []
    bounds = [(-1, before), *known, (len(lines), max(changed, known[-1][1] if known else 0.0))]
    for (first, start), (stop, end) in pairwise(bounds):
        if first >= 0:
            found.append(start)
        at = start
        for index in range(first + 1, stop):
            if lines[index].startswith("{"):
                at = start + (end - start) * (index - first) / (stop - first)
            found.append(at)
    return found


def stamp(line: str) -> float | None:
    """Return when a line was written, in seconds since 1970; None if it does not say."""
    match = STAMP.match(line)
    if match is None:
        return None
    return datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(match[2]) / 1000


def in_words(line: str) -> str | None:
    """Return a line as people read it; None for one that only programs need."""
    if line.startswith("submitit INFO"):
        return None
    if not line.startswith("{"):
        return line
    try:
        event = json.loads(line)
        return _told(event) if isinstance(event, dict) and "event" in event else line
    except (ValueError, KeyError, TypeError):
        return line


def _told(event: dict[str, Any]) -> str | None:
    kind = event["event"]
    if kind in ("failed", "unit_failed"):
        unit = f"unit {event['unit']} " if "unit" in event else ""
        return f"{unit}FAILED: {event['message']}"
    if kind == "unit":
        return f"unit {event['unit']}: done"
    if kind == "note":
        return str(event["message"])
    if kind == "epoch":
        return f"epoch {event['epoch'] + 1}: {figures(event['train'])}; validation: {figures(event['val'])}"
    if kind == "ready":
        return "ready: " + ", ".join(f"{name} {value}" for name, value in event.items() if name != "event")
    return None
