"""The losses equal the original's numbers, and are correct on scenes whose loss is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fill import filled_state
from torch import nn

from deg.models.two_stream import build_two_stream
from deg.options.schema import FeatureExtractor, FlowGenerator
from deg.train.losses import (
    L2,
    L2SP,
    CrossEntropy,
    FocalBCE,
    MotionNetLoss,
    class_weights,
    reconstruct,
    regularized_parameters,
    roughness,
    softmax_class_weights,
    structural_similarity,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ----------------------------------------------------------------- classification


def test_golden_focal_loss_and_gradient(golden):
    arrays, about = golden("classification_loss")
    for case in about["cases"]:
        name = case["name"]
        pos_weight = torch.tensor(arrays[f"{name}/pos_weight"]) if case["has_pos_weight"] else None
        logits = torch.tensor(arrays[f"{name}/logits"], requires_grad=True)
        loss = FocalBCE(pos_weight, gamma=case["gamma"], label_smoothing=case["label_smoothing"])(
            logits, torch.tensor(arrays[f"{name}/label"])
        )
        loss.backward()
        assert loss.item() == pytest.approx(float(arrays[f"{name}/loss"]), rel=1e-5), name
        np.testing.assert_allclose(logits.grad, arrays[f"{name}/grad"], rtol=1e-4, atol=1e-6, err_msg=name)


def test_an_ignored_cell_has_neither_loss_nor_gradient():
    logits = torch.tensor([[0.3, 5.0]], requires_grad=True)
    loss = FocalBCE()(logits, torch.tensor([[1, -1]]))
    loss.backward()
    assert loss.item() == pytest.approx(FocalBCE()(torch.tensor([[0.3]]), torch.tensor([[1]])).item())
    assert logits.grad[0, 1] == 0


def test_the_focal_loss_of_a_sequence_is_the_sum_over_its_frames():
    logits, labels = torch.randn(2, 3, 7), torch.randint(-1, 2, (2, 3, 7))
    loss = FocalBCE(torch.tensor([0.5, 1.0, 2.0]))
    of_frames = sum(loss(logits[:, :, t], labels[:, :, t]) for t in range(7))
    torch.testing.assert_close(loss(logits, labels), of_frames)


def test_the_focal_loss_is_computed_in_float32_under_autocast():
    logits, labels = torch.tensor([[9.7, -9.7]]), torch.tensor([[1, 0]])
    outside = FocalBCE()(logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        inside = FocalBCE()(logits, labels)
    assert inside.dtype == torch.float32 and inside == outside


def test_golden_class_weights(golden):
    arrays, _ = golden("classification_loss")
    positives, negatives = torch.tensor(arrays["weights/num_pos"]), torch.tensor(arrays["weights/num_neg"])
    for exponent in ("0", "0.25", "1"):
        expected = arrays[f"weights_exp{exponent}/pos_weight"]
        np.testing.assert_allclose(class_weights(positives, negatives, float(exponent)), expected, rtol=1e-6)
        expected = arrays[f"weights_exp{exponent}/softmax_weight"]
        np.testing.assert_allclose(softmax_class_weights(positives, float(exponent)), expected, rtol=1e-6)


def test_a_class_that_is_always_there_weighs_one_and_one_that_never_is_nothing():
    weights = class_weights(torch.tensor([10, 0, 2]), torch.tensor([0, 10, 8]), 1.0)
    assert weights.tolist() == [1, 0, 4]


def test_cross_entropy_of_certain_and_of_ignorant_networks():
    """Equal logits over K classes cost log K; a certain and correct one costs nothing, nor does an ignored one."""
    logits = torch.tensor([[0.0, 0, 0, 0], [99, 0, 0, 0], [0, 99, 0, 0]])
    loss = CrossEntropy()(logits, torch.tensor([2, 0, -1]))
    assert loss.item() == pytest.approx(np.log(4) / 3)


def test_cross_entropy_sums_over_time_and_averages_over_the_batch():
    loss = CrossEntropy()(torch.zeros(2, 4, 5), torch.zeros(2, 5, dtype=torch.long))
    assert loss.item() == pytest.approx(5 * np.log(4))


def test_cross_entropy_can_weight_classes():
    loss = CrossEntropy(torch.tensor([1.0, 3.0]))(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((1 + 3) * np.log(2) / 2)


def test_no_loss_adds_to_a_checkpoint():
    assert not FocalBCE(torch.ones(3)).state_dict() and not CrossEntropy(torch.ones(3)).state_dict()


# ----------------------------------------------------------------- optical flow


@pytest.mark.parametrize("layout", ["2d", "3d"])
@pytest.mark.parametrize("variant", ["default", "smooth3", "sparse"])
def test_golden_flow_loss_and_gradient(golden, layout, variant):
    arrays, about = golden("flow_loss")
    case = next(case for case in about["cases"] if case["name"] == f"{layout}_{variant}")
    expected = {key.removeprefix(f"{case['name']}/"): value for key, value in arrays.items()}
    flows = [torch.tensor(expected[f"flow_{level}"], requires_grad=True) for level in range(3)]
    loss = MotionNetLoss(
        smooth_weight_multiplier=case.get("smooth_weight_multiplier", 1.0),
        sparsity_weight=case.get("sparsity_weight", 0.0),
    )
    terms = loss(torch.tensor(arrays["clip"]).float() / 255, flows)
    terms.total.backward()
    assert terms.total.item() == pytest.approx(float(expected["loss"]), rel=1e-5)
    np.testing.assert_allclose(terms.ssim.detach(), expected["SSIM"], rtol=1e-5)
    np.testing.assert_allclose(terms.l1.detach(), expected["L1"], rtol=1e-5)
    np.testing.assert_allclose(terms.smoothness.detach(), expected["smoothness"], rtol=1e-5)
    sparsity = expected.get("flow_sparsity", np.zeros_like(expected["SSIM"]))
    np.testing.assert_allclose(terms.sparsity.detach(), sparsity, rtol=1e-5)
    for level, flow in enumerate(flows):
        np.testing.assert_allclose(flow.grad, expected[f"grad_{level}"], rtol=1e-4, atol=1e-6)


def test_golden_reconstruction(golden):
    """All frames except the first of each clip are moved by the flow of level 2, at its size, in the 2-d case."""
    arrays, _ = golden("flow_loss")
    frames = torch.tensor(arrays["clip"]).float().div(255).transpose(1, 2)
    flow = torch.tensor(arrays["2d_default/flow_2"]).unflatten(1, (-1, 2)).flatten(0, 1)
    source = torch.nn.functional.interpolate(frames[:, 1:].flatten(0, 1), size=flow.shape[-2:], mode="bilinear")
    expected = arrays["2d_default/reconstructed_2"]
    np.testing.assert_allclose(reconstruct(source, flow), expected, rtol=1e-4, atol=1e-6)


def test_without_flow_the_reconstruction_is_the_image():
    image = torch.rand(2, 3, 5, 7)
    torch.testing.assert_close(reconstruct(image, torch.zeros(2, 2, 5, 7)), image)


def test_flow_points_to_where_the_pixel_comes_from():
    """A flow of (w - 1) / w to the right, in the original's scale, fetches a bright column from x = 4 to x = 3."""
    image = torch.zeros(1, 1, 6, 8)
    image[..., 4] = 1
    flow = torch.zeros(1, 2, 6, 8)
    flow[:, 0] = 7 / 8
    expected = torch.zeros(1, 1, 6, 8)
    expected[..., 3] = 1
    torch.testing.assert_close(reconstruct(image, flow), expected, rtol=0, atol=1e-5)


