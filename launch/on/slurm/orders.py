"""Orders of a launch: how a stage is written down when it is submitted, and read again on a node."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from deg.launch.scheduler import script
from deg.launch.scheduler.launches import Launch
from deg.launch.scheduler.script import Need
from deg.launch.stages.request import Order, StageRequest
from deg.options.load import read_run_config, restore, to_yaml
from deg.options.paths import named_paths
from deg.options.schema import Cluster, Config
from deg.projects.project import open_project


def options_text(order: Order) -> str:
    """Write all options of a stage as YAML, for the merge job that plans it, and for people."""
    head = f"# deg {shlex.join(order.command)}\n# All options, as they were when it was submitted.\n"
    return head + to_yaml(order.request.config)


def named_in(configs: Iterable[Config]) -> list[Path]:
    """Return the files and folders that the options of these stages name."""
    return [path for config in configs for path in named_paths(config)]


def config_of(launch: Launch, index: int) -> Config:
    """Read the options of a stage, as they were when it was submitted."""
    return restore(read_run_config(launch.folder.config_file(index)))


def request_of(launch: Launch, index: int) -> StageRequest:
    """Read the request of a stage of a launch."""
    stage = launch.stages[index]
    config = replace(config_of(launch, index), cluster=launch.cluster)
    project = open_project(launch.project)
    return StageRequest(stage.verb, stage.stage, project, config, stage.videos, stage.overwrite, stage.run)


def workers_on(cluster: Cluster, request: StageRequest) -> int:
    """Return how many workers or ranks do a stage on the cluster, on all its nodes together."""
    if request.verb == "infer":
        return cluster.jobs
    need = training_need(cluster, request.stage, "")
    return need.nodes * need.tasks_per_node


def training_need(cluster: Cluster, stage: str, title: str) -> Need:
    """Return what a training needs.

    One rank trains a sequence network in minutes. More would mostly wait for each other.
    """
    return script.worker_need(cluster, title) if stage == "sequence" else script.training_need(cluster, title)
