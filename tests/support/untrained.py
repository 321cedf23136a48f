"""Networks with random weights, for tests that need weight files of the right shape and no training."""

from __future__ import annotations

from pathlib import Path

import yaml

from deg.config import as_dict, load_config
from deg.project import open_project
from deg.types import NUM_FEATURES


def write_untrained_weights(folder: Path) -> None:
    """Run directories of all three networks of a project, seeded, in the layout of DeepEthogram's training runs."""
    import torch

    from deg.models.sequence import build_sequence
    from deg.models.two_stream import build_two_stream

    project = open_project(folder)
    config = load_config(project.config_file)
    torch.manual_seed(1)
    classes = len(project.class_names)
    two_stream = build_two_stream(config.feature_extractor, config.flow_generator, classes)
    networks = {
        "flow_generator": two_stream.flow_generator,
        "feature_extractor": two_stream,
        "sequence": build_sequence(config.sequence, NUM_FEATURES, classes),
    }
    for number, (model, network) in enumerate(networks.items()):
        path = project.model_path / f"000101_00000{number}_{model}_train_untrained"
        path.mkdir(parents=True)
        stored = as_dict(config) | {"run": {"type": "train", "model": model, "dir": str(path)}}
        stored["flow_generator"]["weights"] = "latest"
        (path / "config.yaml").write_text(yaml.safe_dump(stored))
        torch.save(
            {"epoch": 0, "state_dict": network.state_dict(), "optimizer": None, "hyperparameters": None},
            path / "checkpoint.pt",
        )
