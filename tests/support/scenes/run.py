"""Inferences without networks: plans over made-up recordings, their runs, and workers that follow a script."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from scripted_engine import FeatureSpans

from deg.arithmetic.units import plan_units
from deg.execute import run_unit
from deg.options.schema import FeatureExtractor, FlowGenerator, Sequence
from deg.runs.planned import PlannedFile
from deg.runs.plans import FeatureTask, InferencePlan, SequenceTask, Task
from deg.runs.rundir import RunDir, create_run
from deg.types import VideoInfo
from deg.work import StopFlag, Teller
from scenes.project import CLASSES

NOW = datetime(2026, 11, 22, 12, 0, 0)
SCRIPTED = Path(__file__).parents[1] / "scripted"


def make_plan(
    folder: Path, lengths: dict[str, int], *, units: int = 1, stage: str = "feature_extractor"
) -> InferencePlan:
    """Make a plan over recordings {key: frames}; there are no videos."""
    for key in lengths:
        (folder / "DATA" / key).mkdir(parents=True, exist_ok=True)
    return InferencePlan(
        stage=stage,
        group="resnet18" if stage == "feature_extractor" else "tgmj",
        class_names=CLASSES,
        thresholds=(0.5, 0.25, 0.75),
        videos={
            key: VideoInfo(folder / "DATA" / key / f"{key}.mp4", frames, 64, 64, 30.0, 1000 + frames, 10**18 + frames)
            for key, frames in lengths.items()
        },
        outputs={key: folder / "DATA" / key / f"{key}_outputs.h5" for key in lengths},
        weights={stage: PlannedFile(Path("weights.ckpt"), "ab" * 32)},
        settings="cd" * 32,
        task=make_task(stage),
        units=tuple(plan_units(lengths, devices=1, units_per_device=units, whole=stage == "sequence")),
    )


def make_task(stage: str) -> Task:
    """Make the task of a plan, which scripted engines ignore."""
    if stage == "sequence":
        return SequenceTask(Sequence(), len(CLASSES), "weights.ckpt", "resnet18")
    networks = (FeatureExtractor(), FlowGenerator())
    return FeatureTask(*networks, len(CLASSES), "weights.ckpt", None, None, None, None, (0.5,) * 3, (0.5,) * 3)


def make_run(folder: Path, plan: InferencePlan, **options) -> RunDir:
    return create_run(
        folder / "models",
        **{
            "stage": plan.stage,
            "kind": "inference",
            "plan": plan,
            "config": {"feature_extractor": {"arch": "resnet18"}},
            "provenance": {"deg": "0"},
            "now": NOW,
            **options,
        },
    )


def do_units(run: RunDir, plan: InferencePlan, indices=None, **script) -> None:
    """Do units in this process with the scripted engine."""
    for unit in plan.units:
        if indices is None or unit.index in indices:
            run_unit(run, plan, unit, FeatureSpans(plan, script=script), StopFlag(), Teller())


def scripted_workers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., None]:
    """Make workers that are started from now on follow a script; return the function that sets it."""
    deaths = folder / "deaths"
    deaths.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTED), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def write(**script) -> None:
        monkeypatch.setenv("SCRIPT", json.dumps({"folder": str(deaths), **script}))

    write()
    return write


def frame_numbers(outputs: Path, group: str = "resnet18") -> np.ndarray:
    """Return the frame that each row of a scripted result names."""
    with h5py.File(outputs, "r") as file:
        return file[group]["logits"][:, 0].astype(int)
