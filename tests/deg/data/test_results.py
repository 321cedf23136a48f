"""Outputs files have the layout that the GUI opens, are whole at every moment, and say truly what they hold."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from deg.data import results
from deg.data.results import (
    FeatureReader,
    Mark,
    check_writable,
    checksum,
    describe_refusal,
    groups,
    read_mark,
    read_predictions,
    verify_group,
    write_group,
)
from deg.errors import ResultError

NAMES = ("background", "groom", "läuft 走る")
COLUMNS = {"logits": 3, "P": 3, "spatial_features": 512, "flow_features": 512}
MARK = Mark(
    frames=50,
    weights={"feature_extractor": "ab" * 32},
    settings="cd" * 32,
    video_size=1234,
    video_mtime_ns=10**18 + 1,
    source={"group": "resnet18"},
)


def rows(num_frames: int, seed: int = 0, columns=COLUMNS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.random((num_frames, width), dtype=np.float32) for name, width in columns.items()}


def write(
    path: Path, group: str = "resnet18", *, num_frames: int = 50, blocks=None, columns=COLUMNS, **options
) -> None:
    write_group(
        path,
        group,
        **{
            "num_frames": num_frames,
            "columns": columns,
            "blocks": [rows(num_frames, columns=columns)] if blocks is None else blocks,
            "class_names": NAMES,
            "thresholds_K": np.array([0.5, 0.1, 0.9]),
            "mark": MARK,
            "provenance": {"run": "x"},
            **options,
        },
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mouse_outputs.h5"


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# ---------------------------------------------------------------------------------------------------- layout


def test_the_layout_is_the_original_s(path):
    write(path)
    with h5py.File(path) as file:
        assert list(file) == ["resnet18"]
        group = file["resnet18"]
        by_place = sorted(group, key=lambda name: h5py.h5o.get_info(group[name].id).addr)
        assert by_place == ["thresholds", "logits", "P", "spatial_features", "flow_features", "class_names"]
        assert {name: (group[name].shape, group[name].dtype.str) for name in by_place[:-1]} == {
            "thresholds": ((3,), "<f4"),
            "logits": ((50, 3), "<f4"),
            "P": ((50, 3), "<f4"),
            "spatial_features": ((50, 512), "<f4"),
            "flow_features": ((50, 512), "<f4"),
        }
        assert all(group[name].chunks is None and group[name].compression is None for name in group)
        assert not any(group[name].attrs for name in group) and not file.attrs
        names = h5py.check_string_dtype(group["class_names"].dtype)
        assert (names.encoding, names.length) == ("utf-8", None)


def test_a_group_is_laid_out_as_in_a_file_that_the_original_wrote(path, shared_data):
    original = shared_data("data/deg_project_original") / "DATA" / "field_1" / "field_1_outputs.h5"
    with h5py.File(original, locking=False) as theirs:
        name = next(iter(theirs))
        widths = {key: theirs[name][key].shape[1] for key in ("logits", "P", "spatial_features", "flow_features")}
        write(path, name, columns=widths, class_names=["c"] * widths["P"], thresholds_K=np.zeros(widths["P"]))
        with h5py.File(path) as ours:
            assert set(ours[name]) == set(theirs[name])
            for key in theirs[name]:
                assert ours[name][key].dtype == theirs[name][key].dtype
                assert ours[name][key].shape[1:] == theirs[name][key].shape[1:]


def test_rows_are_stored_bit_for_bit_whatever_their_blocks(path):
    wanted = rows(50)
    blocks = [{name: values[a:b] for name, values in wanted.items()} for a, b in ((0, 1), (1, 33), (33, 33), (33, 50))]
    write(path, blocks=blocks)
    with h5py.File(path) as file:
        for name, values in wanted.items():
            assert file["resnet18"][name][()].tobytes() == values.tobytes()


def test_half_precision_rows_become_float32(path):
    wanted = {name: values.astype(np.float16) for name, values in rows(50).items()}
    write(path, blocks=[wanted])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["resnet18"]["P"][()], wanted["P"].astype(np.float32))


def test_class_names_keep_what_is_not_ascii(path):
    write(path)
    assert read_predictions(path, "resnet18").class_names == NAMES


def test_a_video_without_frames_has_empty_results(path):
    write(path, num_frames=0, blocks=[])
    assert read_predictions(path, "resnet18").probabilities_TK.shape == (0, 3)


def test_long_provenance_fits(path):
    write(path, provenance={"command": ["video"] * 100_000})
    assert read_mark(path, "resnet18") == MARK


# ---------------------------------------------------------------------------------------------------- other groups


def test_groups_of_other_networks_are_carried_over_bit_for_bit(path):
    with h5py.File(path, "w") as file:
        other = file.create_group("tgmj")
        other["P"] = np.random.default_rng(1).random((7, 2))
        other.create_dataset("packed", data=np.arange(1000), chunks=(10,), compression="gzip")
        other["class_names"] = np.array(["a", "b"], dtype=h5py.string_dtype())
        other.attrs["theirs"] = "kept"
    write(path)
    with h5py.File(path) as file:
        assert sorted(file) == ["resnet18", "tgmj"]
        other = file["tgmj"]
        np.testing.assert_array_equal(other["P"][()], np.random.default_rng(1).random((7, 2)))
        np.testing.assert_array_equal(other["packed"][()], np.arange(1000))
        assert other["packed"].compression == "gzip" and other.attrs["theirs"] == "kept"
        assert other["class_names"].asstr()[()].tolist() == ["a", "b"]


def test_only_the_group_written_is_replaced(path):
    write(path, "one", blocks=[rows(50, 1)])
    write(path, "two", blocks=[rows(50, 2)])
    write(path, "one", blocks=[rows(50, 3)])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["one"]["P"][()], rows(50, 3)["P"])
        np.testing.assert_array_equal(file["two"]["P"][()], rows(50, 2)["P"])


WRITER = """
import sys
import numpy as np
from pathlib import Path
from deg.data.results import Mark, write_group
for turn in range(10):
    for group in sys.argv[2:]:
        write_group(
            Path(sys.argv[1]), group + str(turn), num_frames=5, columns={"P": 1}, blocks=[{"P": np.ones((5, 1))}],
            class_names=["a"], thresholds_K=np.zeros(1), mark=Mark(5, {}, "", 0, 0), provenance={},
        )
