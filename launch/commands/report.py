"""`deg report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from deg.launch.commands.arguments import ANY_PATH, json_option, print_json, split_words
from deg.launch.say import say


@click.command()
@click.argument("words", nargs=-1, metavar="PROJECT|RUN [KEY=VALUE]...")
@click.option("--to", "folder", type=ANY_PATH, help="Folder for the report; default: PROJECT/reports/<date>.")
@json_option
def report(words: Sequence[str], folder: Path | None, as_json: bool) -> int:
    """Write a page that shows how training went and what was predicted in each recording, to open in a browser.

    Of a RUN: a training alone, or the recordings of an inference.

    \b
    Example: deg report my_project
    """
    from datetime import datetime

    from deg.options.load import load_config
    from deg.report.page import build_report, find_target, new_folder

    plain, overrides = split_words(words)
    if len(plain) != 1:
        found = ", ".join(plain) or "nothing"
        raise click.UsageError(f"Expected one PROJECT or one RUN; found {found}.")
    project, run = find_target(Path(plain[0]))
    config = load_config(project.config_file, overrides, stage="inference")
    now = datetime.now()
    target = new_folder(project, now) if folder is None else folder.expanduser().absolute()
    files = build_report(project, config, folder=target, now=now, run=run)
    for notice in files.notices:
        say(f"Note: {notice}")
    for key, reason in files.failed.items():
        say(f"{key}: NOT DRAWN: {reason}")
    say(f"Report: {files.page} ({len(files.recordings)} recordings)")
    if as_json:
        print_json(
            {
                "page": str(files.page),
                "pictures": [str(path) for path in files.pictures],
                "recordings": list(files.recordings),
                "failed": dict(files.failed),
                "notices": list(files.notices),
            }
        )
    return 1 if files.failed else 0
