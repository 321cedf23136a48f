"""Do units of work. Every unit, of inference or of training, is done by this program.

    python -m deg.execute RUN UNIT...       do these units, one after another
    python -m deg.execute RUN -             read unit numbers from standard input, one a line, up to an empty line

A unit of inference is done when its result.h5 exists, a phase of training when its done.json exists. Each of these
files is written under a temporary name, checked, flushed and renamed. Doing a unit twice is harmless. Several ranks
that train together all do the same unit. Events are reported as JSON lines on standard output. If standard input
closes before the empty line, the program ends at once, because its launcher is gone.

Exit status: 0 if all units are done; 1 if a named unit failed, its error.json says why; 75 if a signal stopped the
program between two batches, run it again to resume; for others see `deg.errors`.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from deg.data.atomic import remove_parts, replacing, write_atomically
from deg.data.results import checksum, describe_refusal, new_hdf5
from deg.errors import DegError, RunError, show_path
from deg.runs.attempts import attempt
from deg.runs.plans import InferencePlan, TrainingPlan
from deg.runs.rundir import RunDir, steps_done
from deg.runs.state import open_run
from deg.types import Span, Unit
from deg.work import STOPPED, StopFlag, Stopped, Teller, collector_paused, leave, log_to, stop_without_launcher

log = logging.getLogger("deg.execute")

Rows = Mapping[str, np.ndarray]
Begins = Callable[[int], None]


class Engine(Protocol):
    """Computes the spans of one stage."""

    columns: dict[str, int]
    """Width of each per-frame dataset of a span's result, in the order of the outputs file."""

    def describe(self) -> dict[str, Any]:
        """Return what the numbers depend on that only the device knows, such as the precision."""

    def expect(self, spans: Sequence[Span]) -> None:
        """Prepare for these spans, which will be asked for after those expected before. Any thread may call this."""

    def run_span(self, span: Span) -> Iterator[Rows]:
        """Yield consecutive rows of all columns for the span. Raises DegError if its recording is at fault."""

    def checks(self) -> Mapping[str, np.ndarray]:
        """Return small arrays about the span just done; the merge uses them to check that spans fit together."""

    def close(self) -> None: ...


def run_unit(run: RunDir, plan: InferencePlan, unit: Unit, engine: Engine, stop: StopFlag, tell: Teller) -> None:
    """Do one unit and write its result. For a recording at fault, the result has its error; other spans are done."""
    folder = run.unit_folder(unit.index)
    folder.mkdir(parents=True, exist_ok=True)
    result = run.result_file(unit.index)
    remove_parts(result)
    run.error_file(unit.index).unlink(missing_ok=True)
    started = time.monotonic()
    with log_to(run.log_file(unit.index)):
        log.info("unit %d: %d spans, %d frames", unit.index, len(unit.spans), unit.num_frames)
        try:
            with replacing(result, only_new=True) as beside:
                with new_hdf5(beside) as file:
                    for position, span in enumerate(unit.spans):
                        _do_span(file.create_group(str(position)), span, engine, stop, tell)
                    file.attrs["engine"] = json.dumps(engine.describe())
                with h5py.File(beside, "r", locking=False) as file:  # it must open again before it may count as done
                    if len(file) != len(unit.spans):
                        raise OSError(f"{show_path(beside)} does not read back as written")
        except FileExistsError:
            log.info("unit %d: another process, perhaps one taken for dead, finished it first", unit.index)
            return
        seconds = time.monotonic() - started
        log.info("unit %d: done in %.1f s, %.1f frames/s", unit.index, seconds, unit.num_frames / max(seconds, 1e-9))
    run.log_event("unit_done", unit=unit.index, seconds=round(seconds, 3), frames=unit.num_frames)


