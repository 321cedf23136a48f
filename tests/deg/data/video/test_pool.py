"""Several decoders give the frames of one, ahead of time and in bounded memory; what happens to one is reported."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import videos
from image_folders import write_unpadded
from stretches import stretch_of
from videos import numbers_in
from waiting import is_running, wait_until

from deg.data.video.decoder import Decoder
from deg.data.video.pool import DecoderPool
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError, VideoError

pytestmark = pytest.mark.slow

SMALL = FrameTransform(resize=(32, 40))
LARGE = FrameTransform(resize=(500, 500))


@pytest.fixture(scope="module")
def mouse(tmp_path_factory):
    return videos.write_video(tmp_path_factory.mktemp("videos") / "mouse.mp4", 400, options=videos.OPEN_GOP)


def pool_of(count: int, stretch, piece_frames: int, block_frames: int = 8) -> DecoderPool:
    """Return a pool whose pieces have this many frames at most."""
    return DecoderPool(count, block_frames, ahead_bytes=piece_frames * stretch.frame_bytes)


def taken(pool, stretch) -> list[int]:
    return numbers_in(np.concatenate(list(pool.blocks(stretch))))


def children_of(pool) -> list[int]:
    return [decoder._child._process.pid for decoder in pool._decoders if decoder._child is not None]


def waiting(pool) -> list[int]:
    """Return the number of frames that wait, for each stretch in the pool's line."""
    with pool._changed:
        line = list(pool._agenda._line)
        return [sum(len(block) for piece in wanted.pieces for block in piece.waiting) for wanted in line]


# The frames themselves


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_decoders_gives_the_same_frames(mouse, count):
    stretch = stretch_of(mouse, 3, 400, SMALL)
    with Decoder() as decoder:
        expected = np.concatenate(list(decoder.blocks(stretch)))
    with pool_of(count, stretch, 50) as pool:
        for _ in range(2):
            blocks = list(pool.blocks(stretch))
            assert max(map(len, blocks)) == 8
            assert np.array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize("image_order", ["natural", "deepethogram"])
def test_images_come_in_the_order_asked_for(tmp_path, image_order):
    stretch = stretch_of(write_unpadded(tmp_path / "images", 12), image_order=image_order)
    with Decoder() as decoder:
        expected = numbers_in(np.concatenate(list(decoder.blocks(stretch))))
    with pool_of(2, stretch, 4, block_frames=2) as pool:
        assert taken(pool, stretch) == expected


def test_frames_too_large_for_a_block_come_in_smaller_ones(mouse, monkeypatch):
    stretch = stretch_of(mouse, 0, 20, SMALL)
    monkeypatch.setattr("deg.data.video.stretch.BLOCK_BYTES", 3 * stretch.frame_bytes)
    with DecoderPool(1, 64) as pool:
        assert [len(block) for block in pool.blocks(stretch)] == [3, 3, 3, 3, 3, 3, 2]


# Decoding ahead


def test_the_next_videos_are_decoded_before_they_are_asked_for(mouse, tmp_path):
    paths = [videos.write_video(tmp_path / f"{number}.mp4", 40) for number in range(3)]
    stretches = [stretch_of(path, transform=SMALL) for path in [mouse, *paths]]
    with DecoderPool(2) as pool:
        pool.expect(stretches)
        blocks = pool.blocks(stretches[0])
        next(blocks)
        wait_until(lambda: waiting(pool)[1:] == [40, 40, 40])
        blocks.close()
        for stretch in stretches[1:]:
            assert taken(pool, stretch) == list(range(40))


def test_what_is_expected_later_joins_the_line(mouse):
    stretch, later = stretch_of(mouse, 0, 40, SMALL), stretch_of(mouse, 100, 140, SMALL)
    with DecoderPool(1) as pool:
        pool.expect([stretch])
        wait_until(lambda: waiting(pool) == [40])
        pool.expect([later])
        wait_until(lambda: waiting(pool) == [40, 40])
        assert taken(pool, stretch) == list(range(40))
        assert taken(pool, later) == list(range(100, 140))


def test_what_was_not_expected_is_decoded_and_what_is_not_wanted_is_dropped(mouse):
    first, other = stretch_of(mouse, 0, 300, SMALL), stretch_of(mouse, 300, 400, SMALL)
    with pool_of(2, first, 20) as pool:
        pool.expect([first])
        assert taken(pool, other) == list(range(300, 400))
        assert taken(pool, first) == list(range(300))
        pool.expect([first, other])
        assert taken(pool, other) == list(range(300, 400))


@pytest.mark.parametrize("count", [1, 3])
def test_only_so_many_bytes_wait_in_the_hands_of_each_decoder(mouse, count):
    stretch = stretch_of(mouse, transform=SMALL)
    with pool_of(count, stretch, 40) as pool:
        blocks = pool.blocks(stretch)
        most = 0
        for _ in range(30):
            next(blocks)
            time.sleep(0.01)
            most = max(most, *waiting(pool))
        blocks.close()
    assert 0 < most <= count * 40


# Faults


@pytest.mark.parametrize("count", [1, 3])
def test_a_damaged_video_gives_its_good_frames_and_then_the_error(tmp_path, count):
    whole = videos.write_video(tmp_path / "whole.mp4", 200, container={"movflags": "faststart"})
    stretch = stretch_of(videos.write_truncated(tmp_path / "cut.mp4", whole, 0.6))
    frames = []
    with pool_of(count, stretch, 20, block_frames=1) as pool:
        with pytest.raises(VideoError, match="claims 200 frames but decoding ended at frame") as caught:
            for block in pool.blocks(stretch):
                frames.extend(numbers_in(block))
        assert frames == list(range(caught.value.frame))
        assert taken(pool, stretch_of(whole, 0, 5)) == list(range(5)), "the pool continues"


