"""Plans training: which recordings are used, how they are split, and which weights to begin with.

What cannot work is reported here, before a GPU is asked for. Nothing is computed and torch is not loaded, so a plan can
be made on a login node. `prepare` only reads; `commit` writes the split, which all stages of a project share.
`deg.execute` does the phases of the plan.

    deg.plan.recordings   which recordings can be used, and why the others cannot
    deg.plan.weights      which weights to begin with
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deg.arithmetic.splits import PARTS, Parts, make_split, part_fractions, update_split, usable_parts
from deg.data.atomic import write_atomically
from deg.data.lock import exclusive
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError, ProjectError, show_path
from deg.options.schema import Config
from deg.options.yamlfile import yaml_text
from deg.plan.recordings import Trainable, find_trainable, named
from deg.plan.weights import find_weights
from deg.projects.project import Project, disk_errors, read_split, write_split
from deg.runs.planned import PlannedFile
from deg.runs.plans import SCRATCH, TrainingPlan
from deg.runs.rundir import RunDir
from deg.types import Record, VideoInfo

STAGES = ("flow_generator", "feature_extractor", "sequence")
CURRICULUM = ("spatial", "flow", "both")
LOCK_SECONDS = 30.0
"""Seconds to wait for another process that is writing the split file."""

SHAPING = {
    "flow_generator": ("augs", "train", "flow_generator"),
    "feature_extractor": ("augs", "train", "flow_generator", "feature_extractor"),
    "sequence": ("train", "sequence"),
}
"""Sections of the configuration that a stage's network depends on."""
SHAPING_COMPUTE = ("batch_size", "min_batch_size", "max_batch_size", "fp16", "cache_format")
"""Options of the section `compute` that it depends on."""
HARMLESS = {"compile", "checkpoint_every", "viz_metrics", "viz_examples"}
"""Options of those sections that do not change the network."""


@dataclass(frozen=True)
class PreparedTraining:
    """A plan, the split that it needs, and what was found out on the way."""

    plan: TrainingPlan
    split: Parts
    """Content that the split file should have. Recordings that cannot be used now keep their places in it."""
    fractions: tuple[float, float, float]
    """Shares of the parts, by which recordings added later are divided."""
    split_file: Path
    split_found: Parts | None
    """Content of the split file when the plan was made; None if there was none."""
    records: Mapping[str, Record]
    """Recordings of the plan, by key."""
    positives: Mapping[str, tuple[int, ...]]
    """Number of positive frames of each class, by labelled recording of the plan."""
    notices: tuple[str, ...] = ()
    """Sentences on what was chosen where there was a choice, and on what to check."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Recordings that cannot be used, each with its reason."""


def prepare(stage: str, project: Project, config: Config, *, devices: int) -> PreparedTraining:
    """Plan one stage of training on `devices` ranks. Nothing is written.

    A recording that cannot be used is left out; at least two must remain. Raises ConfigError, WeightsError,
    ProjectError or ResultError if the stage cannot be trained.
    """
    notices = list(_judge_options(stage, config, devices))
    weights, said = find_weights(stage, project, config)
    trainable = find_trainable(stage, project, config)
    notices += [*said, *trainable.notices]
    found, split, fractions, said = _divide(stage, project, config, trainable)
    notices += said
    parts = usable_parts(split, trainable.videos)
    _require_train_and_val(parts, config)
    keys = [key for name in PARTS for key in parts[name]]
    if spare := sorted(set(trainable.videos) - set(keys)):
        notices.append(f"Not used, as split.train_val_test says: {named(spare)}.")
    videos = {key: trainable.videos[key] for key in keys}
    positives: dict[str, tuple[int, ...]] = {}
    if stage != "flow_generator":
        positives = {key: trainable.positives[key] for key in keys}
        notices += _judge_classes(parts, videos, positives, project.class_names)
    if stage != "sequence":
        _require_one_size(videos, config)
    plan = TrainingPlan(
        stage=stage,
        phases=CURRICULUM if stage == "feature_extractor" and config.feature_extractor.curriculum else ("both",),
        class_names=project.class_names,
        parts={name: tuple(parts[name]) for name in PARTS},
        videos=videos,
        labels={key: _hashed(project.records[key].labels) for key in positives},
        inputs={key: trainable.inputs[key] for key in keys if key in trainable.inputs},
        weights=weights,
        config=_resolved(stage, project, config, weights),
        cache=None if stage == "sequence" else _cache_folder(config.compute.cache, project),
        devices=devices,
    )
    return PreparedTraining(
        plan=plan,
        split=split,
        fractions=fractions,
        split_file=project.split_file(config.split.file),
        split_found=found,
        records={key: project.records[key] for key in keys},
        positives=positives,
        notices=tuple(notices),
        left_out=trainable.left_out,
    )


