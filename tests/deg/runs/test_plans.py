"""Plans of earlier versions are read and mean the same: no change of deg outdates finished results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deg.runs.plans import FeatureTask, InferencePlan, SequenceTask, TrainingPlan, settings_of

RECORDED = json.loads(Path(__file__).with_name("plans_of_f871421.json").read_text())
"""plan.json as revision f871421 wrote it, for each kind of plan."""
INFERENCES = ("feature_extractor", "sequence", "keypoints")
TRAININGS = ("flow_generator_train", "feature_extractor_train")
NEW_OPTIONS = {("inference", "damaged_frames"): "refuse", ("project", "image_order"): "natural"}
"""Options that f871421 did not have, and what they are where a plan does not say."""


@pytest.mark.parametrize("name", INFERENCES)
def test_a_recorded_plan_of_an_inference_comes_back_byte_for_byte(name):
    assert InferencePlan.from_json(RECORDED[name]).to_json() == RECORDED[name]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_recorded_plan_of_a_training_comes_back_byte_for_byte_but_for_new_options(name):
    plan = json.loads(TrainingPlan.from_json(RECORDED[name]).to_json())
    for (section, option), value in NEW_OPTIONS.items():
        assert plan["config"][section].pop(option) == value
    assert json.dumps(plan) == RECORDED[name]


@pytest.mark.parametrize("name", INFERENCES)
def test_the_digest_of_what_changes_the_numbers_is_the_recorded_one(name):
    plan = InferencePlan.from_json(RECORDED[name])
    assert settings_of(plan.task, plan.class_names, plan.thresholds) == plan.settings


@pytest.mark.parametrize(
    ("change", "outdates"),
    [
        ({"weights": "/elsewhere.pt"}, False),
        ({"flow_weights": "/elsewhere.pt"}, False),
        ({"batch_size": 7}, False),
        ({"compile": True}, False),
        ({"decoders": 3}, False),
        ({"threads": 5}, False),
        ({"precision": "bf16"}, True),
        ({"resize": [64, 64]}, True),
        ({"mean": (0.1, 0.2, 0.3)}, True),
        ({"frame_count": "decoded"}, True),
    ],
)
def test_only_what_changes_the_numbers_outdates_results(change, outdates):
    plan = InferencePlan.from_json(RECORDED["feature_extractor"])
    assert isinstance(plan.task, FeatureTask)
    changed = replace(plan.task, **change)
    assert (settings_of(changed, plan.class_names, plan.thresholds) != plan.settings) is outdates


def test_keypoints_tell_their_number_of_features_and_features_do_not():
    plan = InferencePlan.from_json(RECORDED["keypoints"])
    assert isinstance(plan.task, SequenceTask)
    assert plan.task.num_features == plan.task.as_dict()["num_features"] == 44
    assert "num_features" not in InferencePlan.from_json(RECORDED["sequence"]).task.as_dict()
