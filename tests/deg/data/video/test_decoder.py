"""Child processes return the exact frames; what happens to a child is reported, and nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import videos
from image_folders import write_unpadded
from stretches import stretch_of
from videos import numbers_in
from waiting import is_running, wait_until

from deg.data.video.decoder import Decoder
from deg.data.video.files import open_video, probe
from deg.data.video.probing import inspect_all, probe_all
from deg.data.video.process import ChildProcess, DecoderKilledError
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
    assert numbers_in(all_frames(decoder.blocks(stretch_of(folder, image_order=image_order)))) == numbers


def test_probe_is_that_of_this_process(decoder, mouse):
    assert decoder.probe(mouse) == probe(mouse)


def test_blocks_are_the_transformed_frames(decoder, mouse):
    with open_video(mouse) as video:
        expected = np.array(list(video.read(37, 137, SMALL)))
    blocks = list(decoder.blocks(stretch_of(mouse, 37, 137, SMALL), 32))
    assert [len(block) for block in blocks] == [32, 32, 32, 4]
    assert np.array_equal(np.concatenate(blocks), expected)


def test_span_after_span_by_one_child(decoder, mouse):
    child = child_of(decoder) if decoder._child else None
    for start, stop in ((0, 10), (10, 20), (300, 310), (5, 5), (390, 400)):
        blocks = list(decoder.blocks(stretch_of(mouse, start, stop), 4))
        assert numbers_in(frame for block in blocks for frame in block) == list(range(start, stop))
    assert child in (None, child_of(decoder))


def test_blocks_kept_by_the_consumer_stay_as_they_are(decoder, mouse):
    blocks = list(decoder.blocks(stretch_of(mouse, 0, 200, SMALL), 8))
    assert numbers_in(np.concatenate(blocks)) == list(range(200))


def test_names_that_are_not_utf8_and_of_every_other_kind(decoder, tmp_path, mouse):
    for name in (b"m\xff.mp4", "鼠 'x' \"y\"\n.mp4".encode(), b"mouse_%04d.mp4"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.symlink_to(mouse)
        assert decoder.probe(path).path == path
        assert numbers_in(all_frames(decoder.blocks(stretch_of(path, 250, 260)))) == list(range(250, 260))


# Faults of videos


def test_errors_are_those_of_this_process(decoder, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError) as here:
        probe(tmp_path / "text.mp4")
    with pytest.raises(VideoError) as there:
        decoder.probe(tmp_path / "text.mp4")
    assert str(here.value) == str(there.value)


def test_frames_that_decode_can_be_taken_for_the_whole_video(decoder, tmp_path):
    whole = videos.write_video(tmp_path / "whole.mp4", 200, container={"movflags": "faststart"})
    cut = videos.write_truncated(tmp_path / "cut.mp4", whole, 0.6)
    count = decoder.probe(cut, frame_count="decoded").num_frames
    assert 0 < count < 200
    blocks = decoder.blocks(stretch_of(cut, count - 9, count, frame_count=count))
    assert numbers_in(all_frames(blocks)) == list(range(count - 9, count))


def test_a_crop_too_large_is_an_error_of_configuration(decoder, mouse):
    with pytest.raises(ConfigError, match="crop_size"):
        list(decoder.blocks(stretch_of(mouse, 0, 5, FrameTransform(crop_size=500))))


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


LARGE = FrameTransform(resize=(500, 500))


def test_a_crash_is_an_error_and_the_next_request_works(mouse):
    with Decoder() as decoder:
        blocks = decoder.blocks(stretch_of(mouse, transform=LARGE), 8)
        next(blocks)
        os.kill(child_of(decoder), signal.SIGSEGV)
        with pytest.raises(VideoError, match=r"crashed \(SIGSEGV\)") as caught:
            list(blocks)
        assert 0 < caught.value.frame < 400
        assert numbers_in(all_frames(decoder.blocks(stretch_of(mouse, 0, 5)))) == list(range(5))


def test_when_a_child_is_killed_another_one_continues(mouse):
    with Decoder() as decoder:
        blocks = decoder.blocks(stretch_of(mouse, 3, 400, LARGE), 8)
        found = [next(blocks)]
        os.kill(child_of(decoder), signal.SIGKILL)
        found += list(blocks)
    assert numbers_in(np.concatenate(found)) == list(range(3, 400))
    assert [len(block_THWC) for block_THWC in found] == [8] * 49 + [5]


def test_a_decoder_gives_up_when_one_child_after_another_is_killed(mouse, monkeypatch):
    begun = []

    def killed(child, request):
        begun.append(request["start"])
        child.kill()

    monkeypatch.setattr(ChildProcess, "send", killed)
    with Decoder() as decoder, pytest.raises(DecoderKilledError, match="Memory may have run out"):
        list(decoder.blocks(stretch_of(mouse, 0, 400, SMALL)))
    assert begun == [0, 0, 0]


def test_a_child_that_died_between_requests_is_replaced(mouse):
    with Decoder() as decoder:
        decoder.probe(mouse)
        os.kill(child_of(decoder), signal.SIGKILL)
        decoder._child._process.wait()
        assert decoder.probe(mouse).num_frames == 400


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


def test_blocks_that_are_closed_early_leave_no_child(mouse):
    with Decoder() as decoder:
        blocks = decoder.blocks(stretch_of(mouse, transform=LARGE), 8)
        next(blocks)
        child = child_of(decoder)
        blocks.close()
        assert not is_running(child)
        assert numbers_in(all_frames(decoder.blocks(stretch_of(mouse, 0, 5)))) == list(range(5))


def test_two_requests_at_a_time_are_refused(mouse):
    with Decoder() as decoder:
        blocks = decoder.blocks(stretch_of(mouse), 8)
        next(blocks)
        with pytest.raises(RuntimeError, match="neither taken to the end nor closed"):
            decoder.probe(mouse)
        blocks.close()


def test_entries_are_frames_with_which_reading_begins_near_a_key_frame(mouse, decoder):
    with open_video(mouse) as video:
        assert decoder.entries(stretch_of(mouse, 100, 390)) == [f for f in video.entries() if 100 < f < 390] != []


@pytest.mark.parametrize("busy", [True, False])
def test_a_child_ends_with_its_parent_however_that_dies(mouse, busy):
    code = (
        "import sys, time; from deg.data.video.decoder import Decoder\n"
        "from deg.data.video.stretch import FrameTransform, Stretch\n"
        "decoder = Decoder(); video = decoder.probe(sys.argv[1])\n"
        "blocks = decoder.blocks(Stretch(video, 0, 400, FrameTransform(resize=(500, 500))), 8)\n"
        "taken = next(blocks) if int(sys.argv[2]) else None\n"
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
