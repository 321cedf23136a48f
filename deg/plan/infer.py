"""Plan inference: which recordings, with which weights, in which units; and what is done already.

Nothing is computed here and torch is not loaded: a plan can be made on a login node. `deg.execute` computes its units,
`deg.runs.merge` merges their results.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deg.arithmetic.units import plan_units
from deg.data.keypoints import NUM_KEYPOINT_FEATURES
from deg.data.results import FeatureReader, Mark, check_writable, read_mark
from deg.data.sequence_input import describe_mark, keypoints_of, open_input
from deg.data.video.probing import probe_all
from deg.errors import DegError, ProjectError, ResultError, VideoError, WeightsError, show_path
from deg.options import schema
from deg.options.load import overlay
from deg.plan.recordings import image_notices
from deg.projects.inventory import why_no_video
from deg.projects.project import Project
from deg.runs.merge import is_done, wanted_mark
from deg.runs.networks import (
    Thresholds,
    companion,
    read_thresholds,
    resolve_weights,
    run_section,
    training_flow_weights,
)
from deg.runs.planned import FeatureSource, KeypointSource, PlannedFile, Source
from deg.runs.plans import FeatureTask, InferencePlan, SequenceTask, settings_of
from deg.types import NUM_FEATURES, Record, VideoInfo

STAGES = ("feature_extractor", "sequence")


@dataclass(frozen=True)
class PreparedInference:
    """A plan, and what was found out while making it."""

    plan: InferencePlan | None
    """The plan; None if nothing is left to do."""
    done: tuple[str, ...] = ()
    """Recordings whose results are there already."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Recordings that cannot be done, each with its reason."""
    notices: tuple[str, ...] = ()
    """Sentences that say what was chosen where there was a choice."""


def choose_records(project: Project, wanted: Sequence[str], config: schema.Inference) -> list[Record]:
    """Return the recordings named by key, video or folder; all without names. Raises ProjectError for unknown names."""
    if not wanted and config.directory_list != "all":
        wanted = [config.directory_list] if isinstance(config.directory_list, str) else list(config.directory_list)
    if not wanted:
        return list(project.records.values())
    by_path = {}
    for record in project.records.values():
        by_path[os.path.realpath(record.folder)] = record
        if record.video is not None:
            by_path[os.path.realpath(record.video)] = record  # not resolve(): it raises for a link to itself
    chosen: dict[str, Record] = {}
    for name in wanted:
        found = project.records.get(name) or by_path.get(os.path.realpath(name))
        if found is None:
            raise ProjectError(
                f"{name}: no recording of this project has that name, folder or video. "
                f"{_near(name, project.records)}`deg check` lists them."
            )
        chosen[found.key] = found
    return list(chosen.values())


def _near(name: str, keys: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(keys), n=3)
    return f"Did you mean {' or '.join(near)}? " if near else ""


def prepare(
    stage: str, project: Project, config: schema.Config, records: Sequence[Record], *, devices: int, overwrite: bool
) -> PreparedInference:
    """Plan one stage of inference over `records`. Raises WeightsError or ConfigError if it cannot be done at all."""
    plan_stage = {"feature_extractor": _plan_features, "sequence": _plan_sequence}[stage]
    plan, notices = plan_stage(project, config)
    return _with_recordings(plan, records, config, notices, devices=devices, overwrite=overwrite)


# ---------------------------------------------------------------------------------------------------- the network


