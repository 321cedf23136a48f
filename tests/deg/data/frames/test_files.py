"""The frames of one video in a folder: flushed frames are kept, damage is noticed."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deg.data.frames import files
from deg.data.frames.files import CachedFrames, CacheError, Contents, FrameWriter, condemn, is_whole

NUM_FRAMES = 23


def contents_of(**changes) -> Contents:
    given = {
        "video": "/videos/mouse.mp4",
        "size_bytes": 1000,
        "mtime_ns": 1,
        "num_frames": NUM_FRAMES,
        "transform": {"resize": (6, 8)},
        "format": "raw",
        "height": 6,
        "width": 8,
    }
    return Contents(**(given | changes))


FRAMES = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 6, 8, 3), dtype=np.uint8)


def write(folder, contents, *, stop=NUM_FRAMES, size=5, flush_each=True) -> int:
    """Write frames up to `stop`, and finish if that is the end; return the frame that the writer began at."""
    with contextlib.closing(FrameWriter(folder, contents)) as writer:
        began = writer.num_frames
        for start in range(began, stop, size):
            writer.append(FRAMES[start : min(start + size, stop)])
            if flush_each:
                writer.flush()
        if stop == NUM_FRAMES:
            writer.finish()
    return began


def test_any_stretch_of_raw_frames_is_what_was_written(tmp_path):
    write(tmp_path, contents_of())
    with CachedFrames(tmp_path, contents_of()) as frames:
        assert (frames.num_frames, frames.height, frames.width) == (NUM_FRAMES, 6, 8)
        for start in range(NUM_FRAMES + 1):
            for stop in range(start, NUM_FRAMES + 1):
                np.testing.assert_array_equal(frames.read(start, stop), FRAMES[start:stop])


def test_frames_are_read_into_memory_that_is_given(tmp_path):
    write(tmp_path, contents_of())
    out_THWC = np.zeros((4, 6, 8, 3), np.uint8)
    with CachedFrames(tmp_path, contents_of()) as frames:
        assert frames.read(2, 4, out_THWC[1:3]).base is not None
    np.testing.assert_array_equal(out_THWC[1:3], FRAMES[2:4])
    assert not out_THWC[[0, 3]].any()


def test_jpegs_are_nearly_what_was_written_in_right_colours(tmp_path):
    smooth = np.zeros((NUM_FRAMES, 48, 64, 3), np.uint8)
    smooth[..., 0] = np.linspace(0, 255, 64, dtype=np.uint8)
    smooth[..., 2] = np.arange(NUM_FRAMES, dtype=np.uint8)[:, None, None] * 10
    contents = contents_of(format="jpeg", height=48, width=64)
    with contextlib.closing(FrameWriter(tmp_path, contents)) as writer:
        writer.append(smooth[:7])
        writer.flush()
        writer.append(smooth[7:])
        writer.finish()
    with CachedFrames(tmp_path, contents) as frames:
        assert np.abs(frames.read(0, NUM_FRAMES).astype(int) - smooth).max() <= 6
        assert np.abs(frames.read(6, 9).astype(int) - smooth[6:9]).max() <= 6
    assert (tmp_path / "frames.bin").stat().st_size < smooth.nbytes / 5


def test_a_stretch_outside_the_video_is_refused(tmp_path):
    write(tmp_path, contents_of())
    with CachedFrames(tmp_path, contents_of()) as frames, pytest.raises(ValueError, match="stop"):
        frames.read(20, NUM_FRAMES + 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), format=st.sampled_from(["raw", "jpeg"]))
def test_whatever_is_left_after_a_crash_the_next_writer_makes_it_whole(tmp_path_factory, data, format):
    """Index or frames are cut anywhere, or bits are flipped: the writer resumes or starts anew, to the same bytes."""
    folder, whole = tmp_path_factory.mktemp("frames"), tmp_path_factory.mktemp("whole")
    contents = contents_of(format=format)
    write(whole, contents, size=NUM_FRAMES)
    write(folder, contents, stop=data.draw(st.integers(0, NUM_FRAMES), "stop"), size=data.draw(st.integers(1, 9)))
    for name in ("index.jsonl", "frames.bin"):
        content = bytearray((folder / name).read_bytes())
        del content[data.draw(st.integers(0, len(content)), f"length of {name}") :]
        if content and data.draw(st.booleans(), f"flip in {name}"):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 0x10
        (folder / name).write_bytes(content)
    write(folder, contents)
    assert is_whole(folder, contents)
    assert (folder / "frames.bin").read_bytes() == (whole / "frames.bin").read_bytes()


def test_a_writer_resumes_after_the_last_flushed_block(tmp_path):
    write(tmp_path, contents_of(), stop=15)
    assert write(tmp_path, contents_of()) == 15


def test_blocks_are_flushed_when_they_are_large_or_old(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FLUSH_BYTES", FRAMES[0].nbytes * 10)
    write(tmp_path, contents_of(), stop=15, flush_each=False)
    assert write(tmp_path, contents_of(), stop=15) == 10
    monkeypatch.setattr(files, "FLUSH_SECONDS", 0.0)
    write(tmp_path, contents_of(), stop=20, flush_each=False)
    assert write(tmp_path, contents_of()) == 20


@pytest.mark.parametrize(
    "other",
    [
        *({"size_bytes": 1001}, {"mtime_ns": 2}, {"num_frames": 22}, {"transform": {}}, {"video": "/b.mp4"}),
        {"image_order": "natural"},
    ],
)
def test_frames_of_something_else_are_not_taken(tmp_path, other):
    write(tmp_path, contents_of())
    assert is_whole(tmp_path, contents_of()) and not is_whole(tmp_path, contents_of(**other))
    with pytest.raises(CacheError, match=r"Run the same command again"):
        CachedFrames(tmp_path, contents_of(**other))


def test_frames_kept_before_images_had_an_order_are_taken():
    assert "image_order" not in contents_of().to_json()
    assert "image_order" in contents_of(image_order="natural").to_json()


def test_an_unfinished_folder_is_not_whole(tmp_path):
    write(tmp_path, contents_of(), stop=NUM_FRAMES - 1)
    assert not is_whole(tmp_path, contents_of())
    assert not is_whole(tmp_path / "absent", contents_of())


def test_a_condemned_folder_is_not_whole(tmp_path):
    write(tmp_path, contents_of())
    condemn(tmp_path)
    condemn(tmp_path)
    assert not is_whole(tmp_path, contents_of())


def test_a_jpeg_that_cannot_be_decoded_is_noticed_and_condemned(tmp_path):
    contents = contents_of(format="jpeg")
    write(tmp_path, contents)
    size = (tmp_path / "frames.bin").stat().st_size
    (tmp_path / "frames.bin").write_bytes(bytes(size))
    with CachedFrames(tmp_path, contents) as frames, pytest.raises(CacheError, match=r"mouse\.mp4.*frame 3"):
        frames.read(3, 5)
    assert not is_whole(tmp_path, contents)


def test_frames_cut_off_while_they_are_in_use_end_no_process(tmp_path):
    write(tmp_path, contents_of())
    with CachedFrames(tmp_path, contents_of()) as frames:
        (tmp_path / "frames.bin").write_bytes(b"")
        with pytest.raises(CacheError, match="end too early"):
            frames.read(0, 5)
