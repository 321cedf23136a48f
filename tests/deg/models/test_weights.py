"""Weight files are read without running code from them, and they fit or are refused with a reason."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from fill import fill, filled_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from deg.errors import WeightsError
from deg.models.sequence import SEQUENCE_NETWORKS
from deg.models.two_stream import EXTRACTORS, FLOW_GENERATORS, Stream
from deg.models.weights import Checkpoint, load_two_stream, load_weights, read_checkpoint

SEQUENCE_RUN = "data/deg_project_original/models/261122_064227_sequence_train"
FLOW_CKPT = (
    "data/deg_project_original/models/261122_063818_flow_generator_train/lightning_checkpoints/epoch=0-step=3.ckpt"
)


def checkpoint_of(network, salt=1, prefix=""):
    """Return weights of that network in memory, filled by rule, with `prefix` before each name."""
    state = {f"{prefix}{key}": value for key, value in filled_state(network.state_dict(), salt).items()}
    return Checkpoint(Path("weights.pt"), state, epoch=3)


def assert_same(network, state):
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


# Reading


def test_the_originals_pt_is_read(shared_data):
    checkpoint = read_checkpoint(shared_data(SEQUENCE_RUN) / "checkpoint.pt")
    assert checkpoint.epoch == 3
    assert checkpoint.state_dict["classify1.1.bias"].shape == (4,)


@pytest.mark.parametrize("name", ["last.ckpt", "epoch=3-step=12.ckpt"])
def test_the_originals_lightning_checkpoint_holds_the_weights_of_its_pt(shared_data, scene, name):
    run = shared_data(SEQUENCE_RUN)
    network = scene.sequence(1024, 4)
    report = load_weights(network, run / "lightning_checkpoints" / name, strict=True)
    assert report.matched == report.total == 30 and report.missing == ()
    assert_same(network, read_checkpoint(run / "checkpoint.pt").state_dict)


def test_the_originals_flow_generator_checkpoint_fits_whole(shared_data):
    network = FLOW_GENERATORS["TinyMotionNet"](11)
    assert load_weights(network, shared_data(FLOW_CKPT), strict=True).matched == 53


def test_no_object_of_a_pickled_configuration_is_built(tmp_path, monkeypatch):
    options = OmegaConf.create({"sequence": {"arch": "tgmj", "sizes": [1, 2]}})
    content = {"epoch": 1, "state_dict": {"model.w": torch.ones(2)}, "hyper_parameters": options}
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.setattr(type(options), "__setstate__", lambda *_: pytest.fail("a DictConfig was built"))
    assert read_checkpoint(tmp_path / "last.ckpt").state_dict.keys() == {"model.w"}


class Attack:
    """Creates a folder when it is unpickled carelessly."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize(("function", "name"), [(os.mkdir, f"{os.mkdir.__module__}.mkdir"), (eval, "eval")])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused_by_the_name_of_what_it_calls(tmp_path, function, name, legacy):
    trap = tmp_path / "trap"
    argument = str(trap) if function is os.mkdir else f"__import__('os').mkdir({str(trap)!r})"
    content = {"epoch": 1, "state_dict": {"w": torch.ones(2)}, "hyperparameters": Attack(function, argument)}
    torch.save(content, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=rf"checkpoint\.pt: refused, because it names {name},"):
        read_checkpoint(tmp_path / "checkpoint.pt")
    assert not trap.exists()
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert trap.exists(), "the attack is no attack"


