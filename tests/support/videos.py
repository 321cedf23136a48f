"""Small videos whose frame t shows t in its pixels, whole or damaged in all the ways that recordings are.

A frame is 64 x 80. On the left are 16 black or white squares, the bits of t; on the right is a texture that moves by
one row a frame, so that frames decoded from the wrong reference look different.

    0  1  2  3  ~
    4  5  6  7  ~
    8  9 10 11  ~
   12 13 14 15  ~
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import h5py
import numpy as np

HEIGHT, WIDTH, SQUARE = 64, 80, 16
TEXTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH - 4 * SQUARE, 3), dtype=np.uint8)
OPEN_GOP = {"g": "20", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0:bframes=3:keyint=20:min-keyint=20"}


def picture(number: int) -> np.ndarray:
    """Return frame `number`, uint8 (H, W, 3) RGB; its white is reddish, so that channels in the wrong order show."""
    bits = np.array([number >> bit & 1 for bit in range(16)], np.uint8).reshape(4, 4)
    squares = np.kron(bits, np.ones((SQUARE, SQUARE), np.uint8))[..., None] * np.array([255, 200, 200], np.uint8)
    return np.concatenate([squares, np.roll(TEXTURE, number, axis=0)], axis=1)


def number_in(frame_HWC: np.ndarray) -> int:
    """Return the number that `picture` put into a frame, also after lossy compression and at any size."""
    height, width = frame_HWC.shape[:2]
    rows = (np.arange(4) * 2 + 1) * height // 8
    columns = (np.arange(4) * 2 + 1) * SQUARE * width // (2 * WIDTH)
    bits = frame_HWC[rows][:, columns].mean(axis=2).ravel() > 110
    return int((bits << np.arange(16)).sum())


def numbers_in(frames_THWC: Iterable[np.ndarray]) -> list[int]:
    return [number_in(frame_HWC) for frame_HWC in frames_THWC]


def write_video(
    path: Path,
    num_frames: int,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    fps: int = 30,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    times: Sequence[int] | None = None,
) -> Path:
    """Write frames 0 .. num_frames - 1. `times` are display times in 1/1000 s, instead of a constant rate."""
    with av.open(str(path), "w", options=dict(container or {})) as file:
        stream = file.add_stream(codec, rate=fps, options=dict(options or {}))
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            image = cv2.resize(picture(number), size[::-1], interpolation=cv2.INTER_NEAREST)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_kind(
    path: Path,
    num_frames: int,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: Fraction | int = 30,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    times: Sequence[int] | None = None,
    unit: Fraction = Fraction(1, 1000),
    filters: Sequence[tuple[str, str]] = (),
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
) -> Path:
    """Write frames 0 .. num_frames - 1 in an unusual way.

    `times` are display times in `unit`s, instead of a constant rate. `filters` are names and arguments of FFmpeg's
    filters, through which frames pass first; `prepare` is told the stream before anything is written.
    """
    with av.open(str(path), "w", options=dict(container or {})) as file:
        stream = file.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        unit = unit if times is not None else 1 / Fraction(rate)
        stream.codec_context.time_base = unit
        prepare(stream)
        graph = _graph([*filters, ("format", pixels)], size, unit)
        for number in range(num_frames):
            image = cv2.resize(picture(number), size[::-1], interpolation=cv2.INTER_NEAREST)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = unit
            graph.push(frame)
            file.mux(stream.encode(graph.pull()))
        file.mux(stream.encode())
    return path


def _graph(filters: Sequence[tuple[str, str]], size: tuple[int, int], unit: Fraction) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=size[1], height=size[0], format=av.VideoFormat("rgb24"), time_base=unit)
    graph.link_nodes(source, *(graph.add(name, arguments) for name, arguments in filters), graph.add("buffersink"))
    graph.configure()
    return graph


def write_beside(
    path: Path,
    source: Path,
    *,
    sound_s: float = 0,
    cover: bool = False,
    second: Path | None = None,
) -> Path:
    """Copy a video behind sound of `sound_s` seconds and behind a cover picture, and before a `second` video."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as file:
        packets: list[av.Packet] = []
        if sound_s:
            sound = file.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, int(8000 * sound_s)), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate = 8000
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=8000, frame_size=1024)
            packets += [packet for part in resampler.resample(frame) for packet in sound.encode(part)] + sound.encode()
        if cover and path.suffix == ".mkv":
            picture_jpg = cv2.imencode(".jpg", picture(0xFFFF))[1].tobytes()
            file.add_attachment("cover.jpg", "image/jpeg", picture_jpg)
        elif cover:
            image = file.add_stream("mjpeg")
            image.width, image.height, image.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            image.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(picture(0xFFFF), format="rgb24")
            frame.pts = 0
            packets += image.encode(frame) + image.encode()
        packets += _copied(whole, file)
        if second is not None:
            with av.open(str(second)) as other:
                packets += _copied(other, file)
        file.mux(packets)
    return path


