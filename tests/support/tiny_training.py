"""Small trainings, seconds long, of real networks on real files: their plans, made by hand, and their runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from videos import write_video

from deg.config import as_dict, load_config
from deg.data.decode import Decoder
from deg.data.labels import write_labels
from deg.data.sequence_input import describe_mark
from deg.data.store import Mark, write_group
from deg.models.two_stream import build_flow_generator
from deg.rundir import RunDir, TrainingPlan, create_run
from deg.trained import sha256
from deg.types import NUM_FEATURES, STREAM_FEATURES, VideoInfo
from deg.work import StopFlag, Teller

CLASSES = ("background", "groom", "rear")
QUICK = ("train.precision=fp32", "compute.threads=1", "compute.num_workers=0", "train.compile=false")


def labels_of(num_frames: int, seed: int) -> np.ndarray:
    """Bouts of about eight frames: int8 (T, 3)."""
    rng = np.random.default_rng(seed)
    classes_T = np.repeat(rng.integers(0, 3, num_frames // 8 + 1), 8)[:num_frames]
    return np.eye(3, dtype=np.int8)[classes_T]


def write_features(path: Path, labels_TK: np.ndarray, seed: int, video: Path | None = None) -> None:
    """An outputs file with features of a video that tell the labels, through noise."""
    status = video.stat() if video is not None else None
    size, mtime = (status.st_size, status.st_mtime_ns) if status is not None else (0, 0)
    features_TD = np.random.default_rng(seed).normal(0, 0.1, (len(labels_TK), NUM_FEATURES)).astype(np.float32)
    features_TD[:, : labels_TK.shape[1]] += 5 * labels_TK
    zeros_TK = np.zeros((len(labels_TK), len(CLASSES)), np.float32)
    block = {
        "logits": zeros_TK,
        "P": zeros_TK,
        "spatial_features": features_TD[:, :STREAM_FEATURES],
        "flow_features": features_TD[:, STREAM_FEATURES:],
    }
    write_group(
        path,
        "resnet18",
        num_frames=len(labels_TK),
        columns={name: values.shape[1] for name, values in block.items()},
        blocks=[block],
        class_names=CLASSES,
        thresholds_K=np.zeros(len(CLASSES)),
        mark=Mark(len(labels_TK), {}, "", size, mtime),
        provenance={},
    )


def make_sequence_run(
    folder: Path, *overrides: str, lengths: tuple[int, ...] = (90, 70, 40), devices: int = 1, test: bool = False
) -> RunDir:
    """Recordings whose features tell the labels, through noise; the last but one, or two, validate (and test)."""
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
        plan["inputs"][key] = {
            "path": str(outputs),
            "group": "resnet18",
            "mark": describe_mark(outputs, "resnet18"),
        }
        plan["labels"][key] = _labelled(folder, key, labels_TK)
    return _create(folder, "sequence", config, keys, test, weights={}, cache=None, devices=devices, **plan)


def make_clip_run(
    folder: Path, stage: str, *overrides: str, frames: int = 30, devices: int = 1, test: bool = False
) -> RunDir:
    """Three short videos whose pictures follow the labels; frames of 32 x 32 pixels."""
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
        torch.manual_seed(3)
        flow = folder / "flow.pt"
        generator = build_flow_generator(config.flow_generator)
        torch.save({"epoch": 0, "state_dict": generator.state_dict()}, flow)
        weights["flow_generator"] = {"path": str(flow), "sha256": sha256(flow)}
    cache = str(folder / "frame_cache")
    return _create(folder, stage, config, keys, test, weights=weights, cache=cache, devices=devices, **plan)


def _labelled(folder: Path, key: str, labels_TK: np.ndarray) -> dict[str, str]:
    path = folder / f"{key}_labels.csv"
    write_labels(path, labels_TK, CLASSES)
    return {"path": str(path), "sha256": sha256(path)}


def _create(folder: Path, stage: str, config: Any, keys: list[str], test: bool, **plan: Any) -> RunDir:
    judged = 2 if test else 1
    parts = {"train": tuple(keys[:-judged]), "val": (keys[-judged],), "test": tuple(keys[-1:]) if test else ()}
    curriculum = stage == "feature_extractor" and config.feature_extractor.curriculum
    whole = TrainingPlan(
        stage=stage,
        phases=("spatial", "flow", "both") if curriculum else ("both",),
        class_names=CLASSES,
        parts=parts,
        config=as_dict(config),
        **plan,
    )
    return create_run(
        folder / "models",
        stage=stage,
        kind="train",
        plan=whole,
        config=as_dict(config),
        provenance={},
        now=datetime(2026, 1, 2, 3, 4, 5),
    )


class StopAfter(StopFlag):
    """A signal that comes between two batches: after so many looks at the flag."""

    def __init__(self, looks: int):
        self._looks = looks

    def install(self) -> None:
        pass

    @property
    def is_set(self) -> bool:
        self._looks -= 1
        return self._looks < 0


class Quiet(Teller):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[dict[str, Any]] = []

    def say(self, event: str, **details: Any) -> None:
        self.said.append({"event": event, **details})


def train_here(run: RunDir, *, unit: int = 0, stop: StopFlag | None = None) -> Quiet:
    """A phase, in this process, by one rank."""
    from deg.train.fit import train_phase

    plan, tell = run.load_training_plan(), Quiet()
    threads = torch.get_num_threads()
    try:
        train_phase(run, plan, plan.units[unit], stop or StopAfter(10**9), tell)
    finally:
        torch.set_num_threads(threads)
    return tell


def weights_of(run: RunDir) -> dict[str, torch.Tensor]:
    return torch.load(run.path / "checkpoint.pt", weights_only=True)["state_dict"]


def config_of(run: RunDir) -> dict[str, Any]:
    return yaml.safe_load(run.config_file.read_text())


def start_rank(run: RunDir, *, unit: int = 0, **environment: str) -> subprocess.Popen[str]:
    """`python -m deg.execute RUN UNIT`, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "deg.execute", str(run.path), str(unit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def kill_when(process: subprocess.Popen[str], condition, seconds: float = 120.0) -> None:
    """SIGKILL as soon as the condition holds; TimeoutError if it never does."""
    done = threading.Event()
    timer = threading.Timer(seconds, done.set)
    timer.start()
    try:
        while process.poll() is None and not condition():
            if done.is_set():
                raise TimeoutError("what should come before the kill did not come")
            done.wait(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finally:
        timer.cancel()
