"""The weights that a training starts from: by name or path, of the right network, or none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from scenes.project import add_weights, make_project

from deg.errors import WeightsError
from deg.options.load import load_config
from deg.plan.weights import find_weights
from deg.projects.project import open_project
from deg.runs.planned import PlannedFile


@pytest.fixture
def lab(tmp_path):
    """A project that has trained a flow generator."""
    lab = make_project(tmp_path / "lab")
    add_weights(lab, "flow_generator", "TinyMotionNet", "200101_000000")
    return lab


def find(lab: Path, stage: str, *overrides: str):
    config = load_config(lab / "project_config.yaml", overrides, stage=stage)
    return find_weights(stage, open_project(lab), config)


def features(lab: Path, *overrides: str):
    """Plan the feature extractor, which has the most kinds of weights; null and latest are the defaults."""
    defaults = ("feature_extractor.weights=null", "flow_generator.weights=latest")
    return find(lab, "feature_extractor", *defaults, *overrides)


def add_pretrained(lab: Path, model: str, arch: str, date: str) -> Path:
    run = add_weights(lab, model, arch, date)
    target = lab / "models" / "pretrained_models" / run.name
    target.parent.mkdir(exist_ok=True)
    return run.rename(target)


def test_each_weight_file_is_known_by_its_bytes(lab):
    weights, notices = features(lab)
    path = lab / "models/200101_000000_flow_generator_train/checkpoint.pt"
    assert weights == {"flow_generator": PlannedFile.of(path)}
    assert f"Flow generator {path}." in notices


def test_a_feature_extractor_begins_with_imagenet_or_with_nothing(lab):
    assert "The feature extractor begins with ImageNet weights of resnet18." in features(lab)[1]
    weights, notices = features(lab, "feature_extractor.weights=random")
    assert "start" not in weights and "The feature extractor begins with random weights." in notices


def test_there_are_no_imagenet_weights_for_videos(lab):
    with pytest.raises(WeightsError, match=r"there are none for resnet3d_34\. Set it to pretrained, latest or a path"):
        features(lab, "feature_extractor.arch=resnet3d_34")


def test_pretrained_weights_to_begin_with_are_also_what_l2_sp_pulls_to(lab):
    run = add_pretrained(lab, "feature_extractor", "resnet18", "200102_000000")
    weights, _ = features(lab, "feature_extractor.weights=pretrained")
    assert weights["start"] == weights["pretrained"] and weights["start"].path == run / "checkpoint.pt"


def test_l2_sp_pulls_to_the_pretrained_ones_whatever_training_begins_with(lab):
    pretrained = add_pretrained(lab, "feature_extractor", "resnet18", "200102_000000")
    own = add_weights(lab, "feature_extractor", "resnet18", "200103_000000")
    weights, _ = features(lab, "feature_extractor.weights=latest")
    assert weights["start"].path == own / "checkpoint.pt"
    assert weights["pretrained"].path == pretrained / "checkpoint.pt"


def test_the_newest_of_several_pretrained_networks_counts(lab):
    for date in ("200103_000000", "200102_000000"):
        add_pretrained(lab, "feature_extractor", "resnet18", date)
    weights, notices = features(lab)
    assert "200103_000000" in str(weights["pretrained"].path)
    assert any(notice.endswith("checkpoint.pt, the newest of 2.") for notice in notices)


def test_without_a_pretrained_network_l2_sp_pulls_to_zero_and_says_so(lab):
    weights, notices = features(lab)
    assert "pretrained" not in weights
    assert any(
        "no pretrained feature_extractor resnet18: all weights are pulled towards zero" in text for text in notices
    )
    _, notices = features(lab, "train.regularization.style=l2")
    assert not any("l2_sp" in text or "L2-SP" in text for text in notices)


def test_null_means_latest_with_reload_latest(lab):
    own = add_weights(lab, "feature_extractor", "resnet18", "200103_000000")
    assert features(lab, "reload.latest=true")[0]["start"].path == own / "checkpoint.pt"


def test_the_other_stages_begin_from_scratch(lab):
    assert "flow_generator: trained from scratch." in find(lab, "flow_generator", "flow_generator.weights=null")[1]
    weights, notices = find(lab, "sequence")
    assert weights == {} and notices == ["sequence: trained from scratch."]


def test_latest_is_the_newest_whose_training_has_ended(lab):
    """A run that is resumed must not mistake its own weights for those that it started from."""
    ended = add_weights(lab, "feature_extractor", "resnet18", "200103_000000")
    running = add_weights(lab, "feature_extractor", "resnet18", "200104_000000")
    (running / "plan.json").write_text("{}")
    latest = "feature_extractor.weights=latest"
    assert features(lab, latest)[0]["start"].path == ended / "checkpoint.pt"
    (running / "done.json").write_text("{}")
    assert features(lab, latest)[0]["start"].path == running / "checkpoint.pt"


def test_latest_is_nothing_while_the_only_one_is_being_trained(lab):
    (lab / "models/200101_000000_flow_generator_train/plan.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"not trained to the end yet\. Resume it with `deg train flow_generator`"):
        features(lab)


@pytest.mark.parametrize(
    ("model", "arch", "message"),
    [
        ("sequence", "tgmj", "expected weights of a feature_extractor, found those of a sequence"),
        ("feature_extractor", "resnet50", "found those of a resnet50. Set feature_extractor.arch=resnet50"),
    ],
)
def test_a_path_must_lead_to_weights_of_the_network(lab, model, arch, message):
    run = add_weights(lab, model, arch, "200103_000000")
    with pytest.raises(WeightsError, match=re.escape(f"{run}/checkpoint.pt: expected weights")) as raised:
        features(lab, f"feature_extractor.weights={run}")
    assert message in str(raised.value)


def test_weights_without_a_configuration_are_taken_at_their_word(lab, tmp_path):
    path = tmp_path / "bare.pt"
    path.write_bytes(b"tensors")
    assert features(lab, f"feature_extractor.weights={path}")[0]["start"].path == path


def test_weights_for_other_behaviours_are_taken_with_a_warning(lab):
    run = add_weights(lab, "feature_extractor", "resnet18", "200103_000000")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"project": {"class_names": ["background", "sleep"]}}))
    _, notices = features(lab, "feature_extractor.weights=latest")
    assert any("trained for other behaviours (background, sleep) than the project" in notice for notice in notices)