def commit(prepared: PreparedTraining, run: RunDir | None) -> None:
    """Write the project's split file if it must change and, given a run, its split.yaml as DeepEthogram has it.

    Call it without a run before the run is made, then again with the run: twice is harmless. Raises ProjectError if
    another job has put a recording of the plan into another part since `prepare`, or if the disk refuses; then what was
    there stays.
    """
    path = prepared.split_file
    busy = ProjectError(
        f"{show_path(path)}: another process has held the folder for {LOCK_SECONDS:.0f} s. Wait for it, then run again."
    )
    with disk_errors(path), exclusive(path.parent, seconds=LOCK_SECONDS, busy=busy):
        there = read_split(path) if path.exists() else None
        split, fractions = _agreed(prepared, there)
        if there != (split, fractions):
            write_split(path, split, fractions)
    if run is not None:
        with disk_errors(run.path):
            write_atomically(run.path / "split.yaml", yaml_text(_run_split(prepared)))


def same_training(one: TrainingPlan, other: TrainingPlan) -> bool:
    """Whether both give the same network, so that an interrupted run of one may be resumed for the other."""
    return _fingerprint(one) == _fingerprint(other)


def describe(prepared: PreparedTraining) -> list[str]:
    """Return the plan as lines to read: what would be learned, from what, and in how many steps."""
    plan = prepared.plan
    devices = "1 device" if plan.devices == 1 else f"{plan.devices} devices"
    return [
        f"{plan.stage} {getattr(plan.config, plan.stage).arch}, {' then '.join(plan.phases)}, on {devices}",
        *_table(prepared),
        f"epochs: at most {plan.config.train.num_epochs}; " + ", ".join(_steps(plan)),
        *(f"{role}: {show_path(file.path)}" for role, file in plan.weights.items()),
        f"frame cache: {show_path(plan.cache or 'none')}",
        *prepared.notices,
        *(f"left out: {show_path(key)}: {reason}" for key, reason in prepared.left_out.items()),
    ]


# ---------------------------------------------------------------------------------------------------- options


def _judge_options(stage: str, config: Config, devices: int) -> Iterator[str]:
    """Yield remarks on options that can be judged without data.

    Raises ConfigError if a batch cannot be divided between the devices.
    """
    compute, train = config.compute, config.train
    pieces = devices * train.accumulate
    if compute.batch_size != "auto" and compute.batch_size < pieces:
        raise ConfigError(
            f"compute.batch_size is {compute.batch_size}, for all devices together: expected {pieces} at least, one "
            f"sample for each of {devices} devices x {train.accumulate} pieces (train.accumulate). Set it to {pieces} "
            "or more, or ask for fewer devices."
        )
    if train.oversampling_exp > 0 and stage != "feature_extractor":
        yield f"train.oversampling_exp has no effect on the {stage}."
    elif train.oversampling_exp > 0 and train.loss_weight_exp > 0:
        yield (
            f"Warning: rare behaviours get extra weight twice, by train.oversampling_exp={train.oversampling_exp:g} "
            f"and by train.loss_weight_exp={train.loss_weight_exp:g}: expect false alarms. Set one of them to 0."
        )


def _cache_folder(value: str, project: Project) -> str | None:
    if value == "none":
        return None
    if value == "project":
        return str(project.path / "frame_cache")
    if value == SCRATCH:
        return SCRATCH
    return str(Path(value).expanduser().absolute())


def _resolved(stage: str, project: Project, config: Config, weights: Mapping[str, PlannedFile]) -> Config:
    """Return the options with absolute paths of the project and of the weights that were found.

    They record which flow generator a feature extractor was trained with, whatever `latest` is later.
    """
    pretrained = config.project.pretrained_path if project.pretrained_path is None else str(project.pretrained_path)
    config = replace(
        config,
        project=replace(
            config.project,
            path=str(project.path),
            data_path=str(project.data_path),
            model_path=str(project.model_path),
            pretrained_path=pretrained,
            class_names=project.class_names,
        ),
    )
    for role, section in (("flow_generator", "flow_generator"), ("start", stage)):
        if role in weights:
            found = replace(getattr(config, section), weights=str(weights[role].path))
            config = replace(config, **{section: found})
    return config


def _hashed(labels: Path | None) -> PlannedFile:
    assert labels is not None  # else the recording would not be trainable
    return PlannedFile.of(labels)


