"""Build the task of a phase: a network with its starting weights, and the loss that it learns by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deg.errors import ConfigError, RunError
from deg.models.imagenet import find_imagenet, load_imagenet
from deg.models.initial import log_odds
from deg.models.sequence import build_sequence
from deg.models.two_stream import TwoStream, build_flow_generator, build_two_stream
from deg.models.weights import LoadReport, load_two_stream, load_weights, read_checkpoint
from deg.options import schema
from deg.runs.plans import TrainingPlan
from deg.train.losses import Classification, CrossEntropy, FocalBCE, class_weights, softmax_class_weights
from deg.train.tasks import ClipTask, FlowTask, SequenceTask, Task


def build_task(
    plan: TrainingPlan,
    config: schema.Config,
    phase: str,
    *,
    labels_NK: np.ndarray | None,
    num_features: int | None,
    before: Path | None,
    batch_size: int,
    lr: float,
    describe: Callable[[int], str],
    note: Callable[[str], None],
) -> Task:
    """Build the task of a phase.

    `labels_NK` are the labels of the training part, `num_features` the features of a frame or window for a sequence
    network, and `before` is the network that the previous phase left. Raises WeightsError if weights do not fit,
    ConfigError if options do not go together.
    """
    torch.manual_seed(config.train.seed)  # for weights that are not loaded
    common: dict[str, Any] = {
        "pretrained": _pretrained(plan),
        "batch_size": batch_size,
        "lr": lr,
        "describe": describe,
    }
    if plan.stage == "flow_generator":
        generator = build_flow_generator(config.flow_generator)
        if start := _path(plan, "start"):
            _tell(load_weights(generator, start), "flow generator", note)
        return FlowTask(generator, config, **common)
    assert labels_NK is not None
    classes = len(plan.class_names)
    positive_K, negative_K = (labels_NK == 1).sum(axis=0), (labels_NK == 0).sum(axis=0)
    loss = _loss(config, positive_K, negative_K, classes)
    if plan.stage == "sequence":
        assert num_features is not None
        network = build_sequence(config.sequence, num_features, classes)
        network.set_class_bias(log_odds(positive_K, negative_K))  # type: ignore[operator]
        if start := _path(plan, "start"):
            _tell(load_weights(network, start), "sequence network", note)
        return SequenceTask(network, config, loss, **common)
    two_stream = build_two_stream(config.feature_extractor, config.flow_generator, classes)
    if phase != "both" and config.feature_extractor.fusion == "concatenate":
        raise ConfigError(
            "feature_extractor.curriculum trains each stream by itself, but with fusion=concatenate a stream alone "
            "cannot classify. Set feature_extractor.curriculum=false or feature_extractor.fusion=average."
        )
    two_stream.set_class_bias(log_odds(positive_K, negative_K))
    _fill(two_stream, plan, config, before, note)
    return ClipTask(two_stream, config, loss, phase=phase, **common)


def _fill(
    network: TwoStream, plan: TrainingPlan, config: schema.Config, before: Path | None, note: Callable[[str], None]
) -> None:
    flow = _path(plan, "flow_generator")
    if flow is None:
        raise RunError("The plan of this run names no flow generator. Plan it again with `deg train`.")
    if before is not None:
        load_two_stream(network, before, flow)
    elif start := _path(plan, "start"):
        for part, report in load_two_stream(network, start, flow, strict=False).items():
            _tell(report, part, note)
    else:
        _tell(load_weights(network.flow_generator, flow, strict=True), "flow_generator", note)
        if config.feature_extractor.weights is None:
            arch = config.feature_extractor.arch
            path = find_imagenet(arch)
            for stream in (network.spatial_classifier, network.flow_classifier):
                load_imagenet(stream, arch, path)


def _tell(report: LoadReport, what: str, note: Callable[[str], None]) -> None:
    fresh = "; its last layer is new, because the file is for other classes" if report.fresh_classifier else ""
    note(f"{what}: {report.matched} of {report.total} tensors from {report.path}{fresh}")


def _path(plan: TrainingPlan, role: str) -> Path | None:
    return plan.weights[role].path if role in plan.weights else None


def _pretrained(plan: TrainingPlan) -> Mapping[str, Tensor]:
    path = _path(plan, "pretrained")
    return {} if path is None else read_checkpoint(path).state_dict


def _loss(config: schema.Config, positive_K: np.ndarray, negative_K: np.ndarray, classes: int) -> nn.Module:
    train, positives = config.train, torch.from_numpy(positive_K)
    if config.feature_extractor.final_activation == "softmax":
        weights = softmax_class_weights(positives, train.loss_weight_exp) if train.softmax_weights else None
        return Classification(CrossEntropy(weights), classes)
    weights = class_weights(positives, torch.from_numpy(negative_K), train.loss_weight_exp)
    return Classification(FocalBCE(weights, gamma=train.loss_gamma, label_smoothing=train.label_smoothing), classes)