def _copied(source: av.container.InputContainer, file: av.container.OutputContainer) -> list[av.Packet]:
    stream = file.add_stream_from_template(source.streams.video[0])
    packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
    for packet in packets:
        packet.stream = stream
    return packets


def write_opencv(path: Path, num_frames: int, codec: str = "MJPG") -> Path:
    """Write a video by OpenCV, as many recording programs do; with 0 frames, the file has headers only."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 30, (WIDTH, HEIGHT))
    for number in range(num_frames):
        writer.write(cv2.cvtColor(picture(number), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def write_images(folder: Path, num_frames: int, suffix: str = ".png") -> Path:
    folder.mkdir()
    for number in range(num_frames):
        cv2.imwrite(str(folder / f"{number:09d}{suffix}"), cv2.cvtColor(picture(number), cv2.COLOR_RGB2BGR))
    return folder


def write_hdf5(path: Path, num_frames: int) -> Path:
    """Write HDF5 as DeepEthogram does: it gives RGB to an encoder that takes it for BGR."""
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("frame", (num_frames,), h5py.vlen_dtype(np.uint8))
        for number in range(num_frames):
            frames[number] = cv2.imencode(".png", picture(number))[1].ravel()
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8192), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_cut(path: Path, source: Path, hidden: int) -> Path:
    """Copy all packets of `source`, but hide the first `hidden` frames by an edit list, as trimming tools do."""
    with av.open(str(source)) as whole, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as file:
        stream = file.add_stream_from_template(whole.streams.video[0])
        shift = int(hidden / (whole.streams.video[0].average_rate * whole.streams.video[0].time_base))
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                file.mux(packet)
    return path


def write_false_keys(path: Path, source: Path) -> Path:
    """Copy an MP4, MOV or AVI file, and mark each frame as a key frame, as some recording programs do."""
    data = bytearray(source.read_bytes())
    if b"stss" in data:
        data = data.replace(b"stss", b"free")
    else:
        index = data.rindex(b"idx1")
        for entry in range(index + 8, index + 8 + int.from_bytes(data[index + 4 : index + 8], "little"), 16):
            data[entry + 4] |= 0x10
    path.write_bytes(data)
    return path


def write_packed(path: Path, source: Path) -> Path:
    """Copy MPEG-4 with single B-frames as DivX stores it: with the frame before in one packet, then a filler."""
    picture_start, unused = b"\0\0\1\xb6", b"\0\0\1\xb6\x50\x5f"
    with av.open(str(source)) as whole, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(whole.streams.video[0])
        parts: list[tuple[bytes, bool]] = []
        for packet in whole.demux(video=0):
            part = bytes(packet)
            if not part:
                continue
            place = part.index(picture_start)
            if not parts:
                part = part[:place] + b"\0\0\1\xb2DivX503b1393p\0" + part[place:]
            if part[place + 4] >> 6 == 2:
                parts[-1:] = [(parts[-1][0] + part, parts[-1][1]), (unused, False)]
            else:
                parts.append((part, packet.is_keyframe))
        for number, (part, is_key) in enumerate(parts):
            packet = av.Packet(part)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, is_key
            packet.time_base = 1 / whole.streams.video[0].average_rate
            file.mux(packet)
    return path


def write_hidden(path: Path, source: Path, numbers: Sequence[int]) -> Path:
    """Copy VP8, but let these frames not be shown, only be predicted from (RFC 6386, section 9.1: show_frame)."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(video=0)):
            if packet.size:
                data = bytearray(bytes(packet))
                data[0] &= 0xFF if number not in numbers else 0xEF
                copy = av.Packet(bytes(data))
                copy.stream, copy.pts, copy.dts, copy.is_keyframe = stream, packet.pts, packet.dts, packet.is_keyframe
                copy.time_base = packet.time_base
                file.mux(copy)
    return path


def write_size_change(path: Path, num_frames: int) -> Path:
    """Write `num_frames` of 64 x 80 and as many of 128 x 160 in one bare H.264 stream."""
    small, large = path.with_name("small.h264"), path.with_name("large.h264")
    write_video(small, num_frames)
    write_video(large, num_frames, size=(2 * HEIGHT, 2 * WIDTH))
    path.write_bytes(small.read_bytes() + large.read_bytes())
    return path


def write_truncated(path: Path, source: Path, fraction: float) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def write_flipped(path: Path, source: Path, *, at: float, count: int) -> Path:
    """Flip `count` bytes, from the fraction `at` of the file on."""
    data = bytearray(source.read_bytes())
    first = int(len(data) * at)
    data[first : first + count] = bytes(byte ^ 0xFF for byte in data[first : first + count])
    path.write_bytes(data)
    return path


def write_rotated(path: Path, source: Path) -> Path:
    """Write an MP4 that asks to be shown turned clockwise by 90 degrees."""
    data = bytearray(source.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
