"""Checks that run in a process of their own, because they may hang, crash or load libraries that are unwanted here.

Each is a module of deg that prints one JSON document as its last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from deg.runs.rundir import tail
from deg.work import describe_exit


class Child:
    """A check that runs in a process of its own."""

    def __init__(self, module: str, words: Sequence[str] = (), environment: Mapping[str, str] = os.environ):
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            text=True,
            encoding="utf-8",
            errors="replace",
        )

    def answer(self, seconds: float) -> dict[str, Any]:
        """Wait at most `seconds`, end the process, and return its document; `{"failure": reason}` if it gave none."""
        try:
            said, errors = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, errors = self._process.communicate()
            return {"failure": f"no answer in {seconds:.0f} s. {_last_words(errors)}".strip()}
        try:
            document = json.loads(said.splitlines()[-1])
        except (IndexError, ValueError):
            return {"failure": f"the process {describe_exit(self._process.returncode)}. {_last_words(errors)}".strip()}
        return dict(document)

    def kill(self) -> None:
        """End the process if it is still running."""
        self._process.kill()
        self._process.communicate()


def _last_words(errors: str) -> str:
    return " / ".join(line.strip() for line in tail(errors, lines=3))
