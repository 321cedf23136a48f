"""Child processes return the exact frames; what happens to a child is reported, and nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import videos
from image_folders import write_unpadded
from videos import numbers_in

from deg.data.video.decoder import Decoder, DecoderPool, inspect_all, probe_all
from deg.data.video.files import open_video, probe
from deg.data.video.process import DecoderKilledError
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError, VideoError

pytestmark = pytest.mark.slow

SMALL = FrameTransform(resize=(32, 40))


@pytest.fixture(scope="module")
def mouse(tmp_path_factory):
    return videos.write_video(tmp_path_factory.mktemp("videos") / "mouse.mp4", 400, options=videos.OPEN_GOP)


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


def all_frames(blocks):
    return np.concatenate(list(blocks))


def child_of(decoder) -> int:
    return decoder._child._process.pid


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# The frames themselves


@pytest.mark.parametrize(
    ("image_order", "numbers"), [("natural", list(range(12))), ("deepethogram", [0, 1, 10, 11, *range(2, 10)])]
)
def test_images_are_decoded_in_the_order_asked_for(tmp_path, decoder, image_order, numbers):
    folder = write_unpadded(tmp_path / "images", 12)
    info = decoder.probe(folder, image_order=image_order)
    assert info == probe(folder, image_order=image_order) and info.image_order == image_order
    assert probe_all([folder], image_order=image_order) == [info]
    assert inspect_all([folder], image_order=image_order)[0].info == info
    assert videos.numbers_in(all_frames(decoder.blocks(folder, 0, 12, image_order=image_order))) == numbers
    for count in (1, 2):
        with DecoderPool(count, piece_frames=4) as pool:
            blocks = pool.blocks(folder, 0, 12, block_frames=2, image_order=image_order)
            assert videos.numbers_in(all_frames(blocks)) == numbers


def test_probe_is_that_of_this_process(decoder, mouse):
    assert decoder.probe(mouse) == probe(mouse)


def test_blocks_are_the_transformed_frames(decoder, mouse):
    with open_video(mouse) as video:
        expected = np.array(list(video.read(37, 137, SMALL)))
    blocks = list(decoder.blocks(mouse, 37, 137, SMALL, 32))
    assert [len(block) for block in blocks] == [32, 32, 32, 4]
    assert np.array_equal(np.concatenate(blocks), expected)


def test_span_after_span_by_one_child(decoder, mouse):
    child = child_of(decoder) if decoder._child else None
    for start, stop in ((0, 10), (10, 20), (300, 310), (5, 5), (390, 400)):
        blocks = list(decoder.blocks(mouse, start, stop, block_frames=4))
        assert numbers_in(frame for block in blocks for frame in block) == list(range(start, stop))
    assert child in (None, child_of(decoder))


def test_blocks_kept_by_the_consumer_stay_as_they_are(decoder, mouse):
    blocks = list(decoder.blocks(mouse, 0, 200, SMALL, 8))
    assert numbers_in(np.concatenate(blocks)) == list(range(200))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_decoders_gives_the_same_blocks(decoder, mouse, count):
    expected = list(decoder.blocks(mouse, 3, 400, SMALL, 16))
    with DecoderPool(count, piece_frames=50) as pool:
        for _ in range(2):
            blocks = list(pool.blocks(mouse, 3, 400, SMALL, 16))
            assert [len(block) for block in blocks] == [len(block) for block in expected]
            assert np.array_equal(np.concatenate(blocks), np.concatenate(expected))


def test_names_that_are_not_utf8_and_of_every_other_kind(decoder, tmp_path, mouse):
    for name in (b"m\xff.mp4", "鼠 'x' \"y\"\n.mp4".encode(), b"mouse_%04d.mp4"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.symlink_to(mouse)
        assert decoder.probe(path).path == path
        assert numbers_in(all_frames(decoder.blocks(path, 250, 260))) == list(range(250, 260))


# Faults of videos


def test_errors_are_those_of_this_process(decoder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError) as here:
        probe(tmp_path / "text.mp4")
    with pytest.raises(VideoError) as there:
        decoder.probe(tmp_path / "text.mp4")
    assert str(here.value) == str(there.value)


@pytest.mark.parametrize("count", [1, 3])
def test_a_damaged_video_gives_its_good_frames_and_then_the_error(tmp_path, count):
    whole = videos.write_video(tmp_path / "whole.mp4", 200, container={"movflags": "faststart"})
    cut = videos.write_truncated(tmp_path / "cut.mp4", whole, 0.6)
    frames = []
    with DecoderPool(count, piece_frames=20) as pool:
        with pytest.raises(VideoError, match="claims 200 frames but decoding ended at frame") as caught:
            for block in pool.blocks(cut, 0, 200, block_frames=1):
                frames.extend(numbers_in(block))
        assert frames == list(range(caught.value.frame))
        assert numbers_in(all_frames(pool.blocks(whole, 0, 5))) == list(range(5)), "the pool continues"


def test_frames_that_decode_can_be_taken_for_the_whole_video(decoder, tmp_path):
    whole = videos.write_video(tmp_path / "whole.mp4", 200, container={"movflags": "faststart"})
    cut = videos.write_truncated(tmp_path / "cut.mp4", whole, 0.6)
    count = decoder.probe(cut, frame_count="decoded").num_frames
    assert 0 < count < 200
    blocks = decoder.blocks(cut, count - 9, count, frame_count=count)
    assert numbers_in(all_frames(blocks)) == list(range(count - 9, count))


def test_a_crop_too_large_is_an_error_of_configuration(decoder, mouse):
    with pytest.raises(ConfigError, match="crop_size"):
        list(decoder.blocks(mouse, 0, 5, FrameTransform(crop_size=500)))


def test_inspection_counts_what_decodes(decoder, tmp_path, mouse):
    cut = videos.write_cut(tmp_path / "cut.mp4", mouse, 40)
    (tmp_path / "empty.mp4").touch()
    good, short, empty = (decoder.inspect(path) for path in (mouse, cut, tmp_path / "empty.mp4"))
    assert (good.info.num_frames, good.decodable, good.error) == (400, 400, None)
    assert (short.info.num_frames, short.decodable, short.error.frame) == (400, 360, 360)
    assert (empty.info, empty.decodable) == (None, 0) and "0 bytes" in str(empty.error)


def test_many_videos_are_probed_in_their_order(tmp_path, mouse):
    good = [videos.write_opencv(tmp_path / f"{frames}.avi", frames) for frames in range(1, 6)]
    paths = [*good[:3], tmp_path / "none.mp4", *good[3:]]
    results = probe_all(paths, processes=2)
    assert [result.num_frames for result in results if not isinstance(result, VideoError)] == [1, 2, 3, 4, 5]
    assert isinstance(results[3], VideoError) and results[3].path == tmp_path / "none.mp4"
    assert [result.decodable for result in inspect_all(paths, processes=2)] == [1, 2, 3, 0, 4, 5]


# Faults of the child


@pytest.mark.parametrize(
    ("death", "message"), [(signal.SIGSEGV, r"crashed \(SIGSEGV\)"), (signal.SIGKILL, "Memory may")]
)
def test_a_crash_is_an_error_and_the_next_request_works(mouse, death, message):
    with Decoder() as decoder:
        blocks = decoder.blocks(mouse, 0, 400, FrameTransform(resize=(500, 500)), 8)
        next(blocks)
        os.kill(child_of(decoder), death)
        with pytest.raises(VideoError, match=message) as caught:
            list(blocks)
        assert 0 < caught.value.frame < 400
        assert numbers_in(all_frames(decoder.blocks(mouse, 0, 5))) == list(range(5))


def test_a_child_that_died_between_requests_is_replaced(mouse):
    with Decoder() as decoder:
        decoder.probe(mouse)
        os.kill(child_of(decoder), signal.SIGKILL)
        decoder._child._process.wait()
        assert decoder.probe(mouse).num_frames == 400


def kill_children(pool: DecoderPool) -> None:
    for decoder in pool._decoders:
        os.kill(child_of(decoder), signal.SIGKILL)


@pytest.mark.parametrize("count", [1, 3])
def test_when_a_child_of_a_pool_is_killed_another_takes_over(mouse, count):
    with DecoderPool(count, piece_frames=50) as pool:
        blocks = pool.blocks(mouse, 3, 400, FrameTransform(resize=(500, 500)), 8)
        found = [next(blocks)]
        kill_children(pool)
        found += list(blocks)
    assert numbers_in(np.concatenate(found)) == list(range(3, 400))
    assert [len(block_THWC) for block_THWC in found] == [8] * 49 + [5]


def test_a_pool_gives_up_when_one_child_after_another_is_killed(mouse, monkeypatch):
    begun = []

    def killed(self, path, start, *_, **__):
        begun.append(start)
        raise DecoderKilledError(path, "the decoder was killed", "Memory may have run out.")

    monkeypatch.setattr(Decoder, "blocks", killed)
    with DecoderPool(1) as pool, pytest.raises(VideoError, match="was killed"):
        list(pool.blocks(mouse, 0, 400, SMALL))
    assert begun == [0, 0, 0]


def test_a_silent_child_is_not_waited_for_for_ever(mouse):
    with Decoder(timeout=2.0) as decoder:
        decoder.probe(mouse)
        os.kill(child_of(decoder), signal.SIGSTOP)
        with pytest.raises(VideoError, match=r"said nothing for 2 seconds"):
            decoder.probe(mouse)
        assert decoder.probe(mouse).num_frames == 400


def test_a_warning_that_comes_before_the_child_can_ignore_it_does_no_harm(mouse):
    with Decoder() as decoder:
        child = decoder._idle_child()
        for warning in (signal.SIGTERM, signal.SIGUSR2):
            os.kill(child._process.pid, warning)
        assert decoder.probe(mouse) == probe(mouse) and child_of(decoder) == child._process.pid


@pytest.mark.parametrize("warning", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_the_whole_job_does_not_end_a_child(decoder, mouse, warning):
    decoder.probe(mouse)
    os.kill(child_of(decoder), warning)
    assert decoder.probe(mouse).num_frames == 400


@pytest.mark.parametrize("count", [1, 3])
def test_stopping_early_leaves_no_child_and_no_thread(mouse, count):
    threads = threading.active_count()
    with DecoderPool(count, piece_frames=50) as pool:
        blocks = pool.blocks(mouse, 0, 400, FrameTransform(resize=(500, 500)), 8)
        next(blocks)
        children = [child_of(decoder) for decoder in pool._decoders]
        began = time.monotonic()
        blocks.close()
        assert time.monotonic() - began < 3
        assert threading.active_count() == threads
        assert len(all_frames(pool.blocks(mouse, 0, 400, SMALL))) == 400, "the pool continues"
        children += [child_of(decoder) for decoder in pool._decoders]
    assert not any(map(is_running, children))


def test_asking_for_something_else_gives_up_the_blocks(decoder, mouse):
    blocks = decoder.blocks(mouse, 0, 400, FrameTransform(resize=(500, 500)), 8)
    next(blocks)
    assert decoder.probe(mouse).num_frames == 400
    assert list(blocks) == []


@pytest.mark.parametrize("busy", [True, False])
def test_a_child_ends_with_its_parent_however_that_dies(mouse, busy):
    code = (
        "import sys, time; from deg.data.video.decoder import Decoder, FrameTransform\n"
        "decoder = Decoder(); decoder.probe(sys.argv[1])\n"
        "large = FrameTransform(resize=(500, 500))\n"
        "blocks = decoder.blocks(sys.argv[1], 0, 400, large) if int(sys.argv[2]) else None\n"
        "print(decoder._child._process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(mouse), str(int(busy))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    wait_until(lambda: not is_running(child))


def test_a_child_starts_without_torch_and_without_hdf5():
    code = "import sys, deg.data.video.child; print({'torch', 'h5py', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