def test_beyond_the_border_its_pixels_are_repeated():
    image = torch.arange(8.0).expand(1, 1, 6, 8)
    torch.testing.assert_close(reconstruct(image, torch.full((1, 2, 6, 8), 99.0)), torch.full((1, 1, 6, 8), 7.0))


def test_an_image_is_perfectly_similar_to_itself():
    image = torch.rand(1, 3, 12, 13)
    torch.testing.assert_close(structural_similarity(image, image), torch.ones(1, 3, 12, 13))


def test_a_constant_flow_is_smooth():
    """Its remaining loss is the offset that keeps the gradient finite."""
    assert roughness(torch.full((1, 2, 4, 4), 3.0)).max() < 1e-3


def test_still_frames_and_no_flow_have_hardly_any_loss():
    clip = torch.rand(1, 3, 1, 16, 16).expand(1, 3, 11, 16, 16)
    flows = [torch.zeros(1, 20, size, size, requires_grad=True) for size in (8, 4, 2)]
    terms = MotionNetLoss(sparsity_weight=1.0)(clip, flows)
    terms.total.backward()
    assert terms.total < 0.005
    assert all(torch.isfinite(flow.grad).all() for flow in flows)


def test_the_flow_loss_is_computed_in_float32_under_autocast():
    clip = torch.rand(1, 3, 11, 16, 16)
    flows = [torch.randn(1, 20, size, size) for size in (8, 4, 2)]
    outside = MotionNetLoss()(clip, flows).total
    with torch.autocast("cpu", torch.bfloat16):
        inside = MotionNetLoss()(clip, flows).total
    assert inside.dtype == torch.float32 and inside == outside


