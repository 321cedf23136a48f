"""Commands of a scheduler on PATH that print what a test wants and record how they were called."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest


class Shims:
    """`shims("squeue", "text")` makes such a command; `calls("squeue")` returns the words that it was called with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self._folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def __call__(self, name: str, prints: str = "", *, errors: str = "", status: int = 0, then: str = "") -> None:
        """Make a command that prints a text and finally runs `then`, a shell command."""
        script = self._folder / name
        log = shlex.quote(str(self._folder / f"{name}.calls"))
        script.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> {log}\n"
            f"printf '%s' {shlex.quote(prints)}\nprintf '%s' {shlex.quote(errors)} >&2\n{then}\nexit {status}\n"
        )
        script.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        log = self._folder / f"{name}.calls"
        return log.read_text().splitlines() if log.exists() else []
