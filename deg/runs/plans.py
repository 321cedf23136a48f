"""Plans: all that is needed to do the units of a run anywhere. Planners write them, workers and mergers read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from deg.options import schema
from deg.options.load import as_dict, restore
from deg.options.schema import Config, FeatureExtractor, FlowGenerator
from deg.runs.planned import PlannedFile, PlannedInput, Source, source_from_dict
from deg.types import NUM_FEATURES, Span, Unit, VideoInfo

PLAN_VERSION = 1
SCRATCH = "scratch"
"""Stands in a plan for a folder on the local disk of the node that does the work."""
ASIDE = {"numbers": False}
"""Metadata of a task's field that changes no numbers: with another value, finished results are still valid."""


@dataclass(frozen=True)
class FeatureTask:
    """All that feature extraction needs to know."""

    feature_extractor: FeatureExtractor
    flow_generator: FlowGenerator
    num_classes: int
    weights: str = field(metadata=ASIDE)
    flow_weights: str | None = field(metadata=ASIDE)
    """File of the flow generator; None: the flow generator inside `weights`."""
    crop_size: Any
    resize: Any
    pad: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str = "auto"
    batch_size: int | str = field(default="auto", metadata=ASIDE)
    compile: bool | str = field(default="auto", metadata=ASIDE)
    decoders: int | str = field(default="auto", metadata=ASIDE)
    threads: int | str = field(default="auto", metadata=ASIDE)
    frame_count: str = "claimed"
    damaged_frames: str = field(default="refuse", metadata=ASIDE)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as plan.json holds them. Refusing damaged frames is left out, as in older plans."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        if plain["damaged_frames"] == "refuse":
            del plain["damaged_frames"]
        return plain | {name: as_dict(plain[name]) for name in ("feature_extractor", "flow_generator")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureTask:
        values = dict(values)
        values["feature_extractor"] = FeatureExtractor(**values["feature_extractor"])
        values["flow_generator"] = FlowGenerator(**values["flow_generator"])
        values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
        return cls(**values)


@dataclass(frozen=True)
class SequenceTask:
    """All that sequence inference needs to know."""

    sequence: schema.Sequence
    """Options of the training run, which decide the network and the length of the stretches."""
    num_classes: int
    weights: str = field(metadata=ASIDE)
    latent_name: str
    """Group of the outputs files that features are read from; not used with keypoints."""
    num_features: int = NUM_FEATURES
    """Number of features of one frame, spatial and flow together, or of its keypoints."""
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    threads: int | str = field(default="auto", metadata=ASIDE)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as plan.json holds them. The usual number of features is left out, as in older plans."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)} | {"sequence": as_dict(self.sequence)}
        width = plain.pop("num_features")
        return plain if width == NUM_FEATURES else plain | {"num_features": width}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SequenceTask:
        return cls(**{**values, "sequence": schema.Sequence(**values["sequence"])})


Task = FeatureTask | SequenceTask
TASKS: dict[str, type[FeatureTask] | type[SequenceTask]] = {"feature_extractor": FeatureTask, "sequence": SequenceTask}


def settings_of(task: Task, class_names: Sequence[str], thresholds: Sequence[float]) -> str:
    """Return the sha256 of everything that changes the numbers. Results with another one are outdated."""
    aside = {each.name for each in fields(task) if not each.metadata.get("numbers", True)}
    numbers = {name: value for name, value in task.as_dict().items() if name not in aside}
    text = json.dumps([numbers, list(class_names), list(thresholds)], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class InferencePlan:
    """All that is needed to do the units of an inference anywhere, without project, configuration or command line."""

    stage: str
    """`feature_extractor` or `sequence`."""
    group: str
    """Name of the results in the outputs file."""
    class_names: tuple[str, ...]
    thresholds: tuple[float, ...]
    videos: Mapping[str, VideoInfo]
    outputs: Mapping[str, Path]
    """Outputs file of each recording, which its results go into."""
    weights: Mapping[str, PlannedFile]
    """Weight files by role: `feature_extractor`, `flow_generator`, `sequence`."""
    settings: str
    """sha256 of everything that changes the numbers, see `settings_of`."""
    task: Task
    """Values that the engine of the stage is built from."""
    units: tuple[Unit, ...]
    overwrite: bool = False
    """Whether results that exist are computed again."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Features or keypoints that a sequence network's result of each recording is computed from."""

    def to_json(self) -> str:
        plan = asdict(self) | {"task": self.task.as_dict()}
        plan["version"], plan["kind"] = PLAN_VERSION, "inference"
        plan["videos"] = {key: info.as_dict() for key, info in self.videos.items()}
        plan["outputs"] = {key: str(path) for key, path in self.outputs.items()}
        plan["weights"] = {role: file.as_dict() for role, file in self.weights.items()}
        plan["units"] = [[[span.key, span.start, span.stop] for span in unit.spans] for unit in self.units]
        return json.dumps(plan)

    @classmethod
    def from_json(cls, text: str) -> InferencePlan:
        return cls.from_document(json.loads(text))

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> InferencePlan:
        """Return the plan that a parsed plan.json holds."""
        plan = _checked(document, "inference")
        plan["task"] = TASKS[plan["stage"]].from_dict(plan["task"])
        plan["class_names"], plan["thresholds"] = tuple(plan["class_names"]), tuple(plan["thresholds"])
        plan["videos"] = {
            key: VideoInfo(**(info | {"path": Path(info["path"])})) for key, info in plan["videos"].items()
        }
        plan["outputs"] = {key: Path(path) for key, path in plan["outputs"].items()}
        plan["weights"] = {role: PlannedFile.from_dict(known) for role, known in plan["weights"].items()}
        plan["sources"] = {key: source_from_dict(known) for key, known in plan.get("sources", {}).items()}
        plan["units"] = tuple(
            Unit(index, tuple(Span(*span) for span in spans)) for index, spans in enumerate(plan["units"])
        )
        return cls(**plan)


@dataclass(frozen=True)
class TrainingPlan:
    """All that is needed to train one network anywhere, without project or command line.

    A unit is a phase; every rank does the same unit.
    """

    stage: str
    """`flow_generator`, `feature_extractor` or `sequence`."""
    phases: tuple[str, ...]
    """Phases in the order in which they are trained: `spatial`, `flow`, `both` in a curriculum, else just `both`."""
    class_names: tuple[str, ...]
    parts: Mapping[str, Sequence[str]]
    """Recordings of `train`, `val` and `test`, in the order in which their frames are counted."""
    videos: Mapping[str, VideoInfo]
    """Video of each recording. A sequence network learns from features (or keypoints) and does not read the video: only
    its number of frames counts."""
    labels: Mapping[str, PlannedFile]
    """Label file of each recording. Empty for the flow generator."""
    inputs: Mapping[str, PlannedInput]
    """Inputs of a sequence network by recording. Empty for other networks."""
    weights: Mapping[str, PlannedFile]
    """Weight files by role. The network begins with `start`, a feature extractor has the flow
    generator `flow_generator`, and L2-SP pulls towards `pretrained`. A role that is missing has no weights."""
    config: Config
    """All options, as config.yaml has them. Paths of the project and of weights are absolute."""
    cache: str | None
    """Folder of the frame cache; `scratch`: on the local disk of the node that does the work; None: no cache."""
    devices: int
    """Number of ranks, on all nodes together."""

    @property
    def units(self) -> tuple[Unit, ...]:
        return tuple(Unit(index, ()) for index in range(len(self.phases)))

    def to_json(self) -> str:
        plan = asdict(self) | {"config": as_dict(self.config)}
        plan["version"], plan["kind"] = PLAN_VERSION, "train"
        plan["videos"] = {key: info.as_dict() for key, info in self.videos.items()}
        for name in ("labels", "inputs", "weights"):
            plan[name] = {key: known.as_dict() for key, known in getattr(self, name).items()}
        return json.dumps(plan)

    @classmethod
    def from_json(cls, text: str) -> TrainingPlan:
        return cls.from_document(json.loads(text))

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> TrainingPlan:
        """Return the plan that a parsed plan.json holds. Options that it does not name have their defaults."""
        plan = _checked(document, "train")
        plan["config"] = restore(plan["config"])
        plan["phases"], plan["class_names"] = tuple(plan["phases"]), tuple(plan["class_names"])
        plan["parts"] = {part: tuple(keys) for part, keys in plan["parts"].items()}
        for name, kind in (("labels", PlannedFile), ("inputs", PlannedInput), ("weights", PlannedFile)):
            plan[name] = {key: kind.from_dict(known) for key, known in plan[name].items()}
        plan["videos"] = {
            key: VideoInfo(**(info | {"path": Path(info["path"])})) for key, info in plan["videos"].items()
        }
        return cls(**plan)


def plan_from_json(text: str) -> InferencePlan | TrainingPlan:
    """Return the plan that the text of a plan.json holds, of either kind."""
    document = json.loads(text)
    return (TrainingPlan if document.get("kind") == "train" else InferencePlan).from_document(document)


def _checked(plan: dict[str, Any], kind: str) -> dict[str, Any]:
    if plan.pop("version") != PLAN_VERSION:
        raise ValueError("a plan of another version of deg")
    if (found := plan.pop("kind", "inference")) != kind:
        raise ValueError(f"a plan of kind {found}, expected {kind}")
    return plan
