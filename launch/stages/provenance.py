"""Who made a result, with what and where."""

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
    """Describe this command, this program and this machine, as it is kept with what they make."""
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
    """The revision of deg where it runs from a checkout."""
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
    """The container image that we are in, if any."""
    return os.environ.get("APPTAINER_CONTAINER")
