"""One stage of either kind: shows it, does it here, or plans and merges it while others do its units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deg.errors import DegError, show_path
from deg.launch.say import say
from deg.launch.stages import infer, train
from deg.launch.stages.infer import InferenceReport
from deg.launch.stages.place import Place, Workers
from deg.launch.stages.request import Report, StageReport, StageRequest
from deg.launch.stages.train import TrainingReport
from deg.runs.rundir import RunDir

_OF = {"train": train, "infer": infer}
REFUSED = 2
"""Exit status where the operating system refuses something."""


def show_plan(request: StageRequest, count: int) -> StageReport:
    """Say what `count` workers or ranks would do. Nothing is written."""
    return _OF[request.verb].show_plan(request, count)


def do(request: StageRequest, workers: Workers) -> StageReport:
    """Do the stage, from planning to merging."""
    return _OF[request.verb].do(request, workers)


def plan_run(request: StageRequest, count: int) -> StageReport:
    """Make the run directory, so that `count` others can do its units."""
    return _OF[request.verb].plan_run(request, count)


def merge_run(request: StageRequest) -> StageReport:
    """Merge or close a run whose units others have done."""
    return _OF[request.verb].merge_run(request)


def resume_run(run: RunDir, request: StageRequest, workers: Workers) -> StageReport:
    """Do what is left of a run, as it was planned."""
    return _OF[request.verb].resume_run(run, request, workers)


@dataclass(frozen=True)
class StagesReport:
    """Result of the stages of one command."""

    reports: tuple[StageReport, ...]

    @property
    def exit_status(self) -> int:
        return max(report.exit_status for report in self.reports)

    def as_dict(self) -> dict[str, Any]:
        """Return the document of a training, or of one or two inferences."""
        if isinstance(self.reports[0], InferenceReport):
            return {"stages": [report.as_dict() for report in self.reports]}
        return self.reports[0].as_dict()


def do_stages(requests: Sequence[StageRequest], workers: Workers, *, dry_run: bool) -> StagesReport:
    """Do stages one after the other, until a signal stops one."""
    reports: list[StageReport] = []
    for request in requests:
        if dry_run and any(report.plan for report in reports):
            say(f"{request.stage}: can be planned once the features are there.")
            break
        reports.append(show_plan(request, workers.how_many(request)) if dry_run else do(request, workers))
        if reports[-1].stopped:
            break
    return StagesReport(tuple(reports))


def plan_or_merge(part: str, request: StageRequest, place: Place, *, dry_run: bool) -> StagesReport:
    """Do the part of a stage before its units are done (`plan`) or after it (`merge`)."""
    if part == "merge" and not dry_run:
        return StagesReport((merge_run(request),))
    act = show_plan if dry_run else plan_run
    return StagesReport((act(request, place.how_many(request)),))


@dataclass(frozen=True)
class Answer:
    """Result of a call: its report, or the error that ended it."""

    exit_status: int
    report: Any = None
    """Report that was returned; None after an error."""
    message: str = ""
    """Message of the error; empty without one."""

    @property
    def document(self) -> dict[str, Any]:
        """The answer as --json prints it."""
        if self.report is None:
            return {"error": self.message, "status": self.exit_status}
        is_stage = isinstance(self.report, InferenceReport | TrainingReport)
        found: dict[str, Any] = (StagesReport((self.report,)) if is_stage else self.report).as_dict()
        return found

    @property
    def reason(self) -> str:
        """Reason why something was not done; empty if everything was."""
        failed = getattr(self.report, "failed", {})
        return self.message or "; ".join(f"{show_path(key)}: {why}" for key, why in failed.items())


def answer_of(act: Callable[[], Report]) -> Answer:
    """Call `act` and return its report, or say and return the error of the input, the cluster or the system."""
    try:
        report = act()
    except DegError as error:
        message, status = str(error), error.exit_status
    except OSError as error:
        message, status = f"the system refused: {error}", REFUSED
    else:
        return Answer(report.exit_status, report)
    say(f"Error: {message}")
    return Answer(status, None, message)
