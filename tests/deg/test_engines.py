"""Engines as workers make them from a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from runs import make_plan

from deg.engines import require_planned_weights
from deg.errors import WeightsError

SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""Of the bytes `abc`."""


@pytest.fixture
def weights(tmp_path):
    return tmp_path / "checkpoint.pt"


@pytest.fixture
def plan(tmp_path, weights):
    weights.write_bytes(b"abc")
    plan = make_plan(tmp_path, {"a": 10})
    return replace(plan, weights={"feature_extractor": {"path": str(weights), "sha256": SHA256}})


def test_the_weights_of_the_plan_are_taken(plan):
    require_planned_weights(plan)


def test_weights_that_a_training_has_overwritten_are_refused(plan, weights):
    weights.write_bytes(b"abd")
    with pytest.raises(WeightsError, match=r"checkpoint.pt: the weights have changed since the run was planned"):
        require_planned_weights(plan)


def test_weights_that_went_away_are_named(plan, weights):
    weights.unlink()
    with pytest.raises(WeightsError, match=r"checkpoint.pt: the weights went away since the run was planned"):
        require_planned_weights(plan)
