"""BoostLU, the CAM head, and the backbones with their weights."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from raypaml.model.backbones import RESNETS, Backbone, build_backbone
from raypaml.model.cam import CamClassifier, boostlu, pool_parts

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


# --- Backbones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "grid"),
    [("small", 128, 8), ("resnet18", 512, 2), ("resnet34", 512, 2), ("resnet50", 2048, 2), ("resnet101", 2048, 2)],
)
def test_features_of_a_64_px_image(name: str, channels: int, grid: int) -> None:
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, channels, grid, grid)
    assert backbone.num_channels == channels


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet52", "did you mean 'resnet50'"), ("smal", "did you mean 'small'"), ("vit", "Known: small")],
)
def test_an_unknown_backbone_is_refused_with_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"backbone='{name}': no such backbone; {hint}.*, resnet101$"):
        build_backbone(name)


# --- Weights --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_resnet18() -> dict[str, Tensor]:
    torch.manual_seed(4)
    return torchvision.models.resnet18().state_dict()


def assert_holds(backbone: Backbone, weights: dict[str, Tensor]) -> None:
    held = backbone.state_dict()
    assert set(weights) - set(held) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, weights[name]) for name, value in held.items())


def test_safetensors_weights_load(whole_resnet18: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(whole_resnet18, tmp_path / "w.safetensors")
    assert_holds(build_backbone("resnet18", str(tmp_path / "w.safetensors")), whole_resnet18)


@pytest.mark.parametrize("wrapped", [False, True])
def test_pytorch_weights_load(whole_resnet18: dict[str, Tensor], tmp_path: Path, wrapped: bool) -> None:
    torch.save({"state_dict": whole_resnet18} if wrapped else whole_resnet18, tmp_path / "w.pth")
    assert_holds(build_backbone("resnet18", str(tmp_path / "w.pth")), whole_resnet18)


class Payload:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_pickled_payload_is_refused_and_never_runs(tmp_path: Path, suffix: str) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "armed")))
    assert (tmp_path / "armed").is_dir()
    torch.save({"conv1.weight": Payload(tmp_path / "ran")}, tmp_path / f"w.{suffix}")
    refusal = "refused, it holds more than tensors" if suffix == "pth" else "not a readable weight file"
    with pytest.raises(ValueError, match=rf"w\.{suffix}: {refusal}"):
        build_backbone("resnet18", str(tmp_path / f"w.{suffix}"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"epoch": 3}, torch.zeros(2)])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: not a state dict of tensors"):
        build_backbone("small", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file_is_refused(whole_resnet18: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (torch.save if path.suffix == ".pth" else save_file)(whole_resnet18, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"weights=.*{name}: not a readable weight file \(."):
        build_backbone("resnet18", str(path))


def test_weights_that_do_not_fit_name_the_keys(tmp_path: Path) -> None:
    weights = build_backbone("small").state_dict()
    weights["block0.0.weight"] = torch.zeros(1, 2)
    weights["stranger"] = weights.pop("block2.1.bias")
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="do not fit this backbone") as refusal:
        build_backbone("small", str(tmp_path / "w.safetensors"))
    faults = "block2.1.bias missing; stranger unknown; block0.0.weight is [1, 2], expected [32, 3, 4, 4]; 3 in all"
    assert faults in str(refusal.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weights=nowhere\.pth: no such file"):
        build_backbone("resnet18", "nowhere.pth")


@pytest.mark.parametrize("name", RESNETS)
def test_imagenet_weights_without_a_network_say_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(model: str, weights: str) -> None:
        asked.append((model, weights))
        raise URLError(OSError(101, "Network is unreachable"))

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    message = f"weights=imagenet: torchvision could not download .* of {name} .*unreachable.* --weights FILE"
    with pytest.raises(ValueError, match=message):
        build_backbone(name, "imagenet")
    assert asked == [(name, "DEFAULT")]


def test_imagenet_weights_for_a_backbone_without_any_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights=imagenet: there are none for backbone 'small'"):
        build_backbone("small", "imagenet")
