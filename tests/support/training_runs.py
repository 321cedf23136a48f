"""Training without networks: plans, labelled projects, and ranks that leave in this process what training leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from runs import CLASSES
from videos import write_video

from deg.config import as_dict
from deg.data.json_lines import append_line
from deg.data.labels import write_labels
from deg.data.metrics_file import MetricsFile
from deg.launch.ranks import Outcome
from deg.rundir import RunDir, TrainingPlan
from deg.schema import Config
from deg.types import VideoInfo

KEY_METRICS = {"flow_generator": "SSIM", "feature_extractor": "f1_class_mean_nobg", "sequence": "f1_class_mean"}
FRAMES = 24


def make_training_plan(folder: Path, **changes: object) -> TrainingPlan:
    """A plan over two recordings; there are no files."""
    plan = TrainingPlan(
        stage="sequence",
        phases=("both",),
        class_names=CLASSES,
        parts={"train": ("a",), "val": ("b",), "test": ()},
        videos={key: VideoInfo(folder / f"{key}.mp4", 100, 64, 64, 30.0, 1000, 10**18) for key in "ab"},
        labels={},
        inputs={},
        weights={},
        config=as_dict(Config()),
        cache=None,
        devices=1,
    )
    return replace(plan, **changes)


def make_labelled_project(folder: Path, keys: tuple[str, ...] = ("mouse_1", "mouse_2", "mouse_3")) -> Path:
    """A project of short labelled videos, every class in each, without any network."""
    (folder / "models").mkdir(parents=True)
    for key in keys:
        (folder / "DATA" / key).mkdir(parents=True)
        video = write_video(folder / "DATA" / key / f"{key}.mp4", FRAMES)
        relabel(folder, key, np.arange(FRAMES) % len(CLASSES))
        assert video.exists()
    config = {
        "project": {"name": "mice", "class_names": list(CLASSES), "path": str(folder)},
        "augs": {"resize": [32, 32], "normalization": {"N": 100, "mean": [0.4] * 3, "std": [0.2] * 3}},
        "compute": {"batch_size": 4},
        "flow_generator": {"weights": None},
        "preset": "deg_f",
    }
    (folder / "project_config.yaml").write_text(yaml.safe_dump(config))
    return folder


def relabel(folder: Path, key: str, classes_T: np.ndarray) -> None:
    """Write the labels of a recording: one class in each frame."""
    labels_TK = np.eye(len(CLASSES), dtype=np.int8)[classes_T]
    write_labels(folder / "DATA" / key / f"{key}_labels.csv", labels_TK, CLASSES)


def leave_trained(run: RunDir, unit: int, *, epochs: int = 2) -> None:
    """What the ranks of a phase leave: networks (which hold nothing), metrics, done.json."""
    plan = run.load_training_plan()
    last = unit == len(plan.phases) - 1
    folder = run.path if last else run.path / "curriculum" / plan.phases[unit]
    (folder / "lightning_checkpoints").mkdir(parents=True, exist_ok=True)
    metric = KEY_METRICS[plan.stage]
    name = "opticalflow_metrics.h5" if plan.stage == "flow_generator" else "classification_metrics.h5"
    file = MetricsFile(folder / name, metric, "min" if metric == "SSIM" else "max", None)
    for epoch in range(epochs):
        val = {"loss": 1.0 / (epoch + 1), metric: 0.5 - 0.1 * epoch if metric == "SSIM" else 0.5 + 0.1 * epoch}
        file.append({"loss": 2.0 / (epoch + 1)}, val)
        line = {"epoch": epoch, "phase": plan.phases[unit], "step": 10, "seconds": 60.0 * (epoch + 1)}
        append_line(folder / "metrics.jsonl", line | {"train": {"loss": 2.0 / (epoch + 1)}, "val": val})
    (folder / "lightning_checkpoints" / f"epoch={epochs - 1}-step={10 * epochs}.ckpt").write_bytes(run.name.encode())
    (folder / "checkpoint.pt").write_bytes(run.name.encode())
    run.phase_done_file(unit).parent.mkdir(parents=True, exist_ok=True)
    run.phase_done_file(unit).write_text(json.dumps({"phase": plan.phases[unit], "reason": "all epochs are done"}))


class ScriptedRanks:
    """In place of `run_ranks`: remembers its calls; `then` says what happens instead of training, once for each."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        """Run, unit and number of devices."""
        self.then: list[object] = []
        """`stop`, `nothing` or an exception; when they are used up, phases are trained."""

    def __call__(self, run, unit, devices, on_event) -> Outcome:
        self.calls.append((run.name, unit, len(devices)))
        what = self.then.pop(0) if self.then else None
        if isinstance(what, Exception):
            raise what
        if what == "stop":
            (run.path / "checkpoint.pt").write_bytes(b"half trained")
            return Outcome(stopped=True)
        if what != "nothing":
            leave_trained(run, unit)
        return Outcome()
