"""The files in configs/: presets do what they say, and a new project starts from the template."""

from __future__ import annotations

import pytest
import yaml

from deg.configs import preset, preset_names, project_template
from deg.errors import ConfigError
from deg.options.load import load_config


def test_the_presets_of_the_original_are_there():
    assert preset_names() == ("deg_f", "deg_m", "deg_s")


@pytest.mark.parametrize(
    ("name", "arch", "n_rgb", "flow_arch", "sparsity"),
    [
        ("deg_f", "resnet18", 1, "TinyMotionNet", (False, 0.0, 1.0)),
        ("deg_m", "resnet50", 1, "MotionNet", (False, 0.0, 1.0)),
        ("deg_s", "resnet3d_34", 11, "TinyMotionNet3D", (True, 0.05, 0.25)),
    ],
)
def test_a_preset_sets_the_networks_that_belong_together(name, arch, n_rgb, flow_arch, sparsity):
    config = load_config(None, [f"preset={name}"])
    extractor, flow = config.feature_extractor, config.flow_generator
    assert (extractor.arch, extractor.n_rgb, extractor.n_flows) == (arch, n_rgb, 10)
    assert (flow.arch, flow.n_rgb) == (flow_arch, 11)
    assert (flow.flow_sparsity, flow.sparsity_weight, flow.smooth_weight_multiplier) == sparsity
    assert config.ignored == ()


def test_an_unknown_preset_is_answered_with_those_that_there_are():
    with pytest.raises(ConfigError, match="Choose one of deg_f, deg_m, deg_s"):
        preset("../project")


def test_a_new_project_has_the_originals_settings(tmp_path):
    path = tmp_path / "project_config.yaml"
    path.write_text(yaml.safe_dump(project_template()))
    config = load_config(path)
    assert (config.augs.resize, config.compute.batch_size, config.train.loss_weight_exp) == ((224, 224), 32, 1.0)
    assert (config.augs.normalization.N, config.augs.normalization.mean) == (0, (0.5, 0.5, 0.5))
    assert (config.project.data_path, config.project.model_path) == ("DATA", "models")
    assert config.ignored == ()
