"""The defaults that differ between stages, and the keys of DeepEthogram that have no effect here."""

from __future__ import annotations

from typing import Any

STAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "flow_generator": {"train": {"num_epochs": 10, "steps_per_epoch": {"val": 200}}},
    "feature_extractor": {"train": {"num_epochs": 20}},
    "sequence": {
        "compute": {"min_batch_size": 2, "max_batch_size": 64},
        "train": {"num_epochs": 100, "patience": 5, "regularization": {"style": "l2", "alpha": 0.01}},
    },
    "inference": {"flow_generator": {"weights": None}, "feature_extractor": {"weights": "latest"}},
}
"""Defaults of each stage that differ from those in `deg.options.schema`."""

WITHOUT_EFFECT = (
    "augs.dali",
    "augs.random_resize",
    "compute.dali",
    "compute.distributed",
    "compute.metrics_workers",
    "debug",
    "feature_extractor.inputs",
    "feature_extractor.n_flow",
    "feature_extractor.sampler",
    "feature_extractor.sampling_ratio",
    "flow_generator.flow_loss",
    "flow_generator.flow_max",
    "flow_generator.input_images",
    "flow_generator.n",
    "flow_generator.type",
    "gui",
    "log",
    "reload.overwrite_cfg",
    "run",
    "stride",
    "train.weight_loss",
    "tune",
    "videofile",
    "zscore",
)
"""Keys and sections of DeepEthogram's files that deg accepts and ignores."""
