"""Plans: all that the units of a run need to be done anywhere, written by planners, read by workers and mergers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deg.types import Span, Unit, VideoInfo

PLAN_VERSION = 1
SCRATCH = "scratch"
"""Stands in a plan for a folder on the disk of whatever node works."""


@dataclass(frozen=True)
class InferencePlan:
    """All that the units of a run need to be done anywhere: no project, no configuration, no command line."""

    stage: str
    """`feature_extractor` or `sequence`."""
    group: str
    """Name of the results in the outputs file."""
    class_names: tuple[str, ...]
    thresholds: tuple[float, ...]
    videos: Mapping[str, VideoInfo]
    outputs: Mapping[str, Path]
    """Where the results of each recording go."""
    weights: Mapping[str, Mapping[str, str]]
    """By role (`feature_extractor`, `flow_generator`, `sequence`): `path` and `sha256`."""
    settings: str
    """sha256 of every option that changes the numbers."""
    task: Mapping[str, Any]
    """What the stage's engine is built from; plain values."""
    units: tuple[Unit, ...]
    overwrite: bool = False
    """Results that are there already are made anew."""
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By recording: what else its result is made from (for a sequence network, the mark of the features)."""

    def to_json(self) -> str:
        plan = asdict(self)
        plan["version"], plan["kind"] = PLAN_VERSION, "inference"
        plan["videos"] = {key: asdict(info) | {"path": str(info.path)} for key, info in self.videos.items()}
        plan["outputs"] = {key: str(path) for key, path in self.outputs.items()}
        plan["units"] = [[[span.key, span.start, span.stop] for span in unit.spans] for unit in self.units]
        return json.dumps(plan)

    @classmethod
    def from_json(cls, text: str) -> InferencePlan:
        plan = _parse(text, "inference")
        plan["class_names"], plan["thresholds"] = tuple(plan["class_names"]), tuple(plan["thresholds"])
        plan["videos"] = {
            key: VideoInfo(**(info | {"path": Path(info["path"])})) for key, info in plan["videos"].items()
        }
        plan["outputs"] = {key: Path(path) for key, path in plan["outputs"].items()}
        plan["units"] = tuple(
            Unit(index, tuple(Span(*span) for span in spans)) for index, spans in enumerate(plan["units"])
        )
        return cls(**plan)


@dataclass(frozen=True)
class TrainingPlan:
    """All that training one network needs to be done anywhere: no project, no command line.

    A unit is a phase; every rank does the same unit.
    """

    stage: str
    """`flow_generator`, `feature_extractor` or `sequence`."""
    phases: tuple[str, ...]
    """What is trained, one after the other: a curriculum is `spatial`, `flow`, `both`; all else is just `both`."""
    class_names: tuple[str, ...]
    parts: Mapping[str, Sequence[str]]
    """Recordings of `train`, `val` and `test`, in the order in which their frames are counted."""
    videos: Mapping[str, VideoInfo]
    """By recording. For a sequence network, of which the features (or keypoints) are the input, the video is not read:
    its number of frames counts."""
    labels: Mapping[str, Mapping[str, str]]
    """By recording: `path` and `sha256` of its label file. Empty for the flow generator."""
    inputs: Mapping[str, Mapping[str, str]]
    """Inputs of a sequence network by recording: `path` of the outputs file (keypoints: the CSV), its `group`, and the
    `mark` that the group had, as `describe_mark` writes it."""
    weights: Mapping[str, Mapping[str, str]]
    """By role, `path` and `sha256`: `start` is what the network begins with, `flow_generator` its own for a feature
    extractor, `pretrained` what L2-SP pulls to. A role that is not there has no weights."""
    config: Mapping[str, Any]
    """All options, as config.yaml has them."""
    cache: str | None
    """Folder of the frame cache; `scratch` on the disk of whatever node works; None without one."""
    devices: int
    """Ranks, on all nodes together."""

    @property
    def units(self) -> tuple[Unit, ...]:
        return tuple(Unit(index, ()) for index in range(len(self.phases)))

    def to_json(self) -> str:
        plan = asdict(self)
        plan["version"], plan["kind"] = PLAN_VERSION, "train"
        plan["videos"] = {key: asdict(info) | {"path": str(info.path)} for key, info in self.videos.items()}
        return json.dumps(plan)

    @classmethod
    def from_json(cls, text: str) -> TrainingPlan:
        plan = _parse(text, "train")
        plan["phases"], plan["class_names"] = tuple(plan["phases"]), tuple(plan["class_names"])
        plan["parts"] = {part: tuple(keys) for part, keys in plan["parts"].items()}
        plan["videos"] = {
            key: VideoInfo(**(info | {"path": Path(info["path"])})) for key, info in plan["videos"].items()
        }
        return cls(**plan)


def _parse(text: str, kind: str) -> dict[str, Any]:
    plan = json.loads(text)
    if plan.pop("version") != PLAN_VERSION:
        raise ValueError("a plan of another version of deg")
    if (found := plan.pop("kind", "inference")) != kind:
        raise ValueError(f"a plan of kind {found}, expected {kind}")
    return plan
