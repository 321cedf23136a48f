"""The real image for the cluster tests, built by `deg image build` from a base that debootstrap makes.

    python tests/cluster/cluster_image.py        builds it unless it is there; takes three minutes
    DEG_CLUSTER_IMAGE=FILE pytest tests/cluster  uses that image, with the checkout's deg shown over the one inside

An image is kept in cluster_home()/images under the fingerprint of everything that it is made from. A process that needs
an image that is being built waits for it; `make test` builds it while other tests run.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cluster_daemons import ClusterError, run
from cluster_user import SOURCES, copy_sources, fingerprint
from small_cluster import ROOT, cluster_home, what_is_missing

IN_NAMESPACE = Path(__file__).resolve().with_name("in_user_namespace")
MIRROR = IN_NAMESPACE.with_name("debian_mirror")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
"""Certificates by which this machine trusts package indexes, perhaps through a proxy."""
SITE_PACKAGES = "/opt/deg/lib/python3.11/site-packages"


def given_image() -> Path | None:
    named = os.environ.get("DEG_CLUSTER_IMAGE")
    return Path(named).resolve() if named else None


def image_of_checkout(home: Path) -> Path:
    """Return the image of the checkout as it is now; build it if necessary."""
    images = home / "images"
    images.mkdir(parents=True, exist_ok=True)
    image = images / f"deg-cu13-{fingerprint(ROOT / name for name in SOURCES)}.sif"
    with (images / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            _build(image, _base(home))
            for old in images.glob("*.sif"):
                if old != image:
                    old.unlink()
    return image


def live_deg(home: Path) -> dict[str, str]:
    """Return variables by which Apptainer shows the checkout's deg in a given image, whose own may be older."""
    live = home / "live"
    shutil.rmtree(live, ignore_errors=True)
    live.mkdir(parents=True)
    copy_sources(live)
    for name in ("launch", "configs", "containers"):
        (live / name).rename(live / "deg" / name)
    run("chmod", "-R", "a+rX", live)
    return {"APPTAINER_BIND": f"{live}/deg:{SITE_PACKAGES}/deg"}


def _base(home: Path) -> Path:
    """Make a folder with a minimal Debian."""
    base = home / "base"
    if not base.exists():
        part = home / "base.part"
        shutil.rmtree(part, ignore_errors=True)
        run("debootstrap", "--variant=minbase", "bookworm", part, run(MIRROR).strip(), timeout=900)
        # device files cannot be copied in a user namespace, and every container has its own
        shutil.rmtree(part / "dev")
        (part / "dev").mkdir()
        part.rename(base)
    return base


def _build(image: Path, base: Path) -> None:
    work = image.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    part = work / image.name
    log = image.parent / "build.log"
    words = [
        sys.executable,
        "-m",
        "deg.launch.cli",
        "image",
        "build",
        "--flavour",
        "cu13",
        "--base",
        base,
        "--to",
        part,
    ]
    words += ["--compression", "lz4", "--with", f"{CERTIFICATES}:/usr/local/share/ca-certificates/of-the-host.crt"]
    environment = {"APPTAINER_TMPDIR": str(work), "APPTAINER_CACHEDIR": str(work / "cache")}
    try:
        with log.open("wb") as output:
            status = subprocess.run(
                [*([IN_NAMESPACE] if _lacks_capabilities() else []), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                timeout=1500,
            ).returncode
        if status:
            raise ClusterError(f"the image was not built; {log} ends with:\n{log.read_text(errors='replace')[-3000:]}")
        part.chmod(0o755)
        part.rename(image)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _lacks_capabilities() -> bool:
    """Whether root lacks a capability here, so that `apptainer build` would refuse to run %post."""
    have = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert have
    every = (1 << (int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1)) - 1
    return int(have[1], 16) & every != every


if __name__ == "__main__":
    if missing := what_is_missing():
        sys.exit(missing)
    print(given_image() or image_of_checkout(cluster_home()))
