"""Planning training: parts, weights, split files, and which runs may be resumed. Nothing is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from scenes.project import CLASSES, add_good, add_weights, make_project, write_results

from deg.data.labels import write_labels
from deg.errors import ConfigError, ProjectError
from deg.options.load import as_dict, load_config
from deg.plan.train import PreparedTraining, commit, describe, prepare, same_training
from deg.projects.project import open_project, read_split
from deg.runs.plans import TrainingPlan
from deg.runs.rundir import create_run

pytestmark = pytest.mark.slow

FRAMES = 12
LABELS = np.eye(3, dtype=int)[np.arange(FRAMES) // 2 % 3]
"""Return labels in bouts of two frames: background, groom, rear, and again; 4 positive frames of each."""
LABELLED = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project with four labelled recordings, one without labels, and a trained flow generator."""
    lab = make_project(tmp_path_factory.mktemp("training") / "lab")
    for key in (*LABELLED, "raw"):
        video = add_good(lab, key, FRAMES)
        if key in LABELLED:
            write_labels(video.with_name(f"{key}_labels.csv"), LABELS, CLASSES)
            write_results(video.with_name(f"{key}_outputs.h5"), FRAMES)
    add_weights(lab, "flow_generator", "TinyMotionNet", "200101_000000")
    return lab


@pytest.fixture
def lab(finished):
    """That project, without what an earlier test wrote into it."""
    yield finished
    (finished / "DATA" / "split.yaml").unlink(missing_ok=True)


def plan(lab: Path, *overrides: str, stage: str = "feature_extractor", devices: int = 1) -> PreparedTraining:
    start = () if stage == "sequence" else (f"{stage}.weights=null",)
    flow = ("flow_generator.weights=latest",) if stage == "feature_extractor" else ()
    config = load_config(lab / "project_config.yaml", (*start, *flow, *overrides), stage=stage)
    return prepare(stage, open_project(lab), config, devices=devices)


def split_of(lab: Path) -> dict[str, list[str]]:
    return read_split(lab / "DATA" / "split.yaml")[0]


def write_split(lab: Path, **parts: list[str]) -> None:
    content = {"metadata": {"split": [0.8, 0.2, 0.0]}, "train": [], "val": [], "test": [], **parts}
    (lab / "DATA" / "split.yaml").write_text(yaml.safe_dump(content))


def keys_of(parts: Mapping) -> list[str]:
    return sorted(key for part in parts.values() for key in part)


# ---------------------------------------------------------------------------------------------------- plans


def test_a_plan_holds_all_that_training_needs(lab):
    found = plan(lab, devices=2).plan
    assert found.stage == "feature_extractor" and found.phases == ("both",) and found.devices == 2
    assert found.class_names == CLASSES and keys_of(found.parts) == list(LABELLED)
    assert [len(found.parts[part]) for part in ("train", "val", "test")] == [3, 1, 0]
    assert list(found.videos) == [*found.parts["train"], *found.parts["val"]]
    assert all((video.num_frames, video.height, video.width) == (12, 64, 80) for video in found.videos.values())
    assert found.labels["a"].path == lab / "DATA/a/a_labels.csv" and len(found.labels["a"].sha256) == 64
    assert list(found.weights) == ["flow_generator"] and found.inputs == {}
    assert TrainingPlan.from_json(found.to_json()).to_json() == found.to_json()


def test_flow_generators_learn_from_unlabelled_videos_too_and_are_judged_by_labelled_ones(lab):
    found = plan(lab, stage="flow_generator").plan
    assert keys_of(found.parts) == [*LABELLED, "raw"]
    assert found.labels == {} and set(found.parts["val"]) <= set(LABELLED)


def test_sequence_networks_read_features_in_place_of_the_video(lab):
    found = plan(lab, stage="sequence").plan
    assert keys_of(found.parts) == list(LABELLED) and found.cache is None
    assert found.inputs["a"].path == lab / "DATA/a/a_outputs.h5" and found.inputs["a"].group == "resnet18"
    assert json.loads(found.inputs["a"].mark)["settings"] == "made up"


def test_a_curriculum_has_three_phases(lab):
    assert plan(lab, "feature_extractor.curriculum=true").plan.phases == ("spatial", "flow", "both")
    assert plan(lab, "feature_extractor.curriculum=true", stage="flow_generator").plan.phases == ("both",)


def test_planning_writes_nothing(lab):
    def listed():
        return sorted((path, path.stat().st_mtime_ns) for path in lab.rglob("*"))

    before = listed()
    for stage in ("flow_generator", "feature_extractor", "sequence"):
        describe(plan(lab, stage=stage))
    assert listed() == before