# ---------------------------------------------------------------------------------------------------- split


def _divide(
    stage: str, project: Project, config: Config, trainable: Trainable
) -> tuple[Parts | None, Parts, tuple[float, float, float], list[str]]:
    """Return what the split file says, what it should say, its shares, and remarks on it."""
    path, keys = project.split_file(config.split.file), set(trainable.videos)
    if config.split.file is not None and not path.exists():
        raise ProjectError(
            f"{show_path(path)}: split.file names it, but it is not there. Correct it, or set split.file=null."
        )
    wanted, positives = config.split.train_val_test, _classes_of(trainable, project.class_names)
    found, shares = read_split(path) if path.exists() else (None, None)
    try:
        fractions = shares or part_fractions(wanted, len(keys))
        if found is None or not (config.split.reload or stage == "sequence"):
            rng = np.random.default_rng(config.train.seed)
            split, notes = make_split(keys, wanted, rng, positives or None)
            return found, split, part_fractions(wanted, len(keys)), [_sentence(note) for note in notes]
    except ValueError as error:
        raise ConfigError(f"split.train_val_test: {error}. Correct it.") from error
    # with the seed alone, recordings added one at a time would all get the same draw
    rng = np.random.default_rng([config.train.seed, sum(map(len, found.values()))])
    split, notes = update_split(found, keys, fractions, rng, positives or None)
    if len(positives) < len(keys):  # the flow generator also uses recordings without labels
        split, more = update_split(split, keys, fractions, rng)
        notes += more
    notices = [_sentence(note) for note in notes]
    if gone := sorted({key for part in found.values() for key in part} - set(project.records)):
        notices.append(
            f"{show_path(path)} names recordings that the project does not have ({named(gone)}). They are not "
            "used and keep their places."
        )
    return found, split, fractions, notices


def _classes_of(trainable: Trainable, class_names: Sequence[str]) -> dict[str, set[str]]:
    """Return, by labelled recording, the classes that have a positive frame in it."""
    return {
        key: {name for name, count in zip(class_names, counts, strict=True) if count}
        for key, counts in trainable.positives.items()
    }


def _sentence(note: str) -> str:
    return f"Split: {note}."


def _require_train_and_val(parts: Parts, config: Config) -> None:
    if not parts["train"] or not parts["val"]:
        raise ConfigError(
            f"split.train_val_test is {list(config.split.train_val_test)}: expected recordings for training and for "
            f"validation, found {len(parts['train'])} and {len(parts['val'])}. Ask for at least one of each."
        )


def _judge_classes(
    parts: Parts, videos: Mapping[str, VideoInfo], positives: Mapping[str, Sequence[int]], class_names: Sequence[str]
) -> Iterator[str]:
    """Yield warnings of what cannot be learned from the labels.

    Raises ProjectError if nothing can be, because every frame has the same labels.
    """
    frames = sum(videos[key].num_frames for key in parts["train"])
    train_K = np.sum([positives[key] for key in parts["train"]], axis=0)
    total_K = np.sum(list(positives.values()), axis=0)
    if not ((train_K > 0) & (train_K < frames)).any():
        same = ", ".join(f"`{name}`" for name, count in zip(class_names, train_K, strict=True) if count)
        raise ProjectError(
            f"all {frames} frames of the training recordings ({named(parts['train'])}) have the same label, {same}: "
            f"expected frames with and without a behaviour ({', '.join(class_names[1:])}) to learn from. Label "
            "recordings that have both, or move one that does into train in the split file."
        )
    for name, count, total in zip(class_names, train_K, total_K, strict=True):
        if total == 0:
            yield (
                f"Warning: no labelled recording has a positive frame of `{name}`: it cannot be learned. Label some, "
                "or take it out of the project's behaviours."
            )
        elif count == frames:
            yield (
                f"Warning: every frame of the training recordings is `{name}`: it cannot be learned from them. Add "
                "training recordings with frames that are not."
            )


def _require_one_size(videos: Mapping[str, VideoInfo], config: Config) -> None:
    """Raise ConfigError, with the names of two recordings, if frames do not all come out at one size."""
    augs = config.augs
    transform = FrameTransform(augs.crop_size, augs.resize, augs.pad)
    sizes: dict[tuple[int, int], str] = {}
    for key, video in videos.items():
        try:
            sizes.setdefault(transform.output_size(video.height, video.width), key)
        except ConfigError as error:
            raise ConfigError(f"recording `{show_path(key)}`: {error}") from error
    if len(sizes) > 1:
        (one, first), (other, second), *_ = sizes.items()
        raise ConfigError(
            f"expected frames of one size, found {one[0]} x {one[1]} (height x width) in `{show_path(first)}` and "
            f"{other[0]} x {other[1]} in `{show_path(second)}`, with augs.resize={_yaml(augs.resize)} and "
            f"augs.crop_size={_yaml(augs.crop_size)}. Set augs.resize to [height, width], such as [224,224]."
        )


