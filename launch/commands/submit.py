"""`--on slurm` of the commands that work: which stages are submitted, and what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deg.launch.commands.arguments import print_json
from deg.launch.on.slurm import submit
from deg.launch.on.slurm.submit import Link
from deg.launch.say import say
from deg.launch.stages import chain
from deg.options.schema import Cluster, Config
from deg.projects.project import Project, open_project


def config_words(files: Sequence[Path]) -> list[str]:
    """`--config FILE` for each file, in full."""
    return [word for file in files for word in ("--config", str(file.resolve()))]


def ranks_on(cluster: Cluster, stage: str) -> int:
    """Ranks of a training there, on all nodes together."""
    need = submit.training_need(cluster, stage, "")
    return need.nodes * need.tasks_per_node


def link_of_inference(stage: str, project: Project, words: Sequence[str]) -> Link:
    return Link(("infer", stage, str(project.path), *words))


def submit_links(
    project: Project,
    config: Config,
    links: Sequence[Link],
    *,
    run_name: str | None,
    dry_run: bool,
    as_json: bool,
    report: bool = False,
) -> int:
    """Submit stages, say so, and return the exit status."""
    profile = config.cluster.profile
    submitted = submit.submit(
        submit.Request(
            project,
            config,
            tuple(links),
            report=report,
            run_name=run_name,
            profile=None if profile is None else Path(profile),
            dry_run=dry_run,
        )
    )
    if as_json:
        print_json(submitted.as_dict())
    return submitted.exit_status


def submit_chain(request: chain.Request, *, dry_run: bool, as_json: bool) -> int:
    """Submit what is missing of the whole chain."""
    unnamed = chain.Request(request.path, request.overrides, tuple(file.resolve() for file in request.files))
    steps = chain.steps(unnamed)
    chain.require_trainable(unnamed, steps)
    links: list[Link] = []
    report = False
    for step in steps:
        finding = step.look()
        say(f"{step.name}: {finding.why}{'' if finding.missing else ': nothing to do'}.")
        if step.name == "report":
            report = finding.missing or bool(links)
        elif finding.missing:
            links.append(Link(step.command))
    project = open_project(request.path)
    config = unnamed.config(project, "inference")
    return submit_links(
        project, config, links, run_name=request.run_name, dry_run=dry_run, as_json=as_json, report=report
    )