"""


def test_two_processes_that_write_different_groups_lose_none(path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("left", "right")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert len(groups(path)) == 20
    assert left_in(path.parent) == [path.name]


def test_a_writer_that_never_ends_is_not_waited_for_for_ever(path, monkeypatch):
    monkeypatch.setattr(results, "LOCK_SECONDS", 0.2)
    descriptor = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ResultError, match="another process has been writing"):
            write(path)
    finally:
        os.close(descriptor)


def test_a_file_system_without_locks_is_written_all_the_same(path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write(path)
    assert groups(path) == ["resnet18"]


# ---------------------------------------------------------------------------------------------------- atomic


def test_a_reader_sees_the_former_file_or_the_new_one(path):
    write(path, mark=replace(MARK, frames=0))
    seen, over = set(), threading.Event()

    def look():
        while not over.is_set():
            seen.add(read_mark(path, "resnet18").frames)
            verify_group(path, "resnet18", 50)
            time.sleep(0.001)  # on one core, the writer would hardly ever get h5py's lock

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(1, 30):
        write(path, mark=replace(MARK, frames=turn))
    over.set()
    reader.join()
    assert seen <= set(range(30)) and len(seen) > 1


def test_a_failure_in_the_middle_leaves_the_former_file_and_nothing_else(path):
    write(path)
    before = path.read_bytes()

    def blocks():
        yield rows(10)
        raise KeyError("a fault")

    with pytest.raises(KeyError):
        write(path, blocks=blocks())
    assert path.read_bytes() == before
    assert left_in(path.parent) == [path.name]


@pytest.mark.parametrize("count", [10, 49, 51, 90])
def test_too_few_and_too_many_rows_are_refused(path, count):
    with pytest.raises(ResultError, match="expected 50 frames of results, got"):
        write(path, blocks=[rows(count)])
    assert left_in(path.parent) == []


def test_columns_of_different_length_are_a_defect(path):
    uneven = rows(50) | {"P": np.zeros((49, 3), np.float32)}
    with pytest.raises(ValueError, match="equal rows"):
        write(path, blocks=[uneven])


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("num_frames", [133, 135, 137, 150, 200, 400])  # full at the very end, late, early
def test_a_full_disk_is_reported_and_leaves_the_former_file(tiny_disk, num_frames, monkeypatch):
    monkeypatch.setattr(results, "SPARE_BYTES", 300_000)
    path = tiny_disk / "mouse_outputs.h5"
    write(path)
    before = path.read_bytes()
    blocks = [{name: values[i : i + 5] for name, values in rows(num_frames).items()} for i in range(0, num_frames, 5)]
    with pytest.raises(OSError) as caught:
        write(path, num_frames=num_frames, blocks=blocks)
    assert caught.value.errno == errno.ENOSPC
    assert describe_refusal(path, caught.value).startswith(f"{path}: No space left on device. Make sure")
    assert path.read_bytes() == before
    assert left_in(tiny_disk) == [path.name]


def test_what_a_killed_writer_left_is_removed(path):
    stale = path.with_name(f".{path.name}.{socket.gethostname()}.999999999.part")
    stale.write_bytes(b"half")
    other = path.with_name(".rat_outputs.h5.99999.part")
    other.write_bytes(b"of another video")
    write(path)
    assert left_in(path.parent) == sorted([other.name, path.name])


# ---------------------------------------------------------------------------------------------------- the mark


def test_the_mark_comes_back_as_it_was(path):
    write(path)
    assert read_mark(path, "resnet18") == MARK


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 51},
        {"weights": {}},
        {"settings": ""},
        {"video_size": 1},
        {"video_mtime_ns": 10**18},
        {"source": {}},
    ],
)
def test_the_mark_differs_if_anything_does(path, change):
    write(path)
    assert read_mark(path, "resnet18") != replace(MARK, **change)


def test_there_is_no_mark_without_file_group_or_mark(path):
    assert read_mark(path, "resnet18") is None
    path.touch()
    assert read_mark(path, "resnet18") is None
    with h5py.File(path, "w") as file:
        file.create_group("resnet18")
        file["data"] = 1
    assert read_mark(path, "resnet18") is None
    assert read_mark(path, "data") is None
    assert read_mark(path, "tgmj") is None


@pytest.mark.parametrize("mark", ["{", "[1]", '{"frames": 5}', '{"frames": 5, "novel": 1}', "null"])
def test_a_mark_of_another_version_says_nothing(path, mark):
    with h5py.File(path, "w") as file:
        file.create_group("resnet18").attrs["deg_mark"] = mark
    assert read_mark(path, "resnet18") is None


def test_flipped_bytes_are_noticed(path):
    write(path)
    with h5py.File(path) as file:
        place = file["resnet18"]["flow_features"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[place + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ResultError, match="flow_features does not read back as it was written"):
        verify_group(path, "resnet18", 50)


def test_a_result_of_other_programs_cannot_be_verified(path):
    with h5py.File(path, "w") as file:
        file.create_group("resnet18")
    with pytest.raises(ResultError, match="not written by deg"):
        verify_group(path, "resnet18", 50)


def test_a_checksum_continues_that_of_the_rows_before():
    values = rows(50)["P"]
    assert checksum(values[20:], checksum(values[:20])) == checksum(values)
    assert checksum(values.astype(np.float64)) == checksum(values[:, :].copy(order="F"))


# ---------------------------------------------------------------------------------------------------- bad files


def test_no_file_yet(path):
    with pytest.raises(ResultError, match="no results yet"):
        groups(path)


@pytest.mark.parametrize(
    "content", [b"", b"a text file\n", b"\x89HDF\r\n\x1a\n" + b"\0" * 20], ids=["empty", "text", "cut"]
)
def test_what_is_no_hdf5_file_is_named(path, content):
    path.write_bytes(content)
    with pytest.raises(ResultError, match=r"mouse_outputs\.h5: this is not a readable HDF5 file"):
        groups(path)


def test_a_truncated_file_is_named_and_never_replaced(path):
    write(path)
    path.write_bytes(path.read_bytes()[:-5000])
    before = path.read_bytes()
    with pytest.raises(ResultError, match="truncated"):
        write(path)
    assert path.read_bytes() == before


def test_an_empty_file_is_a_result_that_was_never_written(path):
    """DeepEthogram creates an empty file before it computes."""
    path.touch()
    check_writable(path)
    write(path)
    assert groups(path) == ["resnet18"]


def test_a_damaged_group_of_another_network_is_not_lost_in_silence(path):
    write(path, "tgmj")
    with h5py.File(path) as file:
        place = h5py.h5o.get_info(file["tgmj"].id).addr
    content = bytearray(path.read_bytes())
    content[place : place + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(ResultError, match=r"mouse_outputs\.h5"):
        write(path, "resnet18")
    assert path.read_bytes() == content


LOCKER = """
import sys, h5py
with h5py.File(sys.argv[1], "a") as file:
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_another_program_writes_to_is_named(path):
    write(path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LOCKER, str(path)], **pipes, text=True) as other:
        other.stdout.readline()
        with pytest.raises(ResultError, match=r"another program has it open.*Close it there"):
            check_writable(path)
        other.stdin.close()


