"""deg finds the same files as DeepEthogram, and names the traps in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deg.projects.inventory import (
    OTHER_EXTENSIONS,
    choose,
    discover,
    find_files,
    find_unseen,
    read_record,
    record_listing,
    warnings,
    write_record_yaml,
)


@pytest.fixture
def folder(tmp_path):
    """`folder("a.mp4", "frames/")` makes a recording with these files and folders."""

    def make(*names: str, key: str = "mouse") -> Path:
        for name in ("", *names):
            path = tmp_path / key / name
            if name.endswith("/") or not name:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.touch()
        return tmp_path / key

    return make


def name_of(path: Path | None) -> str | None:
    return None if path is None else path.name


def test_one_folder_one_recording_in_the_order_of_names(tmp_path, folder):
    for key in ("b", "a", "C"):
        folder(f"{key}.mp4", key=key)
    (tmp_path / "split.yaml").touch()
    assert [record.key for record in discover(tmp_path)] == ["C", "a", "b"]


def test_hidden_folders_are_no_recordings(tmp_path, folder):
    folder("a.mp4", key="a")
    folder("b.mp4", key=".b.123.part")
    assert [record.key for record in discover(tmp_path)] == ["a"]


def test_a_finished_recording(folder):
    files = ["m.mp4", "m_labels.csv", "m_outputs.h5", "m_predictions.csv", "mDLC.csv", "record.yaml", "stats.yaml"]
    record = read_record(folder(*files))
    assert record.key == "mouse"
    found = (record.video, record.labels, record.outputs, record.keypoints)
    assert [name_of(path) for path in found] == ["m.mp4", "m_labels.csv", "m_outputs.h5", "mDLC.csv"]


CHOSEN = [
    (["a.avi", "a.mp4"], "rgb", "a.avi"),
    (["a.avi", "b.avi"], "rgb", "b.avi"),
    (["a.avi", "m_DLC.h5"], "rgb", "m_DLC.h5"),
    (["a.mp4", "frames/"], "rgb", "frames"),
    (["a.mp4", "images/"], "rgb", "a.mp4"),
    (["images/"], "rgb", "images"),
    (["Frames/", "b.MP4"], "rgb", "b.MP4"),
    (["b.mov", "a.MP4"], "rgb", "a.MP4"),
    (["a.MP4", "b.mp4"], "rgb", "b.mp4"),
    (["a.mov", ".ipynb_checkpoints/"], "rgb", "a.mov"),
    (["aframe/", "frame.mp4/"], "rgb", "frame.mp4"),
    (["overflow.mp4"], "rgb", None),
    (["Flow.mp4"], "rgb", "Flow.mp4"),
    (["outputs.h5", "my_scores.avi"], "rgb", None),
    (["a.mkv"], "rgb", None),
    (["a_labels.csv", "a_labels.h5"], "label", "a_labels.h5"),
    (["a_Labels.CSV"], "label", "a_Labels.CSV"),
    (["a_labels.csv", "b_scores.csv"], "label", "a_labels.csv"),
    (["a_labels.txt", "b_labels.csv"], "label", "a_labels.txt"),
    (["a_labels.csv", "mouseLabel.mp4"], "label", "mouseLabel.mp4"),
    (["labels/"], "label", None),
    (["a_outputs.h5", "b_Output.h5"], "output", "b_Output.h5"),
    (["a_outputs.csv"], "output", None),
    (["DLC.csv", "dlc.h5"], "keypoint", "DLC.csv"),
    (["a_flow.mp4", "flow_frames/"], "flow", "flow_frames"),
    (["a_stats.yaml", "Stats.yaml"], "stats", "a_stats.yaml"),
]
"""Files, the kind that is looked for, and the answer of DeepEthogram 0.5.0 for such folders."""


def test_the_file_chosen_is_the_one_that_deepethogram_chooses(folder):
    wrong = []
    for number, (names, kind, chosen) in enumerate(CHOSEN):
        answer = name_of(choose(find_files(folder(*names, key=str(number)))[kind]))
        if answer != chosen:
            wrong.append(f"{kind} of {names}: {answer}, not {chosen}")
    assert not wrong, "\n".join(wrong)


@given(st.permutations([Path(name) for name in ("b.h5", "a.avi", "c.mp4", "d.mov")]))
def test_the_type_decides_before_the_name(candidates):
    assert choose(candidates) == Path("b.h5")


def test_a_file_that_is_being_written_is_not_seen(folder):
    record = read_record(folder("a.mp4", "b_labels.csv", ".a_labels.csv.99.part"))
    assert name_of(record.labels) == "b_labels.csv"


def test_names_that_are_not_utf8(tmp_path):
    key = os.fsdecode(b"mouse_\xff")
    (tmp_path / key).mkdir()
    (tmp_path / key / os.fsdecode(b"\xe9.mp4")).touch()
    (record,) = discover(tmp_path)
    assert record.key == key
    write_record_yaml(record.folder)
    assert yaml.safe_load((record.folder / "record.yaml").read_text())["key"] == key
    assert warnings(record) == []


def test_results_lie_beside_the_video(folder):
    record = read_record(folder("m.2020.mp4"))
    assert record.outputs is None
    assert record.outputs_path.name == "m.2020_outputs.h5"


def test_record_yaml_is_the_one_that_deepethogram_writes(shared_data):
    for recording in ("field_1", "field_2", "field_3"):
        stored = shared_data("data/deg_project_original") / "DATA" / recording
        written = yaml.safe_load((stored / "record.yaml").read_text())
        written["output"] = {"all": [f"{recording}_outputs.h5"], "default": f"{recording}_outputs.h5"}  # came later
        assert record_listing(stored) == written


def messages(folder: Path) -> list[str]:
    return [f"{issue.severity}: {issue.message}" for issue in warnings(read_record(folder))]


def test_an_ordinary_recording_has_no_traps(folder):
    assert messages(folder("m.mp4", "m_labels.csv", "m_outputs.h5", "m_predictions.csv", "m_flows.mp4")) == []


def test_a_video_hidden_by_its_name_is_told(folder):
    (message,) = messages(folder("overflow.mp4"))
    assert message.startswith("error: ") and "no video" in message
    assert "overflow.mp4" in message and "`flow`" in message


def test_a_folder_without_video_is_told(folder):
    (message,) = messages(folder("m_outputs.h5"))
    assert message.startswith("error: ") and "no video was found in this folder, and no folder of images" in message


def test_keypoints_taken_for_the_video_are_told(folder):
    several, keypoints = messages(folder("m.mp4", "mDLC_resnet50.h5"))
    assert "mDLC_resnet50.h5 is used" in several
    assert "keypoints" in keypoints


def test_several_label_files_are_told(folder):
    (message,) = messages(folder("m.mp4", "a_labels.csv", "b_labels.csv"))
    assert "a_labels.csv is used" in message


def test_labels_that_nobody_can_read_are_told(folder):
    (message,) = messages(folder("m.mp4", "m_labels.xlsx"))
    assert "m_labels.xlsx" in message and ".csv" in message


def test_results_of_another_video_are_told(folder):
    (message,) = messages(folder("m.mp4", "old_outputs.h5"))
    assert "old_outputs.h5" in message and "m_outputs.h5" in message


# ---- videos that DeepEthogram does not see


def test_where_deepethogram_sees_no_video_another_container_is_taken(folder):
    wrong = []
    for extension in OTHER_EXTENSIONS:
        for name in (f"m{extension}", f"m{extension.upper()}"):
            found = name_of(read_record(folder(name, "m_labels.csv", key=name)).video)
            if found != name:
                wrong.append(f"{name}: {found}")
    assert not wrong, "\n".join(wrong)


SEEN = [
    (["a.mkv", "b.mp4"], "b.mp4"),
    (["a.mkv", "b.MOV"], "b.MOV"),
    (["a.mkv", "frames/"], "frames"),
    (["a.mkv", "notes/"], "notes"),
    (["b.webm", "a.ts"], "a.ts"),
    (["overflow.mkv"], None),
    (["overflow.mp4", "a.mkv"], "a.mkv"),
    ([".a.mkv.99.part", "b.mkv"], "b.mkv"),
    (["a.mkv/"], "a.mkv"),
]
"""Files, and the video: DeepEthogram's choice, or one that it does not see if it has none."""


