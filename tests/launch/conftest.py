"""Fixtures that the tests of deg.launch share."""

from __future__ import annotations

import pytest
from recorded_slurm import RecordedSlurm


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    """Slurm's commands on PATH, which take jobs and start none: see tests/support/recorded_slurm.py."""
    recorder = RecordedSlurm(tmp_path / "slurm", monkeypatch)
    yield recorder
    recorder.check()
