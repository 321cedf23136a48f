"""Engines, made from a plan as workers make them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes.run import make_plan
from tracks import write_keypoints

from deg.data.keypoints import NUM_KEYPOINT_FEATURES
from deg.data.sequence_input import describe_mark
from deg.errors import ProjectError, WeightsError
from deg.infer.spans import SequenceSpans, decoder_count
from deg.models.sequence import build_sequence
from deg.options.schema import Sequence
from deg.runs.networks import require_planned
from deg.runs.planned import KeypointSource, PlannedFile
from deg.runs.plans import SequenceTask

SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""Digest of the bytes `abc`."""


@pytest.fixture
def weights(tmp_path):
    return tmp_path / "checkpoint.pt"


@pytest.fixture
def plan(tmp_path, weights):
    weights.write_bytes(b"abc")
    plan = make_plan(tmp_path, {"a": 10})
    return replace(plan, weights={"feature_extractor": PlannedFile(weights, SHA256)})


def test_the_weights_of_the_plan_are_taken(plan):
    require_planned(plan.weights)


def test_weights_that_a_training_has_overwritten_are_refused(plan, weights):
    weights.write_bytes(b"abd")
    with pytest.raises(WeightsError, match=r"checkpoint.pt: the weights have changed since the run was planned"):
        require_planned(plan.weights)


def test_weights_that_went_away_are_named(plan, weights):
    weights.unlink()
    with pytest.raises(
        WeightsError, match=r"checkpoint.pt: the weights cannot be read .*, but the run was planned with them"
    ):
        require_planned(plan.weights)


@pytest.fixture
def torch_as_before():
    """Restore the settings of torch, which an engine changes for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def keypoints(tmp_path, weights, torch_as_before):
    """The plan of a network over the keypoints of one recording of 30 frames."""
    section = Sequence(arch="tcn", tcn_layers=2, sequence_length=10, input_type="keypoints")
    torch.save(build_sequence(section, NUM_KEYPOINT_FEATURES, 3).state_dict(), weights)
    plan = make_plan(tmp_path, {"a": 30}, stage="sequence")
    csv = write_keypoints(plan.outputs["a"].with_name("aDLC.csv"), 30)
    return replace(
        plan,
        weights={"sequence": PlannedFile.of(weights)},
        task=SequenceTask(section, 3, str(weights), "", num_features=NUM_KEYPOINT_FEATURES, threads=1),
        sources={"a": KeypointSource(csv.name, describe_mark(csv, ""))},
    )


def test_a_sequence_network_runs_on_keypoints(keypoints):
    engine = SequenceSpans(keypoints, torch.device("cpu"))
    rows = list(engine.run_span(keypoints.units[0].spans[0]))
    probabilities_TK = np.concatenate([row["P"] for row in rows])
    assert probabilities_TK.shape == (30, 3) and np.isfinite(probabilities_TK).all()


def test_keypoints_tracked_anew_since_the_plan_was_made_are_refused(keypoints):
    engine = SequenceSpans(keypoints, torch.device("cpu"))
    write_keypoints(keypoints.outputs["a"].with_name("aDLC.csv"), 30, seed=1)
    with pytest.raises(ProjectError, match=r"aDLC.csv: the keypoints changed since the run was planned"):
        list(engine.run_span(keypoints.units[0].spans[0]))


@pytest.mark.parametrize(
    ("wanted", "device", "cores", "count"),
    [
        ("auto", "cpu", 16, 1),
        ("auto", "cuda", 16, 14),
        ("auto", "cuda", 8, 7),
        ("auto", "cuda", 4, 3),
        ("auto", "cuda", 2, 1),
        ("auto", "cuda", 1, 1),
        (5, "cpu", 2, 5),
    ],
)
def test_decoders_follow_the_device_and_the_cores_of_the_worker(wanted, device, cores, count):
    assert decoder_count(wanted, device, cores) == count
