"""Fixtures: the small real cluster.

    cluster    SmallCluster (small_cluster.py): Slurm on n1, n2, n3, with the usual Site and without jobs; it is reset
               after the test. cluster.configure(Site(accounting=True, requeue=False, ...)) makes it another kind
               of site within two seconds; cluster.kill_node("n2"), cut_node, start_node; cluster.run("scontrol", ...)
               as root; cluster.states(), cluster.wait("12", "13_0", state="RUNNING", seconds=60)
    image      Path of the real SIF, built from the checkout (cluster_image.py)
    user       User (cluster_user.py): an ordinary user on the login node. user.run("squeue"), user.deg("run", ...) from
               her light installation without torch, user.submit("script text", "--gres=gpu:1") -> "12"
    folder     a new folder that belongs to the user, visible on all hosts, removed after the test if that passed

All tests here are marked `cluster` and run last: the image may be built meanwhile. Where something is missing (not
root, not Debian, not installed) they are skipped and say why; with DEG_REQUIRE_CLUSTER=1 they fail instead.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from cluster_image import given_image, image_of_checkout, live_deg
from cluster_user import make_user
from proved_tools import TESTS_OF_TOOLS
from small_cluster import SmallCluster, cluster_home, what_is_missing

HERE = Path(__file__).resolve().parent
MOST_SECONDS = 1500
"""Time limit of a test with its fixtures, in seconds: the first test waits for the image."""

RESULT = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("cluster")
            item.add_marker("slow")
            if item.path.name in TESTS_OF_TOOLS:
                item.add_marker("tools")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(MOST_SECONDS))
    items.sort(key=lambda item: item.path.is_relative_to(HERE))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.stash[RESULT] = report.passed
    return report


@pytest.fixture(scope="session")
def _home():
    """Skip, or fail, where there can be no cluster."""
    if reason := what_is_missing():
        if os.environ.get("DEG_REQUIRE_CLUSTER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    home = cluster_home()
    home.mkdir(parents=True, exist_ok=True)
    return home


@pytest.fixture(scope="session")
def user(_home):
    made = make_user(_home)
    if given_image():
        made.environment.update(live_deg(_home))
    return made


@pytest.fixture(scope="session")
def image(_home):
    return given_image() or image_of_checkout(_home)


@pytest.fixture(scope="session")
def _running_cluster(_home, user):
    """The cluster. One that was started by hand is used, and left running."""
    small = SmallCluster(_home)
    with small.locked():
        was_running = small.is_running
        try:
            small.start()
            user.environment.update(small.environment)
            yield small
        finally:
            if not was_running:
                small.stop()


@pytest.fixture
def cluster(_running_cluster):
    _running_cluster.reset()
    yield _running_cluster
    _running_cluster.reset()


@pytest.fixture
def folder(request, user):
    """A new folder of the user. After a failure it is kept, with everything that jobs have written."""
    name = re.sub(r"\W+", "-", request.node.name).strip("-")
    path = user.home / name
    shutil.rmtree(path, ignore_errors=True)
    yield user.give(path)
    if request.node.stash.get(RESULT, False):
        shutil.rmtree(path)
