"""The two-stream networks give the original's numbers, and have the names of its weight files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fill import filled_state

from deg.errors import ConfigError
from deg.models.initial import log_odds
from deg.models.two_stream import EXTRACTORS, MIDDLE_CHANNELS, build_flow_generator

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
MODELS = ["deg_f", "deg_m", "deg_s", "deg_f_odd", "deg_m_odd", "deg_s_odd"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_outputs_are_the_originals(golden_model, name):
    network, clip, expected = golden_model(name)
    output = network(clip)
    for field in output._fields:
        np.testing.assert_allclose(getattr(output, field).numpy(), expected[field], **CLOSE, err_msg=field)
    np.testing.assert_allclose(output.logits.sigmoid().numpy(), expected["probabilities"], atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_flow_is_the_originals_at_three_scales(golden_model, name):
    """Networks with odd sizes crop maps before they join them."""
    network, clip, expected = golden_model(name)
    for level, flow in enumerate(network.flow_generator(clip)):
        np.testing.assert_allclose(flow.numpy(), expected[f"flow_{level}"], **CLOSE)


@pytest.mark.parametrize("name", ["deg_f", "deg_m", "deg_f_odd", "deg_m_odd"])
def test_spatial_stream_sees_the_shifted_middle_image(golden_model, name):
    _, clip, expected = golden_model(name)
    np.testing.assert_allclose(clip[:, MIDDLE_CHANNELS].numpy(), expected["spatial_input"], atol=1e-6)


@pytest.mark.parametrize("preset", ["deg_f", "deg_m", "deg_s"])
def test_filled_state_dict_has_the_originals_keys_shapes_and_sums(golden_model, preset):
    network, _, expected = golden_model(preset)
    state = network.state_dict()
    shapes = {key: "x".join(str(size) for size in value.shape) for key, value in state.items()}
    assert shapes == dict(zip(expected["state_keys"], expected["state_shapes"], strict=True))
    for key, total in zip(expected["state_keys"], expected["state_sums"], strict=True):
        assert float(state[key].double().sum()) == pytest.approx(total, rel=1e-6, abs=1e-6), key


@pytest.mark.parametrize("preset", ["deg_f", "deg_m", "deg_s"])
def test_trainable_weights_are_those_that_the_original_regularises(golden_model, preset):
    network, _, expected = golden_model(preset)
    trainable = {name for name, value in network.named_parameters() if value.requires_grad and value.dim() > 1}
    assert trainable == set(expected["l2_keys"])


def test_flow_generator_stays_in_eval_mode_and_unchanged_in_training(scene):
    network = scene.two_stream("deg_f").train()
    before = {key: value.clone() for key, value in network.flow_generator.state_dict().items()}
    network(torch.randn(2, 33, 32, 32)).logits.sum().backward()
    assert network.spatial_classifier.training and not network.flow_generator.training
    for key, value in network.flow_generator.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(value.grad is None for value in network.flow_generator.parameters())
    assert all(value.grad is not None for value in network.flow_classifier.parameters())


def test_concatenation_classifies_the_features_of_both_streams(scene):
    network = scene.two_stream("deg_f", fusion="concatenate").eval()
    with torch.inference_mode():
        output = network(torch.randn(2, 33, 32, 32))
    both = torch.cat([output.spatial_features, output.flow_features], dim=1)
    assert both.shape == (2, 1024)
    torch.testing.assert_close(output.logits, network.fusion.fc(both))
    assert output.spatial_logits is None and output.flow_logits is None


def test_final_batch_norm_comes_after_each_streams_linear_layer(scene):
    network = scene.two_stream("deg_f", final_bn=True).eval()
    network.load_state_dict(filled_state(network.state_dict()))
    with torch.inference_mode():
        output = network(torch.randn(2, 33, 32, 32))
        _, linear, norm = network.spatial_classifier
        torch.testing.assert_close(output.spatial_logits, norm(linear(output.spatial_features)))
    assert linear.bias is None


@pytest.mark.parametrize(("fusion", "final_bn"), [("average", False), ("average", True), ("concatenate", False)])
def test_class_bias_goes_to_every_last_layer(scene, fusion, final_bn):
    network = scene.two_stream("deg_f", num_classes=3, fusion=fusion, final_bn=final_bn)
    bias = torch.tensor([-1.0, 0.5, 2.0])
    network.set_class_bias(bias)
    biases = [network.get_parameter(f"{layer}.bias") for layer in network.class_layers if has_bias(network, layer)]
    assert len(biases) == (1 if fusion == "concatenate" else 2)
    assert all(torch.equal(value, bias) for value in biases)


def has_bias(network, layer):
    return network.get_submodule(layer).bias is not None


def test_log_odds_are_finite_for_classes_always_and_never_there():
    assert log_odds([1, 30, 10, 0, 0], [3, 10, 0, 10, 0]).tolist() == pytest.approx(
        [np.log(1 / 3), np.log(3), 1.0, 0.0, 0.0]
    )


@pytest.mark.parametrize("arch", EXTRACTORS)
@torch.inference_mode()
def test_every_extractor_gives_512_features_of_any_channels(arch):
    network = EXTRACTORS[arch](images=10, channels=2, dropout_p=0.5).eval()
    shape = (2, 20, 32, 32) if network.stacks_frames else (2, 2, 10, 32, 32)
    features = network(torch.randn(shape))
    assert features.shape == (2, network.num_features) == (2, 512)
    assert features.min() >= 0


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("deg_f", {"arch": "resnet3d_34"}, "Choose both from one preset"),
        ("deg_s", {"arch": "resnet18"}, "Choose both from one preset"),
        ("deg_f", {"arch": "resnet19"}, "expected one of resnet18"),
        ("deg_f", {"fusion": "sum"}, "expected average or concatenate"),
        ("deg_f", {"fusion": "concatenate", "final_bn": True}, "final_bn=false"),
        ("deg_f", {"n_rgb": 3}, "n_rgb=1"),
        ("deg_f", {"n_flows": 5}, "10 flows"),
    ],
)
def test_sections_that_do_not_go_together_are_refused(scene, preset, options, message):
    with pytest.raises(ConfigError, match=message):
        scene.two_stream(preset, **options)


def test_unknown_flow_generator_is_refused(scene):
    _, section = scene.two_stream_sections("deg_f")
    section.arch = "FlowNetS"
    with pytest.raises(ConfigError, match="expected one of TinyMotionNet, MotionNet"):
        build_flow_generator(section)
