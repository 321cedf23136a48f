"""What commands share: options, and words of the form key=value."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deg.launch.on import NAMES

if TYPE_CHECKING:
    from rich.console import Console

    from deg.launch.stages.request import Report

Function = TypeVar("Function", bound=Callable[..., Any])

KEY_VALUE = re.compile(r"[A-Za-z_][\w.]*=")


class SurrogatePath(click.ParamType):
    """A path made of any bytes, even if they are not UTF-8."""

    name = "path"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        return Path(value)


ANY_PATH = SurrogatePath()


def json_option(function: Function) -> Function:
    """Add `--json`, which prints one JSON document on standard output and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def work_options(function: Function) -> Function:
    """Add the options that `train`, `infer` and `run` share: files of options, a name, where to run, and a dry run."""
    for option in reversed(
        (
            click.option(
                "--config", "files", multiple=True, type=ANY_PATH, help="More options from a YAML file. Repeatable."
            ),
            click.option(
                "--run", "run_name", help="Name of the run directory. With several stages: the prefix of their names."
            ),
            click.option(
                "--on",
                type=click.Choice(NAMES),
                default="local",
                show_default=True,
                help="Where to run: on this machine, or as jobs of a cluster (docs/cluster.md).",
            ),
            click.option("--dry-run", is_flag=True, help="Say what would be done, and stop. Nothing is written."),
        )
    ):
        function = option(function)
    return function


def only_option(function: Function) -> Function:
    """Add `--only plan|merge`, which does the first or last part of a stage whose units another program does."""
    return click.option(
        "--only",
        type=click.Choice(["plan", "merge"]),
        help="Only make the run directory, or only put together the results of `python -m deg.execute RUN UNIT`.",
    )(function)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate `key=value` from other words. A word that names an existing file is a file, even with a `=`."""
    plain: list[str] = []
    overrides: list[str] = []
    for word in words:
        (overrides if KEY_VALUE.match(word) and not Path(word).exists() else plain).append(word)
    return plain, overrides


def one_project(words: Sequence[str]) -> str:
    """Return the only plain word, which names the project."""
    if len(words) != 1:
        found = ", ".join(words) or "nothing"
        raise click.UsageError(f"Expected one PROJECT, a folder or its project_config.yaml; found {found}.")
    return words[0]


def console() -> Console:
    """Return standard output for tables. It is wide if no terminal sets a width: names are not broken in logs."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def options_as_words(files: Sequence[Path], videos: Sequence[str] = ()) -> list[str]:
    """Return `--config` and `--videos` as words of a command line, with paths that hold in any folder."""
    named = [("--config", str(file.resolve())) for file in files] + [("--videos", video) for video in videos]
    return [word for pair in named for word in pair]


def finish(report: Report, as_json: bool) -> int:
    """Print the report of a command as JSON if asked to, and return its exit status."""
    if as_json:
        print_json(report.as_dict())
    return report.exit_status


def print_json(document: Any) -> None:
    """Write a document to standard output as JSON."""
    sys.stdout.write(json.dumps(document, indent=1, default=str) + "\n")
