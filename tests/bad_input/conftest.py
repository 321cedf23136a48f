"""Bad files of every kind, met by the real commands."""

import pytest
from scenes.project import models
from scenes.run import scripted_workers

__all__ = ["models"]


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Workers of commands started from here on compute nothing; `scripted(pause=0.1, ...)` gives them a script."""
    return scripted_workers(monkeypatch, tmp_path)
