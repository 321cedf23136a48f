"""Every network, in every variant, has the names, order and shapes of the original's weight files.

state_shapes.json holds, for 5 classes and 1024 features, the sha256 of the lines "name 64x3x7x7" in order.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

KNOWN = json.loads(Path(__file__).with_name("state_shapes.json").read_text())

SEQUENCE_VARIANTS = {
    "tgmj.final_bn_false": {"final_bn": False},
    "tgmj.nonlinear_classification_false": {"nonlinear_classification": False},
    "tgmj.nonlinear_classification_false.final_bn_false": {"nonlinear_classification": False, "final_bn": False},
    "tgmj.num_layers_1": {"num_layers": 1},
    "tgmj.soft_attn_false": {"soft_attn": False},
    "tgmj.tgm_reduction_conv1x1": {"tgm_reduction": "conv1x1"},
    "rnn.gru": {"rnn_style": "gru"},
    "rnn.rnn": {"rnn_style": "rnn"},
    "rnn.lstm_bidirectional": {"bidirectional": True},
}
TWO_STREAM_VARIANTS = {"fusion_concatenate": {"fusion": "concatenate"}, "final_bn_true": {"final_bn": True}}


@pytest.fixture
def network(scene):
    """Build the network of an entry such as deg_f.spatial, sequence.tgmj or variant.sequence.rnn.gru."""

    def make(name):
        first, *middle, last = name.removeprefix("variant.").split(".")
        if first == "sequence":
            variant = ".".join([*middle, last])
            return scene.sequence(1024, 5, arch=variant.split(".")[0], **SEQUENCE_VARIANTS.get(variant, {}))
        options = TWO_STREAM_VARIANTS[middle[0]] if middle else {}
        whole = scene.two_stream(first, num_classes=5, **options)
        parts = {"spatial": whole.spatial_classifier, "flow": whole.flow_classifier}
        return {"hidden_two_stream": whole, "flow_generator": whole.flow_generator, **parts}[last]

    return make


def shapes_of(network):
    return {key: list(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize("name", KNOWN)
def test_names_order_and_shapes_are_the_originals(network, name):
    with torch.device("meta"):
        shapes = shapes_of(network(name))
    lines = "\n".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
    assert len(shapes) == KNOWN[name]["tensors"]
    assert hashlib.sha256(lines.encode()).hexdigest() == KNOWN[name]["sha256"]


@pytest.mark.parametrize("name", KNOWN)
def test_names_and_shapes_one_by_one(network, name, shared_data):
    """This checks the same as the digests above, but a difference can be read."""
    reference = json.loads(shared_data("reference/state-dicts.json").read_text())
    with torch.device("meta"):
        shapes = shapes_of(network(name))
    assert list(shapes.items()) == list(reference[name].items())
