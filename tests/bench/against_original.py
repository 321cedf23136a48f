"""Compare feature extraction by `deg infer` and by DeepEthogram on the CPU: same video, weights and size, in turn.

    python tests/bench/against_original.py [--preset deg_f] [--size 224 224] [--precision fp32] [--runs 3]
    python tests/bench/against_original.py --memory --precision auto

The first form runs both over one video, one after the other, several times, and compares their numbers:

    inner    from a network in memory to the HDF5 file in place: DeepEthogram's extract(); for `deg infer`, from the
             start of its first unit to the last merge, by the run's events.jsonl, decoding processes included
    whole    the command, including its start
    cpu      frames per second of CPU time, times cores; varies less than the others on a machine that is not idle

--memory runs `deg infer` alone, over a video of one minute and one of one hour (30 frames a second, small so that it
ends soon), and compares the peaks of memory: PSS, summed over the processes.

DeepEthogram gets an environment of its own, made at the first use (6 GB, packages from PyPI, Python 3.11) in
build/original, or in --venv DIR; an existing environment is used as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

HERE = Path(__file__).resolve().parent
NETWORKS = {
    "deg_f": {"cnn": "resnet18", "flow": "TinyMotionNet", "images": 1},
    "deg_m": {"cnn": "resnet50", "flow": "MotionNet", "images": 1},
    "deg_s": {"cnn": "resnet3d_34", "flow": "TinyMotionNet3D", "images": 11},
}
CLASSES = ["background", "groom", "rear", "dig"]
MEAN, STD = [0.4, 0.45, 0.5], [0.2, 0.25, 0.3]
MINUTE, HOUR = 1800, 108_000
"""Number of frames, at 30 a second."""


@dataclass(frozen=True)
class Measured:
    """Measurements of one command from outside, and what it reported itself."""

    whole_seconds: float
    cpu_seconds: float
    peak_pss_mb: float
    others: float
    """Share of the machine that other programs used meanwhile, in [0, 1]."""
    inner_seconds: float = 0.0


# ------------------------------------------------------------------------------------------------ measuring a command


def measure(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> tuple[str, Measured]:
    """Run a command to its end; return what it printed and what it took. Show its output if it fails."""
    busy, cpu, started = _machine_seconds(), _children_seconds(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        peak = _PeakMemory(process.pid)
        output = process.communicate()[0]
        seconds = time.perf_counter() - started
        peak.stop()
        if process.returncode:
            log.seek(0)
            sys.exit(f"{command[0]} ended with status {process.returncode}\n{log.read()[-4000:]}{output[-2000:]}")
    cpu = _children_seconds() - cpu
    others = (_machine_seconds() - busy - cpu) / seconds / (os.cpu_count() or 1)
    return output, Measured(seconds, cpu, peak.megabytes, max(others, 0.0))


class _PeakMemory:
    """Peak memory of a process and its descendants, sampled five times a second."""

    def __init__(self, pid: int):
        self.megabytes = 0.0
        self._pid, self._end = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            self.megabytes = max(self.megabytes, sum(map(_pss_kb, _family(self._pid))) / 1024)

    def stop(self) -> None:
        self._end.set()
        self._thread.join()


def _family(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended by now
                continue
    family = [pid]
    for member in family:  # the list grows during the loop
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _pss_kb(pid: int) -> int:
    """Resident memory of a process; memory that several processes share is divided among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _machine_seconds() -> float:
    """Return the CPU seconds that the machine has worked since it started."""
    times = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(times) - times[3] - times[4]) / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    units = ["with AMX" if "amx_tile" in flags else "no AMX", "avx512_bf16" if "avx512_bf16" in flags else "no bf16"]
    return f"{model}, {os.cpu_count()} cores, {', '.join(units)}"


# ------------------------------------------------------------------------------------------------------ what is needed


