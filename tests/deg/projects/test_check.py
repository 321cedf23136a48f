"""`deg check` says what is in a project, and finds what would end a run days later."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import videos
import yaml
from image_folders import write_unpadded

from deg.data.labels import write_labels
from deg.options.load import load_config
from deg.projects.add import add_recording
from deg.projects.check import check_project
from deg.projects.project import create_project, open_project, write_split

FRAMES = 12


def write_video(path: Path, num_frames: int = FRAMES) -> Path:
    path.parent.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(num_frames):
        writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    return path


def labels(num_frames: int = FRAMES) -> np.ndarray:
    """Return labels of background, groom and rear in turn."""
    return np.eye(3, dtype=np.int8)[np.arange(num_frames) % 3]


@pytest.fixture(scope="module")
def sound_project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    project = create_project(folder / "lab", ["groom", "rear"])
    for key in ("a", "b", "c"):
        write_labels(folder / f"{key}.csv", labels(), project.class_names)
        add_recording(project, write_video(folder / f"{key}.avi"), folder / f"{key}.csv")
    run = project.model_path / "200101_000000_feature_extractor_train"
    run.mkdir()
    (run / "checkpoint.pt").touch()
    (run / "config.yaml").write_text(
        yaml.safe_dump({"run": {"model": "feature_extractor"}, "feature_extractor": {"arch": "resnet18"}})
    )
    return project.path


@pytest.fixture
def folder(sound_project, tmp_path):
    """A copy of a faultless project, in which a test makes a fault."""
    return Path(shutil.copytree(sound_project, tmp_path / "lab"))


def check(folder: Path, *overrides: str, deep: bool = False):
    project = open_project(folder)
    return check_project(project, load_config(project.config_file, overrides), deep)


def told(report) -> list[str]:
    """Return the issues as `key severity: message`."""
    return [f"{issue.key} {issue.severity}: {issue.message}" for issue in report.issues]


def the_only(messages: list[str]) -> str:
    assert len(messages) == 1, messages
    return messages[0]


# ---- what is in it


def test_a_sound_project_has_no_issues(folder):
    report = check(folder, deep=True)
    assert report.issues == ()
    assert report.ok
    assert [recording.key for recording in report.recordings] == ["a", "b", "c"]
    first = report.recordings[0]
    assert (first.video, first.frames, first.frames_decoded) == ("a.avi", FRAMES, FRAMES)
    assert (first.width, first.height, first.fps) == (64, 48, 25.0)
    assert (first.labels, first.frames_labelled) == ("complete", FRAMES)
    assert first.positives == {"background": 4, "groom": 4, "rear": 4}
    assert report.positives == {"unassigned": {"background": 12, "groom": 12, "rear": 12}}
    assert [(found.model, found.arch) for found in report.weights] == [("feature_extractor", "resnet18")]


def test_the_report_is_json_and_nothing_is_written(folder):
    before = sorted(folder.rglob("*"))
    report = json.loads(json.dumps(check(folder).as_dict()))
    assert report["ok"] is True
    assert report["recordings"][2]["key"] == "c"
    assert sorted(folder.rglob("*")) == before


def test_the_original_project(shared_data):
    report = check(shared_data("data/deg_project_original"))
    assert [message for message in told(report) if "read-only" not in message] == [
        " warning: there are no weights of a feature extractor: train one before inference."
    ]
    assert [recording.frames for recording in report.recordings] == [300, 360, 420, 90]
    assert [recording.labels for recording in report.recordings] == ["complete", "complete", "complete", "none"]
    assert report.recordings[0].results == {"resnet18": 300, "tgmj": 300}
    assert [recording.part for recording in report.recordings] == ["train", "val", "train", "train"]
    assert set(report.positives) == {"train", "val"}
    assert "sequence" in {found.model for found in report.weights}


# ---- videos


def test_a_video_that_deepethogram_does_not_see(folder):
    (folder / "DATA/a/a.avi").unlink()
    videos.write_video(folder / "DATA/a/a.mkv", FRAMES)
    report = check(folder)
    message = the_only(told(report))
    assert message.startswith("a warning: ") and "ffmpeg -i a.mkv -c copy a.mp4" in message
    assert report.ok and (report.recordings[0].video, report.recordings[0].frames) == ("a.mkv", FRAMES)


def test_a_video_of_another_container_is_not_used_beside_one_that_deepethogram_sees(folder):
    videos.write_video(folder / "DATA/a/a.mkv", FRAMES)
    report = check(folder)
    assert "2 videos (a.avi, a.mkv): a.avi is used" in the_only(told(report))
    assert report.recordings[0].video == "a.avi"


def test_images_that_deepethogram_takes_otherwise(folder):
    (folder / "DATA/a/a.avi").unlink()
    write_unpadded(folder / "DATA/a/images", FRAMES)
    message = the_only(told(check(folder)))
    assert message.startswith("a warning: ") and "takes img10.png before img9.png" in message
    assert "image_order: deepethogram" in message
    assert told(check(folder, "project.image_order=deepethogram")) == []


@pytest.mark.parametrize("deep", [False, True])
def test_images_with_endings_in_capitals_count_unless_deepethograms_are_kept(folder, deep):
    (folder / "DATA/a/a.avi").unlink()
    images = write_unpadded(folder / "DATA/a/images", FRAMES)
    (images / "img3.png").rename(images / "img3.PNG")
    assert check(folder, deep=deep).recordings[0].frames == FRAMES
    assert check(folder, "project.image_order=deepethogram", deep=deep).recordings[0].frames == FRAMES - 1


def test_a_video_that_cannot_be_opened(folder):
    (folder / "DATA/a/a.avi").write_bytes(b"")
    report = check(folder)
    assert the_only(told(report)).startswith("a error: ")
    assert not report.ok


def test_no_video(folder):
    (folder / "DATA/a/a.avi").rename(folder / "DATA/a/overflow.avi")
    message = the_only(told(check(folder)))
    assert message.startswith("a error: ") and "no video" in message and "overflow.avi" in message


def test_frames_that_only_decoding_finds_missing(folder):
    path = folder / "DATA/a/a.avi"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    believing = [message for message in told(check(folder)) if "can be decoded" in message]
    assert believing == []
    message = next(message for message in told(check(folder, deep=True)) if "can be decoded" in message)
    assert message.startswith("a error: ") and "frame_count=decoded" in message


def test_labels_are_held_against_the_frames_that_are_used(folder):
    path = folder / "DATA/a/a.avi"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    decodable = next(r for r in check(folder, deep=True).recordings if r.key == "a").frames_decoded
    assert 0 < decodable < FRAMES
    write_labels(folder / "DATA/a/a_labels.csv", labels(decodable), ("background", "groom", "rear"))
    messages = told(check(folder, "inference.frame_count=decoded", deep=True))
    assert not [message for message in messages if "error" in message]


# ---- labels


@pytest.mark.parametrize("rows", [FRAMES - 1, FRAMES + 1, FRAMES // 2])
def test_labels_of_another_length(folder, rows):
    write_labels(folder / "DATA/a/a_labels.csv", labels(rows), ("background", "groom", "rear"))
    report = check(folder)
    message = the_only(told(report))
    assert message.startswith("a error: ") and f"{rows} rows" in message
    assert report.recordings[0].labels == "unusable"


def test_labels_of_other_behaviours(folder):
    write_labels(folder / "DATA/a/a_labels.csv", labels(), ("background", "groom", "sniff"))
    message = the_only(told(check(folder)))
    assert message.startswith("a error: ") and "`sniff` unknown" in message


def test_columns_in_another_order_are_counted_by_name(folder):
    write_labels(folder / "DATA/a/a_labels.csv", labels(), ("rear", "groom", "background"))
    report = check(folder)
    assert the_only(told(report)).startswith("a warning: ")
    assert report.recordings[0].positives == {"background": 4, "groom": 4, "rear": 4}


def test_partial_labels(folder):
    partial = labels()
    partial[7:] = -1
    write_labels(folder / "DATA/a/a_labels.csv", partial, ("background", "groom", "rear"))
    report = check(folder)
    assert (report.recordings[0].labels, report.recordings[0].frames_labelled) == ("partial", 7)
    assert report.positives["unassigned"] == {"background": 8, "groom": 8, "rear": 8}


def test_rows_that_contradict_themselves(folder):
    odd = labels()
    odd[0], odd[1] = (0, 0, 0), (1, 1, 0)
    write_labels(folder / "DATA/a/a_labels.csv", odd, ("background", "groom", "rear"))
    nothing, both = told(check(folder))
    assert nothing.startswith("a warning: 1 frames have no label")
    assert both.startswith("a warning: 1 frames are background and a behaviour")


def test_a_behaviour_that_nobody_marked(folder):
    for key in ("a", "b", "c"):
        quiet = labels() * np.array([1, 1, 0], dtype=np.int8) + (labels() == [2, 2, 1]) * np.array([[1, 0, 0]])
        quiet[quiet.sum(axis=1) == 0, 0] = 1
        write_labels(folder / f"DATA/{key}/{key}_labels.csv", quiet, ("background", "groom", "rear"))
    assert "no labelled recording has a frame of `rear`" in the_only(told(check(folder)))


def test_too_few_labelled(folder):
    for key in ("a", "b"):
        (folder / f"DATA/{key}/{key}_labels.csv").unlink()
    assert the_only(told(check(folder))).startswith(" warning: 1 of 3 recordings are labelled completely")


# ---- the split


def test_a_split_with_videos_that_are_gone_or_new_or_twice(folder):
    write_split(folder / "DATA/split.yaml", {"train": ["a", "gone"], "val": ["b"], "test": ["b"]}, (0.8, 0.2, 0))
    messages = told(check(folder))
    assert any("`gone`" in message and "not in the project" in message for message in messages)
    assert any("1 recordings are not in" in message for message in messages)
    assert any(message.startswith("b warning: ") and "val and test" in message for message in messages)
    assert len(messages) == 3


def test_validation_that_has_not_every_behaviour(folder):
    write_split(folder / "DATA/split.yaml", {"train": ["a", "b"], "val": ["c"], "test": []}, (0.8, 0.2, 0))
    write_labels(folder / "DATA/c/c_labels.csv", labels() * 0 + [1, 0, 0], ("background", "groom", "rear"))
    groom, rear = told(check(folder))
    assert "val has a frame of `groom`" in groom and "val has a frame of `rear`" in rear


def test_a_broken_or_missing_split_file(folder):
    (folder / "DATA/split.yaml").write_text("train: 3\n")
    assert the_only(told(check(folder))).startswith(" error: ")
    assert "split.file" in the_only(told(check(folder, "split.file=gone.yaml")))


# ---- results


def write_results(path: Path, num_frames: int = FRAMES, names=("background", "groom", "rear")) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("resnet18")
        group["P"] = np.zeros((num_frames, len(names)), np.float32)
        group["thresholds"] = np.zeros(len(names), np.float32)
        group["class_names"] = list(names)


def test_sound_results(folder):
    write_results(folder / "DATA/a/a_outputs.h5")
    report = check(folder)
    assert told(report) == []
    assert report.recordings[0].results == {"resnet18": FRAMES}


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: write_results(path, FRAMES - 1), f"has {FRAMES - 1} frames, the video {FRAMES}"),
        (lambda path: write_results(path, names=("background", "groom")), "no column for rear"),
        (lambda path: h5py.File(path, "w").close(), "holds no results"),
        (lambda path: path.write_bytes(b"text"), "not a readable HDF5 file"),
        (lambda path: h5py.File(path, "w").create_group("resnet18").file.close(), "lacks"),
    ],
    ids=["length", "behaviours", "empty", "no HDF5", "half"],
)
def test_results_that_are_not_whole(folder, damage, word):
    damage(folder / "DATA/a/a_outputs.h5")
    message = the_only(told(check(folder)))
    assert message.startswith("a ") and word in message


# ---- the rest


def test_no_weights(folder):
    shutil.rmtree(folder / "models/200101_000000_feature_extractor_train")
    assert "no weights of a feature extractor" in the_only(told(check(folder)))


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"N": 4}, "made from 4 frames"),
        ({"N": 2.4e9}, "counts pixels"),
        ({"mean": [0, 0]}, "expected `normalization`"),
        ({"mean": [122.0, 121.0, 119.0]}, "means from 0 to 1"),
        ({"std": [0.0, 0.1, 0.1]}, "above 0"),
    ],
)
def test_statistics_that_are_odd(folder, changed, word):
    config = load_config(folder / "project_config.yaml")
    content = yaml.safe_load((folder / "project_config.yaml").read_text())
    content["augs"]["normalization"].update(changed)
    (folder / "project_config.yaml").write_text(yaml.safe_dump(content))
    issues = check_project(open_project(folder), config).issues
    assert word in the_only([issue.message for issue in issues])


def test_two_videos_of_one_name(folder):
    shutil.copytree(folder / "DATA/a", folder / "DATA/a copy")
    messages = told(check(folder))
    assert any("2 recordings have a video called `a`" in message for message in messages)


def test_what_a_killed_add_left(folder):
    (folder / "DATA/.d.0badcafe.part").mkdir()
    assert "killed" in the_only(told(check(folder)))


def test_names_that_are_not_utf8(folder):
    key = os.fsdecode(b"mouse_\xff")
    (folder / "DATA/a").rename(folder / "DATA" / key)
    report = check(folder)
    assert report.ok
    assert json.dumps(report.as_dict(), ensure_ascii=False).encode()
    assert report.recordings[2].key == "mouse_\\xff"


def test_a_project_without_recordings(tmp_path):
    create_project(tmp_path / "lab", ["groom"])
    assert any("holds no recordings" in message for message in told(check(tmp_path / "lab")))
