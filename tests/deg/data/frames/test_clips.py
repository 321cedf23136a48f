"""Training clips have the right frames in the right places, from cache and video alike, equal to inference's."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from image_folders import write_unpadded
from videos import OPEN_GOP, numbers_in, write_images, write_opencv, write_video

from deg.arithmetic.windows import BEFORE, WINDOW
from deg.data.frames import clips
from deg.data.frames.cache import FrameCache
from deg.data.frames.clips import Clips
from deg.data.frames.files import CacheError
from deg.data.video.decoder import Decoder
from deg.data.video.files import probe
from deg.data.video.stretch import Stretch
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError, VideoError
from deg.types import VideoInfo

MEAN = (0.5, 0.25, 0.999)
COLOUR = np.array([127, 63, 254], np.uint8)
SMALL = FrameTransform(resize=(32, 40))


def decoded(video: VideoInfo, transform: FrameTransform) -> np.ndarray:
    """Return the video as inference decodes it."""
    with Decoder() as decoder:
        return np.concatenate(list(decoder.blocks(Stretch(video, 0, video.num_frames, transform))))


def expected(frames_THWC: np.ndarray, frame: int) -> np.ndarray:
    """Return the clip around a frame, cut out of the whole video, with frames of the mean colour outside of it."""
    outside = np.broadcast_to(COLOUR, (BEFORE, *frames_THWC.shape[1:]))
    return np.concatenate([outside, frames_THWC, outside])[frame : frame + WINDOW]


@pytest.fixture(params=["cache", "video"])
def open_clips(request, tmp_path):
    """Returns Clips of videos, once read from the cache and once from the videos themselves."""

    def make(videos: dict[str, VideoInfo], transform: FrameTransform = SMALL) -> Clips:
        cache = None
        if request.param == "cache":
            cache = FrameCache(tmp_path / "cache", "raw", 10**9)
            cache.ensure(videos, transform)
        return Clips(videos, transform, MEAN, cache)

    return make


@pytest.mark.parametrize("image_order", ["natural", "deepethogram"])
def test_clips_of_images_are_in_their_order(tmp_path, open_clips, image_order):
    video = probe(write_unpadded(tmp_path / "images", 12), image_order=image_order)
    assert video.image_order == image_order
    assert np.array_equal(open_clips({"a": video}).clip("a", 5), expected(decoded(video, SMALL), 5))


@pytest.mark.slow
def test_every_clip_of_videos_of_1_to_12_frames(tmp_path, open_clips):
    videos = {f"of {n}": probe(write_video(tmp_path / f"{n}.mp4", n)) for n in range(1, 13)}
    source = open_clips(videos)
    for key, video in videos.items():
        frames_THWC = decoded(video, SMALL)
        for frame in range(video.num_frames):
            np.testing.assert_array_equal(source.clip(key, frame), expected(frames_THWC, frame), f"{key}, {frame}")


def test_missing_frames_are_the_mean_colour(tmp_path, open_clips):
    videos = {"a": probe(write_video(tmp_path / "a.mp4", 20))}
    first_THWC, last_THWC = (open_clips(videos).clip("a", frame) for frame in (0, 18))
    assert (first_THWC[:5] == COLOUR).all() and numbers_in(first_THWC[5:]) == [0, 1, 2, 3, 4, 5]
    assert (last_THWC[7:] == COLOUR).all() and numbers_in(last_THWC[:7]) == [13, 14, 15, 16, 17, 18, 19]


def write_mpeg4(folder: Path) -> Path:
    return write_video(folder / "a.avi", 60, codec="mpeg4")


def write_open_gop(folder: Path) -> Path:
    return write_video(folder / "a.mp4", 90, options=OPEN_GOP)


@pytest.mark.parametrize(
    "write",
    [
        write_open_gop,
        write_mpeg4,
        lambda folder: write_opencv(folder / "a.avi", 40),
        lambda folder: write_images(folder / "a", 15),
    ],
    ids=["open-gop", "mpeg4", "mjpeg", "images"],
)
def test_clips_in_any_order_are_what_inference_decodes(tmp_path, open_clips, write):
    transform = FrameTransform(resize=(48, 56), pad=(1, 2, 3, 4))
    videos = {"a": probe(write(tmp_path))}
    frames_THWC, source = decoded(videos["a"], transform), open_clips(videos, transform)
    assert (source.height, source.width) == frames_THWC.shape[1:3]
    for frame in np.random.default_rng(0).permutation(len(frames_THWC))[:25]:
        np.testing.assert_array_equal(source.clip("a", int(frame)), expected(frames_THWC, int(frame)))


def test_a_crop_lies_in_the_centre_unless_told(tmp_path, open_clips):
    transform = FrameTransform(crop_size=(40, 50), resize=(32, 40), pad=1)
    videos = {"a": probe(write_video(tmp_path / "a.mp4", 20))}
    source = open_clips(videos, transform)
    np.testing.assert_array_equal(source.clip("a", 2), expected(decoded(videos["a"], transform), 2))


@pytest.mark.parametrize(
    ("crop", "top", "left"), [((0.0, 0.0), 0, 0), ((0.9999, 0.9999), 24, 30), ((0.5, 0.0), 12, 0), ((0.0, 0.04), 0, 1)]
)
def test_a_crop_lies_anywhere_else_in_training(tmp_path, open_clips, crop, top, left):
    """24 x 30 spare pixels give 25 x 31 places, all equally likely."""
    transform = FrameTransform(crop_size=(40, 50), resize=(32, 40), pad=1)
    videos = {"a": probe(write_video(tmp_path / "a.mp4", 20))}
    clip_THWC = open_clips(videos, transform).clip("a", 17, crop)
    rest = FrameTransform(resize=(32, 40), pad=1)
    whole_THWC = decoded(videos["a"], FrameTransform())[12:]
    for frame_HWC, whole_HWC in zip(clip_THWC, whole_THWC, strict=False):
        np.testing.assert_array_equal(frame_HWC, rest(whole_HWC[top : top + 40, left : left + 50]))
    assert (clip_THWC[8:] == COLOUR).all()


def test_a_clip_is_written_where_it_is_wanted(tmp_path, open_clips):
    videos = {"a": probe(write_video(tmp_path / "a.mp4", 20))}
    source = open_clips(videos)
    batch_BTHWC = np.zeros((3, WINDOW, 32, 40, 3), np.uint8)
    source.clip("a", 3, None, batch_BTHWC[1])
    np.testing.assert_array_equal(batch_BTHWC[1], source.clip("a", 3))
    assert not batch_BTHWC[[0, 2]].any()


def test_many_recordings_keep_few_files_open(tmp_path, open_clips, monkeypatch):
    monkeypatch.setattr(clips, "CACHED_OPEN", 2)
    monkeypatch.setattr(clips, "VIDEOS_OPEN", 2)
    videos = {f"v{n}": probe(write_video(tmp_path / f"{n}.mp4", 20 + n)) for n in range(5)}
    source = open_clips(videos)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        for n in range(5):
            assert numbers_in(source.clip(f"v{n}", 19 + n)[:6]) == [14 + n + i for i in range(6)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_recordings_of_different_sizes_are_named(tmp_path):
    videos = {
        "groom_1": probe(write_video(tmp_path / "a.mp4", 2)),
        "groom_2": probe(write_video(tmp_path / "b.mp4", 2, size=(64, 96))),
    }
    with pytest.raises(ConfigError, match=r"`groom_1`.*64 x 80.*`groom_2`.*64 x 96.*augs\.resize=\[224,224\]"):
        Clips(videos, FrameTransform(), MEAN)
    assert Clips(videos, SMALL, MEAN).width == 40


def test_a_forked_process_opens_files_of_its_own(tmp_path, open_clips):
    """This also holds after the parent has read: two processes must not share a decoder."""
    videos = {"a": probe(write_video(tmp_path / "a.mp4", 40, options=OPEN_GOP))}
    source = open_clips(videos)
    source.clip("a", 10)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(numbers_in(source.clip("a", 20)) != list(range(15, 26)))
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert numbers_in(source.clip("a", 11)) == list(range(6, 17))


def test_pickling_leaves_open_files_behind(tmp_path, open_clips):
    videos = {"a": probe(write_video(tmp_path / "a.mp4", 20))}
    source = open_clips(videos)
    clip_THWC = source.clip("a", 7)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).clip("a", 7), clip_THWC)


def test_a_video_that_was_replaced_is_refused(tmp_path):
    videos = {"a": probe(write_video(tmp_path / "a.mp4", 20))}
    write_video(tmp_path / "a.mp4", 21)
    with pytest.raises(VideoError, match=r"a\.mp4: it changed"):
        Clips(videos, SMALL, MEAN).clip("a", 3)


def test_a_cache_that_was_not_filled_is_noticed(tmp_path):
    videos = {"a": probe(write_video(tmp_path / "a.mp4", 20))}
    source = Clips(videos, SMALL, MEAN, FrameCache(tmp_path / "cache", "raw", 10**9))
    with pytest.raises(CacheError, match=r"a\.mp4"):
        source.clip("a", 3)


def test_jpegs_are_nearly_the_same_frames(tmp_path):
    videos = {"a": probe(write_video(tmp_path / "a.mp4", 20))}
    cache = FrameCache(tmp_path / "cache", "jpeg", 10**9)
    cache.ensure(videos, SMALL)
    clip_THWC, exact_THWC = Clips(videos, SMALL, MEAN, cache).clip("a", 3), Clips(videos, SMALL, MEAN).clip("a", 3)
    assert numbers_in(clip_THWC[2:]) == list(range(9))
    assert np.abs(clip_THWC.astype(int) - exact_THWC).mean() < 4
