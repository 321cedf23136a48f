"""A stream starts from torchvision's ImageNet weights, found where torch.hub keeps them, or says how to get them."""

from __future__ import annotations

import re

import pytest
import torch
from torchvision.models import resnet18, resnet34

from deg.errors import WeightsError
from deg.models.imagenet import find_imagenet, load_imagenet
from deg.models.two_stream import EXTRACTORS, Stream


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """The folder that torch.hub would download to; it does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def imagenet():
    """Weights of torchvision's resnet18 that stand for ImageNet's."""
    torch.manual_seed(5)
    return resnet18(weights=None).state_dict()


@pytest.fixture
def weight_file(torch_home, imagenet):
    torch_home.mkdir(parents=True)
    torch.save(imagenet, torch_home / "resnet18-f37072fd.pth")
    return torch_home / "resnet18-f37072fd.pth"


def stream(images: int, channels: int, arch: str = "resnet18") -> Stream:
    return Stream(EXTRACTORS[arch](images=images, channels=channels), num_classes=4)


# ---- loading


def test_a_stream_of_one_picture_is_torchvisions_network_but_for_its_classifier(weight_file, imagenet):
    spatial = stream(images=1, channels=3)
    classifier = spatial[1].weight.clone()
    load_imagenet(spatial, "resnet18", weight_file)
    state = spatial[0].state_dict()
    assert state.keys() == {key for key in imagenet if not key.startswith("fc.")}
    assert all(torch.equal(value, imagenet[key]) for key, value in state.items())
    assert torch.equal(spatial[1].weight, classifier)


def test_each_channel_of_a_flow_stream_starts_from_the_mean_of_red_green_and_blue(weight_file, imagenet):
    flow = stream(images=10, channels=2)
    load_imagenet(flow, "resnet18", weight_file)
    mean = imagenet["conv1.weight"].mean(dim=1)
    stem = flow[0].conv1.weight
    assert stem.shape == (64, 20, 7, 7)
    assert all(torch.equal(stem[:, channel], mean) for channel in range(20))
    assert torch.equal(flow[0].layer4[1].conv2.weight, imagenet["layer4.1.conv2.weight"])


def test_the_layer_that_torchvision_does_not_have_keeps_its_values(tmp_path):
    """That layer compresses the 2048 features of a wide network to 512."""
    from torchvision.models import resnet50

    torch.save(resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    spatial = stream(1, 3, "resnet50")
    before = spatial[0].compression_fc[0].weight.clone()
    load_imagenet(spatial, "resnet50", tmp_path / "resnet50.pth")
    assert torch.equal(spatial[0].compression_fc[0].weight, before)


def test_a_file_from_before_batches_were_counted_is_as_good(tmp_path, imagenet):
    old = {key: value for key, value in imagenet.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    load_imagenet(spatial := stream(1, 3), "resnet18", tmp_path / "old.pth")
    assert torch.equal(spatial[0].bn1.weight, imagenet["bn1.weight"])


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(WeightsError, match=r"resnet34\.pth: expected .* of resnet50, with layer1"):
        load_imagenet(stream(1, 3, "resnet50"), "resnet50", tmp_path / "resnet34.pth")


def test_a_file_cut_short_is_refused_by_name(weight_file):
    content = weight_file.read_bytes()
    weight_file.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth"):
        load_imagenet(stream(1, 3), "resnet18", weight_file)


# ---- finding


def test_the_file_is_found_where_torch_keeps_its_downloads(weight_file):
    assert find_imagenet("resnet18") == weight_file


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_where_it_is_missing_the_message_says_how_to_get_it_and_what_else_to_do(torch_home, arch):
    with pytest.raises(WeightsError) as caught:
        find_imagenet(arch)
    message = str(caught.value)
    assert re.search(rf"curl .*{torch_home}/{arch}-\w{{8}}\.pth https://download\.pytorch\.org/models/{arch}-", message)
    assert "feature_extractor.weights" in message and "random" in message


def test_without_torch_home_it_is_looked_for_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=str(tmp_path / ".cache/torch/hub/checkpoints")):
        find_imagenet("resnet34")


def test_a_3d_network_has_none(torch_home):
    with pytest.raises(WeightsError, match=r"no ImageNet weights of resnet3d_34.*pretrained, to a path, or to random"):
        find_imagenet("resnet3d_34")
