"""`deg status`, `deg logs`, `deg why` and `deg cancel`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import click

from deg.launch.commands.arguments import ANY_PATH, console, json_option, print_json
from deg.launch.say import say

if TYPE_CHECKING:
    from deg.launch.watch.status import LaunchStatus, StageStatus
    from deg.launch.watch.target import Watched
    from deg.runs.state import Status

LEFT = ("launch", "training", "inference", "state", "phase", "validation", "stage", "what", "")
"""Headings of columns that hold words; the others hold numbers."""
LEAST_SECONDS = 30.0
"""Shortest interval of `--watch` if a scheduler is asked, in seconds. Asked every second by everybody, it would do
nothing else."""
LEAST_LOCAL_SECONDS = 1.0
"""Shortest interval of `--watch` if only files are read, in seconds."""

watched_argument = click.argument("path", type=ANY_PATH, default=".", metavar="[RUN, LAUNCH or PROJECT]")


# ---------------------------------------------------------------------------------------------------- status


@click.command()
@watched_argument
@click.option("--watch", is_flag=True, help="Repeat until nothing more happens.")
@click.option(
    "--every", type=click.FloatRange(min=LEAST_LOCAL_SECONDS), metavar="SECONDS", help="Interval of --watch; at "
    "least 30 if a scheduler is asked.", default=LEAST_SECONDS, show_default=True,
)  # fmt: skip
@json_option
def status(path: Path, watch: bool, every: float, as_json: bool) -> int:
    """Show runs and launches of a project, or one of them: what is done, how fast, how well, until when.

    Files are read first; a scheduler is asked only about launches that are not done.

    \b
    Example: deg status my_project
    """
    from deg.launch.watch.status import OVER
    from deg.launch.watch.target import find_watched

    if watch and as_json:
        raise click.UsageError("--watch shows tables; --json prints one document. Choose one of them.")
    watched = find_watched(path)
    if watch and watched.launches and every < LEAST_SECONDS:
        raise click.UsageError(f"--every {every:g}: expected {LEAST_SECONDS:g} or more, to spare the scheduler.")
    while True:
        look = _Look(watched)
        if as_json:
            print_json(look.as_dict())
        else:
            if watch:
                console().clear()
            look.show()
        over = all(found.state in OVER for found in look.launches) and all(r.state != "running" for r in look.runs)
        if not watch or over:
            return 1 if look.unreadable else 0
        try:
            sleep(every)
        except KeyboardInterrupt:
            return 0
        watched = find_watched(path)


class _Look:
    """Everything that `deg status` shows, read once."""

    def __init__(self, watched: Watched):
        from deg.errors import RunError
        from deg.launch.watch.status import read_launches
        from deg.launch.watch.target import ask_queue
        from deg.runs.state import open_run

        queue = ask_queue(watched.launches)
        self.launches, self.unreadable = read_launches(watched.launches, queue)
        self.runs: list[Status] = []
        for run in watched.runs:
            try:
                self.runs.append(open_run(run).status())
            except RunError as error:
                self.unreadable[run.name] = str(error)
        self.problem = queue.problem

    def as_dict(self) -> dict[str, Any]:
        of_launches = [
            {**stage.work.as_dict(), "launch": launch.name}
            for launch in self.launches
            for stage in launch.stages
            if stage.work is not None
        ]
        return {
            "launches": [launch.as_dict() for launch in self.launches],
            "runs": [*of_launches, *(run.as_dict() for run in self.runs)],
            "unreadable": self.unreadable,
        }

    def show(self) -> None:
        for message in self.unreadable.values():
            say(f"Warning: {message}")
        if self.problem:
            say(f"Note: the queue could not be asked, so it is unknown which jobs run or wait. {self.problem}")
        for launch in self.launches:
            _show_launch(launch)
        _show_runs(self.runs)


def _show_launch(launch: LaunchStatus) -> None:
    advice = {"stalled": "; `deg why` says why, `deg resume` resumes it", "cancelled": "; `deg resume` resumes it"}
    advice["failed"] = advice["stalled"]
    click.echo(f"{launch.name}: {launch.state}{advice.get(launch.state, '')}")
    headings = ("stage", "state", "done", "running", "failed", "recordings", "restarts", "speed", "")
    rows = [_stage_row(stage) for stage in launch.stages]
    _print_table(headings, [[row.get(heading, "") for heading in headings] for row in rows])
    click.echo()


def _stage_row(stage: StageStatus) -> dict[str, str]:
    cells = {"stage": stage.name, "state": stage.state, "restarts": str(stage.restarts or "")}
    if stage.work is not None:
        cells |= stage.work.cells(stage.working)
    return {**cells, "": ", ".join(filter(None, (cells.get(""), _when(stage))))}


def _when(stage: StageStatus) -> str:
    """Return when a stage ends or begins, its message, or its jobs: whatever tells most about its state."""
    jobs = ", ".join(f"{count} {state.lower()}" for state, count in stage.jobs.items())
    if stage.state == "running" and stage.working.ends is not None:
        return f"until {_clock(stage.working.ends)} (jobs: {jobs})" if jobs else f"until {_clock(stage.working.ends)}"
    if stage.state == "waiting" and stage.starts is not None:
        return f"begins {_clock(stage.starts)} (jobs: {jobs})"
    if stage.state in ("failed", "partly"):
        return stage.message
    return f"jobs: {jobs}" if jobs else ""


def _clock(moment: float) -> str:
    then = datetime.fromtimestamp(moment)
    return then.strftime("%H:%M" if then.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def _show_runs(runs: Sequence[Status]) -> None:
    """Print a table for each kind of run."""
    for kind in sorted({type(run) for run in runs}, key=lambda kind: kind.headings, reverse=True):
        _print_table(kind.headings, [run.row for run in runs if type(run) is kind])


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output, words to the left and numbers to the right; nothing without rows."""
    from rich.table import Table

    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table, markup=False)