def _do_span(group: h5py.Group, span: Span, engine: Engine, stop: StopFlag, tell: Teller) -> None:
    """Fill the group with the rows of a span, or with the reason why its recording cannot be done."""
    group.attrs["span"] = json.dumps([span.key, span.start, span.stop])
    datasets = {
        name: group.create_dataset(name, (len(span), width), dtype=np.float32) for name, width in engine.columns.items()
    }
    row, checksums = 0, dict.fromkeys(datasets, 0)
    try:
        for rows in engine.run_span(span):
            stop.check()
            count = len(next(iter(rows.values())))
            for name, values in rows.items():
                datasets[name][row : row + count] = values
                checksums[name] = checksum(values, checksums[name])
            row += count
            tell.progress(count)
        if row != len(span):
            raise RuntimeError(f"expected {len(span)} rows for {span}, got {row}")
        for name, values in engine.checks().items():
            group.attrs[name] = values
        group.attrs["crc32"] = json.dumps(checksums)
    except DegError as error:
        log.error("%s [%d, %d): %s", span.key, span.start, span.stop, error)
        for name in datasets:
            del group[name]
        group.attrs["error"] = str(error)


class UnitsToDo:
    """Units in the order in which they are to be done. More may come in while the first ones are being done."""

    def __init__(self, plan: InferencePlan | TrainingPlan, stop: StopFlag, begins: Begins):
        self._plan, self._stop, self._begins = plan, stop, begins
        self._units: list[Unit] = []
        self._names: queue.Queue[str] = queue.Queue()  # not SimpleQueue, whose `get` may overlook its time limit
        self._listener: Callable[[Unit], None] = lambda unit: None
        self._lock = threading.Lock()
        """Guards `_units`, all units that are known by now, and `_listener`."""

    @classmethod
    def named(
        cls,
        plan: InferencePlan | TrainingPlan,
        stop: StopFlag,
        names: Sequence[str],
        begins: Begins = lambda unit: None,
    ) -> UnitsToDo:
        """Return these units; `begins` is told each before it is done. Raises RunError if the plan lacks one."""
        units = cls(plan, stop, begins)
        for name in names:
            units._learn(unit_named(plan, name))
        for name in (*names, ""):
            units._names.put(name)
        return units

    @classmethod
    def from_input(
        cls, plan: InferencePlan | TrainingPlan, stop: StopFlag, begins: Begins = lambda unit: None
    ) -> UnitsToDo:
        """Return the units whose numbers come in, up to an empty line; `begins` is told each before it is done.

        If the input ends before that line, the process ends. A thread watches for this from now on, also while
        networks are being loaded.
        """
        units = cls(plan, stop, begins)
        threading.Thread(target=units._read, daemon=True).start()
        return units

    def _read(self) -> None:
        try:
            for line in sys.stdin:
                name = line.strip()
                if name:
                    with suppress(RunError):  # raised where the unit is to be done
                        self._learn(unit_named(self._plan, name))
                self._names.put(name)
                if not name:
                    return
        except Exception:  # nobody would read the input any more
            log.exception("a defect ended the reading of units")
            os._exit(1)
        os._exit(STOPPED)  # the launcher was killed; the next process that does the unit removes a partial result

    def _learn(self, unit: Unit) -> None:
        with self._lock:
            self._units.append(unit)
            self._listener(unit)

    def tell(self, listener: Callable[[Unit], None]) -> None:
        """Tell each unit as soon as it is known, in order; those that are known already, at once."""
        with self._lock:
            self._listener = listener
            for unit in self._units:
                listener(unit)

    def __iter__(self) -> Iterator[Unit]:
        while name := self._next():
            self._stop.check()
            unit = unit_named(self._plan, name)
            self._begins(unit.index)
            yield unit

    def _next(self) -> str:
        while True:
            with suppress(queue.Empty):
                return self._names.get(timeout=0.5)
            self._stop.check()


def unit_named(plan: InferencePlan | TrainingPlan, number: str) -> Unit:
    """Return the unit of this number. Raises RunError if the plan has no such unit."""
    if not number.isdecimal() or int(number) >= len(plan.units):
        raise RunError(f"Expected the number of a unit, 0 to {len(plan.units) - 1}, found {number!r}.")
    return plan.units[int(number)]


