"""BoostLU and the CAM head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from raypaml.model.backbones import build_backbone
from raypaml.model.cam import CamClassifier, boostlu, pool_parts
from raypaml.runs.models import build_model
from raypaml.settings import ModelConfig

ALPHAS = [1.0, 1.5, 5.0]


def uint8_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Pixels(nn.Identity):
    """A backbone whose features are the pixels."""

    num_channels = 3


# --- BoostLU --------------------------------------------------------------------------------------------------------


def test_boostlu_multiplies_the_positive_attributions() -> None:
    cam = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 2.0]])
    assert boostlu(cam, 5).tolist() == [[-2, -0.5, 0, 2.5, 10]]
    assert torch.equal(boostlu(cam, 5), torch.maximum(cam, 5 * cam))
    assert torch.equal(boostlu(cam, 1), cam)


def test_the_slope_of_boostlu_is_alpha_from_0_on() -> None:
    cam = torch.tensor([-1.0, -0.0, 0.0, 1.0], requires_grad=True)
    boostlu(cam, 5).sum().backward()
    assert cam.grad.tolist() == [1, 5, 5, 5]


@pytest.mark.parametrize("alpha", [0.5, 0, -5, float("nan")])
def test_alpha_below_1_is_refused(alpha: float) -> None:
    """Published defect: below 1 max(x, alpha x) and where(x > 0, alpha x, x) are different functions."""
    with pytest.raises(ValueError, match=rf"alpha={alpha}: BoostLU needs alpha >= 1 \(1 switches it off\)"):
        boostlu(torch.zeros(1), alpha)
    with pytest.raises(ValueError, match=f"alpha={alpha}"):
        CamClassifier(Pixels(), 2, alpha)


# --- The CAM head ---------------------------------------------------------------------------------------------------


@given(shape=st.tuples(*[st.integers(1, 4)] * 4), alpha=st.floats(1, 50), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_the_pooled_parts_give_the_boosted_mean_at_any_alpha(shape: tuple[int, ...], alpha: float, seed: int) -> None:
    cam = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    positive, negative = pool_parts(cam)
    assert (positive >= 0).all()
    assert (negative <= 0).all()
    torch.testing.assert_close(alpha * positive + negative, boostlu(cam, alpha).mean((-2, -1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_logits_are_the_mean_of_the_boosted_cam(alpha: float) -> None:
    torch.manual_seed(0)
    model = CamClassifier(build_backbone("small"), 7, alpha)
    images = uint8_images(2, 3, 64, 64)
    cam = model.cam(images)
    assert cam.shape == (2, 7, 8, 8)
    assert 0 < (cam > 0).float().mean() < 1
    torch.testing.assert_close(model(images), boostlu(cam, alpha).mean((-2, -1)), rtol=1e-5, atol=1e-6)
    positive, negative = model.pooled(images)
    assert torch.equal(alpha * positive + negative, model(images))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_reaching_the_cam_is_the_published_one(alpha: float) -> None:
    cam = torch.tensor([[[[-1.0, 0.0], [2.0, -3.0]]]], requires_grad=True)
    positive, negative = pool_parts(cam)
    (alpha * positive + negative).backward()
    assert cam.grad.flatten().tolist() == [1 / 4, alpha / 4, alpha / 4, 1 / 4]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_of_head_and_features_agree_with_differences(alpha: float) -> None:
    torch.manual_seed(1)
    model = CamClassifier(Pixels(), 4, alpha).double()
    nn.init.normal_(model.head.weight)
    pixels = 255 * torch.rand(2, 3, 3, 2, dtype=torch.float64)
    weight, bias = model.head.weight.detach(), torch.randn(4, dtype=torch.float64)

    def logits(*inputs: Tensor) -> Tensor:
        return functional_call(model, {"head.weight": inputs[1], "head.bias": inputs[2]}, inputs[0])

    assert torch.autograd.gradcheck(logits, [tensor.requires_grad_() for tensor in (pixels, weight, bias)])


def test_the_bias_is_inside_the_cam_and_boosted() -> None:
    """Published defect: one code's CAM leaves the bias out, so that its attributions are off by a constant."""
    model = CamClassifier(Pixels(), 2, alpha=5)
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([2.0, -3.0])
    images = uint8_images(1, 3, 4, 4)
    assert model.cam(images)[0, :, 1, 1].tolist() == [2, -3]
    assert model(images).tolist() == [[10, -3]]


def test_boostlu_is_active_in_evaluation() -> None:
    model = CamClassifier(build_backbone("small"), 3, alpha=5)
    images = uint8_images(1, 3, 32, 32)
    assert torch.equal(model.eval()(images), model.train()(images))
    assert not torch.equal(model(images), sum(model.pooled(images)))


def test_at_alpha_1_the_head_is_pooling_and_a_linear_layer() -> None:
    torch.manual_seed(2)
    model = CamClassifier(build_backbone("small"), 9, alpha=1)
    linear = nn.Linear(128, 9)
    model.head.weight.data = linear.weight.data[:, :, None, None]
    model.head.bias.data = linear.bias.data
    images = uint8_images(3, 3, 40, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = linear(model.backbone(pixels).mean((-2, -1)))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_under_bfloat16_autocast_the_logits_are_float32_and_learn() -> None:
    torch.manual_seed(3)
    model = CamClassifier(build_backbone("small"), 5, alpha=5)
    images = uint8_images(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.cam(images).dtype == torch.bfloat16
        logits = model(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(images), rtol=0.05, atol=0.02)
    logits.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_head_begins_with_its_prior_probability_and_the_same_weights() -> None:
    heads = []
    for prior in (0.0, 0.05):
        torch.manual_seed(0)
        heads.append(build_model(ModelConfig(backbone="small", head_prior=prior), 7).head)
    published, ours = heads
    assert torch.equal(published.weight, ours.weight)
    assert torch.equal(published.bias, torch.zeros(7))
    torch.testing.assert_close(torch.sigmoid(ours.bias), torch.full((7,), 0.05))


def test_a_head_begins_as_torch_does_where_that_is_asked() -> None:
    """As in the published code, whose heads are torch's own layers: all within 1 / sqrt(channels), biases too."""
    torch.manual_seed(0)
    head = build_model(ModelConfig(backbone="small", head_init="torch"), 400).head
    assert head.bias is not None
    bound = head.in_channels**-0.5
    for values in (head.weight, head.bias):
        assert 0.9 * bound < values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    usual = build_model(ModelConfig(backbone="small"), 400).head
    assert usual.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_logits_that_rank_for_rejection_have_their_own_alpha_and_no_gradient() -> None:
    torch.manual_seed(0)
    model = CamClassifier(Pixels(), 4, alpha=1.0)
    images = uint8_images(2, 3, 5, 6)
    plain = model(images)
    model.rejection_alpha = 20.0
    both = model(images)
    positive, negative = pool_parts(model.cam(images))
    torch.testing.assert_close(both[:, :4], plain, rtol=0, atol=0)
    torch.testing.assert_close(both[:, 4:], 20 * positive + negative)
    slope = torch.randn(2, 8)
    (ours,) = torch.autograd.grad(both, model.head.weight, slope)
    (expected,) = torch.autograd.grad(plain, model.head.weight, slope[:, :4])
    assert torch.equal(ours, expected)
