"""The sequence networks give the original's numbers, on whole sequences and on ones shorter than their filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fill import fill

from deg.errors import ConfigError
from deg.models.sequence import SEQUENCE_NETWORKS, build_sequence
from deg.models.tgm import MixtureLayer

VARIANTS = [
    *[("tgmj", variant) for variant in ("default", "no_bn", "linear_head", "hard_attention", "mean")],
    *[("tgm", variant) for variant in ("default", "mean", "conv1x1", "hard_attention")],
    *[("conv_nonlinear", variant) for variant in ("default", "no_dropout", "wide")],
    *[("rnn", variant) for variant in ("default", "gru", "rnn", "bidirectional")],
    ("linear", "default"),
    ("mlp", "default"),
]


@pytest.fixture
def filled(golden, scene):
    def load(arch, variant):
        arrays, about = golden(arch)
        network = scene.sequence(about["features"], about["classes"], **about["configs"][variant])
        return fill(network, about["salt"]), arrays

    return load


@pytest.mark.parametrize(("arch", "variant"), VARIANTS)
@torch.inference_mode()
def test_logits_are_the_originals(filled, arch, variant):
    network, arrays = filled(arch, variant)
    for kind in ("", "_short"):
        if f"x{kind}" in arrays:
            logits = network(torch.from_numpy(arrays[f"x{kind}"])).numpy()
            np.testing.assert_allclose(logits, arrays[f"logits_{variant}{kind}"], rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize(("arch", "variant"), VARIANTS)
def test_filled_state_dict_has_the_originals_keys_shapes_and_sums(filled, arch, variant):
    network, arrays = filled(arch, variant)
    state = network.state_dict()
    keys, shapes, sums = (arrays[f"state_{what}_{variant}"] for what in ("keys", "shapes", "sums"))
    assert {key: "x".join(map(str, value.shape)) for key, value in state.items()} == dict(
        zip(keys, shapes, strict=True)
    )
    for key, total in zip(keys, sums, strict=True):
        assert float(state[key].double().sum()) == pytest.approx(total, rel=1e-6, abs=1e-6), key


@pytest.mark.parametrize("arch", ["tgm", "tgmj"])
def test_filters_are_the_originals(filled, arch):
    network, arrays = filled(arch, "default")
    for index, layer in enumerate(network.tgm_layers):
        expected = arrays[f"gaussian_filters_layer{index}"][0]
        np.testing.assert_allclose(layer.bells().detach().numpy(), expected, rtol=1e-5)


def test_bells_are_those_worked_out_by_hand():
    layer = MixtureLayer(1, 1, n_filters=3, filter_length=5, soft_attn=True)
    with torch.no_grad():
        layer.center.copy_(torch.tensor([-0.5, 0.0, 0.7]))
        layer.gamma.copy_(torch.tensor([0.0, 0.3, -1.0]))
    expected = [
        [0.212467, 0.224645, 0.215542, 0.189733, 0.157609],
        [0.154687, 0.218576, 0.253472, 0.218576, 0.154687],
        [0.038501, 0.074258, 0.179308, 0.433917, 0.274015],
    ]
    np.testing.assert_allclose(layer.bells().detach().numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("soft_attn", [True, False])
@pytest.mark.parametrize("filter_length", [4, 7])
def test_one_convolution_equals_a_sum_of_filtered_channels(soft_attn, filter_length):
    """The fused layer equals the definition, map by map."""
    layer = MixtureLayer(3, 2, n_filters=4, filter_length=filter_length, soft_attn=soft_attn)
    sequences = torch.randn(5, 3, 20)
    filters = (torch.softmax(layer.soft_attn, dim=1) @ layer.bells()).view(2, 3, 1, 1, filter_length)
    before = (filter_length - 1) // 2
    padded = torch.nn.functional.pad(sequences, (before, filter_length - 1 - before))
    outputs = []
    for output in range(2):
        maps = torch.cat(
            [torch.conv1d(padded[:, i : i + 1], filters[output, i]) for i in range(3)], dim=1
        )  # [5, 3, 20]
        if soft_attn:
            outputs.append((maps * torch.softmax(layer.cls_attn, dim=2)[0, output, :, :, 0]).sum(dim=1))
        else:
            outputs.append(torch.relu(layer.convs[output](maps[..., None]))[:, 0, :, 0])
    torch.testing.assert_close(layer(sequences), torch.stack(outputs, dim=1), rtol=1e-5, atol=1e-6)


def test_delta_and_h2_have_no_influence(scene):
    network = scene.sequence(16, 3).eval()
    features = torch.randn(1, 16, 30)
    before = network(features)
    with torch.no_grad():
        network.h2.weight.add_(1)
        for layer in network.tgm_layers:
            layer.delta.add_(1)
    assert torch.equal(network(features), before)


@pytest.mark.parametrize("final_bn", [True, False])
def test_tgmj_classifiers_share_one_bias_through_training(scene, final_bn):
    network = scene.sequence(16, 3, final_bn=final_bn).train()
    network.set_class_bias(torch.tensor([-1.0, 0.0, 1.0]))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.randn(4, 16, 30)).square().sum().backward()
    optimiser.step()
    biases = [value for key, value in network.state_dict().items() if key.startswith("classify") and "bias" in key]
    assert len(biases) == 2 and torch.equal(*biases)
    assert not torch.equal(biases[0], torch.tensor([-1.0, 0.0, 1.0]))


def test_conv_nonlinear_has_each_tensor_once_under_two_names(scene):
    network = scene.sequence(16, 3, arch="conv_nonlinear")
    state = network.state_dict()
    assert state["conv2.weight"].data_ptr() == state["net.4.weight"].data_ptr()
    assert len(list(network.parameters())) == len(state) // 2 - 3  # without mean, variance and count of the batch norm


@pytest.mark.parametrize("arch", SEQUENCE_NETWORKS)
def test_every_network_names_the_layers_that_depend_on_the_classes(scene, arch):
    few, many = (scene.sequence(16, classes, arch=arch) for classes in (3, 7))
    many_state = many.state_dict()
    depend = {key.rpartition(".")[0] for key, value in few.state_dict().items() if value.shape != many_state[key].shape}
    inside = {key for key in depend if any(f"{key}.".startswith(f"{layer}.") for layer in few.class_layers)}
    assert depend == inside
    assert all(few.get_submodule(layer) is not None for layer in few.class_layers)


@pytest.mark.parametrize("arch", [arch for arch in SEQUENCE_NETWORKS if arch != "conv_nonlinear"])
def test_class_bias_is_the_logits_bias(scene, arch):
    network = scene.sequence(16, 3, arch=arch, final_bn=False).eval()
    features = torch.randn((2, 16) if arch == "mlp" else (2, 16, 9))
    network.set_class_bias(torch.zeros(3))
    before = network(features)
    network.set_class_bias(torch.tensor([1.0, 2.0, 3.0]))
    shift = (network(features) - before).transpose(0, 1).flatten(1)
    torch.testing.assert_close(shift, torch.tensor([[1.0], [2.0], [3.0]]).expand_as(shift), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "message"), [({"arch": "lstm"}, "expected one of tgmj"), ({"c_in": 2}, "c_in=1")])
def test_impossible_sections_are_refused(scene, options, message):
    with pytest.raises(ConfigError, match=message):
        build_sequence(scene.sequence_section(**options), 16, 3)
