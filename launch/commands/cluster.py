"""`deg cluster`: writes profiles of clusters from what Slurm says, lists and shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click

from deg.launch.commands.arguments import ANY_PATH, console, json_option, print_json, split_words
from deg.launch.say import say


@click.group()
def cluster() -> None:
    """Write, list and show profiles of clusters: what a site needs to know for every job (docs/cluster.md).

    \b
    Example: deg cluster init mysite
             deg run my_project --on slurm cluster=mysite
    """


@cluster.command()
@click.argument("name", required=False)
@click.option("--to", "target", type=ANY_PATH, help="File to write. Default: ~/.config/deg/clusters/NAME.yaml.")
@click.option("--overwrite", is_flag=True, help="Replace an existing profile.")
@click.option("--dry-run", is_flag=True, help="Print the profile and write nothing.")
@json_option
def init(name: str | None, target: Path | None, overwrite: bool, dry_run: bool, as_json: bool) -> int:
    """Write a profile of this cluster from what sinfo, scontrol and sacctmgr say. NAME is the cluster's by default.

    It is only a start: read it, change what the site's documentation tells you to, and try it with `deg doctor`.

    \b
    Example: deg cluster init mysite --dry-run
    """
    from deg.configs import own_cluster_folder
    from deg.data.atomic import replacing
    from deg.errors import ConfigError, show_path
    from deg.launch.site.ask import ask_site
    from deg.launch.site.profile import choose, profile_text
    from deg.options.load import as_dict, load_config

    if name is not None:
        _check_name(name)
    site = ask_site()
    # the site may have given its cluster a name with any characters
    name = name or re.sub(r"[^\w.-]", "_", site.settings.get("clustername", "")).lstrip(".-") or "cluster"
    choice = choose(site)
    text = profile_text(choice, str(target) if target else name)
    path = target or own_cluster_folder() / f"{name}.yaml"
    if dry_run:
        if not as_json:
            click.echo(text, nl=False)
    else:
        if path.exists() and not overwrite:
            raise ConfigError(
                f"{show_path(path)}: this file exists. Replace it with --overwrite, or give another NAME or --to."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
            load_config(None, files=[part])
        wanted = target or name
        say(f"Wrote {path}. Read it, then try: deg cluster show {wanted}; deg doctor --on slurm cluster={wanted}")
    if as_json:
        print_json(
            {
                "file": None if dry_run else str(path),
                "cluster": as_dict(choice.cluster),
                "about": choice.about,
                "notes": choice.notes,
            }
        )
    return 0


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name) or name.endswith(".yaml"):
        raise click.UsageError(f"Expected a NAME of letters, digits, - and _; found {name!r}. Use --to for a file.")


@cluster.command("list")
@json_option
def list_profiles(as_json: bool) -> int:
    """List the profiles that can be named, and their files.

    \b
    Example: deg cluster list
    """
    from rich.table import Table

    from deg.configs import cluster_folders, cluster_profiles

    profiles = cluster_profiles()
    if as_json:
        print_json(
            {
                "profiles": {name: str(path) for name, path in profiles.items()},
                "folders": [str(folder) for folder in cluster_folders()],
            }
        )
        return 0
    table = Table("profile", "file", box=None, pad_edge=False)
    for name, path in profiles.items():
        table.add_row(name, str(path))
    console().print(table)
    return 0


@cluster.command()
@click.argument("words", nargs=-1, required=True, metavar="NAME|FILE [KEY=VALUE]...")
@json_option
def show(words: Sequence[str], as_json: bool) -> int:
    """Show all options of a profile, with defaults, and the flags of sbatch that a training gets from them.

    \b
    Example: deg cluster show example cluster.gpu_flag=gres
    """
    from deg.launch.scheduler import script
    from deg.launch.site.profile import shown
    from deg.options.load import as_dict, load_config

    plain, overrides = split_words(words)
    if len(plain) != 1:
        raise click.UsageError(
            f"Expected one profile, found {', '.join(plain) or 'none'}. `deg cluster list` lists them."
        )
    config = load_config(None, [f"cluster.profile={plain[0]}", *overrides])
    if as_json:
        print_json({"cluster": as_dict(config.cluster)})
    else:
        given, dropped = script.parameters(config.cluster, script.training_need(config.cluster, "show"))
        flags = {name.replace("_", "-"): value for name, value in given.items()} | given["additional_parameters"]
        click.echo(shown(config.cluster, flags, dropped), nl=False)
    return 0
