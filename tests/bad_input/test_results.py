"""Outputs files that cannot be read or written stay as they are; the others are done. Once repaired, all are done."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
from command import check, infer
from scenes.project import CLASSES, add_good, make_project, write_results
from scenes.run import frame_numbers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]
"""These tests start commands, whose workers are processes, and processes that hold files open."""

FRAMES = 40
HOLD = """
import sys, time, h5py
from pathlib import Path
while not list(Path(sys.argv[2]).glob(sys.argv[3])):
    time.sleep(0.02)
with h5py.File(sys.argv[1], "a"):
    print("open", flush=True)
    sys.stdin.read()
"""
"""A program that waits for a file to appear, then has an outputs file open for writing until its input ends."""

REFUSED = {
    "truncated": ("not a readable HDF5 file (truncated?)", "Move it away, then run again"),
    "text": ("not a readable HDF5 file (truncated?)", "Move it away, then run again"),
    "read_only": ("the file is read-only", "Make it writable (chmod u+w) or move it away"),
    "locked": ("another program has it open for writing", "Close it there (the GUI?), then run again"),
}
"""Results that deg may not or cannot replace: problem and remedy."""
REPLACED = ("good", "absent", "empty", "half")


@pytest.fixture
def lab(tmp_path, scripted):
    """A project whose recordings have results of every kind; workers compute nothing."""
    lab = make_project(tmp_path / "lab", dict.fromkeys([*REFUSED, *REPLACED], FRAMES))
    for key in (*REFUSED, "good", "half"):
        write_results(outputs(lab, key), FRAMES)
    write_results(outputs(lab, "good"), FRAMES, group="tgmj")
    with outputs(lab, "truncated").open("r+b") as file:
        file.truncate(20_000)
    outputs(lab, "text").write_text("The camera was off.")
    outputs(lab, "read_only").chmod(0o444)
    outputs(lab, "empty").touch()
    with h5py.File(outputs(lab, "half"), "a") as file:
        del file["resnet18"]["P"], file["resnet18"]["flow_features"]
    return lab


def outputs(lab: Path, key: str) -> Path:
    return lab / "DATA" / key / f"{key}_outputs.h5"


def all_bytes(lab: Path, keys) -> dict[str, bytes]:
    return {key: outputs(lab, key).read_bytes() for key in keys}


@contextmanager
def held_open(path: Path, *, after: str = "project_config.yaml"):
    """Have another process open `path` for writing as soon as a file `after` appears in the project."""
    folder = path.parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, path, folder, after], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        if list(folder.glob(after)):
            holder.stdout.readline()
        yield
    finally:
        holder.stdin.close()
        holder.wait()


def test_bad_results_stay_as_they_are_until_they_are_put_right(lab):
    with held_open(outputs(lab, "locked")):
        said = check(lab)
        before = all_bytes(lab, ("truncated", "text", "read_only"))
        answer = infer(lab)
        assert all_bytes(lab, before) == before
    for key, (problem, remedy) in REFUSED.items():
        for reason in (answer.json["failed"][key], said[key]):
            assert str(outputs(lab, key)) in reason and problem in reason and remedy in reason
        assert "\n" not in answer.json["failed"][key] and said[key].startswith("error: ")
    assert "lacks P" in said["half"] and "empty_outputs.h5" in said["empty"]
    assert set(answer.json["failed"]) == set(REFUSED)
    assert set(answer.json["done"]) == set(REPLACED)
    assert answer.status == 1
    for key in REPLACED:
        assert list(frame_numbers(outputs(lab, key))) == list(range(FRAMES))
    with h5py.File(outputs(lab, "good"), "r") as file:
        assert set(file) == {"resnet18", "tgmj"}

    outputs(lab, "truncated").unlink()
    outputs(lab, "text").unlink()
    outputs(lab, "read_only").chmod(0o644)
    answer = infer(lab)
    assert set(answer.json["done"]) == set(REFUSED) and set(answer.json["already_done"]) == set(REPLACED)
    assert answer.status == 0


def test_results_opened_elsewhere_during_the_run_are_written_when_they_are_closed(tmp_path, scripted):
    lab = make_project(tmp_path / "lab", {"free": FRAMES, "held": FRAMES})
    write_results(outputs(lab, "held"), FRAMES)
    scripted(pause=1.0)
    with held_open(outputs(lab, "held"), after="models/*_inference/plan.json"):
        answer = infer(lab)
    assert answer.json["done"] == ["free"] and answer.json["waiting"] == ["held"] and answer.status == 1
    assert "another program has it open for writing" in answer.json["failed"]["held"]
    answer = infer(lab)
    assert "Resuming the interrupted run" in answer.told and "0 of 1 units to do" in answer.told
    assert answer.status == 0
    assert list(frame_numbers(outputs(lab, "held"))) == list(range(FRAMES))


def test_a_sequence_network_says_which_features_it_lacks(lab):
    answer = infer(lab, stage="sequence")
    failed = answer.json["failed"]
    assert set(answer.json["done"]) == {"good", "locked"} and answer.status == 1
    assert "group resnet18 lacks flow_features" in failed["half"]
    assert "there are no results yet. Run `deg infer` first" in failed["absent"]
    for key in ("truncated", "text", "empty"):
        assert "not a readable HDF5 file" in failed[key] and str(outputs(lab, key)) in failed[key]


# ------------------------------------------------------------------------------------------------------- full disks


@contextmanager
def files_limited_to(size: int):
    """Limit the size of files that this process and its children can write."""
    _, most = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files_is_told_and_the_run_resumes_without_it(tmp_path, scripted):
    lab = make_project(tmp_path / "lab", {"a": FRAMES, "b": FRAMES})
    with files_limited_to(100_000):
        answer = infer(lab)
    assert answer.status == 1 and set(answer.json["failed"]) == set(answer.json["waiting"]) == {"a", "b"}
    assert "File too large. Make sure that there is room" in answer.json["failed"]["a"]
    finishes(lab, "a", "b")


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(folder, size)` puts an empty disk of that size in place of a folder, or changes its size."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        how = f"remount,size={size}" if folder in mounted else f"size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "none", folder], capture_output=True, text=True)
        if done.returncode and not mounted:
            pytest.skip(f"no disk can be made full here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted.append(folder)

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_under_the_runs(tmp_path, scripted, small_disk):
    lab = make_project(tmp_path / "lab", {"a": FRAMES, "b": FRAMES})
    weights = {path: path.read_bytes() for path in (lab / "models").glob("*/*")}
    small_disk(lab / "models", "200k")
    for path, content in weights.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    answer = infer(lab)
    assert answer.status == 1 and set(answer.json["failed"]) == set(answer.json["waiting"]) == {"a", "b"}
    assert "No space left on device. Make sure that there is room" in answer.json["failed"]["a"]
    assert not list((lab / "models").glob("**/*result*"))
    small_disk(lab / "models", "50m")
    finishes(lab, "a", "b")


def test_a_disk_without_any_room_under_the_runs(tmp_path, scripted, small_disk):
    lab = make_project(tmp_path / "lab", {"a": FRAMES})
    weights = {path: path.read_bytes() for path in (lab / "models").glob("*/*")}
    small_disk(lab / "models", "40k")
    for path, content in weights.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (lab / "models" / "filling").write_bytes(bytes(os.statvfs(lab / "models").f_bavail * 4096))
    answer = infer(lab)
    assert answer.status == 2 and "No space left on device" in answer.told
    small_disk(lab / "models", "50m")
    assert infer(lab).json["done"] == ["a"]


def test_a_full_disk_under_a_recording(tmp_path, scripted, small_disk):
    lab = make_project(tmp_path / "lab", {"roomy": FRAMES, "full": FRAMES})
    video = lab / "DATA" / "full" / "full.mp4"
    content = video.read_bytes()
    small_disk(video.parent, "50m")
    video.write_bytes(content)
    assert infer(lab).status == 0
    former = all_bytes(lab, ["full"])
    small_disk(video.parent, f"{(len(content) + len(former['full'])) // 1024 + 60}k")
    answer = infer(lab, "--overwrite")
    assert answer.json["done"] == ["roomy"] and answer.json["waiting"] == ["full"] and answer.status == 1
    assert f"{outputs(lab, 'full')}: No space left on device" in answer.json["failed"]["full"]
    assert all_bytes(lab, ["full"]) == former
    assert {path.name for path in video.parent.iterdir()} == {"full.mp4", "full_outputs.h5"}
    small_disk(video.parent, "50m")
    finishes(lab, "full", "roomy", words=["--overwrite"])


def finishes(lab: Path, *keys: str, words=()) -> None:
    """Check that the same command resumes the run and finishes it."""
    answer = infer(lab, *words)
    assert "Resuming the interrupted run" in answer.told
    assert sorted(answer.json["done"]) == sorted(keys) and answer.status == 0
    for key in keys:
        assert list(frame_numbers(outputs(lab, key))) == list(range(FRAMES))


# ----------------------------------------------------------------------------------------------------------- export


def test_export_leaves_out_results_of_other_classes_and_bad_files(tmp_path, in_process):
    lab = make_project(tmp_path / "lab")
    for key in ("good", "reordered", "other_names", "fewer", "truncated", "absent"):
        add_good(lab, key, 9)
    write_results(outputs(lab, "good"), 9)
    write_results(outputs(lab, "reordered"), 9, [CLASSES[2], CLASSES[0], CLASSES[1]])
    write_results(outputs(lab, "other_names"), 9, ["background", "groom", "sleep"])
    write_results(outputs(lab, "fewer"), 9, ["background", "groom"])
    write_results(outputs(lab, "truncated"), 9)
    os.truncate(outputs(lab, "truncated"), 3000)

    said = check(lab)
    answer = in_process("export", lab, "--json", "postprocessor.type=null")
    assert answer.status == 1 and set(answer.json["written"]) == {"good", "reordered"}
    rows = {key: Path(path).read_text().splitlines() for key, path in answer.json["written"].items()}
    assert rows["good"][:3] == [",background,groom,rear", "0,1,0,0", "1,0,1,0"]
    assert rows["reordered"][:3] == [",background,groom,rear", "0,0,0,1", "1,1,0,0"]
    failed = answer.json["failed"]
    for key in ("other_names", "fewer"):
        assert "but the project's behaviours are background, groom, rear" in failed[key]
        assert "Run `deg infer` with a network trained for them" in failed[key]
        assert "has no column for rear" in said[key]
    assert "not a readable HDF5 file" in failed["truncated"] and "not a readable HDF5 file" in said["truncated"]
    assert "there are no results yet. Run `deg infer` first" in failed["absent"]
    assert all(str(lab / "DATA" / key) in reason for key, reason in failed.items())