def _plan_features(project: Project, config: schema.Config) -> tuple[InferencePlan, list[str]]:
    extractor = config.feature_extractor
    # null and random say how training begins; inference needs the trained weights
    wanted = "latest" if extractor.weights in (None, "random") else extractor.weights
    weights = resolve_weights(wanted, model="feature_extractor", arch=extractor.arch, project=project)
    assert weights is not None
    notices = [f"Feature extractor {show_path(weights)}."]
    trained = companion(weights).config or {}
    if config.inference.use_loaded_model_cfg:
        extractor = overlay(extractor, run_section(trained, "feature_extractor"), keep=("weights",))
    flow_weights, why = _flow_weights(config, trained, weights, project)
    notices.append(why)
    flow = _flow_architecture(config, trained, flow_weights)
    class_names = project.class_names
    thresholds = read_thresholds(weights, len(class_names))
    notices.append(_threshold_notice(thresholds))
    options = config.inference
    task = FeatureTask(
        feature_extractor=replace(extractor, weights=None),
        flow_generator=replace(flow, weights=None),
        num_classes=len(class_names),
        weights=str(weights),
        flow_weights=None if flow_weights is None else str(flow_weights),
        crop_size=config.augs.crop_size,
        resize=config.augs.resize,
        pad=config.augs.pad,
        mean=config.augs.normalization.mean,
        std=config.augs.normalization.std,
        precision=options.precision,
        batch_size=options.batch_size,
        compile=options.compile,
        decoders=options.decoders,
        threads=options.threads,
        frame_count=options.frame_count,
        damaged_frames=options.damaged_frames,
    )
    files = {"feature_extractor": weights} | ({"flow_generator": flow_weights} if flow_weights is not None else {})
    plan = InferencePlan(
        stage="feature_extractor",
        group=config.sequence.latent_name or extractor.arch,
        class_names=tuple(class_names),
        thresholds=tuple(float(value) for value in thresholds.values),
        videos={},
        outputs={},
        weights=_hashed(files),
        settings=settings_of(task, class_names, [float(value) for value in thresholds.values]),
        task=task,
        units=(),
    )
    return plan, notices


def _flow_weights(
    config: schema.Config, trained: Mapping[str, Any], weights: Path, project: Project
) -> tuple[Path | None, str]:
    """Return the flow generator to use with a feature extractor, and why; None is the one in the extractor's file."""
    wanted = config.flow_generator.weights
    if wanted is not None:
        arch = config.flow_generator.arch
        if wanted in ("latest", "pretrained"):
            arch = run_section(trained, "flow_generator").get("arch", arch)
        chosen = resolve_weights(wanted, model="flow_generator", arch=arch, project=project)
        return chosen, f"Flow generator {show_path(chosen or '')}: flow_generator.weights={wanted}."
    try:
        found, reason = training_flow_weights(trained, project)
    except WeightsError as error:
        found, reason = None, str(error)
    if found is not None:
        return found, reason
    return None, (
        f"Warning: the flow generator inside the feature extractor's {weights.name} is used; DeepEthogram would use "
        f"another one, whose results differ a little. {reason}"
    )


def _flow_architecture(
    config: schema.Config, trained: Mapping[str, Any], flow_weights: Path | None
) -> schema.FlowGenerator:
    """Return the options of the flow generator in its own training run, or else in the extractor's."""
    flow = config.flow_generator
    if not config.inference.use_loaded_model_cfg:
        return flow
    own = companion(flow_weights).config if flow_weights is not None else None
    stored = run_section(own, "flow_generator") or run_section(trained, "flow_generator")
    return overlay(flow, stored, keep=("weights",))


