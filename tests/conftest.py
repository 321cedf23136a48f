"""Shared by all tests: where golden numbers and test data lie, and scenes that several test files use."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from fake_slurm import FakeSlurm

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # one core for each process and its children: threads that share cores with other tests wait for each other
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# a test process holds every library: looking through it for garbage as often as Python does took a sixth of the time
gc.set_threshold(20_000, 20, 50)

hypothesis.settings.register_profile("deg", deadline=None)  # other tests run beside these, so times mean nothing
hypothesis.settings.load_profile("deg")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
"""Large test data beside the checkout; not part of the project, and absent on a user's machine."""


@pytest.hookimpl(tryfirst=True)  # tests of the real cluster are sorted last
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest tests, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: (item.get_closest_marker("timeout") is None, item.get_closest_marker("slow") is None))


def golden_folder() -> Path:
    """Return the folder named by DEG_GOLDEN, else the full set beside the checkout, else the project's small files."""
    if named := os.environ.get("DEG_GOLDEN"):
        return Path(named)
    full = SHARED / "golden"
    return full if full.is_dir() else ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def golden():
    """`golden("tgmj")` returns the arrays of that file and its description, or skips the test if the file is absent."""

    def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        path = golden_folder() / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"{path.name} is not in {path.parent}: set DEG_GOLDEN to the folder of golden files")
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        return arrays, json.loads(str(arrays.pop("about")))

    return load


@pytest.fixture(scope="session")
def shared_data():
    """`shared_data("real_videos")` returns a folder of test data, or skips the test if the folder is absent."""

    def folder(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{name} is not beside the checkout: this test needs the large test data")
        return path

    return folder


@pytest.fixture
def one_thread():
    """torch computes in this thread alone, for tests whose work is too small to be shared among threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """Slurm's commands on PATH, and a scheduler that runs jobs as processes: see tests/support/fake_slurm."""
    cluster = FakeSlurm(tmp_path / "slurm")
    cluster.start()
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def usual_process():
    """Restore what networks and data loaders change in a process that other tests share.

    Networks flush denormal numbers to 0. PyTorch's handler of SIGCHLD raises the death of a loader of an earlier test.
    """
    yield
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


MYSITE = """\
cluster:
  {image: null, gpus_per_node: null, cpus_per_task: 1, memory_gb: 1, time: "0:30:00", merge_time: "0:10:00", jobs: 2}
"""


@pytest.fixture
def mysite(tmp_path, monkeypatch) -> None:
    """The cluster profile that the pages name, for a site without GPUs and without the image."""
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "mysite.yaml").write_text(MYSITE)
    monkeypatch.setenv("DEG_CLUSTERS", str(profiles))
