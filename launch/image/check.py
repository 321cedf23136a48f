"""`deg image check`: is an image whole, of this version, fit for this host's driver, and does it pass its own test?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from deg.containers import FLAVOURS
from deg.errors import LaunchError
from deg.launch.devices import driver_version
from deg.launch.findings import Finding
from deg.launch.image.apptainer import ask, client
from deg.launch.image.build import source_sha256
from deg.launch.image.file import digest_file, read_labels, verify_digest
from deg.version import __version__

VERIFY_SECONDS = 300
TEST_SECONDS = 1800


def check_image(image: Path, program: str = "apptainer", *, quick: bool = False) -> Iterator[Finding]:
    """Yield what can be found out about an image on this host; `quick` leaves out its own test.

    LaunchError if it is no image.
    """
    labels = read_labels(image)
    yield judge_version(labels, source_sha256())
    yield judge_driver(labels, driver_version())
    yield _check_digest(image)
    if shutil.which(program) is None:
        yield Finding("signature", "not tried", f"there is no program {program} here")
        return
    yield judge_signature(*ask(client(program, VERIFY_SECONDS), "verify", str(image)))
    if not quick:
        nv = ["--nv"] if Path("/dev/nvidiactl").exists() else []
        apptainer = client(program, TEST_SECONDS, merged=True)
        yield judge_test(*ask(apptainer, "test", "--cleanenv", "--no-home", *nv, str(image)))


def judge_version(labels: Mapping[str, str], source: str) -> Finding:
    """Judge what the image holds. `source` is the sha256 of the files of deg that run here."""
    version = labels.get("deg.version")
    if version is None:
        return Finding("version", "fault", "an image that is not of deg", f"an image of deg {__version__}")
    torch, cuda, kind = (labels.get(f"deg.{name}") for name in ("torch", "cuda", "flavour"))
    found = f"deg {version} with torch {torch} for CUDA {cuda} ({kind})"
    if version != __version__:
        remedy = "Build or pull the image of this version, or install that version here."
        return Finding("version", "fault", found, f"deg {__version__}, which runs here", remedy)
    if labels.get("deg.source_sha256") != source:
        remedy = "Build it again if you have changed them."
        return Finding("version", "warning", found, "the same files of deg as run here", remedy)
    return Finding("version", "ok", found)


def judge_driver(labels: Mapping[str, str], driver: str | None) -> Finding:
    """Judge whether this host's driver is new enough for the image."""
    least = labels.get("deg.min_driver", "")
    if not least.isdecimal():
        return Finding("GPU driver", "not tried", "the image does not say what it needs")
    if driver is None:
        return Finding("GPU driver", "not tried", f"there is none here; nodes with GPUs need {least} or newer")
    major = int(driver.split(".")[0])
    if major < int(least):
        fitting = [kind.name for kind in FLAVOURS.values() if kind.min_driver <= major]
        remedy = f"Use an image of flavour {fitting[0]}." if fitting else "Have the driver updated."
        return Finding("GPU driver", "fault", driver, f"{least} or newer", remedy)
    return Finding("GPU driver", "ok", f"{driver}; the image needs {least} or newer")


def _check_digest(image: Path) -> Finding:
    if image.is_dir():
        return Finding("digest", "not tried", "a folder has none")
    try:
        digest = verify_digest(image)
    except LaunchError as error:
        return Finding("digest", "fault", str(error))
    recorded = "as recorded when it was made" if digest_file(image).exists() else "none was recorded to compare it with"
    return Finding("digest", "ok", f"sha256:{digest}, {recorded}")


def judge_signature(status: int, said: str) -> Finding:
    """Judge how `apptainer verify` ended."""
    if status == 0:
        return Finding("signature", "ok", "valid")
    if "signature not found" in said:
        return Finding("signature", "ok", "none")
    words = said.strip().splitlines() or [f"exit status {status}"]
    remedy = "Import the signer's key (`apptainer key import`) if you trust it; else do not use this image."
    return Finding("signature", "fault", words[-1], "one that is valid", remedy)


def judge_test(status: int, said: str) -> Finding:
    """Judge how the image's own test ended."""
    if status == 0:
        return Finding("its own test", "ok", "passed")
    return Finding("its own test", "fault", "\n".join(said.strip().splitlines()[-5:]) or f"exit status {status}")
