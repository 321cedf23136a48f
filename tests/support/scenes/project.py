"""Projects: videos, labels and results whose truth is known, and weight files without any training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from videos import write_video

from deg.data.labels import write_labels
from deg.data.results import Mark, write_group
from deg.launch.selftest import write_untrained_weights
from deg.projects.shapes import write_shapes_video
from deg.types import NUM_FEATURES, STREAM_FEATURES

CLASSES = ("background", "groom", "rear")
FRAMES = 24
"""Number of frames in each video of a labelled project."""


def make_project(
    folder: Path,
    lengths: Mapping[str, int] | None = None,
    *,
    models: Path | None = None,
    **sections: Mapping[str, Any],
) -> Path:
    """Make a project whose frames are resized to 32 x 32, without recordings and networks.

    With `lengths`, the number of frames by key, it has videos of moving shapes, and weight files that only scripted
    workers can use. `models` is the folder of another project's models, which are linked. `sections` are options.
    """
    for name in ("DATA", "models"):
        (folder / name).mkdir(parents=True)
    config: dict[str, Any] = {
        "project": {"name": "mice", "class_names": list(CLASSES), "path": str(folder)},
        "augs": {"resize": [32, 32], "normalization": {"N": 100, "mean": [0.4] * 3, "std": [0.2] * 3}},
        "preset": "deg_f",
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    (folder / "project_config.yaml").write_text(yaml.safe_dump(config))
    for run in sorted(models.iterdir()) if models else ():
        (folder / "models" / run.name).symlink_to(run)
    for seed, (key, frames) in enumerate((lengths or {}).items()):
        write_shapes_video(place(folder, key), num_frames=frames, height=64, width=64, seed=seed)
    if lengths:
        add_weights(folder, "flow_generator", "TinyMotionNet", "200101_000000")
        add_weights(folder, "feature_extractor", "resnet18", "200101_000001")
        add_weights(folder, "sequence", "tgmj", "200101_000002")
    return folder


def make_labelled_project(folder: Path, keys: tuple[str, ...] = ("mouse_1", "mouse_2", "mouse_3")) -> Path:
    """Make a project of short labelled videos with every class in each, without any network."""
    make_project(folder, compute={"batch_size": 4}, flow_generator={"weights": None})
    for key in keys:
        add_good(folder, key, FRAMES)
        relabel(folder, key, np.arange(FRAMES) % len(CLASSES))
    return folder


# ---------------------------------------------------------------------------------------------------- recordings


def place(project: Path, key: str, name: str | None = None) -> Path:
    """Make the folder of a recording, and return the path for its video."""
    folder = project / "DATA" / key
    folder.mkdir(exist_ok=True)
    return folder / (name or f"{key}.mp4")


def add_good(project: Path, key: str, num_frames: int = 12) -> Path:
    """Add a recording without a fault, and return its video."""
    return write_video(place(project, key), num_frames)


def relabel(project: Path, key: str, classes_T: np.ndarray) -> None:
    """Write the labels of a recording: one class in each frame."""
    labels_TK = np.eye(len(CLASSES), dtype=np.int8)[classes_T]
    write_labels(project / "DATA" / key / f"{key}_labels.csv", labels_TK, CLASSES)


def write_results(path: Path, num_frames: int, names: Sequence[str] = CLASSES, group: str = "resnet18") -> Path:
    """Write results of a feature extractor for the video beside `path`: class k in the frames k, k + K, k + 2 K ..."""
    probabilities_TK = np.eye(len(names), dtype=np.float32)[np.arange(num_frames) % len(names)]
    features_TD = np.zeros((num_frames, NUM_FEATURES), np.float32)
    write_outputs(path, probabilities_TK, features_TD, next(path.parent.glob("*.mp4")), names, group)
    return path


def write_outputs(
    path: Path,
    probabilities_TK: np.ndarray,
    features_TD: np.ndarray,
    video: Path | None,
    names: Sequence[str] = CLASSES,
    group: str = "resnet18",
) -> None:
    """Write an outputs file of a feature extractor, as if it had seen this video."""
    rows = dict.fromkeys(("logits", "P"), probabilities_TK)
    rows["spatial_features"], rows["flow_features"] = np.split(features_TD, [STREAM_FEATURES], axis=1)
    size, mtime = (video.stat().st_size, video.stat().st_mtime_ns) if video else (0, 0)
    write_group(
        path,
        group,
        num_frames=len(probabilities_TK),
        columns={name: values.shape[1] for name, values in rows.items()},
        blocks=[rows],
        class_names=names,
        thresholds_K=np.full(len(names), 0.5),
        mark=Mark(len(probabilities_TK), {}, "made up", size, mtime),
        provenance={},
    )


# ---------------------------------------------------------------------------------------------------- networks


def add_weights(project: Path, model: str, arch: str, date: str) -> Path:
    """Add a training run whose weight file contains only its name."""
    run = project / "models" / f"{date}_{model}_train"
    run.mkdir()
    config = {"run": {"model": model, "type": "train", "dir": str(run)}, "flow_generator": {"weights": "latest"}}
    config.setdefault(model, {})["arch"] = arch
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "checkpoint.pt").write_bytes(f"{date} {model}".encode())
    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Models of a project: run directories of all three networks, untrained. 200 MB, removed after the session."""
    project = make_project(tmp_path_factory.mktemp("untrained") / "lab")
    write_untrained_weights(project)
    yield project / "models"
    shutil.rmtree(project)
