"""One stage, whichever it is: shown, done here, or planned and merged around units that others do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deg.errors import DegError, show_path
from deg.launch.say import say
from deg.launch.stages import infer, train
from deg.launch.stages.request import Report, StageReport, StageRequest
from deg.runs.rundir import RunDir

_OF = {"train": train, "infer": infer}
REFUSED = 2
"""Exit status where the operating system refuses something."""


def show_plan(request: StageRequest) -> StageReport:
    """Say what would be done; nothing is written."""
    return _OF[request.verb].show_plan(request)


def do(request: StageRequest) -> StageReport:
    """Do the stage on this machine, from planning to merging."""
    return _OF[request.verb].do(request)


def plan_run(request: StageRequest) -> StageReport:
    """Make the run directory, for others to do its units."""
    return _OF[request.verb].plan_run(request)


def merge_run(request: StageRequest) -> StageReport:
    """Put together what others have done."""
    return _OF[request.verb].merge_run(request)


def resume_run(run: RunDir, request: StageRequest) -> StageReport:
    """Do on this machine what is left of a run, as it was planned."""
    return _OF[request.verb].resume_run(run, request)


@dataclass(frozen=True)
class Answer:
    """Answer to what was asked: the report, or the error that ended it."""

    exit_status: int
    report: Any = None
    """Report that came back; None after an error."""
    message: str = ""
    """Message of the error; empty without one."""

    @property
    def document(self) -> dict[str, Any]:
        """The answer as --json prints it."""
        if self.report is None:
            return {"error": self.message, "status": self.exit_status}
        found: dict[str, Any] = self.report.as_dict()
        return {"stages": [found]} if isinstance(self.report, infer.Report) else found

    @property
    def reason(self) -> str:
        """Why something was not done; empty where all was."""
        failed = getattr(self.report, "failed", {})
        return self.message or "; ".join(f"{show_path(key)}: {why}" for key, why in failed.items())


def answer_of(act: Callable[[], Report]) -> Answer:
    """Do what may meet an error of the input, the cluster or the system, which is then said."""
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
