"""Provenance of a result: the program, command, time and machine that made it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deg.version import __version__


def provenance() -> dict[str, Any]:
    """Describe this command, this program and this machine, as it is kept with the results."""
    return {
        "deg": __version__,
        "command": sys.argv,
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "git": _git_revision(),
        "image": _image(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_revision() -> str | None:
    """Return the git revision of deg if it runs from a checkout; None if not."""
    try:
        asked = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def _image() -> str | None:
    """Return the container image that this process runs in, if any."""
    return os.environ.get("APPTAINER_CONTAINER")