def _plan_sequence(project: Project, config: schema.Config) -> tuple[InferencePlan, list[str]]:
    sequence = config.sequence
    weights = resolve_weights(sequence.weights or "latest", model="sequence", arch=sequence.arch, project=project)
    if weights is None:
        raise WeightsError("sequence.weights: expected `latest` or a path. Inference needs trained weights.")
    notices = [f"Sequence network {show_path(weights)}."]
    trained = companion(weights).config or {}
    latent = sequence.latent_name or run_section(trained, "sequence").get("latent_name")
    stored_extractor = run_section(trained, "feature_extractor")
    latent = latent or stored_extractor.get("arch") or config.feature_extractor.arch
    activation = stored_extractor.get("final_activation") or config.feature_extractor.final_activation
    if config.inference.use_loaded_model_cfg:
        sequence = overlay(sequence, run_section(trained, "sequence"), keep=("weights", "output_name", "latent_name"))
    keypoints = sequence.input_type == "keypoints"
    class_names = project.class_names
    thresholds = read_thresholds(weights, len(class_names))
    notices += [
        "Keypoints of DeepLabCut." if keypoints else f"Features: group {latent}.",
        _threshold_notice(thresholds),
    ]
    task = SequenceTask(
        sequence=replace(sequence, weights=None),
        num_classes=len(class_names),
        weights=str(weights),
        latent_name="" if keypoints else latent,
        num_features=NUM_KEYPOINT_FEATURES if keypoints else NUM_FEATURES,
        activation=activation,
        threads=config.inference.threads,
    )
    plan = InferencePlan(
        stage="sequence",
        group=config.sequence.output_name or sequence.arch,
        class_names=tuple(class_names),
        thresholds=tuple(float(value) for value in thresholds.values),
        videos={},
        outputs={},
        weights=_hashed({"sequence": weights}),
        settings=settings_of(task, class_names, [float(value) for value in thresholds.values]),
        task=task,
        units=(),
    )
    return plan, notices


def _threshold_notice(thresholds: Thresholds) -> str:
    return f"Warning: {thresholds.source}" if thresholds.assumed else thresholds.source


def _hashed(files: Mapping[str, Path]) -> dict[str, PlannedFile]:
    return {role: PlannedFile.of(path) for role, path in files.items()}


# ---------------------------------------------------------------------------------------------------- the recordings


def _with_recordings(
    plan: InferencePlan,
    records: Sequence[Record],
    config: schema.Config,
    notices: Sequence[str],
    *,
    devices: int,
    overwrite: bool,
) -> PreparedInference:
    """Return the plan for those recordings that can be done and are not done yet."""
    describe = _videos if plan.stage == "feature_extractor" else _feature_files
    if isinstance(plan.task, SequenceTask) and plan.task.sequence.input_type == "keypoints":
        describe = _keypoint_files
    videos, sources, failed = describe(plan, records, config, overwrite)
    plan = replace(plan, videos=videos, sources=sources, outputs={r.key: r.outputs_path for r in records})
    done, todo = [], {}
    for key, video in videos.items():
        try:
            check_writable(plan.outputs[key])
            if not overwrite and is_done(plan, key):
                done.append(key)
            else:
                todo[key] = video
        except ResultError as error:
            failed[key] = str(error)
    units = plan_units(
        {key: video.num_frames for key, video in todo.items()},
        devices=devices,
        units_per_device=config.inference.units_per_device,
        whole=plan.stage == "sequence",
    )
    plan = replace(
        plan,
        videos=todo,
        outputs={key: plan.outputs[key] for key in todo},
        sources={key: source for key, source in sources.items() if key in todo},
        units=tuple(units),
        overwrite=overwrite,
    )
    notices = [*notices, *image_notices(todo)]
    return PreparedInference(plan if todo else None, tuple(done), failed, tuple(notices))


Described = tuple[dict[str, VideoInfo], dict[str, Source], dict[str, str]]
"""Videos and sources of the recordings that can be done, and the reason for each that cannot, by key."""


def _videos(plan: InferencePlan, records: Sequence[Record], config: schema.Config, overwrite: bool) -> Described:
    """Describe recordings by their videos. A video with a finished result is not opened again."""
    failed = {record.key: why_no_video(record.folder) for record in records if record.video is None}
    videos: dict[str, VideoInfo] = {}
    unknown: dict[str, Path] = {}
    for record in records:
        if record.video is None:
            continue
        if not overwrite and (info := _seen_before(plan, record.key, record.video, record.outputs_path)):
            videos[record.key] = info
        else:
            unknown[record.key] = record.video
    answers = probe_all(
        unknown.values(), frame_count=config.inference.frame_count, image_order=config.project.image_order
    )
    for key, answer in zip(unknown, answers, strict=True):
        if isinstance(answer, VideoError):
            failed[key] = str(answer)
        else:
            videos[key] = answer
    return videos, {}, failed


