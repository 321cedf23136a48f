"""The frame cache is made once, shared, checked, never larger than allowed, and correct whatever happens meanwhile."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from videos import number_in, numbers_in, write_opencv, write_truncated, write_video

from deg.data.frames import cache as frame_cache
from deg.data.frames import making
from deg.data.frames.cache import FrameCache
from deg.data.frames.files import CacheError, FrameWriter
from deg.data.video.decoder import Decoder
from deg.data.video.files import probe
from deg.data.video.stretch import Stretch
from deg.data.video.transform import FrameTransform
from deg.errors import ConfigError, VideoError
from deg.types import VideoInfo

pytestmark = pytest.mark.slow

SMALL = FrameTransform(resize=(32, 40))
FRAME_BYTES = 32 * 40 * 3
PLENTY = 10**9


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(making, "POLL", 0.02)


@pytest.fixture
def starts(monkeypatch):
    """The first frames of all spans that are decoded for the cache."""
    asked: list[int] = []
    blocks = Decoder.blocks

    def watched(self, stretch, *arguments):
        asked.append(stretch.start)
        return blocks(self, stretch, *arguments)

    monkeypatch.setattr(Decoder, "blocks", watched)
    return asked


def make_videos(folder: Path, *lengths: int) -> dict[str, VideoInfo]:
    return {f"v{i}": probe(write_video(folder / f"v{i}.mp4", length)) for i, length in enumerate(lengths)}


def decoded(video: VideoInfo, transform: FrameTransform) -> np.ndarray:
    with Decoder() as decoder:
        return np.concatenate(list(decoder.blocks(Stretch(video, 0, video.num_frames, transform))))


def folders(cache: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in cache.glob(pattern) if path.name != "in_use")


def require_right(cache: FrameCache, videos: dict[str, VideoInfo], transform: FrameTransform = SMALL) -> None:
    for video in videos.values():
        with cache.open(video, transform) as frames:
            np.testing.assert_array_equal(frames.read(0, video.num_frames), decoded(video, transform))


# ------------------------------------------------------------------------------------------------ made once


def test_frames_are_those_of_the_decoder(tmp_path):
    videos = make_videos(tmp_path, 40, 1, 70)
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    cache.ensure(videos, SMALL)
    require_right(cache, videos)
    assert not folders(tmp_path / "cache", "*.*"), "nothing unfinished is left"


def test_frames_that_are_there_are_not_decoded_again(tmp_path, starts):
    videos = make_videos(tmp_path, 20, 30)
    FrameCache(tmp_path / "cache", "raw", PLENTY).ensure(videos, SMALL)
    assert starts == [0, 0]
    told: list[int] = []
    FrameCache(tmp_path / "cache", "raw", PLENTY).ensure(videos, SMALL, told.append)
    assert starts == [0, 0] and told == [50]


def test_sizes_and_formats_lie_side_by_side(tmp_path):
    videos = make_videos(tmp_path, 20)
    large = FrameTransform(resize=(64, 80), pad=2)
    raw, jpeg = (FrameCache(tmp_path / "cache", format, PLENTY) for format in ("raw", "jpeg"))
    raw.ensure(videos, SMALL)
    raw.ensure(videos, large)
    jpeg.ensure(videos, large)
    require_right(raw, videos, SMALL)
    require_right(raw, videos, large)
    with jpeg.open(videos["v0"], large) as frames:
        assert (frames.height, frames.width) == (68, 84)
        assert numbers_in(frames.read(0, 20)[:, 2:-2, 2:-2]) == list(range(20))


def test_frames_to_be_cropped_are_kept_whole(tmp_path):
    """A training crop may lie anywhere, and is cut before resizing."""
    videos = make_videos(tmp_path, 12)
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    transform = FrameTransform(crop_size=(50, 60), resize=(32, 40))
    cache.ensure(videos, transform)
    with cache.open(videos["v0"], transform) as frames:
        np.testing.assert_array_equal(frames.read(0, 12), decoded(videos["v0"], FrameTransform()))


def test_progress_counts_all_frames(tmp_path):
    videos = make_videos(tmp_path, 40, 50)
    told: list[int] = []
    FrameCache(tmp_path / "cache", "raw", PLENTY).ensure(videos, SMALL, told.append, decoders=1)
    assert told == sorted(told) and told[-1] == 90


def test_a_video_in_two_recordings_is_made_once(tmp_path, starts):
    videos = make_videos(tmp_path, 20)
    FrameCache(tmp_path / "cache", "raw", PLENTY).ensure(videos | {"again": videos["v0"]}, SMALL)
    assert starts == [0]


def test_a_video_with_counted_frames_is_read_up_to_that_count(tmp_path):
    """Frames are counted as with inference.frame_count=decoded, in a file that claims more."""
    path = write_truncated(tmp_path / "cut.avi", write_opencv(tmp_path / "whole.avi", 60), 0.6)
    with Decoder() as decoder:
        counted = {"cut": decoder.probe(path, frame_count="decoded")}
    assert counted["cut"].num_frames < 60
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    cache.ensure(counted, SMALL)
    with cache.open(counted["cut"], SMALL) as frames:
        assert number_in(frames.read(counted["cut"].num_frames - 1, counted["cut"].num_frames)[0]) > 20


def test_a_video_that_ends_early_is_named(tmp_path):
    path = write_truncated(tmp_path / "cut.avi", write_opencv(tmp_path / "whole.avi", 60), 0.6)
    with pytest.raises(VideoError, match=r"cut\.avi: it claims 60 frames but"):
        FrameCache(tmp_path / "cache", "raw", PLENTY).ensure({"cut": probe(path)}, SMALL)


def test_a_folder_that_cannot_be_made_is_a_mistake_in_the_options(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"compute\.cache"):
        FrameCache(tmp_path / "cache", "raw", PLENTY)


# ------------------------------------------------------------------------------------------------ killed


BUILD = """
import json, os, signal, sys
from pathlib import Path
from deg.data.frames import files as frame_files, making as frame_making
from deg.data.frames.cache import FrameCache
from deg.data.video.transform import FrameTransform
from deg.data.video.files import probe