# ---------------------------------------------------------------------------------------------------- logs


@click.command()
@watched_argument
@click.option("--follow", "-f", "follows", is_flag=True, help="Keep showing new lines until the run has ended.")
@click.option("--unit", type=click.IntRange(min=0), help="Only this unit of the run.")
@click.option("--recording", metavar="KEY", help="Only units that have a part of this recording.")
@click.option("--rank", type=click.IntRange(min=0), help="Only this process of a training.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=1), default=40, show_default=True, help="Show at most this many."
)
def logs(path: Path, follows: bool, unit: int | None, recording: str | None, rank: int | None, lines: int) -> int:
    """Show what the processes of the newest run or launch wrote, in order of time.

    If something failed, only its lines are shown, unless you choose a unit, a recording or a rank.

    \b
    Example: deg logs my_project --recording mouse_1
    """
    from deg.launch.watch.logs import Selection, follow, last_lines, sources
    from deg.launch.watch.target import Ending, find_watched

    watched, chosen = find_watched(path).newest(), Selection(unit, recording, rank)
    if follows:
        try:
            for line in follow(watched, chosen, lines, is_over=Ending(watched)):
                click.echo(str(line))
        except KeyboardInterrupt:
            say("Stopped following; the run itself continues.")
        return 0
    found = last_lines(sources(watched, chosen), lines)
    for line in found:
        click.echo(str(line))
    if not found:
        say("Nothing has been written yet.")
    return 0


# ---------------------------------------------------------------------------------------------------- why, cancel


@click.command()
@watched_argument
@json_option
def why(path: Path, as_json: bool) -> int:
    """Say why the newest run or launch is not done: each cause with its evidence, and what to do.

    \b
    Example: deg why my_project
    """
    from deg.launch.watch.target import find_watched
    from deg.launch.watch.why import explain

    found = explain(find_watched(path), path)
    if as_json:
        print_json(found.as_dict())
        return 0
    click.echo(f"{found.name}: {found.summary}")
    for finding in found.findings:
        click.echo(f"\n{finding.cause}")
        for line in finding.evidence:
            click.echo(f"  {line}")
    if found.command:
        click.echo(f"\nWhat to do:\n  {found.command}")
    return 0


@click.command()
@watched_argument
@json_option
def cancel(path: Path, as_json: bool) -> int:
    """Stop everything that runs or waits in a run, a launch or a project. Finished work is kept.

    \b
    Example: deg cancel my_project
    """
    import shlex

    from deg.errors import show_path
    from deg.launch.watch.cancel import cancel_launch, cancel_run
    from deg.launch.watch.target import find_watched, is_settled

    watched = find_watched(path)
    found = [cancel_run(run) for run in watched.runs]  # first: they stop even if no scheduler answers
    found += [cancel_launch(launch) for launch in watched.launches if not is_settled(launch)]
    touched = [one for one in found if one.ended or one.left]
    left = [one for one in touched if one.left]
    if as_json:
        print_json({"cancelled": [vars(one) for one in touched], "exit_status": 3 if left else 0})
        return 3 if left else 0
    for one in touched:
        if one.ended:
            click.echo(f"{one.name}: stopped {', '.join(one.ended)}.")
        if one.left:
            click.echo(f"{one.name}: still there: {', '.join(one.left)}. {one.note}".rstrip())
    if not touched:
        click.echo("Nothing is running or waiting.")
    elif not left:
        click.echo(f"Finished work is kept. To resume: deg resume {shlex.quote(show_path(path))}")
    return 3 if left else 0
