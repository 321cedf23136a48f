"""Every kind of video file is read frame by frame, to the last bit, however a frame is reached.

A kind is a codec, a container, a format of pixels, or a habit of a program that makes finding a frame hard. The
judges are a plain decoding from the first frame to the last, and OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import videos
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from videos import numbers_in

from deg.data.video.files import open_video
from deg.data.video.reader import VideoReader
from deg.errors import VideoError

pytestmark = pytest.mark.slow

NUM_FRAMES, GROUP = 72, 12
"""Number of frames, and of those from one key frame to the next, where a kind does not say otherwise."""
SPANS = ((50, 57), (0, 3), (10, 15), (35, 36), (69, 72), (47, 49))
SINGLE = (12, 11, 60, 0)
HDR = 16
"""The transfer function PQ (ITU-T H.273, table 3)."""

# Why OpenCV is not a judge
INTERLACED = "it takes the lines of both fields for one picture when it makes colour of them"
NO_DECODER = "it has no decoder of AV1"


@dataclass(frozen=True)
class Kind:
    """A kind of video file, and how to judge its frames."""

    write: Callable[[Path], Path]
    num_frames: int = NUM_FRAMES
    not_opencv: str = ""
    """Why OpenCV is not the judge; empty if it is."""
    shows_numbers: bool = True
    """Whether the pictures still show their numbers."""


def kind(
    num_frames: int = NUM_FRAMES,
    *,
    not_opencv: str = "",
    shows_numbers: bool = True,
    options: Mapping[str, str] | None = None,
    **ways: Any,
) -> Kind:
    """Return a kind that `videos.write_kind` writes, with a key frame every GROUP frames."""
    options = {"g": str(GROUP), **(options or {})}
    return Kind(
        lambda path: videos.write_kind(path, num_frames, options=options, **ways), num_frames, not_opencv, shows_numbers
    )


def x264(settings: str = "", **ways: Any) -> Kind:
    fixed = f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0"
    return kind(options={"preset": "veryfast", "x264-params": f"{fixed}:{settings}" if settings else fixed}, **ways)


def x265(settings: str = "", **ways: Any) -> Kind:
    fixed = f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:log-level=none:pools=1:frame-threads=1"
    return kind(
        codec="libx265",
        options={"preset": "veryfast", "x265-params": f"{fixed}:{settings}" if settings else fixed},
        **ways,
    )


def copied(copy: Callable[..., Path], source: Kind, num_frames: int = NUM_FRAMES, *arguments: Any, **ways: Any) -> Kind:
    """Return a kind that `copy` makes of a file of another kind."""

    def write(path: Path) -> Path:
        suffix = path.suffix.replace("mkv", "mp4")  # Matroska does not tell when packets are decoded
        return copy(path, source.write(path.with_name(f"source_of_{path.stem}{suffix}")), *arguments, **ways)

    return Kind(write, num_frames, source.not_opencv, num_frames == NUM_FRAMES)


def second(path: Path, source: Path) -> Path:
    return videos.write_beside(path, source, second=videos.write_opencv(path.with_suffix(".avi"), 30))


def turned(degrees: int, **ways: Any) -> Kind:
    return x264(prepare=lambda stream: stream.set_display_rotation(degrees, **ways), shows_numbers=False)


def full(stream: av.VideoStream) -> None:
    stream.codec_context.color_range = 2


def pq(stream: av.VideoStream) -> None:
    stream.codec_context.color_trc, stream.codec_context.color_primaries, stream.codec_context.colorspace = HDR, 9, 9


TOP_FIRST = (("format", "yuv420p"), ("setfield", "tff"))
FIELDS = {"flags": "+ilme+ildct"}
PYRAMID = "bframes=3:b-adapt=0:b-pyramid=normal"
OPEN = "open-gop=1:bframes=3:b-adapt=0"
FULL_SCALE = (("scale", "out_range=full"),)
TEN_MILLION = Fraction(1, 10_000_000)
SOUND_S = NUM_FRAMES / 30 + 3
HIDDEN = (3, 17, 40, 50)
LONG = {"g": "1000"}
PLAIN = x264("bframes=2:b-adapt=0")

KINDS: dict[str, Kind] = {
    # H.264
    "h264.mp4": x264("bframes=0"),
    "h264.mov": x264("bframes=2:b-adapt=0"),
    "h264.mkv": x264("bframes=2:b-adapt=0"),
    "h264.ts": x264("bframes=2:b-adapt=0"),
    "h264.mts": x264("bframes=2:b-adapt=0", container={"mpegts_m2ts_mode": "1"}),
    "h264.flv": x264("bframes=2:b-adapt=0"),
    "h264.3gp": x264("bframes=2:b-adapt=0"),
    "h264.avi": x264("bframes=0"),
    "h264_b_frames.avi": x264("bframes=2:b-adapt=0"),
    "h264_pyramid.avi": x264(PYRAMID),
    "h264_bare.h264": x264("bframes=0"),
    "h264_bare_b_frames.h264": x264("bframes=2:b-adapt=0"),
    "h264_pyramid.mp4": x264(PYRAMID),
    "h264_open.mp4": x264(OPEN),
    "h264_open.mkv": x264(OPEN),
    "h264_open.ts": x264(OPEN),
    "h264_open_pyramid.mp4": x264(f"{OPEN}:b-pyramid=normal"),
    "h264_long.mp4": kind(options={"g": "1000", "x264-params": "scenecut=0"}),
    "h264_long.ts": kind(options={"g": "1000", "x264-params": "scenecut=0"}),
    "h264_intra.mp4": kind(options={"g": "1"}),
    "h264_refresh.mp4": x264("intra-refresh=1:bframes=0"),
    "h264_refresh.ts": x264("intra-refresh=1:bframes=2:b-adapt=0"),
    "h264_mbaff.mp4": x264("tff=1", filters=TOP_FIRST, not_opencv=INTERLACED),
    "h264_mbaff.ts": x264("interlaced=1:bframes=2:b-adapt=0", filters=TOP_FIRST, not_opencv=INTERLACED),
    "h264_mbaff.mts": x264("bff=1", container={"mpegts_m2ts_mode": "1"}, not_opencv=INTERLACED),
    "h264_yuvj420p.mp4": x264(pixels="yuvj420p"),
    "h264_full.mp4": x264(filters=FULL_SCALE, prepare=full),
    "h264_444.mp4": x264(pixels="yuv444p"),
    "h264_gray.mp4": x264(pixels="gray"),
    "h264_10bit.mp4": x264(pixels="yuv420p10le"),
    "h264_odd_444.mp4": x264(pixels="yuv444p", size=(65, 81)),
    "h264_lossless_rgb.mkv": kind(codec="libx264rgb", pixels="bgr0", options={"qp": "0"}),
    # times
    "h264_24.98.mp4": x264(rate=Fraction("24.98"), container={"video_track_timescale": "10000000"}),
    "h264_49.97.mkv": x264(rate=Fraction("49.97"), times=[round(i * 1e7 / 49.97) for i in range(72)], unit=TEN_MILLION),
    "h264_119.88.mp4": x264(
        rate=Fraction("119.88"),
        times=[round(i * 1e7 / 119.88) for i in range(72)],
        unit=TEN_MILLION,
        container={"video_track_timescale": "10000000"},
    ),
    "h264_0.2.mp4": x264(rate=Fraction(1, 5)),
    "h264_0.2.avi": x264(rate=Fraction(1, 5)),
    "h264_0.03.mp4": x264(rate=Fraction(1000, 33333)),
    "h264_2000.mp4": x264(rate=2000),
    "h264_2000.mkv": x264("bframes=0", rate=2000),
    "h264_2000_b_frames.mkv": x264("bframes=2:b-adapt=0", rate=2000),
    "h264_2000_open.mkv": x264(OPEN, rate=2000),
    "h264_variable.mp4": x264(times=[33 * i + i * i // 20 for i in range(72)]),
    "h264_variable.mkv": x264(times=[33 * i + i * i // 20 for i in range(72)]),
    "h264_variable.ts": x264(times=[33 * i + i * i // 20 for i in range(72)]),
    "h264_gap.mp4": x264(times=[40 * i + 60_000 * (i > 30) for i in range(72)]),
    "h264_gap.ts": x264(times=[40 * i + 60_000 * (i > 30) for i in range(72)]),
    "h264_late.mp4": x264(times=[5000 + 40 * i for i in range(72)]),
    "h264_negative.mkv": x264(times=[40 * i - 800 for i in range(72)]),
    "h264_no_edit_list.mp4": x264(PYRAMID, container={"use_editlist": "0"}),
    "h264_negative_offsets.mp4": x264(PYRAMID, container={"movflags": "negative_cts_offsets"}),
    # the layout of the file
    "h264_fragmented.mp4": x264(OPEN, container={"movflags": "frag_keyframe+empty_moov"}),
    "h264_fragment_each.mp4": x264(OPEN, container={"movflags": "frag_every_frame+empty_moov+default_base_moof"}),
    "h264_hybrid.mp4": x264(container={"movflags": "hybrid_fragmented+frag_keyframe"}),
    "h264_faststart.mp4": x264(container={"movflags": "faststart"}),
    "h264_live.mkv": x264(container={"live": "1"}),
    "h264_turned_90.mp4": turned(90),
    "h264_turned_180.mp4": turned(180),
    "h264_turned_270.mov": turned(270),
    "h264_mirrored_turned.mp4": turned(90, hflip=True),
    "h264_turned.mkv": turned(90),
    "h264_cover.mp4": copied(videos.write_beside, PLAIN, cover=True),
    "h264_cover.mkv": copied(videos.write_beside, PLAIN, cover=True),
    "h264_sound_first.mp4": copied(videos.write_beside, PLAIN, sound_s=SOUND_S),
    "h264_sound_first.mkv": copied(videos.write_beside, PLAIN, sound_s=SOUND_S),
    "h264_second.mp4": copied(second, PLAIN),
    "h264_second.mkv": copied(second, PLAIN),
    "mpeg4_sound_first.avi": copied(videos.write_beside, kind(codec="mpeg4"), sound_s=SOUND_S),
    "mpeg2_sound_first.ts": copied(videos.write_beside, kind(codec="mpeg2video"), sound_s=SOUND_S),
    # each frame marked as a key frame
    "false_keys_h264.mp4": copied(videos.write_false_keys, kind(options=LONG)),
    "false_keys_hevc.mp4": copied(videos.write_false_keys, x265("bframes=2:b-adapt=0:keyint=-1")),
    "false_keys_mpeg4.mp4": copied(videos.write_false_keys, kind(codec="mpeg4", options=LONG)),
    "false_keys_mpeg4_b_frames.mp4": copied(videos.write_false_keys, kind(codec="mpeg4", options={**LONG, "bf": "2"})),
    "false_keys_mpeg2.mov": copied(videos.write_false_keys, kind(codec="mpeg2video", options={**LONG, "bf": "2"})),
    "false_keys_vp9.mp4": copied(videos.write_false_keys, kind(codec="libvpx-vp9", options={**LONG, "cpu-used": "8"})),
    "false_keys_av1.mp4": copied(
        videos.write_false_keys, kind(codec="libsvtav1", options={**LONG, "preset": "11"}, not_opencv=NO_DECODER)
    ),
    "false_keys_h264.avi": copied(videos.write_false_keys, kind(options={**LONG, "bf": "0"})),
    "false_keys_mpeg4.avi": copied(videos.write_false_keys, kind(codec="mpeg4", options=LONG)),
    "false_keys_msmpeg4v3.avi": copied(videos.write_false_keys, kind(codec="msmpeg4", options=LONG)),
    "false_keys_wmv2.avi": copied(videos.write_false_keys, kind(codec="wmv2", options=LONG)),
    "false_keys_h263p.avi": copied(videos.write_false_keys, kind(codec="h263p", options=LONG)),
    "false_keys_cinepak.avi": copied(videos.write_false_keys, kind(codec="cinepak", pixels="rgb24", options=LONG)),
    "false_keys_ffv1.avi": copied(videos.write_false_keys, kind(codec="ffv1", pixels="yuv420p", options=LONG)),
    # HEVC
    "hevc.mkv": x265("open-gop=1:bframes=3:b-adapt=0"),
    "hevc.ts": x265("open-gop=1:bframes=3:b-adapt=0"),
    "hevc_open.mp4": x265("open-gop=1:bframes=4:b-adapt=0:b-pyramid=1"),
    "hevc_bare.hevc": x265("bframes=2:b-adapt=0"),
    "hevc_10bit.mp4": x265(pixels="yuv420p10le"),
    "hevc_pq.mp4": x265("colorprim=9:transfer=16:colormatrix=9", pixels="yuv420p10le", prepare=pq),
    "hevc_fields.mp4": x265("interlace=1", not_opencv=INTERLACED),
    "hevc_refresh.mp4": x265("intra-refresh=1:bframes=0"),
    # MPEG-4 part 2 and before
    "mpeg4.mp4": kind(codec="mpeg4", options={"bf": "2"}),
    "mpeg4.avi": kind(codec="mpeg4"),
    "mpeg4_b_frames.avi": kind(codec="mpeg4", options={"bf": "2"}),
    "mpeg4_packed.avi": copied(videos.write_packed, kind(codec="mpeg4", options={"bf": "1"})),
    "mpeg4_long.ts": kind(codec="mpeg4", options={**LONG, "bf": "2"}),
    "mpeg4_odd.avi": kind(codec="mpeg4", size=(65, 81)),
    "mpeg4_interlaced.avi": kind(codec="mpeg4", options=FIELDS, filters=TOP_FIRST, not_opencv=INTERLACED),
    "mpeg2.mpg": kind(codec="mpeg2video", options={"bf": "2"}),
    "mpeg2.ts": kind(codec="mpeg2video", options={"bf": "2"}),
    "mpeg2.mxf": kind(codec="mpeg2video", rate=25, options={"bf": "2"}),
    "mpeg2_closed.mkv": kind(codec="mpeg2video", options={"bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"}),
    "mpeg2_interlaced.mpg": kind(
        codec="mpeg2video", options={"bf": "2", **FIELDS}, filters=TOP_FIRST, not_opencv=INTERLACED
    ),
    "mpeg2_bare.m2v": kind(codec="mpeg2video", options={"bf": "2"}),
    "mpeg1.mpg": kind(codec="mpeg1video", options={"bf": "2"}),
    "h263.3gp": kind(codec="h263", size=(144, 176)),
    "h263p.avi": kind(codec="h263p"),
    "h263p_long.avi": kind(codec="h263p", options=LONG),
    "flv1.flv": kind(codec="flv"),
    "flv1_long.flv": kind(codec="flv", options=LONG),
    "wmv2.wmv": kind(codec="wmv2"),
    "wmv1.wmv": kind(codec="wmv1"),
    "msmpeg4v3.wmv": kind(codec="msmpeg4"),
    "msmpeg4v3.avi": kind(codec="msmpeg4"),
    # VP8, VP9, AV1
    "vp8.webm": kind(codec="libvpx"),
    "vp8.ivf": kind(codec="libvpx"),
    "vp8_hidden.ivf": copied(videos.write_hidden, kind(codec="libvpx"), NUM_FRAMES - 4, HIDDEN),
    "vp8_hidden.webm": copied(videos.write_hidden, kind(codec="libvpx"), NUM_FRAMES - 4, HIDDEN),
    "vp9.webm": kind(codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "good", "lag-in-frames": "16"}),
    "vp9.mp4": kind(codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "good", "lag-in-frames": "16"}),
    "vp9_odd.webm": kind(codec="libvpx-vp9", size=(65, 81), options={"cpu-used": "8"}),
    "vp9_444.webm": kind(codec="libvpx-vp9", pixels="yuv444p", options={"cpu-used": "8"}),
    "av1.mp4": kind(codec="libsvtav1", options={"preset": "11"}, not_opencv=NO_DECODER),
    "av1.mkv": kind(codec="libsvtav1", options={"preset": "11"}, not_opencv=NO_DECODER),
    "av1.ivf": kind(codec="libsvtav1", options={"preset": "11"}, not_opencv=NO_DECODER),
    "av1_10bit.mp4": kind(codec="libsvtav1", pixels="yuv420p10le", options={"preset": "11"}, not_opencv=NO_DECODER),
    # each frame on its own
    "mjpeg.avi": kind(codec="mjpeg", pixels="yuvj420p"),
    "mjpeg.mov": kind(codec="mjpeg", pixels="yuvj422p"),
    "mjpeg_odd.avi": kind(codec="mjpeg", pixels="yuvj420p", size=(65, 81)),
    "mjpeg_bare.mjpeg": kind(codec="mjpeg", pixels="yuvj420p"),
    "mjpeg_2000.mkv": kind(codec="mjpeg", pixels="yuvj420p", rate=2000),
    "ffv1.mkv": kind(codec="ffv1", pixels="bgr0"),
    "ffv1_gray.avi": kind(codec="ffv1", pixels="gray"),
    "ffv1_gray16.mkv": kind(codec="ffv1", pixels="gray16le"),
    "huffyuv.avi": kind(codec="huffyuv", pixels="rgb24"),
    "huffyuv_422.avi": kind(codec="huffyuv", pixels="yuv422p"),
    "ffvhuff.avi": kind(codec="ffvhuff", pixels="yuv420p"),
    "utvideo.avi": kind(codec="utvideo", pixels="gbrp"),
    "magicyuv.avi": kind(codec="magicyuv", pixels="yuv444p"),
    "prores.mov": kind(codec="prores_ks", pixels="yuv422p10le"),
    "prores_4444.mov": kind(codec="prores_ks", pixels="yuva444p10le"),
    "dv.avi": kind(30, codec="dvvideo", rate=25, size=(576, 720), not_opencv=INTERLACED),
    "png.mov": kind(codec="png", pixels="rgb24"),
    "qtrle.mov": kind(codec="qtrle", pixels="rgb24"),
    "jpeg2000.mkv": kind(codec="jpeg2000", pixels="yuv420p"),
    "raw_rgb.avi": kind(codec="rawvideo", pixels="bgr24"),
    "raw_gray.avi": kind(codec="rawvideo", pixels="gray"),
    "raw_yuv420p.avi": kind(codec="rawvideo", pixels="yuv420p"),
    "raw_yuyv422.avi": kind(codec="rawvideo", pixels="yuyv422"),
    "raw_palette.avi": kind(codec="rawvideo", pixels="pal8"),
    "raw_palette.mov": kind(codec="rawvideo", pixels="pal8"),
    "raw.y4m": kind(codec="rawvideo", pixels="yuv420p"),
    "gif.gif": kind(codec="gif", pixels="rgb8", rate=25),
}

# Kinds whose container claims more frames than any decoder shows, and what the error says.
REFUSED: dict[str, tuple[Kind, str]] = {
    "h264_cut.mp4": (copied(videos.write_cut, PLAIN, 42, 30), "claims 72 frames but decoding ended at frame 42"),
    "h264_cut.mov": (copied(videos.write_cut, PLAIN, 42, 30), "claims 72 frames but decoding ended at frame 42"),
    "h264_negative.mp4": (
        x264(num_frames=72, times=[40 * i - 800 for i in range(72)], container={"avoid_negative_ts": "disabled"}),
        "claims 72 frames but decoding ended at frame 52",
    ),
    "empty_packets.avi": (
        kind(codec="mpeg4", rate=25, times=[i + 5 * (i > 30) for i in range(72)], unit=Fraction(1, 25)),
        "claims 77 frames but decoding ended at frame 72",
    ),
}


@pytest.fixture(autouse=True)
def always_seek(monkeypatch):
    """Seek even where decoding further would be as fast."""
    monkeypatch.setattr("deg.data.video.files.NEAR", 3)


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_what_decoding_from_the_first_gives_however_it_is_reached(tmp_path, name):
    kind = KINDS[name]
    path = kind.write(tmp_path / name)
    expected_THWC = list(decoded(path))
    assert len(expected_THWC) == kind.num_frames
    with open_video(path) as video:
        assert_read(video, expected_THWC)
    if kind.shows_numbers:
        assert numbers_in(expected_THWC) == list(range(kind.num_frames))
    if not kind.not_opencv:
        assert_same(expected_THWC, list(decoded_by_opencv(path)))


@pytest.mark.parametrize("name", REFUSED)
def test_a_kind_that_cannot_be_read_is_refused_with_the_reason(tmp_path, name):
    kind, reason = REFUSED[name]
    path = kind.write(tmp_path / name)
    with pytest.raises(VideoError, match=reason), open_video(path) as video:
        list(video.read(0, len(video)))
    expected_THWC = list(decoded(path))
    assert_same(expected_THWC, list(decoded_by_opencv(path)))
    with open_video(path, frame_count="decoded") as video:
        assert_read(video, expected_THWC)


def decoded(path: Path) -> Iterator[np.ndarray]:
    """Yield all frames, RGB, in the order in which a decoder gives them."""
    with av.open(str(path)) as file:
        stream = next(stream for stream in file.streams.video if not stream.disposition & Disposition.attached_pic)
        stream.codec_context.thread_count = 1
        reformatter = VideoReformatter()  # it keeps what it prepares to map HDR, which takes long
        for picture in file.decode(stream):
            screen = {"dst_color_trc": 1, "dst_color_primaries": 1} if picture.color_trc == HDR else {}
            bgr = reformatter.reformat(picture, format="bgr24", interpolation="BICUBIC", **screen).to_ndarray()
            yield np.rot90(bgr[..., ::-1], round(picture.rotation / 90))


def decoded_by_opencv(path: Path) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    while (read := capture.read())[0]:
        yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
    capture.release()


def assert_read(video: VideoReader, expected_THWC: list[np.ndarray]) -> None:
    """Assert that these frames are read, from the first to the last, and as spans and single frames in any order."""
    count = len(expected_THWC)
    assert_same(list(video.read(0, len(video))), expected_THWC)
    for start, stop in SPANS:
        start, stop = min(start, count - 1), min(stop, count)
        assert_same(list(video.read(start, stop)), expected_THWC[start:stop], start)
    for index in (count - 1, *SINGLE):
        if index < count:
            assert_same([video[index]], [expected_THWC[index]], index)


def assert_same(frames_THWC: list[np.ndarray], expected_THWC: list[np.ndarray], first: int = 0) -> None:
    assert len(frames_THWC) == len(expected_THWC)
    wrong = [
        first + place
        for place, (frame, expected) in enumerate(zip(frames_THWC, expected_THWC, strict=True))
        if not np.array_equal(frame, expected)
    ]
    assert not wrong, f"frames {wrong} differ"
