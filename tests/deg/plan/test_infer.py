"""Planning inference: which recordings, with which settings, and what is done already. Nothing is computed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from image_folders import write_unpadded
from scenes.project import add_weights, make_project
from tracks import write_keypoints
from videos import write_images

from deg.arithmetic.units import GRAIN
from deg.data.results import write_group
from deg.data.sequence_input import describe_mark
from deg.errors import ConfigError, ProjectError
from deg.options.load import load_config
from deg.plan.infer import choose_records, prepare
from deg.projects.project import open_project
from deg.runs.merge import wanted_mark
from deg.runs.plans import InferencePlan

LENGTHS = {"mouse_1": 40, "mouse_2": 600}


@pytest.fixture
def folder(tmp_path):
    return make_project(tmp_path / "mice", LENGTHS)


def config_of(folder: Path, *overrides: str):
    return load_config(folder / "project_config.yaml", overrides, stage="inference")


def plan(folder: Path, *overrides: str, stage="feature_extractor", devices=1, overwrite=False):
    project, config = open_project(folder), config_of(folder, "feature_extractor.weights=latest", *overrides)
    records = choose_records(project, [], config.inference)
    return prepare(stage, project, config, records, devices=devices, overwrite=overwrite)


def finish(prepared, columns=("logits", "P", "spatial_features", "flow_features")) -> None:
    """Write results as if the plan had been executed."""
    for key, video in prepared.plan.videos.items():
        width = {name: 512 if "features" in name else 3 for name in columns}
        write_group(
            prepared.plan.outputs[key],
            prepared.plan.group,
            num_frames=video.num_frames,
            columns=width,
            blocks=[{name: np.zeros((video.num_frames, w), np.float32) for name, w in width.items()}],
            class_names=prepared.plan.class_names,
            thresholds_K=np.zeros(3),
            mark=wanted_mark(prepared.plan, key),
            provenance={},
        )


# ---------------------------------------------------------------------------------------------------- recordings


def chosen(folder, *names, **options) -> list[str]:
    config = config_of(folder, *[f"inference.{key}={value}" for key, value in options.items()])
    return [record.key for record in choose_records(open_project(folder), names, config.inference)]


def test_all_recordings_where_none_is_named(folder):
    assert chosen(folder) == ["mouse_1", "mouse_2"]


def test_a_recording_is_named_by_key_folder_or_video(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert chosen(folder, "mouse_2") == ["mouse_2"]
    assert chosen(folder, "DATA/mouse_2/") == ["mouse_2"]
    assert chosen(folder, str(folder / "DATA/mouse_2/mouse_2.mp4")) == ["mouse_2"]


def test_a_recording_named_twice_is_done_once(folder):
    assert chosen(folder, "mouse_2", str(folder / "DATA/mouse_2"), "mouse_1") == ["mouse_2", "mouse_1"]


def test_the_original_s_directory_list_is_obeyed(folder):
    assert chosen(folder, directory_list=f"[{folder}/DATA/mouse_1]") == ["mouse_1"]
    assert chosen(folder, directory_list=f"{folder}/DATA/mouse_2") == ["mouse_2"]


def test_an_unknown_recording_gets_the_nearest_names(folder):
    with pytest.raises(ProjectError, match=r"mouse_l: no recording .* Did you mean mouse_\d or mouse_\d\?"):
        chosen(folder, "mouse_l")


# ---------------------------------------------------------------------------------------------------- plans


def test_a_plan_holds_all_that_its_units_need(folder):
    found = plan(folder).plan
    assert found.group == "resnet18" and found.class_names == ("background", "groom", "rear")
    assert {key: video.num_frames for key, video in found.videos.items()} == LENGTHS
    assert found.task.weights.endswith("200101_000001_feature_extractor_train/checkpoint.pt")
    assert found.task.flow_weights.endswith("200101_000000_flow_generator_train/checkpoint.pt")
    assert found.task.resize == (32, 32) and found.thresholds == (0.5, 0.5, 0.5)
    assert sum(unit.num_frames for unit in found.units) == sum(LENGTHS.values())


def test_what_was_chosen_is_said(folder):
    notices = "\n".join(plan(folder).notices)
    assert "Feature extractor " in notices and "Flow generator " in notices and "0.5 for every behaviour" in notices


def test_planning_writes_nothing(folder):
    def listed():
        return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))

    before = listed()
    plan(folder)
    assert listed() == before


def test_what_is_done_is_left_out(folder):
    finish(plan(folder))
    again = plan(folder)
    assert again.plan is None and again.done == ("mouse_1", "mouse_2")


def test_videos_that_are_done_are_not_looked_into_again(folder, monkeypatch):
    """A thousand finished videos are skipped without opening any of them."""
    finish(plan(folder))
    monkeypatch.setattr(
        "deg.plan.infer.probe_all", lambda paths, **_: [pytest.fail(f"{path} was opened") for path in paths]
    )
    assert plan(folder).done == ("mouse_1", "mouse_2")


def test_overwrite_does_it_all_the_same(folder):
    finish(plan(folder))
    assert set(plan(folder, overwrite=True).plan.videos) == set(LENGTHS)


@pytest.mark.parametrize(
    "override",
    [
        "augs.resize=[40,40]",
        "inference.precision=bf16",
        "feature_extractor.final_activation=softmax",
        "augs.normalization.mean=[0.1,0.1,0.1]",
        "inference.frame_count=decoded",
    ],
)
def test_results_of_other_settings_are_not_taken(folder, override):
    finish(plan(folder))
    assert set(plan(folder, override).plan.videos) == set(LENGTHS)


@pytest.mark.parametrize("override", ["inference.batch_size=8", "inference.threads=1", "inference.units_per_device=9"])
def test_what_does_not_change_the_numbers_does_not_count(folder, override):
    finish(plan(folder))
    assert plan(folder, override).plan is None


def test_results_of_other_weights_are_not_taken(folder):
    finish(plan(folder))
    newer = add_weights(folder, "feature_extractor", "resnet18", "210101_000000")
    again = plan(folder)
    assert set(again.plan.videos) == set(LENGTHS) and str(newer) in again.plan.task.weights


def test_a_video_that_was_replaced_is_done_again(folder):
    finish(plan(folder))
    video = folder / "DATA/mouse_1/mouse_1.mp4"
    os.utime(video, ns=(time.time_ns(), time.time_ns()))
    again = plan(folder)
    assert again.done == ("mouse_2",) and list(again.plan.videos) == ["mouse_1"]


def test_a_result_that_was_made_by_the_original_is_made_anew(folder):
    with h5py.File(folder / "DATA/mouse_1/mouse_1_outputs.h5", "w") as file:
        file["resnet18/P"] = np.zeros((40, 3))
    assert set(plan(folder).plan.videos) == set(LENGTHS)


def test_bad_recordings_are_named_and_the_others_planned(folder):
    (folder / "DATA/mouse_3").mkdir()
    (folder / "DATA/mouse_3/mouse_3.mp4").write_bytes(b"not a video")
    (folder / "DATA/mouse_4").mkdir()
    outputs = folder / "DATA/mouse_1/mouse_1_outputs.h5"
    outputs.write_text("not HDF5")
    found = plan(folder)
    assert list(found.plan.videos) == ["mouse_2"]
    assert "no video was found in this folder" in found.failed["mouse_4"]
    assert "not a readable HDF5 file" in found.failed["mouse_1"]
    assert "mouse_3.mp4: " in found.failed["mouse_3"]


@pytest.mark.parametrize("size", [3, 48, 2 * GRAIN])
def test_a_batch_size_by_which_cuts_would_show_is_refused(folder, size):
    with pytest.raises(ConfigError, match=f"inference.batch_size = {size}, .* expected auto, 1, 2, 4"):
        plan(folder, f"inference.batch_size={size}")


@pytest.mark.parametrize("start", ["null", "random"])
def test_how_a_training_begins_does_not_matter_to_inference(folder, start):
    expected = plan(folder, "feature_extractor.weights=latest").plan
    assert plan(folder, f"feature_extractor.weights={start}").plan == expected


def test_more_devices_give_more_units(folder):
    assert len(plan(folder, devices=4).plan.units) >= len(plan(folder).plan.units)


# ---------------------------------------------------------------------------------------------------- sequence


def test_a_sequence_network_needs_features(folder):
    found = plan(folder, stage="sequence")
    assert found.plan is None
    assert "no results yet. Run `deg infer` first" in found.failed["mouse_1"]


def test_a_sequence_network_runs_over_whole_recordings(folder):
    finish(plan(folder))
    found = plan(folder, stage="sequence", devices=8).plan
    assert found.group == "tgmj" and found.task.latent_name == "resnet18"
    assert [(span.key, span.start, span.stop) for unit in found.units for span in unit.spans] == [
        ("mouse_1", 0, 40),
        ("mouse_2", 0, 600),
    ]


def test_sequence_results_last_until_the_features_are_made_anew(folder):
    finish(plan(folder))
    finish(plan(folder, stage="sequence"), columns=("logits", "P"))
    assert plan(folder, stage="sequence").plan is None
    finish(plan(folder, "augs.resize=[40,40]"))
    assert set(plan(folder, stage="sequence").plan.videos) == set(LENGTHS)


def test_features_of_another_version_of_the_video_are_not_used(folder):
    finish(plan(folder))
    os.utime(folder / "DATA/mouse_1/mouse_1.mp4", ns=(1, 1))
    found = plan(folder, stage="sequence")
    assert "another version of mouse_1.mp4" in found.failed["mouse_1"] and list(found.plan.videos) == ["mouse_2"]


# ---------------------------------------------------------------------------------------------------- images


@pytest.fixture
def images(tmp_path):
    """A project of two folders of images: `padded` has one order of frames, `unpadded` has another in DeepEthogram."""
    lab = make_project(tmp_path / "lab", {"mouse": 1})
    (lab / "DATA/padded").mkdir()
    (lab / "DATA/unpadded").mkdir()
    write_images(lab / "DATA/padded/images", 12)
    write_unpadded(lab / "DATA/unpadded/images", 12)
    return lab


def keys_of(prepared) -> list[str]:
    return list(prepared.plan.videos) if prepared.plan else []


def test_a_plan_says_which_rule_gives_the_frames(images):
    orders = {key: video.image_order for key, video in plan(images).plan.videos.items()}
    assert orders == {"mouse": "deepethogram", "padded": "deepethogram", "unpadded": "natural"}
    assert InferencePlan.from_json(plan(images).plan.to_json()).videos == plan(images).plan.videos


def test_images_that_deepethogram_takes_otherwise_are_said(images):
    (notice,) = [notice for notice in plan(images).notices if "image_order" in notice]
    assert "`unpadded`" in notice and "`padded`" not in notice
    assert not any("image_order" in notice for notice in plan(images, "project.image_order=deepethogram").notices)


def test_results_of_another_order_of_images_are_not_taken(images):
    finish(plan(images, "project.image_order=deepethogram"))
    assert keys_of(plan(images, "project.image_order=deepethogram")) == []
    finish(again := plan(images))
    assert keys_of(again) == ["unpadded"]
    assert keys_of(plan(images)) == []
    assert keys_of(plan(images, "project.image_order=deepethogram")) == ["unpadded"]


def test_results_made_before_images_had_an_order_last(images):
    finish(plan(images, "project.image_order=deepethogram"))
    for recording in ("padded", "mouse"):
        (outputs,) = (images / "DATA" / recording).glob("*_outputs.h5")
        assert "image_order" not in describe_mark(outputs, "resnet18")


def test_sequence_results_follow_the_order_of_images(images):
    finish(plan(images, "project.image_order=deepethogram"))
    finish(plan(images, stage="sequence"), columns=("logits", "P"))
    assert keys_of(plan(images, stage="sequence")) == []
    finish(plan(images))
    assert keys_of(plan(images, stage="sequence")) == ["unpadded"]


# ---------------------------------------------------------------------------------------------------- keypoints


@pytest.fixture
def tracked(folder):
    """The project; its recordings were tracked by DeepLabCut."""
    for key, num_frames in LENGTHS.items():
        write_keypoints(folder / "DATA" / key / f"{key}DLC_resnet50.csv", num_frames)
    return folder


def plan_keypoints(folder: Path):
    return plan(folder, "sequence.input_type=keypoints", "inference.use_loaded_model_cfg=false", stage="sequence")


def test_a_network_trained_on_keypoints_needs_them_and_no_features(folder):
    found = plan_keypoints(folder)
    assert found.plan is None and "there are no keypoints" in found.failed["mouse_1"]
    write_keypoints(folder / "DATA/mouse_1/mouse_1DLC.csv", LENGTHS["mouse_1"])
    found = plan_keypoints(folder)
    assert list(found.plan.videos) == ["mouse_1"] and found.plan.task.num_features == 44
    assert found.plan.sources["mouse_1"].keypoints == "mouse_1DLC.csv"


def test_keypoints_of_another_video_are_told_by_their_number(tracked):
    write_keypoints(tracked / "DATA/mouse_1/mouse_1DLC_resnet50.csv", 39)
    found = plan_keypoints(tracked)
    assert "expected keypoints for the 40 frames of the video, found 39" in found.failed["mouse_1"]
    assert list(found.plan.videos) == ["mouse_2"]


def test_results_last_until_a_video_is_tracked_anew(tracked):
    finish(plan_keypoints(tracked), columns=("logits", "P"))
    assert plan_keypoints(tracked).plan is None
    write_keypoints(tracked / "DATA/mouse_2/mouse_2DLC_resnet50.csv", LENGTHS["mouse_2"], seed=1)
    assert list(plan_keypoints(tracked).plan.videos) == ["mouse_2"]