def test_the_configuration_names_the_weights_that_were_found(lab):
    found = plan(lab).plan
    weights = lab / "models/200101_000000_flow_generator_train/checkpoint.pt"
    assert found.config.flow_generator.weights == str(found.weights["flow_generator"].path) == str(weights)
    assert found.config.project.model_path == str(lab / "models")
    assert found.config.project.class_names == CLASSES


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("project", "{lab}/frame_cache"),
        ("scratch", "scratch"),  # on the node that trains, which is not this one
        ("/big/disk", "/big/disk"),
        ("none", None),
    ],
)
def test_where_frames_are_kept(lab, value, folder):
    wanted = folder and folder.format(lab=lab)
    assert plan(lab, f"compute.cache={value}").plan.cache == wanted


# ---------------------------------------------------------------------------------------------------- options


def test_a_batch_must_have_a_sample_for_every_piece(lab):
    assert plan(lab, "compute.batch_size=8", "train.accumulate=2", devices=4)
    with pytest.raises(ConfigError, match=r"batch_size is 7, .* expected 8 at least, .* 4 devices x 2 pieces"):
        plan(lab, "compute.batch_size=7", "train.accumulate=2", devices=4)


def test_rare_behaviours_should_not_be_favoured_twice(lab):
    notices = plan(lab, "train.oversampling_exp=1", "train.loss_weight_exp=1").notices
    assert any("train.oversampling_exp=1 and by train.loss_weight_exp=1" in notice for notice in notices)
    notices = plan(lab, "train.oversampling_exp=1", stage="flow_generator").notices
    assert "train.oversampling_exp has no effect on the flow_generator." in notices


def test_cropping_also_gives_all_frames_one_size(lab):
    assert plan(lab, "augs.resize=null", "augs.crop_size=[32,32]")


# ---------------------------------------------------------------------------------------------------- split


def test_commit_writes_the_split_that_was_planned(lab):
    prepared = plan(lab)
    commit(prepared, None)
    assert split_of(lab) == prepared.split and read_split(lab / "DATA/split.yaml")[1] == (0.8, 0.2, 0.0)


def test_all_stages_share_the_split_and_new_recordings_join(lab):
    commit(plan(lab), None)
    first = split_of(lab)
    prepared = plan(lab, stage="flow_generator")
    commit(prepared, None)
    assert keys_of(split_of(lab)) == [*LABELLED, "raw"]
    assert all(set(first[part]) <= set(split_of(lab)[part]) for part in first)
    assert plan(lab, stage="sequence").plan.parts == {part: tuple(keys) for part, keys in first.items()}


def test_a_split_that_need_not_change_is_not_written(lab):
    commit(plan(lab), None)
    before = (lab / "DATA/split.yaml").stat().st_mtime_ns
    commit(plan(lab), None)
    assert (lab / "DATA/split.yaml").stat().st_mtime_ns == before


