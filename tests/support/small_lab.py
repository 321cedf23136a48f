"""Small real projects, and `deg` as users start it: as a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from videos import write_video

from deg.data.store import Mark, write_group

CLASSES = ("background", "groom", "rear")
PATIENCE = 180
"""Seconds after which a command is taken to wait for ever; each needs a few."""


@dataclass(frozen=True)
class Answer:
    """What a command ended with and said."""

    status: int
    json: Any
    told: str


def deg(*words: object, prefix: Sequence[str] = (), **options: Any) -> Answer:
    """Run `deg` without a GPU; `prefix` is a program that starts it, options are those of subprocess.run.

    There is no traceback, whatever the input.
    """
    options.setdefault("env", {**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    command = [*prefix, sys.executable, "-m", "deg.launch.cli", *words]
    ended = subprocess.run(list(map(os.fspath, command)), capture_output=True, timeout=PATIENCE, **options)
    told = ended.stderr.decode("utf-8", "replace")
    assert "Traceback" not in told and ended.returncode in (0, 1, 2), f"exit status {ended.returncode}\n{told}"
    return Answer(ended.returncode, json.loads(ended.stdout) if "--json" in words else None, told)


def infer(lab: Path, *words: str, stage: str = "feature_extractor", **options: Any) -> Answer:
    """`deg infer` of one stage with the project's own weights and one thread; `json` is the report of the stage."""
    fixed = ("feature_extractor.weights=latest", "inference.threads=1", "--json")
    answer = deg("infer", stage, lab, *fixed, *words, **options)
    return Answer(answer.status, answer.json["stages"][0] if "stages" in answer.json else answer.json, answer.told)


def check(lab: Path, *words: str, **options: Any) -> dict[str, str]:
    """All that `deg check` says of each recording, and under "" of the project, as one text."""
    answer = deg("check", lab, "--json", *words, **options)
    assert "issues" in answer.json, answer.told
    said: dict[str, str] = {}
    for issue in answer.json["issues"]:
        said[issue["key"]] = f"{said.get(issue['key'], '')}{issue['severity']}: {issue['message']}\n"
    assert answer.status == (1 if any("error: " in text for text in said.values()) else 0)
    return said


def make_lab(folder: Path, models: Path | None = None) -> Path:
    """A project without recordings; `models` are those of another project, which are linked."""
    (folder / "DATA").mkdir(parents=True)
    (folder / "models").mkdir()
    config = {
        "project": {"name": "lab", "class_names": list(CLASSES), "path": str(folder)},
        "augs": {"resize": [32, 32], "normalization": {"N": 100, "mean": [0.4] * 3, "std": [0.2] * 3}},
        "preset": "deg_f",
    }
    (folder / "project_config.yaml").write_text(yaml.safe_dump(config))
    for run in sorted(models.iterdir()) if models else ():
        (folder / "models" / run.name).symlink_to(run)
    return folder


def place(lab: Path, key: str, name: str | None = None) -> Path:
    """Where the video of a recording goes; its folder is made."""
    folder = lab / "DATA" / key
    folder.mkdir(exist_ok=True)
    return folder / (name or f"{key}.mp4")


def add_good(lab: Path, key: str, num_frames: int = 12) -> Path:
    """A recording without a fault; its video."""
    return write_video(place(lab, key), num_frames)


def write_results(path: Path, num_frames: int, names: Sequence[str] = CLASSES, group: str = "resnet18") -> Path:
    """Results of a feature extractor for the video beside `path`: class k in every frame k, k + K, k + 2 K ..."""
    video = next(path.parent.glob("*.mp4")).stat()
    probabilities_TK = np.eye(len(names), dtype=np.float32)[np.arange(num_frames) % len(names)]
    features_TD = np.zeros((num_frames, 512), np.float32)
    rows = dict.fromkeys(("logits", "P"), probabilities_TK)
    rows |= dict.fromkeys(("spatial_features", "flow_features"), features_TD)
    write_group(
        path,
        group,
        num_frames=num_frames,
        columns={name: values.shape[1] for name, values in rows.items()},
        blocks=[rows],
        class_names=names,
        thresholds_K=np.full(len(names), 0.5),
        mark=Mark(num_frames, {}, "made up", video.st_size, video.st_mtime_ns),
        provenance={},
    )
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The models of a project: run directories of all three networks, untrained. 200 MB; gone after the session."""
    from untrained import write_untrained_weights

    lab = make_lab(tmp_path_factory.mktemp("untrained") / "lab")
    write_untrained_weights(lab)
    yield lab / "models"
    shutil.rmtree(lab)
