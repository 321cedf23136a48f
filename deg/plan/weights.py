"""Find the weight files that a training needs, before a GPU is requested. Each has a role:

start            the weights that the network begins with
flow_generator   for a feature extractor, the trained network that computes the motion it sees
pretrained       the weights that L2-SP pulls the network's weights towards
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deg.errors import WeightsError, show_path
from deg.options.schema import Config
from deg.projects.project import Project
from deg.runs.networks import TrainedRun, companion, resolve_weights, run_section, scan
from deg.runs.planned import PlannedFile

OTHERWISE = {
    "flow_generator": "Or set flow_generator.weights=null to train from scratch.",
    "feature_extractor": "Or set feature_extractor.weights to null to begin with ImageNet weights, or to random.",
    "sequence": "Or set sequence.weights=null to train from scratch.",
}
"""How each network can begin without a weight file."""


def find_weights(stage: str, project: Project, config: Config) -> tuple[dict[str, PlannedFile], list[str]]:
    """Return the weight files by role, as in `deg.runs.plans.TrainingPlan`, and notices about the choice.

    Raises WeightsError if a file that is needed is missing, or is of another network.
    """
    start, notices = _start(stage, project, config)
    files = {"start": start} if start else {}
    if stage == "feature_extractor":
        files["flow_generator"] = flow = _flow_generator(project, config)
        _require_kind(flow, "flow_generator", config.flow_generator.arch)
        notices.append(f"Flow generator {show_path(flow)}.")
    if config.train.regularization.style == "l2_sp":
        pretrained, notice = _pretrained(stage, getattr(config, stage).arch, project)
        files |= {"pretrained": pretrained} if pretrained else {}
        notices.append(notice)
    return {role: _planned(path) for role, path in files.items()}, notices


def _start(stage: str, project: Project, config: Config) -> tuple[Path | None, list[str]]:
    """Return the weights that the network begins with; None for ImageNet's or none at all, as the notice says."""
    options = getattr(config, stage)
    if stage == "feature_extractor" and options.weights == "random":
        return None, ["The feature extractor begins with random weights."]
    try:
        path = resolve_weights(
            options.weights, model=stage, arch=options.arch, project=project, reload_latest=config.reload.latest
        )
    except WeightsError as error:
        raise WeightsError(f"{error} {OTHERWISE[stage]}") from error
    if path is not None:
        _require_kind(path, stage, options.arch)
        return path, [f"{stage}: begins with {show_path(path)}.", *_other_classes(path, stage, project)]
    if stage != "feature_extractor":
        return None, [f"{stage}: trained from scratch."]
    if options.arch.startswith("resnet3d"):
        raise WeightsError(
            "feature_extractor.weights is null: expected ImageNet weights to begin with, but there are none for "
            f"{options.arch}. Set it to pretrained, latest or a path; or to random, which needs much more data."
        )
    return None, [f"The feature extractor begins with ImageNet weights of {options.arch}."]


def _flow_generator(project: Project, config: Config) -> Path:
    """Return the trained flow generator through which a feature extractor sees motion."""
    wanted, arch = config.flow_generator.weights, config.flow_generator.arch
    needed = f"expected a trained {arch}, through which the feature extractor sees motion"
    remedy = "Train one with `deg train flow_generator` first, then set flow_generator.weights=latest."
    if _networks(project.model_path, "flow_generator", arch):
        remedy = "This project has one: set flow_generator.weights=latest."
    if wanted == "pretrained":
        folder = project.pretrained_path
        if folder is None:
            where = "this project has no folder of pretrained weights"
        elif found := _networks(folder, "flow_generator", arch):
            return found[-1].weights
        else:
            where = f"there is none in {show_path(folder)}"
        raise WeightsError(f"flow_generator.weights is pretrained: {needed}, but {where}. {remedy}")
    path = resolve_weights(
        wanted, model="flow_generator", arch=arch, project=project, reload_latest=config.reload.latest
    )
    if path is None:
        raise WeightsError(f"flow_generator.weights is null: {needed}. {remedy}")
    return path


def _pretrained(stage: str, arch: str, project: Project) -> tuple[Path | None, str]:
    """Return the pretrained network of this kind, which L2-SP pulls weights towards, whatever they begin with.

    If there are several, the newest is taken, as `weights=pretrained` does; DeepEthogram fails in that case.
    """
    found = _networks(project.pretrained_path, stage, arch) if project.pretrained_path else []
    if not found:
        return None, (
            f"train.regularization.style is l2_sp, but there is no pretrained {stage} {arch}: all weights are pulled "
            "towards zero, by train.regularization.beta."
        )
    among = f", the newest of {len(found)}" if len(found) > 1 else ""
    return found[-1].weights, f"L2-SP pulls weights towards {show_path(found[-1].weights)}{among}."


def _networks(root: Path, model: str, arch: str) -> list[TrainedRun]:
    """Return the trained networks of one kind below a folder, oldest first."""
    return [run for run in scan(root) if (run.model, run.arch) == (model, arch)]


def _require_kind(path: Path, model: str, arch: str) -> None:
    """Raise WeightsError if the configuration beside a weight file says that it is of another network.

    A file without a configuration is judged by its tensors when it is loaded.
    """
    trained = companion(path).config or {}
    kind = run_section(trained, "run").get("model") or trained.get("model") or model
    if kind != model:
        raise WeightsError(
            f"{show_path(path)}: expected weights of a {model}, found those of a {kind}. Name other weights."
        )
    found = run_section(trained, model).get("arch") or arch
    if found != arch:
        raise WeightsError(
            f"{show_path(path)}: expected weights of a {model} {arch}, found those of a {found}. Set {model}.arch="
            f"{found}, or name other weights."
        )


def _other_classes(path: Path, stage: str, project: Project) -> Iterator[str]:
    found = run_section(companion(path).config, "project").get("class_names")
    if stage != "flow_generator" and isinstance(found, list) and found != list(project.class_names):
        yield (
            f"Warning: {show_path(path)} was trained for other behaviours ({', '.join(map(str, found))}) than the "
            f"project has ({', '.join(project.class_names)})."
        )


def _planned(path: Path) -> PlannedFile:
    try:
        return PlannedFile.of(path)
    except OSError as error:
        raise WeightsError(
            f"{show_path(path)}: weights cannot be read ({error.strerror}). Make the file readable, or name others."
        ) from error