def test_bare_state_dicts_and_files_of_old_pytorch_are_read(tmp_path):
    torch.save({"w": torch.arange(3.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    checkpoint = read_checkpoint(tmp_path / "old.pt")
    assert checkpoint.epoch is None
    assert torch.equal(checkpoint.state_dict["w"], torch.arange(3.0))


def test_state_of_the_loss_is_left_out(tmp_path):
    state = {"model.w": torch.ones(1), "criterion.data_criterion.bcewithlogitsloss.pos_weight": torch.ones(4)}
    torch.save({"epoch": 2, "state_dict": state}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt").state_dict.keys() == {"model.w"}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty, cut short or another kind of file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "another kind of file"),
        (b"<!DOCTYPE html><html>Sign in</html>", "another kind of file"),
        (pickle.dumps([1, 2]), "another kind of file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"checkpoint\.pt: .*{message}"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [[torch.ones(2)], {}, {"state_dict": {}}, {"state_dict": None, "epoch": 1}])
def test_torch_files_without_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: expected a checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_an_absent_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(WeightsError, match="Is a directory"):
        read_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def checkpoint_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "checkpoint"
    content = {"epoch": 1, "state_dict": {"a.weight": torch.ones(3, 2), "a.bias": torch.zeros(3)}, "optimizer": None}
    written = []
    for new in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        written.append(path.read_bytes())
    return written


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(checkpoint_bytes, tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(checkpoint_bytes)))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_checkpoint(path).state_dict
    except WeightsError as error:
        assert "checkpoint.pt" in str(error)


# Fitting


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module.", "module.model."])
@pytest.mark.parametrize("arch", ["linear", "mlp"])
def test_prefixes_of_wrappers_are_taken_off_but_not_the_networks_own(scene, arch, prefix):
    """The names of an mlp always begin with `model.`."""
    network = scene.sequence(8, 3, arch=arch)
    checkpoint = checkpoint_of(network, prefix=prefix)
    report = load_weights(network, checkpoint, strict=True)
    assert report.matched == report.total
    assert_same(network, {key.removeprefix(prefix): value for key, value in checkpoint.state_dict.items()})


def test_a_stream_is_taken_out_of_a_two_stream_file(scene):
    whole, stream = scene.two_stream("deg_f"), Stream(EXTRACTORS["resnet18"](images=10, channels=2), 4)
    checkpoint = checkpoint_of(whole, prefix="model.")
    report = load_weights(stream, checkpoint, part="flow_classifier", strict=True)
    assert report.matched == 122
    expected = checkpoint.state_dict["model.flow_classifier.0.conv1.weight"]
    assert torch.equal(stream[0].conv1.weight, expected)


@pytest.mark.parametrize("arch", [arch for arch in SEQUENCE_NETWORKS if arch not in ("linear", "conv_nonlinear")])
def test_other_classes_leave_the_last_layers_fresh_and_say_so(scene, arch):
    network, other = scene.sequence(8, 3, arch=arch), scene.sequence(8, 7, arch=arch)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = load_weights(network, checkpoint_of(other))
    assert report.fresh_classifier
    assert all(key.startswith(network.class_layers) for key in report.missing)
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, before[key]) == (key in report.missing), key


def test_other_classes_are_refused_for_inference_with_both_numbers(scene):
    checkpoint = checkpoint_of(scene.sequence(8, 7))
    with pytest.raises(WeightsError, match=r"weights\.pt: the weights have 7 classes, the project 3"):
        load_weights(scene.sequence(8, 3), checkpoint, strict=True)


def test_a_last_layer_that_is_not_there_is_refused_for_inference(scene):
    checkpoint = checkpoint_of(scene.sequence(8, 3, final_bn=False))
    with pytest.raises(WeightsError, match=r"classify1\.0\.weight, is not in the file"):
        load_weights(scene.sequence(8, 3), checkpoint, strict=True)


def test_a_last_layer_on_other_features_is_not_taken_for_other_classes(scene):
    checkpoint = checkpoint_of(scene.sequence(16, 3, arch="linear"))
    with pytest.raises(WeightsError, match=r"conv1\.weight, to have shape \(3, 8, 1\), found shape \(3, 16, 1\)"):
        load_weights(scene.sequence(8, 3, arch="linear"), checkpoint, strict=True)


def test_a_network_of_one_layer_refuses_a_file_of_another_network(scene):
    checkpoint = checkpoint_of(scene.sequence(8, 3, arch="tgmj"))
    with pytest.raises(WeightsError, match="0 of 2 tensors match"):
        load_weights(scene.sequence(8, 3, arch="linear"), checkpoint)


def test_one_tensor_less_is_reported_in_training_and_refused_for_inference(scene):
    network = scene.sequence(8, 3)
    checkpoint = checkpoint_of(network)
    del checkpoint.state_dict["tgm_layers.1.center"]
    report = load_weights(network, checkpoint)
    assert report.missing == ("tgm_layers.1.center",) and not report.fresh_classifier
    with pytest.raises(WeightsError, match=r"only 17 of 18 tensors match.*tgm_layers\.1\.center"):
        load_weights(network, checkpoint, strict=True)


def test_counts_of_batches_may_be_missing_as_in_files_of_old_pytorch(scene):
    network = FLOW_GENERATORS["TinyMotionNet"](11)
    checkpoint = checkpoint_of(network)
    old = {key: value for key, value in checkpoint.state_dict.items() if not key.endswith("num_batches_tracked")}
    assert load_weights(network, Checkpoint(checkpoint.path, old, None), strict=True).missing == ()


def test_weights_of_another_architecture_are_refused_and_both_are_named(scene):
    network = scene.two_stream("deg_f")
    deep = {"spatial_classifier": Stream(EXTRACTORS["resnet50"](images=1, channels=3), 4)}
    checkpoint = checkpoint_of(torch.nn.ModuleDict(deep))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError) as raised:
        load_two_stream(network, checkpoint, None)
    message = str(raised.value)
    assert "weights.pt: only " in message and "of 100 tensors match in spatial_classifier" in message
    assert "Expected one stream of resnet18" in message and "looks like feature extractor resnet50" in message
    assert "layer1.0.conv1.weight, " in message
    assert_same(network, before)


@pytest.mark.parametrize("arch", FLOW_GENERATORS)
def test_a_flow_generator_given_as_feature_extractor_is_named(scene, arch):
    with torch.device("meta"):
        state = FLOW_GENERATORS[arch](11).state_dict()
    with pytest.raises(WeightsError, match=f"looks like flow generator {arch}"):
        load_two_stream(scene.two_stream("deg_f"), Checkpoint(Path("w.pt"), state, None), None)


@pytest.mark.parametrize("arch", EXTRACTORS)
def test_every_extractor_is_told_from_its_relatives(scene, arch):
    with torch.device("meta"):
        state = Stream(EXTRACTORS[arch](images=1, channels=3), 4).state_dict()
    state = {f"model.spatial_classifier.{key}": value for key, value in state.items()}
    with pytest.raises(WeightsError, match=f"looks like feature extractor {arch}[.]"):
        load_weights(scene.sequence(8, 3), Checkpoint(Path("w.pt"), state, None))


@pytest.mark.parametrize("arch", SEQUENCE_NETWORKS)
def test_every_sequence_network_is_recognised(scene, arch):
    state = scene.sequence(1024, 3, arch=arch).state_dict()
    with pytest.raises(WeightsError, match=f"looks like sequence network {arch}[.]"):
        load_weights(FLOW_GENERATORS["TinyMotionNet"](11), Checkpoint(Path("w.pt"), state, None))


def test_a_file_of_unknown_weights_says_that_it_is_unknown(scene):
    checkpoint = Checkpoint(Path("w.pt"), {"features.0.weight": torch.ones(1)}, None)
    with pytest.raises(WeightsError, match=r"0 of 18 tensors match.*looks like none that deg knows"):
        load_weights(scene.sequence(8, 3), checkpoint)


# The two-stream network and its flow generator


@pytest.mark.parametrize("own", [True, False])
def test_the_flow_generator_comes_from_its_own_file_or_from_the_extractors(scene, own):
    network = scene.two_stream("deg_f")
    extractor, flow = checkpoint_of(network, salt=1), checkpoint_of(network.flow_generator, salt=2)
    reports = load_two_stream(network, extractor, flow if own else None)
    assert reports.keys() == {"spatial_classifier", "flow_classifier", "flow_generator"}
    expected = {key: value for key, value in extractor.state_dict.items() if not key.startswith("flow_generator.")}
    inside = {key: value for key, value in extractor.state_dict.items() if key.startswith("flow_generator.")}
    beside = {f"flow_generator.{key}": value for key, value in flow.state_dict.items()}
    assert_same(network, expected | (beside if own else inside))


def test_concatenating_fusion_is_loaded_too(scene):
    network = scene.two_stream("deg_f", fusion="concatenate")
    checkpoint = checkpoint_of(network)
    assert "fusion" in load_two_stream(network, checkpoint, None)
    assert_same(network, checkpoint.state_dict)


def test_training_a_concatenating_fusion_starts_from_weights_that_average(scene):
    checkpoint = checkpoint_of(scene.two_stream("deg_f"))
    reports = load_two_stream(scene.two_stream("deg_f", fusion="concatenate"), checkpoint, None, strict=False)
    assert reports["fusion"].missing == ("fc.weight", "fc.bias")
    assert reports["spatial_classifier"].missing == ()


def test_training_starts_from_weights_of_other_classes(scene):
    network = scene.two_stream("deg_f", num_classes=4)
    checkpoint = checkpoint_of(scene.two_stream("deg_f", num_classes=700))
    reports = load_two_stream(network, checkpoint, None, strict=False)
    assert reports["spatial_classifier"].fresh_classifier and reports["flow_classifier"].fresh_classifier
    assert reports["flow_generator"].missing == ()
    with pytest.raises(WeightsError, match="700 classes, the project 4"):
        load_two_stream(network, checkpoint, None)


def test_loaded_weights_are_those_computed_with(scene, tmp_path):
    """Weights written to a file as the original writes it, and read again, give the same numbers."""
    network, again = fill(scene.sequence(8, 3), salt=4), scene.sequence(8, 3).eval()
    torch.save(
        {"epoch": 7, "state_dict": network.state_dict(), "optimizer": None, "hyperparameters": None},
        tmp_path / "checkpoint.pt",
    )
    assert load_weights(again, tmp_path / "checkpoint.pt", strict=True).path == tmp_path / "checkpoint.pt"
    features = torch.randn(1, 8, 20)
    assert torch.equal(again(features), network(features))
