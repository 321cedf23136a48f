"""Videos that cannot be read: each is named with the reason and what to do, and the others of the project are done."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import av
import h5py
import pytest
from command import check, deg, infer
from scenes.project import CLASSES, add_good, make_project, place
from videos import (
    HEIGHT,
    WIDTH,
    write_cut,
    write_flipped,
    write_opencv,
    write_size_change,
    write_sound,
    write_truncated,
    write_video,
)

from deg.arithmetic.ranges import show_ranges
from deg.data.results import read_damaged
from deg.errors import show_path

pytestmark = pytest.mark.slow

NOT_UTF8 = os.fsdecode(b"M\xe4use")
QUOTED = """two words, 'one' "two" & $HOME"""
GOOD = {
    **{"good": 12, "frames_1": 1, "frames_5": 5, "frames_12": 12, "copy_1": 6, "copy_2": 6, "linked": 12},
    **{"two_sizes": 12, "stream": 20, NOT_UTF8: 6, QUOTED: 6},
}
"""Recordings that are done, and their frames. Frames get the size of the first, as in DeepEthogram."""

AT_A_GLANCE = {
    "none": ("no video was found", "Put the recording there"),
    "empty": ("is empty (0 bytes)", "Copy it again"),
    "text": ("is a text file", "Put the recording there"),
    "sound": ("no pictures, only sound", "Put the recording there"),
    "index_last": ("its index (the moov atom) is missing", "Copy it again"),
    "frames_0": ("holds no frames", "Put the recording there"),
    "dangling": ("the link leads to /nowhere/mouse.mp4, which does not exist", "Make the link again"),
    "cyclic": ("the link leads back to itself", "Make the link again"),
    "dangling_folder": ("the link leads to /nowhere/mouse, which does not exist", "Make the link again"),
    "pipe": ("neither a file nor a folder", "Put the recording there"),
    "folder": ("holds no images", "one for each frame"),
    "forbidden": ("permission denied", "Make the file and its folders readable"),
    "forbidden_folder": ("permission denied", "Make the folder readable"),
}
"""Faults seen without decoding the whole video: problem and remedy."""

DECODED = {
    "index_first": ("claims 60 frames but", "Re-encode it"),
    "flipped": ("damaged", "inference.damaged_frames=keep"),
    "edit_list": ("claims 20 frames but", "Re-encode it"),
}
"""Faults seen only by decoding the whole video: problem and remedy."""

GROWING = {"growing": ("it changed while it was read", "Wait until the recording or the copy is finished")}


@pytest.fixture(scope="module")
def bound_by_permissions():
    """Command that starts a program for which permissions hold: root loses its right to ignore them."""
    if os.geteuid() != 0:
        return ()
    prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("as root, who may read everything, these tests need setpriv and the right to use it")
    return prefix


@pytest.fixture(scope="module")
def lab(tmp_path_factory, models):
    """A project with a recording for each name above."""
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("videos") / QUOTED
    lab = make_project(folder, models=models)
    for key in ("good", "frames_1", "frames_5", "frames_12", QUOTED):
        add_good(lab, key, GOOD[key])
    write_video(made / "tmp.mp4", GOOD[NOT_UTF8]).rename(place(lab, NOT_UTF8))
    for key in ("copy_1", "copy_2"):
        write_video(place(lab, key, "same.mp4"), GOOD[key])
    place(lab, "linked").symlink_to(lab / "DATA" / "good" / "good.mp4")

    place(lab, "none").with_name("notes.txt").write_text("The camera was off.")
    place(lab, "empty").touch()
    place(lab, "text").write_text("The camera was off.\n" * 100)
    write_sound(place(lab, "sound"))
    write_truncated(place(lab, "index_last"), write_video(made / "last.mp4", 60), 0.6)
    write_opencv(made / "no_frames.avi", 0).rename(place(lab, "frames_0", "frames_0.avi"))  # OpenCV wants UTF-8
    write_size_change(place(lab, "stream"), 10)
    place(lab, "dangling").symlink_to("/nowhere/mouse.mp4")
    place(lab, "cyclic").symlink_to(place(lab, "cyclic"))
    (lab / "DATA" / "dangling_folder").symlink_to("/nowhere/mouse")
    os.mkfifo(place(lab, "pipe"))
    place(lab, "folder").mkdir()
    add_good(lab, "forbidden").chmod(0o000)
    add_good(lab, "forbidden_folder").parent.chmod(0o000)

    first = write_video(made / "first.mp4", 60, container={"movflags": "faststart"})
    write_truncated(place(lab, "index_first"), first, 0.6)
    write_flipped(place(lab, "flipped"), write_video(made / "whole.mp4", 60), at=0.4, count=500)
    write_cut(place(lab, "edit_list"), write_video(made / "groups.mp4", 20, options={"g": "5"}), 7)
    write_two_sizes(place(lab, "two_sizes", "two_sizes.avi"), made)
    add_good(lab, "growing", 30)
    yield lab
    (lab / "DATA" / "forbidden_folder").chmod(0o700)


def write_two_sizes(path: Path, made: Path) -> None:
    """Write an AVI whose last 6 of 12 images are twice as large as its header says."""
    small = write_video(made / "small.avi", 6, codec="mjpeg", pixels="yuvj420p")
    large = write_video(made / "large.avi", 6, codec="mjpeg", pixels="yuvj420p", size=(2 * HEIGHT, 2 * WIDTH))
    with av.open(str(small)) as first, av.open(str(large)) as second, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(first.streams.video[0])
        for position, source in enumerate((first, second)):
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.pts = packet.dts = packet.dts + 6 * position
                    packet.stream = stream
                    file.mux(packet)


@pytest.fixture(scope="module")
def inferred(lab, bound_by_permissions):
    """The answer of `deg infer`, during which one video grows."""
    ended = threading.Event()

    def grow() -> None:
        while not ended.wait(0.1):
            if list(lab.glob("models/*_inference/plan.json")):
                with place(lab, "growing").open("ab") as file:
                    file.write(b"frames")

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        return infer(lab, prefix=bound_by_permissions)
    finally:
        ended.set()
        thread.join()


def test_infer_does_the_good_recordings_and_ends_with_status_1(inferred):
    assert set(inferred.json["done"]) == set(GOOD)
    assert set(inferred.json["failed"]) == {*AT_A_GLANCE, *DECODED, *GROWING}
    assert inferred.json["waiting"] == []
    assert inferred.status == 1


def test_results_have_a_row_for_each_frame(lab, inferred):
    rows = {}
    for key in GOOD:
        (outputs,) = (lab / "DATA" / key).glob("*_outputs.h5")
        with h5py.File(outputs, "r") as file:
            rows[key] = file["resnet18"]["P"].shape
    wrong = [f"{show_path(key)}: {rows[key]}" for key, frames in GOOD.items() if rows[key] != (frames, len(CLASSES))]
    assert not wrong, "\n".join(wrong)


def test_infer_names_each_bad_video_with_reason_and_remedy(lab, inferred):
    faults = {**AT_A_GLANCE, **DECODED, **GROWING}
    wrong = []
    for key, (problem, remedy) in faults.items():
        reason = inferred.json["failed"].get(key, "not named")
        is_told = show_path(lab / "DATA" / key) in reason and problem in reason and remedy in reason
        if not is_told or "\n" in reason or f"{key}: FAILED: {reason}" not in inferred.told:
            wrong.append(f"{key}: {reason}")
    assert not wrong, "\n".join(wrong)
    left = [path for key in faults for name in ("*_outputs.h5", ".*") for path in (lab / "DATA" / key).glob(name)]
    assert left == []


def unnamed(faults: dict[str, tuple[str, str]], said: dict[str, str]) -> list[str]:
    """Return the messages on each recording whose fault is not reported as an error with problem and remedy."""
    return [
        f"{key}: {said.get(key)}"
        for key, (problem, remedy) in faults.items()
        if not said.get(key, "").startswith("error: ") or problem not in said[key] or remedy not in said[key]
    ]


def test_check_names_what_is_seen_at_a_glance(lab, in_process):
    said = check(lab)
    forbidden = {"forbidden", "forbidden_folder"} if os.geteuid() == 0 else set()  # root ignores them
    wrong = unnamed({key: fault for key, fault in AT_A_GLANCE.items() if key not in forbidden}, said)
    assert not wrong, "\n".join(wrong)
    assert "2 recordings have a video called `same` (copy_1, copy_2)" in said[""]


def test_check_deep_names_every_fault_and_none_in_good_recordings(lab, bound_by_permissions):
    said = check(lab, "--deep", prefix=bound_by_permissions)
    wrong = unnamed({**AT_A_GLANCE, **DECODED}, said)
    assert not wrong, "\n".join(wrong)
    assert not {show_path(key) for key in GOOD} & said.keys()


def test_a_damaged_video_can_be_used_up_to_the_damage(lab, in_process):
    answer = infer(lab, "--dry-run", "--videos", "edit_list", "inference.frame_count=decoded")
    assert answer.json["plan"]["units"] == [[["edit_list", 0, 13]]] and answer.status == 0


def test_damaged_frames_can_be_kept_and_are_listed(lab, inferred, in_process):
    keep = "inference.damaged_frames=keep"
    answer = infer(lab, "--videos", "flipped", keep)
    assert answer.status == 0 and answer.json["done"] == ["flipped"]
    (outputs,) = (lab / "DATA" / "flipped").glob("*_outputs.h5")
    damaged = read_damaged(outputs)
    assert damaged and all(0 < one.start < one.stop <= 60 for one in damaged)
    assert h5py.File(outputs)["resnet18"]["P"].shape == (60, len(CLASSES))
    assert (
        f"error: {show_path(place(lab, 'flipped'))}: frames {show_ranges(damaged)}" in check(lab, "--deep")["flipped"]
    )
    said = check(lab, "--deep", keep)["flipped"]
    assert said.startswith("warning: ") and show_ranges(damaged) in said
    page = deg("report", lab, "--json").json["page"]
    assert f"Damaged frames of the video: {show_ranges(damaged)}." in Path(page).read_text()
    again = infer(lab, "--videos", "flipped")
    assert (again.status, again.json["failed"]) == (0, {}), "it is outdated without the option"


def test_add_refuses_bad_videos_and_takes_the_others(tmp_path, lab, bound_by_permissions):
    project = make_project(tmp_path / "lab")
    keys = ("good", "empty", "index_first", "dangling", "forbidden_folder", "frames_1", NOT_UTF8)
    sources = {key: place(lab, key) for key in keys}
    videos = [*sources.values(), sources["good"], tmp_path / "absent.mp4"]
    answer = deg("add", project, *videos, "--json", prefix=bound_by_permissions)
    assert answer.status == 1
    assert set(answer.json["added"]) == {"good", "frames_1", NOT_UTF8} == {p.name for p in project.glob("DATA/*")}
    failed = answer.json["failed"]
    assert "is empty (0 bytes)" in failed[str(sources["empty"])]
    assert "claims 60 frames" in failed[str(sources["index_first"])]
    assert "the link leads to /nowhere/mouse.mp4" in failed[str(sources["dangling"])]
    assert "permission denied" in failed[str(sources["forbidden_folder"])]
    assert "the file does not exist. Correct the path" in failed[str(tmp_path / "absent.mp4")]
    assert "already has a recording of this name" in failed[str(sources["good"])]


def test_a_project_cannot_be_made_where_its_path_cannot_be_written_down(in_process, tmp_path):
    answer = in_process("new", tmp_path / NOT_UTF8, "--behaviors", "groom")
    assert answer.status == 2 and "M\\xe4use: expected a path in UTF-8" in answer.told
    assert not (tmp_path / NOT_UTF8).exists()