def make_engine(plan: InferencePlan) -> Engine:
    """Make the engine of the plan's stage, on this process's device."""
    with collector_paused():
        from deg.infer.spans import FeatureSpans, SequenceSpans
        from deg.models.device import choose_device

    if plan.stage == "feature_extractor":
        return FeatureSpans(plan, choose_device())
    return SequenceSpans(plan, choose_device())


def main(
    arguments: Sequence[str] | None = None,
    stop: StopFlag | None = None,
    begins: Begins = lambda unit: None,
) -> int:
    """Do what the arguments say; return the exit status.

    `stop`: the flag of a caller that handles signals itself. `begins` is told each unit before it is done.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) < 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    tell, own = Teller(), stop is None
    stop = stop or StopFlag()
    if own:
        stop.install()
    run = RunDir(Path(arguments[0]))
    try:
        plan = open_run(run).plan
        served = arguments[1] == "-"
        if served:
            units = UnitsToDo.from_input(plan, stop, begins)
        else:
            units = UnitsToDo.named(plan, stop, arguments[1:], begins)
        if isinstance(plan, TrainingPlan):
            all_done = _train(run, plan, units, stop, tell)
        else:
            all_done = _infer(run, plan, units, stop, tell)
    except Stopped:
        return STOPPED
    except DegError as error:
        tell.say("failed", message=str(error), status=error.exit_status)
        return error.exit_status
    finally:
        if own:
            stop.ignore()
    return 0 if all_done or served else 1  # a launcher that sends unit numbers has heard about each failure already


def _train(run: RunDir, plan: TrainingPlan, units: UnitsToDo, stop: StopFlag, tell: Teller) -> bool:
    """Do phases as one of the ranks that train together. Any error ends the training."""
    stop_without_launcher(stop)
    with collector_paused():
        from deg.train.fit import train_phase
        from deg.train.ranks import Ranks

    for unit in units:
        folder = run.unit_folder(unit.index)
        folder.mkdir(parents=True, exist_ok=True)
        state, first = steps_done(folder / "state"), Ranks.from_environment().is_first
        with log_to(run.log_file(unit.index)), attempt(folder, progress=state, writes=first):
            train_phase(run, plan, unit, stop, tell)
        tell.say("unit", unit=unit.index)
    return True


def _infer(run: RunDir, plan: InferencePlan, units: UnitsToDo, stop: StopFlag, tell: Teller) -> bool:
    """Make the engine and do units with it. Return whether all are done."""
    engine = make_engine(plan)
    tell.say("ready", **engine.describe())
    try:
        return do_units(run, plan, units, engine, stop, tell)
    finally:
        engine.close()


def do_units(run: RunDir, plan: InferencePlan, units: UnitsToDo, engine: Engine, stop: StopFlag, tell: Teller) -> bool:
    """Do units of inference, and record the error of each that fails. Return whether all are done."""

    def expect(unit: Unit) -> None:
        if not run.result_file(unit.index).exists():
            engine.expect(unit.spans)

    units.tell(expect)
    all_done = True
    for unit in units:
        all_done &= _do_unit(run, plan, unit, engine, stop, tell)
    return all_done


def _do_unit(run: RunDir, plan: InferencePlan, unit: Unit, engine: Engine, stop: StopFlag, tell: Teller) -> bool:
    """Do a unit that is not done yet, and report how it ended. Return whether it is done now."""
    try:
        if not run.result_file(unit.index).exists():
            with attempt(run.unit_folder(unit.index)):
                run_unit(run, plan, unit, engine, stop, tell)
    except (DegError, OSError) as error:
        # a full disk is no fault of the recordings: this unit fails, but the next one may find room
        message = describe_refusal(run.unit_folder(unit.index), error) if isinstance(error, OSError) else str(error)
        log.error("unit %d: %s", unit.index, message)
        with suppress(OSError):  # the disk may be full; the message is reported all the same
            write_atomically(run.error_file(unit.index), json.dumps({"message": message}))
        tell.say("unit_failed", unit=unit.index, message=message)
        return False
    tell.flush()
    tell.say("unit", unit=unit.index)
    return True


if __name__ == "__main__":
    leave(main())
