"""Check Apptainer, the mode that it runs in, the version of deg in the image, and how long the image takes to start."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from deg.errors import LaunchError
from deg.launch.devices import driver_version
from deg.launch.findings import Finding
from deg.launch.image import check as image_check
from deg.launch.image import container
from deg.launch.image.build import source_sha256
from deg.launch.image.file import read_labels
from deg.options.schema import Cluster

OLDEST = (1, 0)
"""Oldest version of Apptainer that works: the first with `--mount`."""
SECONDS = 120.0
SLOW_START = 30.0

NOT_HERE = "not on this machine; nodes may have it (cluster.modules): `deg doctor --on slurm` finds out"


def check_apptainer(cluster: Cluster) -> list[Finding]:
    """Check the program, and what it needs of this machine's kernel."""
    program = shutil.which(cluster.apptainer)
    if program is None:
        return [Finding("Apptainer", "not tried", NOT_HERE)]
    found = [judge_version(_output([program, "--version"]))]
    setuid = is_setuid(_output([program, "buildcfg"]))
    namespaces = setuid or os.geteuid() == 0 or bool(_succeeds(["unshare", "--user", "--map-root-user", "true"]))
    found.append(judge_mode(setuid=setuid, root=os.geteuid() == 0, namespaces=namespaces))
    if not setuid:
        found.append(judge_fuse(os.access("/dev/fuse", os.R_OK | os.W_OK)))
    return found


def judge_version(text: str) -> Finding:
    """Judge what `apptainer --version` says."""
    matched = re.search(r"(\d+)\.(\d+)\S*", text)
    if matched is None or not text.startswith("apptainer"):
        remedy = "Have Apptainer installed, or name its program with cluster.apptainer."
        return Finding("Apptainer", "warning", text.strip() or "no answer", "Apptainer 1.0 or newer", remedy)
    if (int(matched[1]), int(matched[2])) < OLDEST:
        return Finding("Apptainer", "fault", matched[0], "1.0 or newer", "Have it updated.")
    return Finding("Apptainer", "ok", matched[0])


def judge_mode(*, setuid: bool, root: bool, namespaces: bool) -> Finding:
    check = "Apptainer's mode"
    if setuid:
        return Finding(check, "ok", "setuid: the kernel mounts images")
    if root:
        return Finding(check, "ok", "root")
    if namespaces:
        return Finding(check, "ok", "user namespaces")
    remedy = "Ask the administrators to allow user namespaces, or to install Apptainer with setuid."
    return Finding(check, "fault", "neither setuid nor user namespaces", "one of them", remedy)


def judge_fuse(usable: bool) -> Finding:
    """Judge whether /dev/fuse, needed to mount images without setuid, can be opened."""
    if usable:
        return Finding("/dev/fuse", "ok", "usable")
    remedy = "Ask the administrators to allow /dev/fuse; else every start unpacks the whole image into /tmp."
    return Finding("/dev/fuse", "warning", "cannot be opened", "FUSE to mount images", remedy)


def check_image(cluster: Cluster, paths: Sequence[Path]) -> Iterator[Finding]:
    """Check the image that cluster.image names: its labels, and whether it starts as in a job, with `paths` shown."""
    check = "image"
    if cluster.image is None:
        yield Finding(check, "not tried", "cluster.image is not set: jobs run this machine's Python")
        return
    path = Path(cluster.image).expanduser()
    try:
        labels = read_labels(path)
        text = container.script(replace(container.Container.of(cluster, paths), nv=False))
    except LaunchError as error:
        yield Finding(check, "fault", str(error), "an image that can be run")
        return
    yield replace(image_check.judge_version(labels, source_sha256()), check=check)
    if (driver := driver_version()) is not None:
        yield replace(image_check.judge_driver(labels, driver), check="GPU driver for it")
    if shutil.which(cluster.apptainer) is None:
        yield Finding("start of the image", "not tried", NOT_HERE)
    else:
        yield _start(text)


def _start(text: str) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "container.sh"
        script.write_text(text, encoding="utf-8", errors="surrogateescape")
        began = time.monotonic()
        try:
            ended = subprocess.run(
                ["bash", str(script), "-c", "import deg"],
                env={**os.environ, "TMPDIR": folder},  # where the script makes the job's own folder
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return judge_start(SECONDS, 1, f"no answer in {SECONDS:.0f} s")
        seconds = time.monotonic() - began
    return judge_start(seconds, ended.returncode, " / ".join(ended.stderr.strip().splitlines()[-3:]))


def judge_start(seconds: float, status: int, errors: str) -> Finding:
    """Judge how Python in the image ended: with which exit `status`, and after how many seconds."""
    check = "start of the image"
    if status:
        return Finding(check, "fault", errors or f"exit status {status}", "Python to start in it")
    found = f"{seconds:.1f} s"
    if seconds > SLOW_START:
        remedy = "Put it on a faster file system: every task of a job starts it."
        return Finding(check, "warning", found, f"{SLOW_START:.0f} s or less", remedy)
    return Finding(check, "ok", found)


def is_setuid(build: str) -> bool:
    """Whether this Apptainer has its setuid helper; `build` is the output of `apptainer buildcfg`."""
    values = dict(line.partition("=")[::2] for line in build.splitlines())
    if values.get("APPTAINER_SUID_INSTALL") != "1":
        return False
    starter = Path(values.get("LIBEXECDIR", "/")) / "apptainer/bin/starter-suid"
    return starter.exists() and bool(starter.stat().st_mode & stat.S_ISUID)


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