folder, kill_at, *paths = sys.argv[1:]
frame_files.FLUSH_BYTES, frame_making.POLL = 1, 0.02
appended, append = 0, frame_files.FrameWriter.append

def watched(self, frames_THWC):
    global appended
    append(self, frames_THWC)
    appended += len(frames_THWC)
    if appended >= int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)

frame_files.FrameWriter.append = watched
cache = FrameCache(Path(folder), "raw", 10**9)
print("ready", flush=True)
sys.stdin.readline()
cache.ensure({path: probe(path) for path in paths}, FrameTransform(resize=(32, 40)))
print(appended)
"""


def start_building(cache: Path, videos: dict[str, VideoInfo], kill_at: int = 10**9) -> subprocess.Popen[str]:
    paths = [str(video.path) for video in videos.values()]
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(cache), str(kill_at), *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_another_builder_resumes_where_a_killed_one_was(tmp_path, starts):
    videos = make_videos(tmp_path, 150)
    process = start_building(tmp_path / "cache", videos, kill_at=64)
    process.communicate("go\n", timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(folders(tmp_path / "cache", "*.part")) == 1
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    cache.ensure(videos, SMALL)
    assert starts == [64]
    require_right(cache, videos)


def test_a_stop_keeps_what_was_decoded(tmp_path, starts, monkeypatch):
    monkeypatch.setattr(making, "BLOCK_FRAMES", 4)
    videos = make_videos(tmp_path, 300)
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    asked = 0

    class StopError(Exception):
        pass

    def check_stop():
        nonlocal asked
        asked += 1
        if asked == 3:
            raise StopError

    # slow enough that the stop comes in the middle
    append = FrameWriter.append
    monkeypatch.setattr(FrameWriter, "append", lambda self, frames: (time.sleep(0.01), append(self, frames)))
    with pytest.raises(StopError):
        cache.ensure(videos, SMALL, check_stop=check_stop)
    assert not folders(tmp_path / "cache", "v0-????????????????")
    cache.ensure(videos, SMALL)
    assert len(starts) == 2 and 0 < starts[1] < 300
    require_right(cache, videos)


def test_flipped_bits_in_an_unfinished_part_are_made_again(tmp_path, starts):
    videos = make_videos(tmp_path, 150)
    start_building(tmp_path / "cache", videos, kill_at=96).communicate("go\n", timeout=60)
    (part,) = folders(tmp_path / "cache", "*.part")
    content = bytearray((part / "frames.bin").read_bytes())
    content[40 * FRAME_BYTES] ^= 1
    (part / "frames.bin").write_bytes(content)
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    cache.ensure(videos, SMALL)
    assert starts == [32]
    require_right(cache, videos)


# ------------------------------------------------------------------------------------------------ shared


@pytest.mark.slow
def test_processes_share_the_work(tmp_path):
    videos = make_videos(tmp_path, 60, 50, 40, 30)
    builders = [start_building(tmp_path / "cache", videos) for _ in range(2)]
    for builder in builders:
        builder.stdin.write("go\n")
        builder.stdin.flush()
    appended = [int(builder.communicate(timeout=100)[0]) for builder in builders]
    assert sum(appended) == 180, "every frame was made once"
    require_right(FrameCache(tmp_path / "cache", "raw", PLENTY), videos)
    assert not folders(tmp_path / "cache", "*.*")


def make_foreign_part(cache: Path, videos: dict[str, VideoInfo], host: str = "node7:1") -> Path:
    """Make a part that looks as if another node were writing it at this moment."""
    FrameCache(cache, "raw", PLENTY).ensure(videos, SMALL)
    (whole,) = folders(cache)
    part = whole.with_name(whole.name + ".part")
    shutil.rmtree(whole)
    part.mkdir()
    (part / "owner").write_text(json.dumps({"host": host, "pid": 4711, "token": "x"}))
    return part


def test_frames_of_a_living_builder_elsewhere_are_waited_for(tmp_path, monkeypatch):
    videos = make_videos(tmp_path, 20)
    part = make_foreign_part(tmp_path / "cache", videos)
    done = tmp_path / "elsewhere"
    FrameCache(done, "raw", PLENTY).ensure(videos, SMALL)
    calls = 0

    def meanwhile():
        nonlocal calls
        calls += 1
        if calls == 5:  # the other builder finishes
            (part / "owner").unlink()
            for file in folders(done)[0].iterdir():
                shutil.copy(file, part)
            part.rename(part.with_suffix(""))

    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    monkeypatch.setattr(making.Filling, "_make", None)  # this process decodes nothing
    cache.ensure(videos, SMALL, check_stop=meanwhile)
    require_right(cache, videos)


def test_a_builder_elsewhere_that_gets_no_further_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    videos = make_videos(tmp_path, 20)
    make_foreign_part(tmp_path / "cache", videos)
    monkeypatch.setattr(making, "PATIENCE", 0.2)
    with pytest.raises(CacheError, match=r"process 4711 on node7 is making the frames of .*v0\.mp4"):
        FrameCache(tmp_path / "cache", "raw", PLENTY).ensure(videos, SMALL)


def test_a_builder_elsewhere_that_went_silent_is_replaced(tmp_path):
    videos = make_videos(tmp_path, 20)
    part = make_foreign_part(tmp_path / "cache", videos)
    long_ago = time.time() - making.ABANDONED - 60
    os.utime(part / "owner", (long_ago, long_ago))
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    cache.ensure(videos, SMALL)
    require_right(cache, videos)


def test_a_folder_that_nobody_signed_is_taken_over_after_a_while(tmp_path, monkeypatch):
    videos = make_videos(tmp_path, 20)
    (make_foreign_part(tmp_path / "cache", videos) / "owner").unlink()
    monkeypatch.setattr(making, "ABANDONED", 0.1)
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    cache.ensure(videos, SMALL)
    require_right(cache, videos)


def test_a_builder_that_was_taken_for_dead_gives_way(tmp_path, monkeypatch, starts):
    """It stops writing once another process has signed. Here that process dies as well, and the first one resumes."""
    videos = make_videos(tmp_path, 100)
    dead = subprocess.Popen(["true"])
    dead.wait()
    appended = 0
    append = FrameWriter.append

    def robbed(self, frames_THWC):
        nonlocal appended
        append(self, frames_THWC)
        self.flush()
        appended += 1
        if appended == 2:
            owner = {"host": making._host(), "pid": dead.pid, "token": "x"}
            (self._folder / "owner").write_text(json.dumps(owner))

    monkeypatch.setattr(FrameWriter, "append", robbed)
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    cache.ensure(videos, SMALL)
    assert starts == [0, 64]
    require_right(cache, videos)


# ------------------------------------------------------------------------------------------------ checked


@pytest.fixture
def cached(tmp_path):
    """A cache of one video, its folder there, and the videos."""
    videos = make_videos(tmp_path, 40)
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    cache.ensure(videos, SMALL)
    (folder,) = folders(tmp_path / "cache")
    return cache, folder, videos


def test_a_truncated_file_is_noticed_at_opening_and_made_anew(cached):
    cache, folder, videos = cached
    os.truncate(folder / "frames.bin", 30 * FRAME_BYTES)
    with pytest.raises(CacheError, match=r"v0\.mp4 are not all there"):
        cache.open(videos["v0"], SMALL)
    cache.ensure(videos, SMALL)
    require_right(cache, videos)


@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage\n", b"{}\n{}\n"])
def test_a_damaged_index_is_noticed(cached, content):
    cache, folder, videos = cached
    (folder / "index.jsonl").write_bytes(content)
    cache.ensure(videos, SMALL)
    require_right(cache, videos)


def test_a_file_that_went_away_is_noticed(cached):
    cache, folder, videos = cached
    (folder / "frames.bin").unlink()
    cache.ensure(videos, SMALL)
    require_right(cache, videos)


def test_flipped_bits_are_found_on_demand(cached):
    cache, folder, videos = cached
    assert cache.verify(videos["v0"], SMALL)
    content = bytearray((folder / "frames.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "frames.bin").write_bytes(content)
    assert not cache.verify(videos["v0"], SMALL)
    cache.ensure(videos, SMALL)
    require_right(cache, videos)


def test_frames_of_a_video_that_was_replaced_are_made_anew_in_their_place(cached, tmp_path):
    cache, folder, _ = cached
    write_video(tmp_path / "v0.mp4", 25)
    now = {"v0": probe(tmp_path / "v0.mp4")}
    with pytest.raises(CacheError):
        cache.open(now["v0"], SMALL)
    cache.ensure(now, SMALL)
    require_right(cache, now)
    assert folders(tmp_path / "cache") == [folder]


def test_a_video_that_was_only_touched_is_decoded_again(cached, tmp_path, starts):
    cache, _, _ = cached
    os.utime(tmp_path / "v0.mp4")
    cache.ensure({"v0": probe(tmp_path / "v0.mp4")}, SMALL)
    assert starts == [0]


def test_a_video_that_changed_since_it_was_planned_with_is_refused(tmp_path):
    videos = make_videos(tmp_path, 40)
    write_video(tmp_path / "v0.mp4", 45)
    with pytest.raises(VideoError, match=r"v0\.mp4: it changed"):
        FrameCache(tmp_path / "cache", "raw", PLENTY).ensure(videos, SMALL)


# ------------------------------------------------------------------------------------------------ room


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    videos = make_videos(tmp_path, 40, 40, 40)
    limit = int(2.5 * 40 * FRAME_BYTES)
    for age, key in ((300, "v0"), (400, "v1")):
        before = set(folders(tmp_path / "cache"))
        FrameCache(tmp_path / "cache", "raw", limit).ensure({key: videos[key]}, SMALL)
        (made,) = set(folders(tmp_path / "cache")) - before
        os.utime(made, (time.time() - age, time.time() - age))
        gc.collect()
    FrameCache(tmp_path / "cache", "raw", limit).ensure({"v2": videos["v2"]}, SMALL)
    assert [folder.name[:2] for folder in folders(tmp_path / "cache")] == ["v0", "v2"]


def test_using_frames_keeps_them(tmp_path):
    videos = make_videos(tmp_path, 40, 40, 40)
    limit = int(2.5 * 40 * FRAME_BYTES)
    FrameCache(tmp_path / "cache", "raw", limit).ensure({"v0": videos["v0"], "v1": videos["v1"]}, SMALL)
    for folder in folders(tmp_path / "cache"):
        os.utime(folder, (1e9, 1e9))
    FrameCache(tmp_path / "cache", "raw", limit).ensure({"v0": videos["v0"]}, SMALL)
    FrameCache(tmp_path / "cache", "raw", limit).ensure({"v2": videos["v2"]}, SMALL)
    assert [folder.name[:2] for folder in folders(tmp_path / "cache")] == ["v0", "v2"]


def test_what_another_training_uses_stays(tmp_path):
    videos = make_videos(tmp_path, 40, 40)
    limit = int(1.5 * 40 * FRAME_BYTES)
    other = FrameCache(tmp_path / "cache", "raw", limit)
    other.ensure({"v0": videos["v0"]}, SMALL)
    cache = FrameCache(tmp_path / "cache", "raw", limit)
    with pytest.raises(ConfigError, match=r"other trainings are using 0\.2 MB"):
        cache.ensure({"v1": videos["v1"]}, SMALL)
    del other  # the other training ends
    cache.ensure({"v1": videos["v1"]}, SMALL)
    assert [folder.name[:2] for folder in folders(tmp_path / "cache")] == ["v1"]


def test_a_training_that_ended_without_a_word_is_forgotten(tmp_path):
    videos = make_videos(tmp_path, 40, 40)
    limit = int(1.5 * 40 * FRAME_BYTES)
    other = FrameCache(tmp_path / "cache", "raw", limit)
    other.ensure({"v0": videos["v0"]}, SMALL)
    (lease,) = (tmp_path / "cache" / "in_use").iterdir()
    long_ago = time.time() - frame_cache.ENDED - 60
    os.utime(lease, (long_ago, long_ago))
    FrameCache(tmp_path / "cache", "raw", limit).ensure({"v1": videos["v1"]}, SMALL)
    assert [folder.name[:2] for folder in folders(tmp_path / "cache")] == ["v1"]


def test_reading_is_a_sign_of_life(tmp_path, monkeypatch):
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    (lease,) = (tmp_path / "cache" / "in_use").iterdir()
    os.utime(lease, (1e9, 1e9))
    cache.sign_of_life()
    assert lease.stat().st_mtime == 1e9, "not at every read"
    monkeypatch.setattr(frame_cache, "BEAT", 0.0)
    cache.sign_of_life()
    assert time.time() - lease.stat().st_mtime < 60
    lease.unlink()
    cache.sign_of_life()
    assert lease.exists(), "it was taken for dead and signs again"


def test_a_project_that_can_never_fit_is_told_how_much_it_needs(tmp_path):
    videos = make_videos(tmp_path, 40)
    with pytest.raises(ConfigError, match=r"need 0\.2 MB.*may grow to 0\.1 MB") as caught:
        FrameCache(tmp_path / "cache", "raw", 100_000).ensure(videos, SMALL)
    for remedy in ("compute.cache_format=jpeg", "compute.cache_limit", "compute.cache=none"):
        assert remedy in str(caught.value)
    assert not folders(tmp_path / "cache")


def test_nothing_is_removed_that_is_needed_now(tmp_path):
    videos = make_videos(tmp_path, 40, 40)
    limit = int(2.2 * 40 * FRAME_BYTES)
    cache = FrameCache(tmp_path / "cache", "raw", limit)
    cache.ensure({"v0": videos["v0"]}, SMALL)
    cache.ensure(videos, SMALL)
    require_right(cache, videos)


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_decoded(tmp_path, monkeypatch, starts):
    videos = make_videos(tmp_path, 40)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 50_000))
    with pytest.raises(ConfigError, match=r"need 0\.2 MB more, but the disk has only 0\.1 MB left"):
        FrameCache(tmp_path / "cache", "raw", PLENTY).ensure(videos, SMALL)
    assert not starts


def test_a_disk_that_fills_up_leaves_no_half_frames(tmp_path, monkeypatch):
    videos = make_videos(tmp_path, 40, 90)
    pwrite, written = os.pwrite, 0

    def filling_up(descriptor, data, at):
        nonlocal written
        written += len(data)
        if written > 100 * FRAME_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", filling_up)
    cache = FrameCache(tmp_path / "cache", "raw", PLENTY)
    with pytest.raises(CacheError, match=r"v1\.mp4 could not be written: the disk.*full.*compute\.cache_format=jpeg"):
        cache.ensure(videos, SMALL, decoders=1)
    assert [folder.name[:2] for folder in folders(tmp_path / "cache")] == ["v0"]
    monkeypatch.setattr(os, "pwrite", pwrite)
    cache.ensure(videos, SMALL)
    require_right(cache, videos)
