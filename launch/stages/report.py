"""Writes the report of a project or of a run, and says where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deg.launch.say import say
from deg.options.load import load_config
from deg.report.page import ReportFiles, build_report, find_target, new_folder


@dataclass(frozen=True)
class WrittenReport:
    """The files that were written."""

    files: ReportFiles

    @property
    def exit_status(self) -> int:
        return 1 if self.files.failed else 0

    def as_dict(self) -> dict[str, Any]:
        files = self.files
        return {
            "page": str(files.page),
            "pictures": [str(path) for path in files.pictures],
            "recordings": list(files.recordings),
            "failed": dict(files.failed),
            "notices": list(files.notices),
        }


def write_report(path: Path, overrides: Sequence[str] = (), folder: Path | None = None) -> WrittenReport:
    """Write the report of the project or run at `path`, into `folder` or into one named by date."""
    project, run = find_target(path)
    config = load_config(project.config_file, overrides, stage="inference")
    now = datetime.now()
    target = new_folder(project, now) if folder is None else folder.expanduser().absolute()
    files = build_report(project, config, folder=target, now=now, run=run)
    for notice in files.notices:
        say(f"Note: {notice}")
    for key, reason in files.failed.items():
        say(f"{key}: NOT DRAWN: {reason}")
    say(f"Report: {files.page} ({len(files.recordings)} recordings)")
    return WrittenReport(files)
