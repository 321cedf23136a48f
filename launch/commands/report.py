"""`deg report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from deg.launch.commands.arguments import ANY_PATH, json_option, print_json, split_words


@click.command()
@click.argument("words", nargs=-1, metavar="PROJECT|RUN [KEY=VALUE]...")
@click.option("--to", "folder", type=ANY_PATH, help="Folder for the report. Default: PROJECT/reports/<date>.")
@json_option
def report(words: Sequence[str], folder: Path | None, as_json: bool) -> int:
    """Write a page that shows how training went and what was predicted in each recording, to open in a browser.

    For a RUN, it shows that training alone, or the recordings of that inference.

    \b
    Example: deg report my_project
    """
    from deg.launch.stages.report import write_report

    plain, overrides = split_words(words)
    if len(plain) != 1:
        found = ", ".join(plain) or "nothing"
        raise click.UsageError(f"Expected one PROJECT or one RUN; found {found}.")
    written = write_report(Path(plain[0]), overrides, folder)
    if as_json:
        print_json(written.as_dict())
    return written.exit_status
