"""Find the best form of keeping frames for training: size on disk against the speed of reading clips at random.

    python tests/bench/frame_cache.py VIDEO [VIDEO ...] [--sizes 224 128] [--seconds 2]
    python tests/bench/frame_cache.py VIDEO --loader 0 1 2

The first command decodes the videos, resizes the frames, writes them in each form into one file and then reads clips of
11 frames at random places, in one process on one core, with the file in the system's page cache. It prints bytes per
frame, their share of raw frames, frames written a second, clips read a second, and for lossy forms the PSNR of the
worst and of the mean frame. `video` means reading from the video itself, without any cache.

--loader drives the data path of training over the frame cache with these numbers of worker processes, and prints the
clips that reach the network per second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch

from deg.arithmetic.windows import WINDOW
from deg.data.frames.cache import FrameCache
from deg.data.frames.files import Format
from deg.data.video.decoder import Decoder
from deg.data.video.files import open_video, probe
from deg.data.video.stretch import Stretch
from deg.data.video.transform import FrameTransform
from deg.options.load import as_dict, load_config
from deg.runs.plans import TrainingPlan
from deg.train.clip_data import ClipData, TrainBatches, frame_transform, make_loader


@dataclass(frozen=True)
class Form:
    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, np.ndarray], None]
    """Decode into the given frame."""


def opencv(name: str, suffix: str, options: list[int]) -> Form:
    def encode(frame_HWC: np.ndarray) -> bytes:
        return cv2.imencode(suffix, frame_HWC, options)[1].tobytes()

    def decode(data: bytes, frame_HWC: np.ndarray) -> None:
        frame_HWC[...] = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    return Form(name, encode, decode)


def arrow(name: str, codec: pa.Codec) -> Form:
    def decode(data: bytes, frame_HWC: np.ndarray) -> None:
        plain = codec.decompress(data, frame_HWC.nbytes)
        frame_HWC[...] = np.frombuffer(plain, np.uint8).reshape(frame_HWC.shape)

    return Form(name, lambda frame_HWC: codec.compress(frame_HWC.tobytes()).to_pybytes(), decode)


def raw_decode(data: bytes, frame_HWC: np.ndarray) -> None:
    frame_HWC[...] = np.frombuffer(data, np.uint8).reshape(frame_HWC.shape)


def zlib_decode(data: bytes, frame_HWC: np.ndarray) -> None:
    raw_decode(zlib.decompress(data), frame_HWC)


FULL_COLOUR = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
FORMS = [
    Form("raw", lambda frame_HWC: frame_HWC.tobytes(), raw_decode),
    opencv("PNG 1", ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]),
    opencv("WebP lossless", ".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
    Form("zlib 1", lambda frame_HWC: zlib.compress(frame_HWC.tobytes(), 1), zlib_decode),
    arrow("lz4", pa.Codec("lz4_raw")),
    arrow("zstd 1", pa.Codec("zstd", compression_level=1)),
    opencv("JPEG 95", ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]),
    opencv("JPEG 95 4:4:4", ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95, *FULL_COLOUR]),
]


def decoded(video: Path, transform: FrameTransform, most: int) -> np.ndarray:
    with Decoder() as decoder:
        info = decoder.probe(video)
        return np.concatenate(list(decoder.blocks(Stretch(info, 0, min(info.num_frames, most), transform))))


def reads_per_second(read: Callable[[int], None], places: int, seconds: float) -> float:
    rng, done = np.random.default_rng(0), 0
    for place in rng.integers(places, size=20):
        read(int(place))
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        read(int(rng.integers(places)))
        done += 1
    return done / spent


def measure(form: Form, frames_THWC: np.ndarray, folder: Path, seconds: float) -> str:
    path, ends = folder / "frames", [0]
    began = time.perf_counter()
    with path.open("wb") as file:
        for frame_HWC in frames_THWC:
            ends.append(ends[-1] + file.write(form.encode(frame_HWC)))
    written = len(frames_THWC) / (time.perf_counter() - began)
    descriptor = os.open(path, os.O_RDONLY)
    clip_THWC = np.empty((WINDOW, *frames_THWC.shape[1:]), np.uint8)

    def read(first: int) -> None:
        if form.name == "raw":
            os.preadv(descriptor, [clip_THWC], ends[first])
            return
        data = os.pread(descriptor, ends[first + WINDOW] - ends[first], ends[first])
        for i in range(WINDOW):
            form.decode(data[ends[first + i] - ends[first] : ends[first + i + 1] - ends[first]], clip_THWC[i])

    clips = reads_per_second(read, len(frames_THWC) - WINDOW + 1, seconds)
    noise = []
    for first in range(0, len(frames_THWC) - WINDOW + 1, WINDOW):
        read(first)
        noise += list(((clip_THWC.astype(float) - frames_THWC[first : first + WINDOW]) ** 2).mean(axis=(1, 2, 3)))
    os.close(descriptor)
    quality = "exact" if not any(noise) else f"{psnr(max(noise)):.1f} / {psnr(statistics.mean(noise)):.1f} dB"
    size = ends[-1] / len(frames_THWC)
    of_raw = ends[-1] / frames_THWC.nbytes
    return f"| {form.name} | {size:,.0f} | {of_raw:.1%} | {written:,.0f} | {clips:,.0f} | {quality} |"


def psnr(mean_square: float) -> float:
    return 10 * np.log10(255**2 / mean_square)


def from_video(video: Path, transform: FrameTransform, seconds: float) -> str:
    with open_video(video, threads=1) as reader:

        def read(first: int) -> None:
            np.stack(list(reader.read(first, first + WINDOW, transform)))

        clips = reads_per_second(read, len(reader) - WINDOW + 1, seconds)
    return f"| video | {video.stat().st_size / len(reader):,.0f} | | | {clips:,.1f} | exact |"


def drive_loader(videos: list[Path], size: int, format: Format, workers: int, batch_size: int, seconds: float) -> str:
    """Measure the data path of training, from the cache to whole batches."""
    torch.set_num_threads(1)
    infos = {video.name: probe(video) for video in videos}
    overrides = [f"augs.resize=[{size},{size}]", f"compute.cache_format={format}"]
    config = load_config(None, overrides, stage="flow_generator")
    with tempfile.TemporaryDirectory() as folder:
        plan = TrainingPlan(
            stage="flow_generator",
            phases=("both",),
            class_names=(),
            parts={"train": tuple(infos)},
            videos=infos,
            labels={},
            inputs={},
            weights={},
            config=as_dict(config),
            cache=folder,
            devices=1,
        )
        cache = FrameCache(Path(folder), format, 10**12)
        began = time.perf_counter()
        cache.ensure(infos, frame_transform(config.augs))
        frames = sum(info.num_frames for info in infos.values())
        made = frames / (time.perf_counter() - began)
        data, done = ClipData(plan, "train", config, cache), 0
        batches = TrainBatches(len(data), batch_size, seed=0, first=lambda: 0, steps=10**6 // batch_size)
        loader = iter(make_loader(data, batches, num_workers=workers, pin=False))
        for _ in range(workers + 3):
            next(loader)
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            # as the network does first: read every byte
            done += len(next(loader)["clips"][:, 0, 0, 0, 0])
        return f"| {format} | {size} | {workers} | {made:,.0f} | {done / spent:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 128], help="height and width of the frames")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure of reading")
    parser.add_argument("--frames", type=int, default=2000, help="of each video, at most")
    parser.add_argument("--loader", nargs="+", type=int, metavar="WORKERS", help="drive the data path of training")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    if options.loader is not None:
        print("| format | size | workers | frames made / s | clips / s |\n|---|---|---|---|---|")
        for format in ("raw", "jpeg"):
            for size in options.sizes:
                for workers in options.loader:
                    line = drive_loader(options.videos, size, format, workers, options.batch_size, options.seconds)
                    print(line, flush=True)
        return
    cv2.setNumThreads(0)
    for video in options.videos:
        for size in options.sizes:
            transform = FrameTransform(resize=(size, size))
            frames_THWC = decoded(video, transform, options.frames)
            print(f"\n{video.name}, {len(frames_THWC)} frames, {size} x {size}\n")
            print("| form | bytes / frame | of raw | frames written / s | clips read / s | PSNR worst / mean |")
            print("|---|---|---|---|---|---|")
            with tempfile.TemporaryDirectory() as folder:
                for form in FORMS:
                    print(measure(form, frames_THWC, Path(folder), options.seconds), flush=True)
            print(from_video(video, transform, options.seconds), flush=True)


if __name__ == "__main__":
    main()
