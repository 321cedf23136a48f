"""Measure the time from `deg infer --on slurm` to the first unit at work, and how long the image takes to start.

    python tests/bench/on_slurm.py [--runs 5] [--image FILE]

It runs on the small cluster of tests/cluster, as its ordinary user, with the real image, and needs root and
tests/cluster/install. It prints medians and all runs. The small cluster schedules within a second; a busy one adds the
time in its queue.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests" / "cluster"), str(ROOT / "tests" / "support")]

from cluster_image import given_image, image_of_checkout, live_deg  # noqa: E402
from cluster_lab import make_project, wait_for_launch, write_profile  # noqa: E402
from cluster_user import make_user  # noqa: E402
from small_cluster import SmallCluster, cluster_home  # noqa: E402

from deg.runs.attempts import read_attempts  # noqa: E402

PYTHON_PARTS = "import torch, pytorch_lightning, kornia, cv2, h5py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--image", type=Path, help="instead of one that is built from the checkout")
    options = parser.parse_args()
    if options.image:
        os.environ["DEG_CLUSTER_IMAGE"] = str(options.image)
    home = cluster_home()
    user, image = make_user(home), given_image() or image_of_checkout(home)
    if given_image():
        user.environment.update(live_deg(home))
    cluster = SmallCluster(home)
    with cluster.locked():
        was_running = cluster.is_running
        cluster.start()
        user.environment.update(cluster.environment)
        try:
            measure(cluster, user, image, options.runs)
        finally:
            if not was_running:
                cluster.stop()


def measure(cluster, user, image: Path, runs: int) -> None:
    seconds: dict[str, list[float]] = {}
    for number in range(runs):
        folder = user.give(user.home / f"bench-{number}")
        project = make_project(folder, user, videos=1, frames=30, labelled=0, trained=True)
        profile = write_profile(folder, user, image)
        began = time.time()
        user.deg("infer", "feature_extractor", project, "--on", "slurm", f"cluster={profile}")
        returned = time.time()
        launch = wait_for_launch(cluster, project, seconds=300)
        first = read_attempts(launch.load().run_of(0).unit_folder(0))[0]
        took = {
            "the command returns": returned - began,
            "the first unit is at work": first.time - began,
            "its result is there": first.ended - began,
            "image starts: apptainer exec IMAGE true": started(user, image, "true"),
            f"image starts: {PYTHON_PARTS}": started(user, image, "python", "-c", PYTHON_PARTS),
        }
        for what, value in took.items():
            seconds.setdefault(what, []).append(value)
        shutil.rmtree(folder)
    for what, values in seconds.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"{statistics.median(values):6.1f} s  {what}   (runs: {each})")


def started(user, image: Path, *command: str) -> float:
    began = time.monotonic()
    user.run("apptainer", "exec", "--cleanenv", "--no-home", "--pwd", "/", image, *command)
    return time.monotonic() - began


if __name__ == "__main__":
    try:
        main()
    except subprocess.TimeoutExpired as error:
        sys.exit(f"{error.cmd} took longer than {error.timeout} s")
