"""Small real projects: networks with random weights over frames of 32 x 32, and `deg` as users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from videos import write_video

CLASSES = ("background", "groom", "rear")
FRAMES = 30
PATIENCE = 120
"""Seconds after which a command is taken to wait for ever; each needs a few."""


@dataclass(frozen=True)
class Answer:
    """What a command ended with and said."""

    status: int
    json: Any
    told: str


def deg(*arguments: object, **options: Any) -> Answer:
    """Run `deg` as another process, without a GPU."""
    ended = subprocess.run(
        [sys.executable, "-m", "deg.launch.cli", *map(str, arguments)],
        capture_output=True,
        timeout=PATIENCE,
        **{"env": environment(), **options},
    )
    document = json.loads(ended.stdout) if "--json" in arguments and ended.stdout else None
    answer = Answer(ended.returncode, document, ended.stderr.decode("utf-8", "replace"))
    assert "Traceback" not in answer.told, answer.told
    return answer


def infer(lab: Path, *arguments: object, stage: str = "feature_extractor", **options: Any) -> Answer:
    """`deg infer` with the lab's own weights. The stage's report is `answer.json`, where it came so far."""
    answer = deg("infer", stage, lab, "feature_extractor.weights=latest", "--json", *arguments, **options)
    found = answer.json["stages"][0] if answer.json and "stages" in answer.json else answer.json
    return Answer(answer.status, found, answer.told)


def environment() -> Mapping[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def make_lab(folder: Path, weights: Path | None = None) -> Path:
    """A project without recordings; `weights` is another project's models, which are linked."""
    folder.mkdir(parents=True)
    (folder / "DATA").mkdir()
    (folder / "models").mkdir()
    config = {
        "project": {"name": "lab", "class_names": list(CLASSES), "path": str(folder)},
        "augs": {"resize": [32, 32], "normalization": {"N": 100, "mean": [0.4] * 3, "std": [0.2] * 3}},
        "preset": "deg_f",
    }
    (folder / "project_config.yaml").write_text(yaml.safe_dump(config))
    for run in sorted(weights.iterdir()) if weights else ():
        (folder / "models" / run.name).symlink_to(run)
    return folder


def place(lab: Path, key: str, name: str | bytes | None = None) -> Path:
    """Where the video of a recording goes; its folder is made."""
    folder = lab / "DATA" / key
    folder.mkdir(exist_ok=True)
    return folder / os.fsdecode(name or f"{key}.mp4")


def add_good(lab: Path, key: str, num_frames: int = FRAMES) -> Path:
    """A recording without a fault; its video."""
    return write_video(place(lab, key), num_frames)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """The models of a project: run directories of all three networks, untrained."""
    from deg.launch.demo import write_untrained_weights

    lab = make_lab(tmp_path_factory.mktemp("weights") / "lab")
    write_untrained_weights(lab)
    return lab / "models"
