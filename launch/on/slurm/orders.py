"""What is ordered of a cluster, stage by stage: how it is written down in a launch, and read from it on a node."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from deg.launch.on.slurm import script
from deg.launch.on.slurm.launches import Launch, LaunchDir
from deg.launch.on.slurm.script import Need
from deg.launch.stages.request import StageRequest
from deg.options.load import read_run_config, restore, to_yaml
from deg.options.paths import named_paths
from deg.options.schema import Cluster, Config
from deg.projects.project import open_project


@dataclass(frozen=True)
class Order:
    """A stage that is to be submitted."""

    request: StageRequest
    command: tuple[str, ...]
    """The words after `deg` by which a user does it on one machine."""


def options_text(order: Order) -> str:
    """Write all options of a stage as YAML, for the merge job that plans it, and for people."""
    head = f"# deg {shlex.join(order.command)}\n# All options, as they were when it was submitted.\n"
    return head + to_yaml(order.request.config)


def named_in(configs: Iterable[Config]) -> list[Path]:
    """Files and folders that options of these stages name."""
    return [path for config in configs for path in named_paths(config)]


def config_of(launch: LaunchDir, index: int) -> Config:
    """The options of a stage, as they were when it was submitted."""
    return restore(read_run_config(launch.config_file(index)))


def request_of(launch: LaunchDir, spec: Launch, index: int) -> StageRequest:
    """The request of a stage of a launch."""
    stage, cluster = spec.stages[index], script.options_of(spec.cluster)
    config = replace(config_of(launch, index), cluster=cluster)
    project = open_project(spec.project)
    request = StageRequest(stage.verb, stage.stage, project, config, stage.videos, stage.overwrite, stage.run)
    return replace(request, workers=workers_on(cluster, request))


def workers_on(cluster: Cluster, request: StageRequest) -> int:
    """How many workers or ranks do a stage there, on all nodes together."""
    if request.verb == "infer":
        return cluster.jobs
    need = training_need(cluster, request.stage, "")
    return need.nodes * need.tasks_per_node


def training_need(cluster: Cluster, stage: str, title: str) -> Need:
    """A sequence network is so small that one rank trains it in minutes; more would mostly wait for each other."""
    return script.worker_need(cluster, title) if stage == "sequence" else script.training_need(cluster, title)
