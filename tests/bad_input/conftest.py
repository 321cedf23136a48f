"""Fixtures: bad files of every kind, given to the real commands."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import command
import pytest
from command import Answer
from scenes.project import models
from scenes.run import scripted_workers

from deg.data.video.files import probe
from deg.errors import VideoError
from deg.launch import cli
from deg.types import VideoInfo

__all__ = ["models"]


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Workers of commands started from here on compute nothing; `scripted(pause=0.1, ...)` gives them a script."""
    return scripted_workers(monkeypatch, tmp_path)


@pytest.fixture
def in_process(monkeypatch):
    """For speed, commands run and open videos in this process. `in_process("add", ...)` returns an Answer."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(command, "deg", deg_here)
    for module in ("projects.check", "plan.infer", "plan.recordings"):
        monkeypatch.setattr(f"deg.{module}.probe_all", probe_here)
    return deg_here


def deg_here(*words: object) -> Answer:
    """Do what `command.deg` does, without a process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = cli.run(list(map(os.fspath, words)))
    return Answer.of(words, status, out.getvalue(), err.getvalue())


def probe_here(paths: Iterable[Path], **options) -> list[VideoInfo | VideoError]:
    """Do what `probe_all` does, without decoders."""
    found: list[VideoInfo | VideoError] = []
    for path in paths:
        try:
            found.append(probe(path, **options))
        except VideoError as error:
            found.append(error)
    return found