def _seen_before(plan: InferencePlan, key: str, video: Path, outputs: Path) -> VideoInfo | None:
    """Describe a video file by its finished result; None unless there is one for this very file and these options."""
    try:
        mark, status = read_mark(outputs, plan.group), video.stat()
    except (ResultError, OSError):
        return None  # the fault is found again and reported when the video is opened
    if mark is None or video.is_dir():
        return None
    info = VideoInfo(video, mark.frames, 0, 0, 0.0, status.st_size, status.st_mtime_ns)
    return info if mark == wanted_mark(replace(plan, videos={key: info}), key) else None


def _feature_files(plan: InferencePlan, records: Sequence[Record], config: schema.Config, overwrite: bool) -> Described:
    """Describe recordings by their features: a sequence network does not look at the video."""
    assert isinstance(plan.task, SequenceTask)
    latent = plan.task.latent_name
    videos: dict[str, VideoInfo] = {}
    sources: dict[str, Source] = {}
    failed: dict[str, str] = {}
    for record in records:
        path = record.outputs_path
        try:
            with FeatureReader(path, latent) as features:
                frames, width = features.num_frames, features.num_features
            if width != NUM_FEATURES:
                raise ResultError(
                    f"{show_path(path)}: expected {NUM_FEATURES} features a frame in group {latent}, found {width}. "
                    "Run `deg infer feature_extractor --overwrite` for this video."
                )
            mark = read_mark(path, latent)
            video = _file_of(record, frames, mark)
        except (DegError, OSError) as error:
            failed[record.key] = str(error)
            continue
        videos[record.key] = video
        sources[record.key] = FeatureSource(latent, mark.settings if mark else "", dict(mark.weights) if mark else {})
    return videos, sources, failed


def _keypoint_files(
    plan: InferencePlan, records: Sequence[Record], config: schema.Config, overwrite: bool
) -> Described:
    """Describe recordings by their videos, each with the version of its keypoints, which must fit its frames."""
    sources: dict[str, Source] = {}
    frames: dict[str, int] = {}
    failed: dict[str, str] = {}
    for record in records:
        try:
            path = keypoints_of(record)
            with open_input(path, "") as read:
                frames[record.key] = read.num_frames
            sources[record.key] = KeypointSource(path.name, describe_mark(path, ""))
        except ProjectError as error:
            failed[record.key] = str(error)
    known = [record for record in records if record.key in sources]
    videos, _, no_video = _videos(replace(plan, sources=sources), known, config, overwrite)
    failed |= no_video
    for record in known:
        if record.key in videos and videos[record.key].num_frames != frames[record.key]:
            failed[record.key] = (
                f"{show_path(keypoints_of(record))}: expected keypoints for the {videos[record.key].num_frames} frames "
                f"of the video, found {frames[record.key]}. Track this very video."
            )
            del videos[record.key]
    return videos, sources, failed


def _file_of(record: Record, frames: int, mark: Mark | None) -> VideoInfo:
    """Return what a sequence result depends on in a recording's video. Raises ResultError if features are outdated."""
    path = record.video or record.outputs_path
    if mark is not None and record.video is not None and record.video.is_file():
        status = record.video.stat()
        if (status.st_size, status.st_mtime_ns) != (mark.video_size, mark.video_mtime_ns):
            raise ResultError(
                f"{show_path(record.outputs_path)}: its features are of another version of {record.video.name}. "
                "Run `deg infer feature_extractor` for it first."
            )
    if mark is None:
        return VideoInfo(path, frames, 0, 0, 0.0, 0, 0)
    image_order = mark.source.get("image_order", "deepethogram")
    return VideoInfo(path, frames, 0, 0, 0.0, mark.video_size, mark.video_mtime_ns, image_order)