def test_the_split_depends_on_the_seed_alone(lab):
    drawn = [plan(lab, f"train.seed={seed}").plan.parts for seed in (0, 0, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] and any(parts != drawn[0] for parts in drawn)


@pytest.mark.slow
def test_recordings_added_one_by_one_are_not_all_drawn_alike(lab):
    """If each drawing used the same random numbers, every new recording would go where the previous one went."""
    went: set[str] = set()
    for size in range(1, 40):
        write_split(lab, train=["a", "b", *(f"old{i}" for i in range(size))], val=["c"])
        went |= {part for part, keys in plan(lab).plan.parts.items() if "d" in keys}
        if went == {"train", "val"}:
            return
    pytest.fail(f"all went to {went}")


def test_a_new_split_is_drawn_on_demand_but_never_for_sequences(lab):
    write_split(lab, train=["a"], val=["b", "c", "d"])
    assert (
        len(plan(lab).plan.parts["val"])
        == len(plan(lab, "split.reload=false", stage="sequence").plan.parts["val"])
        == 3
    )
    prepared = plan(lab, "split.reload=false")
    assert len(prepared.plan.parts["val"]) == 1
    commit(prepared, None)
    assert len(split_of(lab)["val"]) == 1


def test_a_named_split_file_is_kept_up_to_date(lab):
    (lab / "mine.yaml").write_text(yaml.safe_dump({"train": ["a", "b"], "val": ["c"]}))
    prepared = plan(lab, "split.file=mine.yaml")
    commit(prepared, None)
    assert keys_of(read_split(lab / "mine.yaml")[0]) == list(LABELLED)
    assert not (lab / "DATA/split.yaml").exists()
    (lab / "mine.yaml").unlink()


def test_counts_may_leave_recordings_over(lab):
    found = plan(lab, "split.train_val_test=[1,1,1]")
    assert [len(keys) for keys in found.plan.parts.values()] == [1, 1, 1]
    assert any("Not used, as split.train_val_test says" in notice for notice in found.notices)


def test_two_jobs_that_agree_both_continue(lab):
    first, second = plan(lab), plan(lab, stage="flow_generator")
    commit(first, None)
    agreeing = replace(second, plan=replace(second.plan, parts=first.plan.parts))
    commit(agreeing, None)
    assert keys_of(split_of(lab)) == [*LABELLED, "raw"]
    assert all(set(first.split[part]) <= set(split_of(lab)[part]) for part in first.split)


def test_a_job_that_contradicts_the_first_one_changes_nothing(lab):
    prepared = plan(lab)
    (key,) = prepared.plan.parts["val"]
    write_split(lab, train=[key], val=[other for other in LABELLED if other != key])
    before = (lab / "DATA/split.yaml").read_bytes()
    with pytest.raises(ProjectError, match=r"another job has just put recording `.` into .*Run the command again"):
        commit(prepared, None)
    assert (lab / "DATA/split.yaml").read_bytes() == before


def test_a_run_has_its_split_with_paths_as_deepethogram_has_it(lab, tmp_path):
    prepared = plan(lab)
    run = create_run(
        tmp_path, stage="feature_extractor", kind="train", plan=prepared.plan, config=as_dict(prepared.plan.config),
        provenance={}, now=datetime(2026, 11, 22),
    )  # fmt: skip
    commit(prepared, None)
    commit(prepared, run)
    written = yaml.safe_load((run.path / "split.yaml").read_text())
    assert {part: list(records) for part, records in written.items()} == {
        part: sorted(keys) for part, keys in prepared.plan.parts.items()
    }
    (key,) = written["val"]
    assert written["val"][key] == {
        "key": key,
        "rgb": str(lab / f"DATA/{key}/{key}.mp4"),
        "label": str(lab / f"DATA/{key}/{key}_labels.csv"),
        "output": str(lab / f"DATA/{key}/{key}_outputs.h5"),
        "flow": None,
        "keypoint": None,
    }


# ---------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("stage", ["flow_generator", "feature_extractor", "sequence"])
@pytest.mark.parametrize("reload", ["true", "false"])
def test_a_run_that_has_just_begun_may_be_resumed(lab, stage, reload):
    started = plan(lab, f"split.reload={reload}", stage=stage)
    commit(started, None)
    assert same_training(started.plan, plan(lab, f"split.reload={reload}", stage=stage).plan)


@pytest.mark.parametrize(
    "harmless",
    ["compute.cache=scratch", "compute.num_workers=0", "train.checkpoint_every=1", "inference.precision=bf16",
     "sequence.arch=rnn", "notes=again"],
)  # fmt: skip
def test_an_interrupted_run_may_be_resumed_on_another_machine(lab, harmless):
    started = TrainingPlan.from_json(plan(lab).plan.to_json())
    assert same_training(started, plan(lab, harmless, devices=4).plan)


@pytest.mark.parametrize(
    "change",
    ["train.lr=1e-3", "train.seed=1", "compute.batch_size=4", "augs.LR=0", "feature_extractor.dropout_p=0",
     "feature_extractor.curriculum=true", "feature_extractor.weights=random", "split.train_val_test=[0.5,0.5,0]"],
)  # fmt: skip
def test_a_run_may_not_be_resumed_for_another_network(lab, change):
    assert not same_training(plan(lab).plan, plan(lab, change).plan)


def test_a_run_may_not_be_resumed_after_labels_or_weights_changed(lab):
    started = plan(lab).plan
    path = lab / "DATA/a/a_labels.csv"
    before = path.read_bytes()
    write_labels(path, LABELS[::-1], CLASSES)
    assert not same_training(started, plan(lab).plan)
    path.write_bytes(before)
    assert same_training(started, plan(lab).plan)
    other = replace(started, weights={"flow_generator": replace(started.weights["flow_generator"], sha256="0" * 64)})
    assert not same_training(started, other)


# ---------------------------------------------------------------------------------------------------- describing a plan


def test_a_plan_can_be_read(lab):
    lines = describe(plan(lab, "compute.batch_size=8"))
    words = [line.split() for line in lines]
    assert ["part", "recordings", "frames", "background", "groom", "rear"] in words
    assert ["train", "3", "36", "12", "12", "12"] in words and ["val", "1", "12", "4", "4", "4"] in words
    assert any("train 5 steps of 8 samples (of 36)" in line for line in lines)
    assert any(line.startswith("flow_generator: ") and line.endswith("checkpoint.pt") for line in lines)
    assert any(line.startswith("left out: raw: ") and "there is no label file" in line for line in lines)


def test_stretches_of_a_sequence_network_are_counted_not_frames(lab):
    def steps(*overrides):
        return "\n".join(describe(plan(lab, "compute.batch_size=2", *overrides, stage="sequence")))

    assert "train 3 steps of 2 samples (of 6)" in steps("sequence.sequence_length=8")
    assert "train 18 steps of 2 samples (of 36)" in steps("sequence.arch=mlp")
