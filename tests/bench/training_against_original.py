"""Compare the speed of training the feature extractor by `deg train` and by DeepEthogram on the CPU, in clips a second.

    python tests/bench/training_against_original.py [--size 224 224] [--batch-size 16] [--runs 3] [--video FILE ...]

Both train deg_f from the same random weights on the same compressed videos, in turn and several times. The videos are
made here, as H.264 with a key frame every 250 frames, or given by --video (at least three; their labels are made up).

    loading  the data path alone: from the videos to batches in memory, without a network. For deg both with its frame
             cache and without it (compute.cache=none).
    step     whole steps: loading, augmentation, both streams, regularisation, backward, Adam

It prints medians over batches after the first ones, and their ratios; making the frame cache is reported separately.
With --only, one program is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import yaml
from accuracy_against_original import write_random_weights
from against_original import HERE, machine, measure, original_python

DEG = Path(sys.executable).with_name("deg")
BEHAVIORS = ["move_right", "move_down"]
KEY_FRAMES = 250
"""Frames from one key frame to the next: the default of x264."""
PIECE = 5
"""Number of steps."""


# ------------------------------------------------------------------------------------------------------ what is needed


def make_video(path: Path, frames: int, seed: int, width: int = 640, height: int = 480) -> Path:
    """Write a video of a textured square on textured ground with camera noise, and its labels beside it."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(40, 160, (24, 32, 3), dtype=np.uint8), (width, height))
    animal = cv2.resize(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), (height // 6, height // 6))
    side, time_T = height // 6, np.arange(frames)
    left_T = ((width - side) * (0.5 + 0.5 * np.sin(time_T / 31 + seed))).astype(int)
    top_T = ((height - side) * (0.5 + 0.5 * np.sin(time_T / 23))).astype(int)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"crf": "23", "g": str(KEY_FRAMES)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for top, left in zip(top_T, left_T, strict=True):
            frame = ground.copy()
            frame[top : top + side, left : left + side] = animal
            noisy = np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        file.mux(stream.encode(None))
    write_labels(path, np.diff(left_T, prepend=left_T[0]) > 0, np.diff(top_T, prepend=top_T[0]) > 0)
    return path


def write_labels(video: Path, *happens: np.ndarray) -> None:
    columns = dict(zip(BEHAVIORS, happens, strict=True))
    table = pd.DataFrame({"background": ~np.any(happens, axis=0)} | columns).astype(int)
    table.to_csv(video.with_name(f"{video.stem}_labels.csv"))


def given_videos(videos: Sequence[Path], folder: Path) -> list[Path]:
    """Link to these videos, and write meaningless labels beside the links."""
    links = []
    for video in videos:
        link = folder / video.name
        link.symlink_to(video.resolve())
        with av.open(str(video)) as file:
            frames = sum(1 for _ in file.decode(video=0))
        number_T = np.arange(frames)
        write_labels(link, number_T // 20 % 2 == 0, number_T // 30 % 2 == 0)
        links.append(link)
    return links


def make_project(folder: Path, videos: Sequence[Path], size: Sequence[int]) -> None:
    measure([DEG, "new", folder, "--behaviors", ",".join(BEHAVIORS)])
    labels = [word for video in videos for word in ("--labels", video.with_name(f"{video.stem}_labels.csv"))]
    measure([DEG, "add", folder, *videos, *labels])
    config = yaml.safe_load((folder / "project_config.yaml").read_text())
    config["preset"], config["augs"]["resize"] = "deg_f", list(size)
    (folder / "project_config.yaml").write_text(yaml.safe_dump(config))
    keys = [video.stem for video in videos]
    parts = {"train": keys[:-1], "val": keys[-1:], "test": []}
    (folder / "DATA" / "split.yaml").write_text(yaml.safe_dump({"metadata": {"split": [0.8, 0.2, 0.0]}} | parts))
    write_random_weights(folder, seed=0)


def shared_options(options: argparse.Namespace) -> list[str]:
    return [
        "feature_extractor.weights=pretrained",
        "flow_generator.weights=pretrained",
        f"compute.batch_size={options.batch_size}",
        f"compute.num_workers={options.workers}",
        "train.steps_per_epoch.val=1",
        "train.viz_examples=0",
        "train.viz_metrics=false",
        "train.stopping_type=num_epochs",
        *options.setting,
    ]


# --------------------------------------------------------------------------------------------------------- the original


Measures = dict[str, float]
"""Median `seconds` of a step, and the share of the machine that `others` used."""


def load_original(project: Path, options: argparse.Namespace) -> Measures:
    job = {"do": "load", "batches": options.warm_up + options.steps}
    answer, others = _ask_original(project, options, job, [])
    return {"seconds": _median_step(answer["batch_ends"], options.warm_up), "others": others}


def step_original(project: Path, options: argparse.Namespace) -> Measures:
    steps = options.warm_up + options.steps
    arguments = ["train.num_epochs=1", f"train.steps_per_epoch.train={steps}"]
    job = {"do": "command", "module": "feature_extractor.train", "seed": 0}
    answer, others = _ask_original(project, options, job, arguments)
    return {"seconds": _median_step(answer["step_ends"], options.warm_up), "others": others}


def _ask_original(
    project: Path, options: argparse.Namespace, job: dict[str, Any], arguments: list[str]
) -> tuple[dict[str, Any], float]:
    given = [f"project.path={project}", "preset=deg_f", *shared_options(options), *arguments]
    return _ask(
        [options.python, HERE / "original_driver.py"], project.parent / "job.json", job | {"arguments": given}, options
    )


def _ask(
    driver: list[str | Path], file: Path, job: dict[str, Any], options: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    file.write_text(json.dumps(job))
    output, measured = measure([*driver, file], _environment(options))
    return json.loads(output.splitlines()[-1]), measured.others


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """Return an environment with the same number of threads for both programs."""
    return {**os.environ, "OMP_NUM_THREADS": str(options.threads)}


def _median_step(ends: Sequence[float], warm_up: int) -> float:
    return statistics.median(np.diff(ends)[warm_up:])


# ----------------------------------------------------------------------------------------------------------------- ours


def load_ours(project: Path, options: argparse.Namespace) -> Measures:
    """Measure loading with the frame cache, which is made anew."""
    shutil.rmtree(project / "frame_cache", ignore_errors=True)
    return _load_ours(project, options, "project")


def load_ours_uncached(project: Path, options: argparse.Namespace) -> Measures:
    return _load_ours(project, options, "none")


def _load_ours(project: Path, options: argparse.Namespace, cache: str) -> Measures:
    arguments = ["preset=deg_f", f"compute.cache={cache}", *shared_options(options)]
    job = {"project": str(project), "arguments": arguments, "batches": options.warm_up + options.steps}
    answer, others = _ask([sys.executable, HERE / "deg_driver.py"], project.parent / "job.json", job, options)
    seconds = _median_step(answer["batch_ends"], options.warm_up)
    return {"seconds": seconds, "others": others, "cache_seconds": answer["cache_seconds"]}


def step_ours(project: Path, options: argparse.Namespace) -> Measures:
    """Measure steps with the frame cache, in short epochs whose speed the run reports; the first one warms up."""
    epochs = 1 + -(-options.steps // PIECE)
    name = f"000101_{len(list((project / 'models').iterdir())):06d}_feature_extractor_train"
    arguments = [f"train.num_epochs={epochs}", f"train.steps_per_epoch.train={PIECE}", "preset=deg_f"]
    arguments += [f"train.precision={options.precision}", "compute.devices=1", "compute.cache=project"]
    arguments += [f"compute.threads={options.threads}"]
    command = [DEG, "train", "feature_extractor", project, "--run", name, *shared_options(options), *arguments]
    _, measured = measure(command, _environment(options))
    lines = (project / "models" / name / "metrics.jsonl").read_text().splitlines()
    speeds = [epoch["train"]["fps"] for epoch in map(json.loads, lines) if "train" in epoch]
    return {"seconds": options.batch_size / statistics.median(speeds[1:]), "others": measured.others}


MEASURED = {
    ("original", "loading"): load_original,
    ("deg", "loading"): load_ours,
    ("deg", "loading, no cache"): load_ours_uncached,
    ("original", "step"): step_original,
    ("deg", "step"): step_ours,
}


# ----------------------------------------------------------------------------------------------------------- comparison


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if options.video:
        videos = given_videos(options.video, folder)
    else:
        videos = [make_video(folder / f"clip_{n}.mp4", options.frames, n) for n in range(3)]
    project = folder / "project"
    make_project(project, videos, options.size)
    runs: dict[str, list[Measures]] = {}
    for number in range(options.runs):
        for (program, what), function in MEASURED.items():
            if options.only in (None, program):
                found = function(project, options)
                runs.setdefault(f"{program} {what}", []).append(found)
                speed = options.batch_size / found["seconds"]
                print(
                    f"run {number} {program}, {what}: {speed:.2f} clips/s, others used {found['others']:.0%}",
                    file=sys.stderr,
                )
    speeds = {
        name: round(options.batch_size / statistics.median(each["seconds"] for each in found), 3)
        for name, found in runs.items()
    }
    settings = ("size", "batch_size", "workers", "threads", "steps", "warm_up", "precision", "setting")
    return {
        "machine": machine(),
        "settings": {key: getattr(options, key) for key in settings},
        "video_bytes": [video.stat().st_size for video in videos],
        "clips_per_second": speeds,
        "ratio": _ratios(speeds),
        "cache_seconds": _median(runs.get("deg loading", []), "cache_seconds"),
        "others": {name: _median(found, "others") for name, found in runs.items()},
        "runs": runs,
    }


def _ratios(speeds: dict[str, float]) -> dict[str, float]:
    """Return the ratios of deg's speeds to DeepEthogram's speeds for the same work."""
    theirs = {name: f"original {name.split()[1].rstrip(',')}" for name in speeds if name.startswith("deg")}
    return {name: round(speeds[name] / speeds[other], 3) for name, other in theirs.items() if other in speeds}


def _median(found: Sequence[Measures], what: str) -> float | None:
    return round(statistics.median(each[what] for each in found), 3) if found else None


def table(result: dict[str, Any]) -> str:
    lines = [result["machine"], f"{result['settings']}", "", f"{'clips/s (medians)':<28}{'':>9}    ratio   others"]
    for name, speed in result["clips_per_second"].items():
        ratio = f"{result['ratio'][name]:.2f}" if name in result["ratio"] else ""
        lines.append(f"{name:<28} {speed:>8.2f} {ratio:>8} {result['others'][name]:>8.0%}")
    if result["cache_seconds"] is not None:
        lines += ["", f"making the frame cache, once: {result['cache_seconds']:.1f} s"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[224, 224], metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that load, of either program")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="that compute, of either program")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3, help="steps before those that count")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="fp32", help="of deg")
    parser.add_argument("--frames", type=int, default=600, help="of each of the three videos that are made")
    parser.add_argument(
        "--video", type=Path, nargs="+", help="these in place of ones that are made; the last validates"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--setting", action="append", default=[], metavar="KEY=VALUE", help="more, for both programs")
    parser.add_argument("--only", choices=["original", "deg"])
    parser.add_argument("--venv", type=Path, default=HERE.parents[1] / "build" / "original")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.video and len(options.video) < 3:
        parser.error("--video: three at least, as DeepEthogram asks for three recordings")
    options.python = original_python(options.venv) if options.only != "deg" else None
    with tempfile.TemporaryDirectory() as folder:
        result = compare(options, Path(folder).resolve())
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