def _yaml(size: int | Sequence[int] | None) -> str:
    return "null" if size is None else str(size) if isinstance(size, int) else f"[{size[0]},{size[1]}]"


def _agreed(prepared: PreparedTraining, there: tuple[Parts, Any] | None) -> tuple[Parts, tuple[float, float, float]]:
    """Return what to write into the split file, which says `there` now.

    Raises ProjectError if that contradicts the plan.
    """
    if there is None or there[0] == prepared.split_found:
        return prepared.split, prepared.fractions
    parts, fractions = there
    part_of = {key: name for name in reversed(PARTS) for key in parts[name]}
    for name, keys in prepared.plan.parts.items():
        for key in keys:
            if part_of.get(key, name) != name:
                raise ProjectError(
                    f"{show_path(prepared.split_file)}: another job has just put recording `{show_path(key)}` into "
                    f"{part_of[key]}, this one was about to put it into {name}. Run the command again."
                )
    added = {name: [key for key in prepared.split[name] if key not in part_of] for name in PARTS}
    return {name: [*parts[name], *added[name]] for name in PARTS}, fractions or prepared.fractions


def _run_split(prepared: PreparedTraining) -> dict[str, Any]:
    """Return the recordings of each part and their files, as a run of DeepEthogram keeps them."""

    def files(record: Record) -> dict[str, str | None]:
        kinds = {"rgb": record.video, "label": record.labels, "output": record.outputs, "keypoint": record.keypoints}
        paths = {kind: None if path is None else str(path) for kind, path in kinds.items()}
        return {"key": record.key, "flow": None, **paths}

    return {name: {key: files(prepared.records[key]) for key in keys} for name, keys in prepared.plan.parts.items()}


# ------------------------------------------------------------------------------------------------ comparing, telling


def _fingerprint(plan: TrainingPlan) -> dict[str, Any]:
    """Return all that the network depends on. Where frames are kept and how many devices share the work is left out."""
    content = json.loads(plan.to_json())
    config = content.pop("config")
    del content["cache"], content["devices"]
    options = {
        section: {key: value for key, value in config[section].items() if key not in HARMLESS}
        for section in SHAPING[plan.stage]
    }
    options["compute"] = {key: config["compute"].get(key) for key in SHAPING_COMPUTE}
    options["activation"] = config["feature_extractor"]["final_activation"]  # a sequence network uses it as well
    return content | {"options": options}


def _table(prepared: PreparedTraining) -> Iterator[str]:
    """Yield the lines of a table: recordings, frames and positive frames of each class, by part."""
    plan = prepared.plan
    names = plan.class_names if prepared.positives else ()
    rows = [("part", "recordings", "frames", *names)]
    for part, keys in plan.parts.items():
        counts_K = [sum(prepared.positives[key][k] for key in keys) for k in range(len(names))]
        frames = sum(plan.videos[key].num_frames for key in keys)
        rows.append((part, str(len(keys)), str(frames), *map(str, counts_K)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _steps(plan: TrainingPlan) -> Iterator[str]:
    """Yield the batches of an epoch, as text, for each part that has recordings."""
    batch = plan.config.compute.batch_size
    for part, keys in plan.parts.items():
        limit, samples = getattr(plan.config.train.steps_per_epoch, part), _samples(plan, part)
        if not keys:
            continue
        if batch == "auto":
            yield f"{part} {samples} samples in batches of a size yet to be found"
        else:
            steps = -(-samples // batch)
            yield f"{part} {min(steps, limit or steps)} steps of {batch} samples (of {samples})"


def _samples(plan: TrainingPlan, part: str) -> int:
    """Count the clips of a part or, for a sequence network, its stretches of video.

    Stretches overlap with the mlp, and in training if `sequence.nonoverlapping` is false.
    """
    lengths = [plan.videos[key].num_frames for key in plan.parts[part]]
    options = plan.config.sequence
    overlap = options.arch == "mlp" or (part == "train" and not options.nonoverlapping)
    if plan.stage != "sequence" or overlap:
        return sum(lengths)
    return sum(-(-length // options.sequence_length) for length in lengths)
