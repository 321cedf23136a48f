"""A picture that is not the recorded one is never given for sound: it is an error, or, if the user wants it, listed."""

from __future__ import annotations

import numpy as np
import pytest
import videos
from stretches import stretch_of

from deg.arithmetic.ranges import ranges_of, show_ranges
from deg.data.video.decoder import Decoder
from deg.data.video.files import open_video
from deg.data.video.pool import DecoderPool
from deg.errors import VideoError

KINDS = {
    "h264.mp4": {"options": {"g": "20", "bf": "2"}},
    "long.mp4": {"options": {"g": "1000", "x264-params": "scenecut=0"}},
    "open_gop.ts": {"options": videos.OPEN_GOP},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "12"}},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "lossless.mkv": {"codec": "ffv1", "options": {"level": "3", "slicecrc": "1"}},
}
"""Codecs whose decoders notice most damage. Those of VP8, VP9, AV1 and WMV take almost any bytes for a picture."""
PLACES = (0.35, 0.5, 0.65)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """`sound(name)` is a whole video of 90 frames, and its frames."""
    folder, made = tmp_path_factory.mktemp("sound"), {}

    def make(name):
        if name not in made:
            path = videos.write_video(folder / name, 90, **KINDS[name])
            with open_video(path) as video:
                made[name] = path, list(video.read(0, 90))
        return made[name]

    return make


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_every_frame_that_differs_is_listed(sound, tmp_path, name, place):
    path, frames = sound(name)
    flipped = videos.write_flipped(tmp_path / name, path, at=place, count=400)
    damaged: set[int] = set()
    try:
        with open_video(flipped, damaged=damaged) as video:
            kept = list(video.read(0, min(len(video), 90)))
    except VideoError:
        return  # its number of frames is not certain any more
    differ = {
        index for index, (ours, true) in enumerate(zip(kept, frames, strict=False)) if not np.array_equal(ours, true)
    }
    assert differ and differ <= damaged
    with open_video(flipped) as video, pytest.raises(VideoError, match=r"damaged|decoding ended") as caught:
        list(video.read(0, min(len(video), 90)))
    assert caught.value.frame == min(damaged)


@pytest.fixture(scope="module")
def flipped(sound, tmp_path_factory):
    """A video with damage in its middle, the frames of the whole one, and those that are damaged."""
    path, frames = sound("h264.mp4")
    flipped = videos.write_flipped(tmp_path_factory.mktemp("flipped") / "flipped.mp4", path, at=0.5, count=400)
    damaged: set[int] = set()
    with open_video(flipped, damaged=damaged) as video:
        list(video.read(0, 90))
    return flipped, frames, damaged


def test_the_error_names_all_frames_that_are_damaged_together(flipped):
    path, _, damaged = flipped
    (together,) = ranges_of(sorted(damaged))
    with open_video(path) as video, pytest.raises(VideoError, match=f"frames {show_ranges([together])} are damaged"):
        list(video.read(0, 90))


def test_what_is_before_and_after_the_damage_is_read(flipped):
    path, frames, damaged = flipped
    with open_video(path) as video:
        for start, stop in ((0, min(damaged)), (max(damaged) + 1, 90)):
            assert np.array_equal(np.array(list(video.read(start, stop))), np.array(frames[start:stop]))


def test_kept_frames_are_the_same_in_parts(flipped, monkeypatch):
    monkeypatch.setattr("deg.data.video.files.NEAR", 3)
    path, _, damaged = flipped
    with open_video(path, damaged=set()) as video:
        whole = list(video.read(0, 90))
    found: set[int] = set()
    with open_video(path, damaged=found) as video:
        parts = {
            index: frame for start in (60, 0, 30) for index, frame in enumerate(video.read(start, start + 30), start)
        }
    assert found == damaged
    assert all(np.array_equal(parts[index], whole[index]) for index in range(90))


def test_a_pool_lists_what_its_decoders_kept(flipped):
    path, _, damaged = flipped
    found: set[int] = set()
    stretch = stretch_of(path, keep_damaged=True)
    with DecoderPool(2, 8, ahead_bytes=16 * stretch.frame_bytes) as pool:
        blocks = list(pool.blocks(stretch, found))
    assert found == damaged and sum(map(len, blocks)) == 90


def test_an_inspection_names_every_range_and_counts_what_decodes(flipped):
    path, _, damaged = flipped
    with Decoder() as decoder:
        seen = decoder.inspect(path)
    assert seen.damaged == ranges_of(sorted(damaged)) and seen.decodable == min(damaged) and seen.is_complete
    assert seen.error is not None and show_ranges(seen.damaged) in str(seen.error)