@pytest.mark.parametrize(("names", "video"), SEEN, ids=lambda value: str(value))
def test_what_deepethogram_sees_is_chosen_first(folder, names, video):
    assert name_of(read_record(folder(*names)).video) == video


@given(st.sets(st.sampled_from([f"{stem}{end}" for stem in "ab" for end in (".avi", ".mp4", ".mov", ".h5", ".MP4")])))
def test_files_of_other_containers_never_change_deepethograms_choice(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("mouse")
    for name in names:
        (folder / name).touch()
    alone = read_record(folder)
    for extension in OTHER_EXTENSIONS:
        (folder / f"aa{extension}").touch()
    together = read_record(folder)
    assert together == alone if names else together.video in find_unseen(folder)


def test_record_yaml_does_not_name_videos_that_deepethogram_does_not_see(folder):
    assert record_listing(folder("m.mkv"))["rgb"] == {"all": [], "default": []}


def test_a_video_that_deepethogram_does_not_see_is_told_with_the_command_that_helps(folder):
    (message,) = messages(folder("the mouse.mkv"))
    assert message.startswith("warning: ") and "DeepEthogram sees only .avi, .mp4, .h5, .mov" in message
    assert "`ffmpeg -i 'the mouse.mkv' -c copy 'the mouse.mp4'`" in message


def test_a_video_that_is_not_used_beside_one_that_is_seen_is_told(folder):
    (message,) = messages(folder("m.mkv", "m.mp4"))
    assert "2 videos (m.mkv, m.mp4): m.mp4 is used" in message


def test_another_container_hidden_by_its_name_is_told(folder):
    (message,) = messages(folder("overflow.mkv"))
    assert message.startswith("error: ") and "overflow.mkv" in message and "`flow`" in message


def test_images_that_deepethogram_takes_otherwise_are_told_unless_its_order_is_kept(folder):
    record = read_record(folder("images/", "images/img1.png", "images/img2.png", "images/img10.PNG"))
    (issue,) = warnings(record)
    assert issue.severity == "warning" and "project_config.yaml" in issue.message
    assert "does not see 1 of the 3 images" in issue.message and "img10.PNG" in issue.message
    assert warnings(record, "deepethogram") == []