def test_a_read_only_file_is_left_alone(path):
    write(path)
    path.chmod(0o444)
    with pytest.raises(ResultError, match=r"read-only.*chmod u\+w"):
        check_writable(path)


def test_a_folder_that_cannot_be_written_to_is_named(path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ResultError, match="not writable"):
        check_writable(path)


def test_a_file_that_may_not_be_read_is_not_said_to_be_locked(path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(ResultError, match="permission denied"):
        groups(path)


def test_a_group_that_was_left_unfinished_is_named(path):
    with h5py.File(path, "w") as file:
        file.create_group("resnet18")["P"] = np.zeros((5, 3))
    with pytest.raises(ResultError, match="lacks thresholds, class_names"):
        read_predictions(path, "resnet18")


def test_a_group_that_is_not_there_is_named_with_those_that_are(path):
    write(path)
    with pytest.raises(ResultError, match=r"no group tgmj \(groups: resnet18\)"):
        read_predictions(path, "tgmj")


def test_columns_thresholds_and_names_must_be_of_one_number(path):
    write(path, class_names=("a", "b"))
    with pytest.raises(ResultError, match="3 columns of P, 3 thresholds and 2 class names"):
        read_predictions(path, "resnet18")


# ---------------------------------------------------------------------------------------------------- features


def test_features_are_read_in_slices_spatial_before_flow(path):
    write(path)
    with FeatureReader(path, "resnet18") as features:
        assert (features.num_frames, features.num_features) == (50, 1024)
        found = features(7, 9)
    np.testing.assert_array_equal(found[:, :512], rows(50)["spatial_features"][7:9])
    np.testing.assert_array_equal(found[:, 512:], rows(50)["flow_features"][7:9])


def test_features_of_unequal_length_are_refused_and_the_file_closed(path):
    with h5py.File(path, "w") as file:
        file["resnet18/spatial_features"] = np.zeros((5, 512))
        file["resnet18/flow_features"] = np.zeros((4, 512))
    with pytest.raises(ResultError, match="should be equal"), FeatureReader(path, "resnet18"):
        pass
    with h5py.File(path, "a"):
        pass


FLIP = """
import random, sys
from pathlib import Path
from deg.data.results import FeatureReader, check_writable, groups, read_mark, read_predictions
from deg.errors import DegError
whole, damaged = Path(sys.argv[1]), Path(sys.argv[2])
refused = 0
for seed in range(150):
    draw, content = random.Random(seed), bytearray(whole.read_bytes())
    for _ in range(20):
        content[draw.randrange(min(len(content), 6000))] = draw.randrange(256)
    damaged.write_bytes(content)

    def features():
        with FeatureReader(damaged, "resnet18") as reader:
            reader(0, 3)

    looks = (lambda: groups(damaged), lambda: read_mark(damaged, "resnet18"), lambda: check_writable(damaged),
             lambda: read_predictions(damaged, "resnet18"), features)
    for look in looks:
        try:
            look()
        except DegError as error:
            refused += str(damaged) in str(error)
print(refused)
"""


def test_a_file_that_is_damaged_anywhere_is_refused_by_its_name(path):
    """150 files with flipped bytes are read in a process of its own, because HDF5 might crash on one."""
    write(path)
    command = [sys.executable, "-c", FLIP, str(path), str(path.with_name("damaged.h5"))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 100
