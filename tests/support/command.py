"""`deg` as users start it: as a process of its own."""

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
"""Seconds after which a command is taken to wait for ever; each needs a few."""


@dataclass(frozen=True)
class Answer:
    """What a command ended with and said."""

    status: int
    json: Any
    told: str

    @classmethod
    def of(cls, words: Sequence[object], status: int, printed: str | bytes, told: str) -> Answer:
        """An answer as users may get one, whatever the input: without a traceback."""
        assert "Traceback" not in told and status in (0, 1, 2), f"exit status {status}\n{told}"
        return cls(status, json.loads(printed) if "--json" in words else None, told)


def deg(*words: object, prefix: Sequence[str] = (), **options: Any) -> Answer:
    """Run `deg` without a GPU; `prefix` is a program that starts it, options are those of subprocess.run."""
    options.setdefault("env", {**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    command = [*prefix, sys.executable, "-m", "deg.launch.cli", *words]
    ended = subprocess.run(list(map(os.fspath, command)), capture_output=True, timeout=PATIENCE, **options)
    return Answer.of(words, ended.returncode, ended.stdout, ended.stderr.decode("utf-8", "replace"))


def infer(lab: Path, *words: str, stage: str = "feature_extractor", **options: Any) -> Answer:
    """`deg infer` of one stage with the project's own weights and one thread; `json` is the report of the stage."""
    fixed = ("feature_extractor.weights=latest", "inference.threads=1", "--json")
    answer = deg("infer", stage, lab, *fixed, *words, **options)
    return Answer(answer.status, answer.json["stages"][0] if "stages" in answer.json else answer.json, answer.told)


def check(lab: Path, *words: str, **options: Any) -> dict[str, str]:
    """All that `deg check` says of each recording, and under "" of the project, as one text."""
    answer = deg("check", lab, "--json", *words, **options)
    assert "issues" in answer.json, answer.told
    said: dict[str, str] = {}
    for issue in answer.json["issues"]:
        said[issue["key"]] = f"{said.get(issue['key'], '')}{issue['severity']}: {issue['message']}\n"
    assert answer.status == (1 if any("error: " in text for text in said.values()) else 0)
    return said