# ----------------------------------------------------------------- regularisation


class Network(nn.Module):
    """A network with two regularised weights (conv.0.weight, head.weight), and all kinds that are not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.bn_projection = nn.Linear(2, 2)
        self.head = nn.Linear(2, 3)


def test_only_trainable_weights_of_layers_are_regularised():
    assert list(regularized_parameters(Network())) == ["conv.0.weight", "head.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["deg_f", "deg_s"])
def test_golden_l2_of_whole_networks(golden, preset):
    """Their flow generator is frozen, so it is not regularised."""
    arrays, about = golden(preset)
    arch, num_flows = about["arch"], about["num_flows"]
    extractor = FeatureExtractor(arch=arch["classifier"], n_rgb=arch["num_rgb"], n_flows=num_flows)
    flow_generator = FlowGenerator(arch=arch["flow_gen"], n_rgb=num_flows + 1)
    with torch.device("meta"):  # only regularised weights get memory and values
        network = build_two_stream(extractor, flow_generator, about["classes"])
    covered = regularized_parameters(network)
    assert sorted(covered) == sorted(arrays["l2_keys"])
    network.load_state_dict(filled_state(covered, about["salt"]), strict=False, assign=True)
    loss = L2(network, alpha=float(arrays["l2_alpha"]))()
    assert loss.item() == pytest.approx(float(arrays["l2_loss"]), rel=1e-5)


def test_l2_is_half_alpha_times_the_sum_of_squares_and_its_gradient_alpha_times_the_weight():
    model = Network()
    loss = L2(model, alpha=0.1)()
    loss.backward()
    expected = 0.05 * (model.conv[0].weight.square().sum() + model.head.weight.square().sum())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.head.weight.grad, 0.1 * model.head.weight.detach())
    assert model.head.bias.grad is None


def test_l2_follows_the_weights_as_they_are_trained():
    model = Network()
    l2 = L2(model, alpha=1.0)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert l2() == 0


def test_l2_sp_pulls_to_the_pretrained_weight_and_a_new_one_to_zero():
    model = Network()
    start = torch.randn_like(model.conv[0].weight)
    loss = L2SP(model, {"conv.0.weight": start, "head.weight": torch.zeros(9, 2)}, alpha=0.1, beta=0.01)()
    loss.backward()
    expected = 0.05 * (model.conv[0].weight - start).square().sum() + 0.005 * model.head.weight.square().sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.conv[0].weight.grad, 0.1 * (model.conv[0].weight.detach() - start))
    torch.testing.assert_close(model.head.weight.grad, 0.01 * model.head.weight.detach())


def test_l2_sp_at_its_starting_point_is_zero_with_a_finite_gradient():
    """Every fine-tuning starts there. The norm of the difference has no gradient at that point; its square has one."""
    model = Network()
    loss = L2SP(model, model.state_dict(), alpha=0.1, beta=0.01)()
    loss.backward()
    assert loss == 0
    assert model.head.weight.grad.abs().max() == 0


def test_l2_sp_keeps_its_starting_point_while_the_weights_move():
    """The pretrained weights may be the same tensors that the network was filled with."""
    model = Network()
    l2_sp = L2SP(model, model.state_dict(), alpha=2.0, beta=0.0)
    with torch.no_grad():
        model.head.bias.add_(1)
        model.head.weight.add_(1)
    assert l2_sp().item() == pytest.approx(6)


def test_l2_sp_without_pretrained_weights_is_l2_with_beta():
    model = Network()
    torch.testing.assert_close(L2SP(model, {}, alpha=0.1, beta=0.01)(), L2(model, alpha=0.01)())


def test_a_network_without_weights_has_no_regularisation():
    assert L2(nn.BatchNorm2d(2), alpha=1.0)() == 0
