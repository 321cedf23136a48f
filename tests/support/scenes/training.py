"""Trainings: plans made by hand, and the files that trainings leave. Only real trainings use networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from videos import write_video

from deg.data.json_lines import append_line
from deg.data.labels import write_labels
from deg.data.metrics_file import MetricsFile
from deg.data.sequence_input import describe_mark
from deg.data.video.decoder import Decoder
from deg.options.load import as_dict, load_config
from deg.options.schema import Config
from deg.runs.planned import PlannedFile, PlannedInput
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import RunDir, create_run
from deg.types import NUM_FEATURES, VideoInfo
from scenes.project import CLASSES, write_outputs
from scenes.run import NOW

KEY_METRICS = {"flow_generator": "SSIM", "feature_extractor": "f1_class_mean_nobg", "sequence": "f1_class_mean"}
QUICK = ("train.precision=fp32", "compute.threads=1", "compute.num_workers=0", "train.compile=false")


def make_training_plan(folder: Path, **changes: object) -> TrainingPlan:
    """Make a plan over two recordings; there are no files."""
    plan = TrainingPlan(
        stage="sequence",
        phases=("both",),
        class_names=CLASSES,
        parts={"train": ("a",), "val": ("b",), "test": ()},
        videos={key: VideoInfo(folder / f"{key}.mp4", 100, 64, 64, 30.0, 1000, 10**18) for key in "ab"},
        labels={},
        inputs={},
        weights={},
        config=Config(),
        cache=None,
        devices=1,
    )
    return replace(plan, **changes)


def leave_trained(run: RunDir, unit: int, *, epochs: int = 2) -> None:
    """Write what the ranks of a phase leave: networks (without weights), metrics, done.json."""
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


# ---------------------------------------------------------------------------------------------------- real data


def labels_of(num_frames: int, seed: int) -> np.ndarray:
    """Return labels in bouts of about eight frames: int8 (T, 3)."""
    rng = np.random.default_rng(seed)
    classes_T = np.repeat(rng.integers(0, 3, num_frames // 8 + 1), 8)[:num_frames]
    return np.eye(3, dtype=np.int8)[classes_T]


def write_features(path: Path, labels_TK: np.ndarray, seed: int, video: Path | None = None) -> None:
    """Write an outputs file with noisy features that tell the labels of a video."""
    features_TD = np.random.default_rng(seed).normal(0, 0.1, (len(labels_TK), NUM_FEATURES)).astype(np.float32)
    features_TD[:, : labels_TK.shape[1]] += 5 * labels_TK
    write_outputs(path, np.zeros((len(labels_TK), len(CLASSES)), np.float32), features_TD, video)


def make_sequence_run(
    folder: Path, *overrides: str, lengths: tuple[int, ...] = (90, 70, 40), devices: int = 1, test: bool = False
) -> RunDir:
    """Make a run over recordings whose noisy features tell the labels; the last ones validate (and test)."""
    config = load_config(
        None, ["sequence.sequence_length=20", "compute.batch_size=4", *QUICK, *overrides], stage="sequence"
    )
    plan: dict[str, Any] = {"videos": {}, "labels": {}, "inputs": {}}
    keys = [f"mouse_{index}" for index in range(len(lengths))]
    for index, (key, num_frames) in enumerate(zip(keys, lengths, strict=True)):
        labels_TK = labels_of(num_frames, index)
        outputs = folder / f"{key}_outputs.h5"
        write_features(outputs, labels_TK, index)
        plan["videos"][key] = VideoInfo(outputs, num_frames, 0, 0, 0.0, 0, 0)
        plan["inputs"][key] = PlannedInput(outputs, "resnet18", describe_mark(outputs, "resnet18"))
        plan["labels"][key] = _labelled(folder, key, labels_TK)
    return _create(folder, "sequence", config, keys, test, weights={}, cache=None, devices=devices, **plan)


def make_clip_run(
    folder: Path, stage: str, *overrides: str, frames: int = 30, devices: int = 1, test: bool = False
) -> RunDir:
    """Make a run over three short videos whose pictures follow the labels, with frames of 32 x 32 pixels."""
    wanted = ["augs.resize=[32,32]", "compute.batch_size=4", f"{stage}.weights=null", *QUICK]
    if stage == "feature_extractor":
        wanted[2] = "feature_extractor.weights=random"
    config = load_config(None, [*wanted, *overrides], stage=stage)
    plan: dict[str, Any] = {"videos": {}, "labels": {}, "inputs": {}}
    keys = [f"mouse_{index}" for index in range(4 if test else 3)]
    with Decoder() as decoder:
        for index, key in enumerate(keys):
            video = folder / f"{key}.mp4"
            write_video(video, frames)
            plan["videos"][key] = decoder.probe(video)
            if stage != "flow_generator":
                plan["labels"][key] = _labelled(folder, key, labels_of(frames, index))
    weights = {}
    if stage == "feature_extractor":
        weights["flow_generator"] = _untrained_flow(folder / "flow.pt", config)
    cache = str(folder / "frame_cache")
    return _create(folder, stage, config, keys, test, weights=weights, cache=cache, devices=devices, **plan)


def _untrained_flow(path: Path, config: Config) -> PlannedFile:
    import torch

    from deg.models.two_stream import build_flow_generator

    torch.manual_seed(3)
    torch.save({"epoch": 0, "state_dict": build_flow_generator(config.flow_generator).state_dict()}, path)
    return PlannedFile.of(path)


def _labelled(folder: Path, key: str, labels_TK: np.ndarray) -> PlannedFile:
    path = folder / f"{key}_labels.csv"
    write_labels(path, labels_TK, CLASSES)
    return PlannedFile.of(path)


def _create(folder: Path, stage: str, config: Any, keys: list[str], test: bool, **plan: Any) -> RunDir:
    judged = 2 if test else 1
    parts = {"train": tuple(keys[:-judged]), "val": (keys[-judged],), "test": tuple(keys[-1:]) if test else ()}
    curriculum = stage == "feature_extractor" and config.feature_extractor.curriculum
    whole = TrainingPlan(
        stage=stage,
        phases=("spatial", "flow", "both") if curriculum else ("both",),
        class_names=CLASSES,
        parts=parts,
        config=config,
        **plan,
    )
    return create_run(
        folder / "models",
        stage=stage,
        kind="train",
        plan=whole,
        config=as_dict(config),
        provenance={},
        now=NOW,
    )
