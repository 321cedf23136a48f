"""`deg demo`: a project made, filled, inferred and exported on this machine, by the commands that users type."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deg.data.atomic import write_atomically
from deg.data.labels import write_labels
from deg.demo import BEHAVIORS, write_shapes_video
from deg.errors import ProjectError, show_path
from deg.launch.arguments import say
from deg.launch.cli import run
from deg.types import NUM_FEATURES

VIDEOS = 3
FRAMES = 240
SIZE = (96, 128)
SEED = 1


def run_demo(folder: Path) -> dict[str, Any]:
    """Make the project and run every step. ProjectError if `folder` holds something else."""
    if folder.is_file():
        raise ProjectError(f"{show_path(folder)}: expected a folder, found a file. Name another folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "demo.json").exists():
        raise ProjectError(
            f"{show_path(folder)}: expected no folder or an empty one, found files. Name another folder."
        )
    if not (folder / "demo.json").exists():
        _make(folder)
    say("The networks are untrained (random weights, seed 1): speed and files are real, predictions mean nothing.")
    status = _steps(
        ["check", str(folder)],
        ["infer", str(folder)],
        ["export", str(folder), "--format", "csv"],
        ["status", str(folder)],
    )
    results = sorted(str(path) for path in (folder / "DATA").glob("*/*_outputs.h5"))
    say(f"Results: {len(results)} files, such as {results[0] if results else 'none'}")
    return {"project": str(folder), "results": results, "trained": False, "exit_status": status}


def _steps(*commands: Sequence[str]) -> int:
    """Run commands one after another until one fails; its exit status."""
    for command in commands:
        say(f"\n$ deg {' '.join(command)}")
        if status := run(list(command)):
            return status
    return 0


def _make(folder: Path) -> None:
    """The project: videos with labels, and run directories with weights as training would leave them."""
    if _steps(["new", str(folder), "--behaviors", ",".join(BEHAVIORS)]):
        raise ProjectError(f"{show_path(folder)}: the demo's project could not be made; see above.")
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(VIDEOS):
            video = Path(scratch) / f"shapes_{index}.mp4"
            labels = video.with_name(f"shapes_{index}_labels.csv")
            labels_TK = write_shapes_video(video, num_frames=FRAMES, height=192, width=256, seed=SEED + index)
            write_labels(labels, labels_TK, ["background", *BEHAVIORS])
            if _steps(["add", str(folder), str(video), "--labels", str(labels)]):
                raise ProjectError(f"{show_path(video)}: the demo's video could not be added; see above.")
    config_file = folder / "project_config.yaml"
    config = yaml.safe_load(config_file.read_text())
    config["preset"] = "deg_f"
    config["augs"]["resize"] = list(SIZE)
    write_atomically(config_file, yaml.safe_dump(config))
    write_untrained_weights(folder)
    write_atomically(folder / "demo.json", json.dumps({"seed": SEED, "videos": VIDEOS, "frames": FRAMES}))


def write_untrained_weights(folder: Path) -> None:
    """Run directories of all three networks with seeded random weights, in the layout of training runs."""
    import torch

    from deg.config import as_dict, load_config
    from deg.models.sequence import build_sequence
    from deg.models.two_stream import build_two_stream
    from deg.project import open_project

    project = open_project(folder)
    config = load_config(project.config_file)
    torch.manual_seed(SEED)
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
        write_atomically(path / "config.yaml", yaml.safe_dump(stored))
        torch.save(
            {"epoch": 0, "state_dict": network.state_dict(), "optimizer": None, "hyperparameters": None},
            path / "checkpoint.pt",
        )
