"""The files of the project, as git sees them: those committed, and new ones that are not ignored."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@cache
def files() -> list[Path]:
    """Return every file that is or would be committed, relative to ROOT."""
    if not (ROOT / ".git").exists():
        pytest.skip("what belongs to the project cannot be told without git", allow_module_level=True)
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    paths = [Path(name) for name in listed.split("\0") if name]
    return [path for path in paths if (ROOT / path).is_file()]