def test_a_damaged_video_does_not_hurt_those_that_were_decoded_with_it(tmp_path):
    whole = videos.write_video(tmp_path / "whole.mp4", 200, container={"movflags": "faststart"})
    cut = stretch_of(videos.write_truncated(tmp_path / "cut.mp4", whole, 0.6), transform=SMALL)
    sound = stretch_of(whole, transform=SMALL)
    with DecoderPool(3) as pool:
        pool.expect([sound, cut, sound])
        assert taken(pool, sound) == list(range(200))
        with pytest.raises(VideoError, match="decoding ended at frame"):
            list(pool.blocks(cut))
        assert taken(pool, sound) == list(range(200))


def test_a_crop_too_large_is_an_error_of_configuration(mouse):
    stretch = stretch_of(mouse, transform=FrameTransform(crop_size=500))
    with DecoderPool(2) as pool:
        pool.expect([stretch])
        with pytest.raises(ConfigError, match="crop_size"):
            list(pool.blocks(stretch))


@pytest.mark.parametrize("count", [1, 3])
def test_when_decoders_are_killed_others_continue(mouse, count):
    stretch = stretch_of(mouse, 3, 400, LARGE)
    with pool_of(count, stretch, 50) as pool:
        blocks = pool.blocks(stretch)
        found = [next(blocks)]
        wait_until(lambda: len(children_of(pool)) == count)
        for child in children_of(pool):
            os.kill(child, signal.SIGKILL)
        found += list(blocks)
    assert numbers_in(np.concatenate(found)) == list(range(3, 400))


def test_a_crash_is_blamed_on_the_video_that_was_being_decoded(mouse, tmp_path):
    other = videos.write_video(tmp_path / "other.mp4", 40)
    stretch, later = stretch_of(other, transform=SMALL), stretch_of(mouse, transform=LARGE)
    with pool_of(1, later, 400) as pool:
        pool.expect([stretch, later])
        wait_until(lambda: waiting(pool)[1] > 0)
        os.kill(children_of(pool)[0], signal.SIGSEGV)
        assert taken(pool, stretch) == list(range(40))
        with pytest.raises(VideoError, match=r"crashed \(SIGSEGV\)") as caught:
            list(pool.blocks(later))
        assert caught.value.path == mouse


def test_a_decoder_that_hangs_is_noticed(mouse):
    stretch = stretch_of(mouse, transform=LARGE)
    with DecoderPool(1, 8, timeout=2.0) as pool:
        blocks = pool.blocks(stretch)
        next(blocks)
        os.kill(children_of(pool)[0], signal.SIGSTOP)
        with pytest.raises(VideoError, match="said nothing for 2 seconds"):
            list(blocks)


@pytest.mark.parametrize("broken", ["deg.data.video.decoder.Decoder.blocks", "deg.data.video.agenda.Agenda.begin"])
def test_a_defect_in_a_thread_reaches_the_consumer(mouse, monkeypatch, broken):
    def fail(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(broken, fail)
    with DecoderPool(2) as pool, pytest.raises(ZeroDivisionError, match="a defect"):
        list(pool.blocks(stretch_of(mouse, 0, 5)))


def test_a_closed_pool_says_so(mouse):
    with DecoderPool(1) as pool:
        blocks = pool.blocks(stretch_of(mouse, 0, 5))
    with pytest.raises(RuntimeError, match="the pool is closed"):
        next(blocks)


def test_one_decoder_that_cannot_be_ended_does_not_keep_the_others(mouse, monkeypatch):
    monkeypatch.setattr("deg.data.video.pool.END_SECONDS", 1.0)
    stretch = stretch_of(mouse, transform=LARGE)
    with pool_of(2, stretch, 50) as pool:
        pool.expect([stretch])
        wait_until(lambda: len(children_of(pool)) == 2)
        first, second = children_of(pool)
        os.kill(first, signal.SIGSTOP)
        monkeypatch.setattr(pool._decoders[0], "kill", lambda: None)
    assert not is_running(second)
    monkeypatch.undo()
    os.kill(first, signal.SIGKILL)
    pool._threads[0].join(10)
    pool._decoders[0].close()


@pytest.mark.parametrize("count", [1, 3])
def test_closing_a_busy_pool_leaves_no_child_and_no_thread(mouse, count):
    threads = threading.active_count()
    stretch = stretch_of(mouse, transform=LARGE)
    with pool_of(count, stretch, 50) as pool:
        pool.expect([stretch, stretch])
        next(pool.blocks(stretch))
        wait_until(lambda: len(children_of(pool)) == count)
        children = children_of(pool)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert threading.active_count() == threads
    assert not any(map(is_running, children))


def test_a_stretch_that_was_given_up_is_not_taken_for_finished(mouse):
    stretch, other = stretch_of(mouse, 0, 200, SMALL), stretch_of(mouse, 200, 300, SMALL)
    with pool_of(2, stretch, 20) as pool:
        blocks = pool.blocks(stretch)
        next(blocks)
        assert taken(pool, other) == list(range(200, 300))
        with pytest.raises(RuntimeError, match="asked for something else"):
            list(blocks)


def test_a_child_starts_only_when_there_is_work():
    with DecoderPool(2) as pool:
        assert children_of(pool) == [] and Path("/proc/self").exists()
