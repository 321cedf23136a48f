"""The images of a folder are its frames in the order of their numbers, or in DeepEthogram's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import videos
from hypothesis import assume, given
from hypothesis import strategies as st
from image_folders import write_unpadded

from deg.data.video.image_names import IMAGE_SUFFIXES, images_of, unlike_deepethogram
from deg.data.video.images import FolderReader
from deg.errors import VideoError

ENDINGS = st.sampled_from([*IMAGE_SUFFIXES, ".PNG", ".Jpg", ".TIFF", ".csv", ""])
NAMES = st.builds("{}{}".format, st.text("img_-. 0123456789\n\u0663é", min_size=1, max_size=8), ENDINGS)


def touched(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


# ---- the rule


@given(st.sets(st.integers(0, 10**12), min_size=1), st.sampled_from(["", "img", "a7_"]), st.sampled_from(["", "_x"]))
def test_numbers_are_in_the_order_of_their_values(numbers, before, after):
    names = [f"{before}{number}{after}.png" for number in numbers]
    assert images_of(names, "natural") == [f"{before}{number}{after}.png" for number in sorted(numbers)]


@given(st.integers(1, 12), st.data())
def test_numbers_of_equal_length_are_in_deepethograms_order(length, data):
    number = st.integers(0, 10**length - 1).map(lambda value: f"{value:0{length}d}")
    shape = data.draw(st.lists(st.sampled_from(["img", "_", "-cam", "."]), min_size=1, max_size=3))
    rows = data.draw(st.sets(st.tuples(*(number for _ in shape))))
    names = ["".join(f"{text}{digits}" for text, digits in zip(shape, row, strict=True)) + ".png" for row in rows]
    assert images_of(names, "natural") == images_of(names, "deepethogram")


@given(st.sets(st.text("ab_-. é", min_size=1, max_size=5).map(lambda text: f"{text}.png")))
def test_names_without_numbers_are_in_deepethograms_order(names):
    assert images_of(names, "natural") == images_of(names, "deepethogram")


@given(st.sets(NAMES))
def test_deepethograms_frames_are_those_of_its_own_rule(names):
    assert images_of(names, "deepethogram") == sorted(name for name in names if name.endswith(IMAGE_SUFFIXES))


@given(st.permutations([f"{n}.png" for n in (1, 2, 9, 10, 11, 99, 100)] + ["01.png", "a.png", "a1.PNG", "a-2.png"]))
def test_the_order_does_not_depend_on_that_of_the_listing(names):
    natural = images_of(names, "natural")
    assert natural == images_of(sorted(names), "natural") and sorted(natural) == sorted(names)


@given(st.sets(NAMES))
def test_endings_count_whatever_their_case(names):
    wanted = {name for name in names if name.lower().endswith(IMAGE_SUFFIXES)}
    assert set(images_of(names, "natural")) == wanted


def test_numbers_of_one_value_are_in_the_order_of_the_text():
    assert images_of(["img1.png", "img001.png", "img01.png", "img2.png"], "natural") == [
        *("img001.png", "img01.png", "img1.png", "img2.png")
    ]


def test_two_kinds_of_images_are_one_recording():
    assert images_of(["2.jpg", "10.png", "1.PNG"], "natural") == ["1.PNG", "2.jpg", "10.png"]


# ---- the difference


def test_folders_that_both_programs_see_alike_are_not_told(tmp_path):
    assert unlike_deepethogram(touched(tmp_path / "images", "img01.png", "img02.png", "img10.png", "notes.TXT")) is None
    assert unlike_deepethogram(tmp_path / "absent") is None


@given(st.sets(NAMES.filter(lambda name: "\n" not in name)))
def test_a_difference_is_told_exactly_where_there_is_one(tmp_path_factory, names):
    assume(not names & {".", ".."})
    folder = touched(tmp_path_factory.mktemp("folder") / "images", *names)
    differs = images_of(names, "natural") != images_of(names, "deepethogram")
    assert (unlike_deepethogram(folder) is not None) == differs
    shutil.rmtree(folder)


def test_the_difference_names_images(tmp_path):
    told = unlike_deepethogram(touched(tmp_path / "images", *(f"img{n}.png" for n in range(12)), "img12.PNG"))
    assert "does not see 1 of the 13 images" in told and "(img12.PNG)" in told
    assert "takes img10.png before img9.png" in told
    assert "image_order: deepethogram" in told


# ---- the reader


@pytest.fixture
def unpadded(tmp_path):
    """Twelve images img0.png to img11.PNG, of frames 0 to 11; the last ending is in capitals."""
    folder = write_unpadded(tmp_path / "images", 12)
    (folder / "img11.png").rename(folder / "img11.PNG")
    return folder


def numbers(reader: FolderReader) -> list[int]:
    return [videos.number_in(frame_HWC) for frame_HWC in reader.read(0, len(reader))]


def test_frames_are_in_the_order_of_the_numbers(unpadded):
    reader = FolderReader(unpadded)
    assert numbers(reader) == list(range(12)) and reader.info.image_order == "natural"


def test_deepethograms_order_can_be_kept(unpadded):
    reader = FolderReader(unpadded, "deepethogram")
    assert numbers(reader) == [0, 1, 10, *range(2, 10)] and reader.info.image_order == "deepethogram"
    assert reader.info.size_bytes == sum(path.stat().st_size for path in unpadded.glob("*.png"))


def test_the_description_says_which_rule_gives_the_frames(unpadded, tmp_path):
    """A video is described as before where the order is the same; and by its own rule it is found again."""
    padded = FolderReader(videos.write_images(tmp_path / "padded", 12))
    assert padded.info == FolderReader(tmp_path / "padded", "deepethogram").info
    assert FolderReader(unpadded).info != FolderReader(unpadded, "deepethogram").info
    for folder in (unpadded, tmp_path / "padded"):
        reader = FolderReader(folder)
        again = FolderReader(folder, reader.info.image_order)
        assert again.info == reader.info
        assert all(np.array_equal(reader[i], again[i]) for i in range(12))


def test_a_folder_with_endings_in_capitals_only_holds_no_frames_for_deepethogram(tmp_path):
    folder = videos.write_images(tmp_path / "images", 2)
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(".PNG"))
    assert numbers(FolderReader(folder)) == [0, 1]
    with pytest.raises(VideoError, match=r"holds no images\. Expected .*image_order=deepethogram"):
        FolderReader(folder, "deepethogram")
