"""Run `deg` as users do: as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 180
"""A command that runs for longer than this, in seconds, is taken to hang; each needs only a few."""


@dataclass(frozen=True)
class Answer:
    """Exit status and output of a command."""

    status: int
    json: Any
    told: str

    @classmethod
    def of(cls, words: Sequence[object], status: int, printed: str | bytes, told: str) -> Answer:
        """Return an answer; check that it has no traceback, whatever the input."""
        assert "Traceback" not in told and status in (0, 1, 2), f"exit status {status}\n{told}"
        return cls(status, json.loads(printed) if "--json" in words else None, told)


def deg(*words: object, prefix: Sequence[str] = (), **options: Any) -> Answer:
    """Run `deg` without a GPU; `prefix` is a program that starts it, and options are passed to subprocess.run."""
    options.setdefault("env", {**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    command = [*prefix, sys.executable, "-m", "deg.launch.cli", *words]
    ended = subprocess.run(list(map(os.fspath, command)), capture_output=True, timeout=PATIENCE, **options)
    return Answer.of(words, ended.returncode, ended.stdout, ended.stderr.decode("utf-8", "replace"))


def infer(lab: Path, *words: str, stage: str = "feature_extractor", **options: Any) -> Answer:
    """Run `deg infer` for one stage with the project's own weights and one thread; `json` is the stage's report."""
    fixed = ("feature_extractor.weights=latest", "inference.threads=1", "--json")
    answer = deg("infer", stage, lab, *fixed, *words, **options)
    return Answer(answer.status, answer.json["stages"][0] if "stages" in answer.json else answer.json, answer.told)


def check(lab: Path, *words: str, **options: Any) -> dict[str, str]:
    """Return all that `deg check` says about each recording, and under "" about the project, as one text each."""
    answer = deg("check", lab, "--json", *words, **options)
    assert "issues" in answer.json, answer.told
    said: dict[str, str] = {}
    for issue in answer.json["issues"]:
        said[issue["key"]] = f"{said.get(issue['key'], '')}{issue['severity']}: {issue['message']}\n"
    assert answer.status == (1 if any("error: " in text for text in said.values()) else 0)
    return said
