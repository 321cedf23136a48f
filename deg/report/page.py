"""Write a report: an HTML page and its pictures, which show how training went and what was predicted per recording.

    FOLDER/index.html      FOLDER/pictures/*.png

The page needs no network, no server and no script, and the folder can be copied anywhere. A file that cannot be read is
named in the page and does not stop the report. templates/report.html defines how the page looks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2

from deg.data.atomic import flush
from deg.errors import DegError, ProjectError, show_path
from deg.options import schema
from deg.projects.project import CONFIG_FILES as PROJECT_FILES
from deg.projects.project import Project, open_project
from deg.report import figures
from deg.report.figures import PICTURES, Sketchbook
from deg.report.recordings import NO_PART, Recordings, look_at_recordings
from deg.report.training import Training, newest_trainings, read_training, run_config
from deg.runs.networks import CONFIG_FILES as RUN_FILES
from deg.runs.networks import run_section
from deg.runs.rundir import RunDir
from deg.version import __version__

PAGE = "index.html"


@dataclass(frozen=True)
class ReportFiles:
    """The files that were written, and what could not be drawn."""

    page: Path
    pictures: tuple[Path, ...]
    recordings: tuple[str, ...]
    """Keys of the recordings that were drawn."""
    failed: Mapping[str, str]
    """Recordings that could not be drawn, each with its reason."""
    notices: tuple[str, ...]


def build_report(
    project: Project, config: schema.Config, *, folder: Path, now: datetime, run: Path | None = None
) -> ReportFiles:
    """Write the report of a project, or of one of its runs: a training alone, or the recordings of an inference.

    Raises ProjectError if `folder` holds anything but an earlier report, and OSError if the disk refuses. Then nothing
    was changed.
    """
    with _replacing_folder(folder) as beside:
        content = _gather(project, config, Sketchbook(beside), run)
        (beside / PAGE).write_text(_render(project, content, now), encoding="utf-8")
    return ReportFiles(
        page=folder / PAGE,
        pictures=tuple(sorted((folder / PICTURES).iterdir())),
        recordings=tuple(view.key for view in content.seen.views),
        failed=content.seen.failed,
        notices=content.notices,
    )


def find_target(path: Path) -> tuple[Project, Path | None]:
    """Return the project that `path` names, and the run if it names one. Raises ProjectError if it names neither."""
    path = path.expanduser().absolute()
    if any((path / name).is_file() for name in PROJECT_FILES) or not any((path / name).is_file() for name in RUN_FILES):
        return open_project(path), None
    above = [folder for folder in path.parents if any((folder / name).is_file() for name in PROJECT_FILES)]
    named = run_section(run_config(path), "project").get("path")
    if not above and named is None:
        raise ProjectError(f"{show_path(path)}: this run is not in a project, and does not say which one it is from.")
    return open_project(above[0] if above else str(named)), path


def new_folder(project: Project, now: datetime) -> Path:
    """Return the default folder of a report: PROJECT/reports/<yymmdd_HHMMSS>, with a number if that is taken."""
    base = project.path / "reports" / now.strftime("%y%m%d_%H%M%S")
    names = (base if number == 1 else base.with_name(f"{base.name}_{number}") for number in range(1, 1000))
    return next((path for path in names if not path.exists()), base)


@dataclass(frozen=True)
class _Content:
    """Everything that the page shows."""

    trainings: tuple[Training, ...]
    seen: Recordings
    notices: tuple[str, ...]


def _gather(project: Project, config: schema.Config, sketches: Sketchbook, run: Path | None) -> _Content:
    notices: list[str] = []
    records, group = project.records, None
    if run is None:
        folders = newest_trainings(project, notices)
    elif run_section(run_config(run), "run").get("type") == "inference":
        folders = []
        if (run / "plan.json").is_file():  # DeepEthogram's runs have none
            plan = RunDir(run).load_plan()
            records, group = {key: record for key, record in records.items() if key in plan.videos}, plan.group
    else:
        folders = [run]
    trainings = []
    for folder in folders:
        try:
            trainings.append(read_training(folder, project, sketches))
        except DegError as error:
            notices.append(str(error))
    seen = look_at_recordings(project, config, records, group, sketches, notices)
    return _Content(tuple(trainings), seen, tuple(notices))


# ---------------------------------------------------------------------------------------------------- the files


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` to fill. When the block ends without an error, it replaces `folder`."""
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside, former = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("part", "former"))
    beside.mkdir()
    try:
        (beside / PICTURES).mkdir()
        yield beside
        for path in [*beside.rglob("*"), beside]:
            flush(path)
        if folder.exists():
            folder.rename(former)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    flush(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    """Raise ProjectError if the folder holds anything that is not from a report."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ProjectError(f"{show_path(folder)}: expected a folder for the report, found a file. Choose another --to.")
    for path in folder.iterdir():
        pictures = path.name == PICTURES and path.is_dir() and all(inner.suffix == ".png" for inner in path.iterdir())
        if path.name != PAGE and not pictures:
            raise ProjectError(
                f"{show_path(folder)}: expected nothing there but an earlier report, found {show_path(path.name)}. "
                "Choose another --to, for instance a new folder."
            )


def _render(project: Project, content: _Content, now: datetime) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deg.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value: "\N{EN DASH}" if value is None else f"{value:.2f}"
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["shown"] = show_path
    return environment.get_template("report.html").render(
        project_name=show_path(project.path.name),
        project_path=show_path(project.path),
        class_names=project.class_names,
        trainings=content.trainings,
        seen=content.seen,
        notices=content.notices,
        now=now,
        version=__version__,
        colour=figures.colour,
        stroke=figures.stroke,
        lanes=figures.lane_order(len(project.class_names)),
        lane_height=figures.LANE_HEIGHT,
        lanes_top=figures.TOP,
        part_names={"train": "training", "val": "validation", "test": "test", NO_PART: "not in the split"},
    )
