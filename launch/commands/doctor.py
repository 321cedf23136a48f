"""`deg doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deg.launch.commands.arguments import ANY_PATH, json_option, print_json, split_words
from deg.launch.say import say

if TYPE_CHECKING:
    from deg.launch.findings import Finding

COLOURS = {"ok": "green", "warning": "yellow", "fault": "red", "not tried": "bright_black"}


@click.command()
@click.argument("words", nargs=-1, metavar="[PROJECT or FOLDER] [KEY=VALUE]...")
@click.option(
    "--on", type=click.Choice(["local", "slurm"]), default="local", show_default=True, help="What to examine."
)
@click.option("--config", "files", multiple=True, type=ANY_PATH, help="More options from a YAML file. Repeatable.")
@click.option(
    "--wait",
    type=click.IntRange(min=0),
    default=600,
    show_default=True,
    help="Seconds to wait for the job before it is cancelled. 0: only submit it; read its findings later with --job.",
)
@click.option("--job", "job", type=ANY_PATH, help="Folder of an earlier job of deg doctor: show its findings.")
@json_option
def doctor(words: Sequence[str], on: str, files: Sequence[Path], wait: int, job: Path | None, as_json: bool) -> int:
    """Check whether this machine, this cluster and this image are fit for the work. Print a verdict for each.

    --on slurm submits one job of at most five minutes, in the image and with the options of real work. FOLDER, the
    current one by default, is where projects will lie. The exit status is 3 if something is at fault.

    \b
    Example: deg doctor my_project
    """
    from deg.launch.doctor.examine import examine_cluster, examine_here, job_report
    from deg.launch.findings import counts, implied_profile, profile_text
    from deg.options.load import load_config

    def tell(finding: Finding) -> None:
        if not as_json:
            _show(finding)

    plain, overrides = split_words(words)
    if len(plain) > 1:
        raise click.UsageError(f"Expected one PROJECT or FOLDER; found {', '.join(plain)}.")
    if job is not None:
        report = job_report(job, tell)
    else:
        folder, config_file = _folder(Path(plain[0] if plain else "."))
        cluster = load_config(config_file, overrides, files=files).cluster
        if on == "local":
            report = examine_here(folder, cluster, tell)
        else:
            report = examine_cluster(folder, cluster, wait, tell, say)
    if as_json:
        print_json(report.as_dict())
        return report.exit_status
    say(f"\n{counts(report.findings)}.")
    if report.folder is not None:
        say(f"The job's files: {report.folder}")
    if lines := profile_text(implied_profile(report.findings)):
        say("For the cluster's profile:\n")
        click.echo(lines, nl=False)
    return report.exit_status


def _folder(path: Path) -> tuple[Path, Path | None]:
    """Return the folder to examine, and the configuration of the project if it is one."""
    from deg.errors import ProjectError, show_path
    from deg.projects.project import CONFIG_FILES

    if path.is_dir():
        found = (path / name for name in CONFIG_FILES)
        return path.resolve(), next((file for file in found if file.is_file()), None)
    if path.is_file() and path.name in CONFIG_FILES:
        return path.resolve().parent, path
    raise ProjectError(f"{show_path(path)}: expected a PROJECT or a folder, found neither. Make it first.")


def _show(finding: Finding) -> None:
    state = click.style(f"{finding.state:9s}", fg=COLOURS[finding.state])
    where = f"[{finding.where}] " if finding.where else ""
    click.echo(f"{state} {finding.check:24s} {where}{finding.sentence()}")
