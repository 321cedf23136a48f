"""Apptainer and the image: there, of a mode that works, of this version of deg, and how long it takes to start."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deg.errors import LaunchError, show_path
from deg.launch import container
from deg.launch.doctor_findings import Finding
from deg.schema import Cluster
from deg.version import __version__

OLDEST = (1, 0)
"""The first Apptainer with `--mount`."""
SECONDS = 120.0
SLOW_START = 30.0

NOT_HERE = "not on this machine; nodes may have it (cluster.modules), which `deg doctor --on slurm` finds out"


def check_apptainer(cluster: Cluster) -> list[Finding]:
    """The program and what it needs of this machine's kernel."""
    program = shutil.which(cluster.apptainer)
    if program is None:
        return [Finding("Apptainer", "not tried", NOT_HERE)]
    found = [judge_version(_output([program, "--version"]))]
    setuid = _is_setuid(_output([program, "buildcfg"]))
    namespaces = setuid or os.geteuid() == 0 or bool(_succeeds(["unshare", "--user", "--map-root-user", "true"]))
    found.append(judge_mode(setuid=setuid, root=os.geteuid() == 0, namespaces=namespaces))
    if not setuid:
        found.append(judge_fuse(os.access("/dev/fuse", os.R_OK | os.W_OK)))
    return found


def judge_version(text: str) -> Finding:
    """Of what `apptainer --version` says."""
    matched = re.search(r"(\d+)\.(\d+)\S*", text)
    if matched is None or not text.startswith("apptainer"):
        remedy = "Have Apptainer installed, or name it by cluster.apptainer."
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
    """Whether /dev/fuse can be opened, by which images are mounted without setuid."""
    if usable:
        return Finding("/dev/fuse", "ok", "usable")
    remedy = "Ask the administrators to open /dev/fuse; else every start unpacks the whole image into /tmp."
    return Finding("/dev/fuse", "warning", "cannot be opened", "that images can be mounted by FUSE", remedy)


def check_image(cluster: Cluster, paths: Sequence[Path]) -> list[Finding]:
    """The image that cluster.image names, started as jobs start it, with `paths` shown inside."""
    check = "image"
    if cluster.image is None:
        return [Finding(check, "not tried", "cluster.image names none: jobs run this machine's Python")]
    try:
        how = replace(container.Container.of(cluster, paths), nv=False)
        text = container.script(how)
    except LaunchError as error:
        return [Finding(check, "fault", str(error), "an image that can be run")]
    assert how.image is not None
    try:
        with how.image.open("rb"):
            pass
    except OSError as error:
        remedy = "`deg image build` or `deg image pull` makes one; cluster.image names it."
        return [Finding(check, "fault", f"{show_path(how.image)}: {error.strerror}", "an image", remedy)]
    if shutil.which(cluster.apptainer) is None:
        return [Finding(check, "ok", f"{show_path(how.image)} is there; not started, for lack of Apptainer")]
    return [_start(text)]


def _start(text: str) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "container.sh"
        script.write_text(text, encoding="utf-8", errors="surrogateescape")
        began = time.monotonic()
        try:
            ended = subprocess.run(
                ["bash", str(script), "-c", "import deg.version; print(deg.version.__version__)"],
                env={**os.environ, "TMPDIR": folder},  # where the script makes the job's own folder
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return judge_start(SECONDS, None, f"no answer in {SECONDS:.0f} s")
        seconds = time.monotonic() - began
    version = ended.stdout.strip() if ended.returncode == 0 else None
    return judge_start(seconds, version, " / ".join(ended.stderr.strip().splitlines()[-3:]))


def judge_start(seconds: float, version: str | None, errors: str) -> Finding:
    """`version` is that of deg in the image; None if it did not start."""
    if version is None:
        return Finding("image", "fault", errors or "it ended without a word", "that Python starts in it")
    found = f"deg {version}, Python starts in {seconds:.1f} s"
    if version != __version__:
        remedy = "Build or pull the image of this version, or install that version here."
        return Finding("image", "fault", found, f"deg {__version__}, which submits", remedy)
    if seconds > SLOW_START:
        remedy = "Put it on a faster file system: every task of a job starts it."
        return Finding("image", "warning", found, f"{SLOW_START:.0f} s or less", remedy)
    return Finding("image", "ok", found)


def _is_setuid(build: str) -> bool:
    """Whether this Apptainer has its setuid helper; `build` is what `apptainer buildcfg` says."""
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