def original_python(venv: Path) -> Path:
    """Return the Python of DeepEthogram's environment; make that environment if it does not exist."""
    python = venv / "bin" / "python"
    if not python.exists():
        print(f"making {venv}: some minutes and 6 GB", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        for what in (["pip<24.1"], ["-r", HERE / "original-requirements.txt"]):
            subprocess.run([python, "-m", "pip", "install", "-q", *what], check=True, stdout=sys.stderr)
    return python


def make_video(path: Path, frames: int, side: int) -> Path:
    """Write a video of a bright square that wanders over a fixed pattern."""
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(40, 160, (16, 16, 3), dtype=np.uint8), (side, side))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (side, side))
    room = side - side // 4
    for number in range(frames):
        frame = ground.copy()
        top, left = (int(room * (0.5 + 0.5 * np.sin(number / period))) for period in (23, 17))
        frame[top : top + side // 4, left : left + side // 4] = (60, 200, 240)
        writer.write(frame)
    writer.release()
    return path


def make_project(folder: Path, preset: str, video: Path) -> Path:
    """Make a project with that video and random weights, by the commands that a user types."""
    for command in (["new", folder, "--behaviors", ",".join(CLASSES[1:])], ["add", folder, video]):
        measure([_deg(), *command])
    weights = folder / "models" / "random" / "checkpoint.pt"
    weights.parent.mkdir(parents=True)
    _write_random_weights(weights, preset)
    return weights


def _write_random_weights(path: Path, preset: str) -> None:
    import torch

    from deg.models.two_stream import build_two_stream
    from deg.options.schema import FeatureExtractor, FlowGenerator

    names = NETWORKS[preset]
    torch.manual_seed(0)
    extractor = FeatureExtractor(arch=names["cnn"], n_rgb=names["images"])
    network = build_two_stream(extractor, FlowGenerator(arch=names["flow"]), len(CLASSES))
    torch.save({"epoch": 0, "state_dict": network.state_dict()}, path)


def _deg() -> Path:
    return Path(sys.executable).with_name("deg")


# ------------------------------------------------------------------------------------------------------- the two sides


def run_ours(project: Path, weights: Path, options: argparse.Namespace, name: str) -> Measured:
    height, width = options.size
    _, measured = measure(
        [
            *(_deg(), "infer", "feature_extractor", project, "--overwrite", "--run", name, "--json"),
            f"preset={options.preset}",
            f"feature_extractor.weights={weights}",
            f"augs.resize=[{height},{width}]",
            f"augs.normalization.mean={MEAN}".replace(" ", ""),
            f"augs.normalization.std={STD}".replace(" ", ""),
            f"inference.precision={options.precision}",
            *options.setting,
        ]
    )
    events = [json.loads(line) for line in (project / "models" / name / "events.jsonl").read_text().splitlines()]
    begun = min(event["time"] - event["seconds"] for event in events if event["event"] == "unit_done")
    merged = max(event["time"] for event in events if event["event"] == "merged")
    return Measured(**{**asdict(measured), "inner_seconds": merged - begun})


def run_original(python: Path, job: Path) -> Measured:
    # torch's default is one thread per core
    output, measured = measure([python, HERE / "original_driver.py", job])
    return Measured(**{**asdict(measured), "inner_seconds": json.loads(output.splitlines()[-1])["seconds"]})


def differences(ours: Path, original: Path, group: str) -> dict[str, dict[str, float]]:
    """Return, for each dataset, the largest difference and the original's largest value."""
    found = {}
    with h5py.File(ours) as a, h5py.File(original) as b:
        for name in ("P", "logits", "spatial_features", "flow_features"):
            mine, theirs = a[group][name][()], b[group][name][()]
            found[name] = {
                "largest_difference": float(np.abs(mine - theirs).max()),
                "largest_value": float(theirs.max()),
            }
    return found


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    python = original_python(options.venv)
    video = options.video or make_video(folder / "clip.mp4", options.frames, 256)
    project = folder / "project"
    weights = make_project(project, options.preset, video)
    theirs = folder / "original" / video.name
    theirs.parent.mkdir()
    theirs.symlink_to(video.resolve())
    network = NETWORKS[options.preset]
    job = folder / "job.json"
    job.write_text(
        json.dumps(
            {"do": "extract", "video": str(theirs), "weights": str(weights), "network": network, "class_names": CLASSES}
            | {"mean": MEAN, "std": STD, "size": options.size, "workers": os.cpu_count()}
        )
    )
    runs: dict[str, list[Measured]] = {"original": [], "deg": []}
    for number in range(options.runs):
        runs["original"].append(run_original(python, job))
        runs["deg"].append(run_ours(project, weights, options, f"run_{number}"))
        _tell(number, runs)
    found = project / "DATA" / video.stem / f"{video.stem}_outputs.h5"
    result = theirs.with_name(f"{video.stem}_outputs.h5")
    with h5py.File(result) as file:
        frames = len(file[network["cnn"]]["P"])
    speeds = {name: _speeds(measured, frames) for name, measured in runs.items()}
    return {
        "machine": machine(),
        "settings": {key: getattr(options, key) for key in ("preset", "size", "precision", "setting")},
        "frames": frames,
        "frames_per_second": speeds,
        "ratio": {key: round(speeds["deg"][key] / speeds["original"][key], 3) for key in ("inner", "whole", "cpu")},
        "peak_pss_mb": {name: round(max(m.peak_pss_mb for m in measured)) for name, measured in runs.items()},
        "differences": differences(found, result, network["cnn"]),
        "runs": {name: [asdict(each) for each in measured] for name, measured in runs.items()},
    }


def _speeds(measured: Sequence[Measured], frames: int) -> dict[str, float]:
    """Return medians, in frames a second."""
    seconds = {
        "inner": [each.inner_seconds for each in measured],
        "whole": [each.whole_seconds for each in measured],
        "cpu": [each.cpu_seconds / (os.cpu_count() or 1) for each in measured],
    }
    return {key: round(frames / statistics.median(values), 3) for key, values in seconds.items()}


def _tell(number: int, runs: dict[str, list[Measured]]) -> None:
    for name, measured in runs.items():
        last = measured[-1]
        print(
            f"run {number} {name}: inner {last.inner_seconds:.1f} s, whole {last.whole_seconds:.1f} s, "
            f"CPU {last.cpu_seconds:.1f} s, others used {last.others:.0%} of the machine",
            file=sys.stderr,
        )


def compare_memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    peaks, seconds = {}, {}
    for name, frames in (("minute", MINUTE), ("hour", options.frames or HOUR)):
        project = folder / name
        weights = make_project(project, options.preset, make_video(folder / f"{name}.mp4", frames, 64))
        measured = run_ours(project, weights, options, "run")
        peaks[name], seconds[name] = round(measured.peak_pss_mb), round(measured.whole_seconds)
        print(f"{name}: {frames} frames, {seconds[name]} s, {peaks[name]} MB", file=sys.stderr)
    return {
        "machine": machine(),
        "settings": {key: getattr(options, key) for key in ("preset", "size", "precision", "setting")},
        "frames": {"minute": MINUTE, "hour": frames},
        "seconds": seconds,
        "peak_pss_mb": peaks,
        "ratio": round(peaks["hour"] / peaks["minute"], 3),
    }


def table(result: dict[str, Any]) -> str:
    lines = [result["machine"], f"{result['settings']}, {result['frames']} frames", ""]
    speeds = result["frames_per_second"]
    lines.append("frames/s (medians)     DeepEthogram          deg        ratio")
    for key, ratio in result["ratio"].items():
        lines.append(f"{key:<22} {speeds['original'][key]:>12.2f} {speeds['deg'][key]:>12.2f} {ratio:>12.2f}")
    peaks = result["peak_pss_mb"]
    lines.append(f"{'peak memory, MB':<22} {peaks['original']:>12} {peaks['deg']:>12}")
    lines += ["", "largest difference (of values up to)"]
    for name, found in result["differences"].items():
        lines.append(f"{name:<22} {found['largest_difference']:.2e} ({found['largest_value']:.3g})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(NETWORKS), default="deg_f")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="default 224 224; 32 32 for --memory")
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="fp32")
    parser.add_argument("--frames", type=int, help="of the video that is made; default 300; of the long one, an hour's")
    parser.add_argument("--video", type=Path, help="this one in place of one that is made")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--setting", action="append", default=[], metavar="KEY=VALUE", help="more options of deg infer")
    parser.add_argument("--venv", type=Path, default=HERE.parents[1] / "build" / "original")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    options.size = options.size or ([32, 32] if options.memory else [224, 224])
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            result = compare_memory(options, Path(folder))
            text = "\n".join(f"{key:<14} {value}" for key, value in result.items())
        else:
            options.frames = options.frames or 300
            result = compare(options, Path(folder))
            text = table(result)
    print(json.dumps(result) if options.json else text)


if __name__ == "__main__":
    main()
